# SPDX-License-Identifier: MIT
"""The page of file formats, made from the records that read the files: fields, types, docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec.inspect as mi

from bsp.profile import FORMAT, Board, Soc
from userspace.npu.model.estimate import Calibration
from userspace.npu.validate.records import ProfileRecord

HEAD = f"""\
# Formats of profiles, of calibrations and of time by operation

Made from the records that read them by `./inv docs`. This version reads **format {FORMAT}** of the files
of boards and SoCs (TOML; `format = {FORMAT}` stands at their top), and refuses others with what it reads.
When a format changes, the changelog says what to change in a file. An unknown key, a wrong type or an
impossible value is an error that names file, key and the nearest known key.

Each table of a file has a section: `[npu.clocks]` are the `clocks` of `[npu]`. A key whose type is a list
of tables is written as `[[npu.clocks]]` in TOML, once for each.

The inventory has its own page: [hosts.md](hosts.md#the-inventory). [A calibration](#calibration) is a JSON
file, in format 1; [time by operation](#profilerecord) a part of what `smoke-test` and `model-report` print
with `--json`.
"""
_PAGES = (
    (Board, ""),
    (Soc, ""),
    (
        Calibration,
        "The files: `userspace/npu/model/calibration/NAME.json`; "
        "[how to make one](model-report.md#your-boards-times).",
    ),
    (
        ProfileRecord,
        "Where: `profile` in `results` of `smoke-test --profile`, in `measured` of `model-report --host`; "
        "[what it means](validate.md#time-by-operation).",
    ),
)
_Table = mi.StructType | mi.TypedDictType


def formats_page() -> str:
    """The page of formats, in Markdown."""
    parts = [HEAD]
    for record, where in _PAGES:
        done: set[str] = set()
        waiting = [("", mi.type_info(record))]
        while waiting:
            path, kind = waiting.pop(0)
            if not isinstance(kind, _Table):
                raise TypeError(f"{record.__name__} {path} is not a table")
            if kind.cls.__name__ in done:
                continue
            done.add(kind.cls.__name__)
            title = f"## {record.__name__} [{path}]" if path else f"## {record.__name__}"
            about = _first_line(kind.cls) + (f" {where}" if where and not path else "")
            parts.append(f"{title}\n\n{about}\n{_table(kind)}")
            waiting += [
                (f"{path}.{field.encode_name}" if path else field.encode_name, inner)
                for field in kind.fields
                for inner in _records(field.type)
            ]
    return "\n".join(parts)


def _table(kind: _Table) -> str:
    meanings = _attributes(kind.cls)
    rows = []
    for field in kind.fields:
        needed = "" if not field.required else "required"
        default = needed or _default(field.default)
        inner = _records(field.type)
        meaning = meanings.get(field.name) or (_first_line(inner[0].cls) if inner else "")
        rows.append(f"| `{field.encode_name}` | {_type(field.type)} | {default} | {meaning} |")
    return "\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _first_line(cls: Any) -> str:
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split()).replace("``", "`")


def _attributes(cls: Any) -> dict[str, str]:
    """The ``Attributes:`` of a docstring: name to meaning."""
    # Python 3.13 takes the indentation away when it compiles, earlier ones leave it to the reader.
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return {key: value.replace("``", "`").replace("|", "\\|") for key, value in found.items()}


def _records(kind: mi.Type) -> list[_Table]:
    if isinstance(kind, _Table):
        return [kind]
    if isinstance(kind, mi.UnionType):
        return [record for each in kind.types for record in _records(each)]
    if isinstance(kind, mi.VarTupleType | mi.ListType):
        return _records(kind.item_type)
    return []


def _type(kind: mi.Type) -> str:
    if isinstance(kind, _Table):
        return "table"
    if isinstance(kind, mi.UnionType):
        return " or ".join(_type(each) for each in kind.types if not isinstance(each, mi.NoneType))
    if isinstance(kind, mi.VarTupleType | mi.ListType):
        return f"list of {_type(kind.item_type)}"
    if isinstance(kind, mi.DictType):
        return f"table of {_type(kind.value_type)}"
    if isinstance(kind, mi.LiteralType):
        return ", ".join(f'"{value}"' for value in kind.values)
    if isinstance(kind, mi.StrType) and kind.pattern:
        return f"text, `{kind.pattern}`".replace("|", "\\|")
    words: dict[type[mi.Type], str] = {
        mi.StrType: "text",
        mi.IntType: "whole number",
        mi.FloatType: "number",
        mi.BoolType: "true, false",
    }
    return words[type(kind)]


def _default(value: Any) -> str:
    if value in (None, (), "", {}) or not isinstance(value, str | int | float | bool):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
