# SPDX-License-Identifier: MIT
"""Mistakes in a profile in words: the key, what is wrong with its value, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from .base.errors import UserError, nearest
from .profile import Expectation

_SERIES = re.compile(r"\d+\.\d+")
_CONTROL = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_NUL = re.compile(r"\0")
_LONGEST_NAME = 240  # Linux has 255; a suffix is put behind it
_NUMBER = re.compile(r"\d[\d.]*")

# What the patterns of the records mean, by their text.
_PATTERNS = {
    r"^[a-z0-9][a-z0-9-]*$": "a name of small letters, digits and hyphens",
    r"^/": "a path that begins with /",
    r"^[0-9]+\.[0-9]+$": 'a kernel series such as "6.12"',
}


class ProfileError(UserError):
    """A value in a profile is wrong; ``key`` is where: ``boot.fat_mount``."""

    def __init__(self, file: object, key: str, message: str) -> None:
        super().__init__(
            f"{file}: {message}", hint="./inv board FILE --check lists all that is wrong"
        )
        self.key = key
        self.bare = message


def board_mistakes(data: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for strings that no file, program or screen takes, and for ``[expect]``.

    Args:
        data: the profile as TOML has it.
    """
    for key, text in _strings(data, ""):
        # What a device tree says of itself, new-board writes down as it is.
        forbidden = _NUL if key in ("title", "identity.models") else _CONTROL
        strange = next((letter for letter in text if forbidden.match(letter)), None)
        if strange is not None:
            yield key, f"{key} has the control character {strange!r}"
        elif key in ("dts", "dtb") and any(
            len(part.encode(errors="replace")) > _LONGEST_NAME for part in text.split("/")
        ):
            yield key, f"{key} is longer than a file's name can be ({_LONGEST_NAME} bytes)"
    yield from expectation_mistakes(data)


def _strings(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """The strings of a profile, each with its key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _strings(each, f"{key}.{name}" if key else str(name))


def expectation_mistakes(data: Any) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for each entry of ``[expect]`` that cannot be read.

    Args:
        data: the profile as TOML has it.
    """
    table = data.get("expect", {})
    if not isinstance(table, dict):
        yield (
            "expect",
            f'key \'expect\': expected a table ([expect] and "6.12" = "works"), found {table!r}',
        )
        return
    words = list(get_args(Expectation))
    for series, value in _flat(table):
        key = f"expect.{series}"
        if not _SERIES.fullmatch(series):
            match = _SERIES.match(series)
            better = f'; write "{match.group()}"' if match else ""
            yield key, f'[expect]: "{series}" is not a kernel series such as "6.12"{better}'
        elif series not in table:
            yield (
                key,
                f'[expect]: "{series}" = {_toml(value)}: quote it (without quotes TOML reads {series} as '
                f"the key {series.split('.')[1]} of a table {series.split('.')[0]})",
            )
        elif value not in words:
            yield (
                key,
                f"key {key!r} in [expect]: {value!r} is none of {', '.join(words)}"
                f"{nearest(str(value), words)}",
            )


def _flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested tables with their dotted keys."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _toml(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def explain(message: str, kind: type[Any], text: str) -> tuple[str, str]:
    """Turn msgspec's message into (key, words that name it and what it should be).

    Args:
        message: ``Expected `str`, got `float` - at `$.kernel```.
        text: the file, for how the value is written there.
    """
    complaint, _, where = message.partition(" - at ")
    where = where.strip("`").removeprefix("$").removeprefix(".").removesuffix("[...]")
    unknown = re.search(r"unknown field `(.+)`", complaint)
    if unknown:
        key = unknown.group(1)
        place = f"[{where}]" if where else "the top level"
        full = f"{where}.{key}" if where else key
        return full, f"unknown key {key!r} in {place}{nearest(key, _fields_at(kind, where))}"
    missing = re.search(r"missing required field `(.+)`", complaint)
    if missing:
        full = f"{where}.{missing.group(1)}" if where else missing.group(1)
        place = f"[{where}]" if where else "the top level"
        return full, f"key {missing.group(1)!r} is missing in {place}"
    pattern = re.search(r"matching regex '(.*)'", complaint)
    if pattern:
        meaning = _PATTERNS.get(
            pattern.group(1).replace("\\\\", "\\"), f"text like {pattern.group(1)}"
        )
        return where, f"key {where!r}: expected {meaning}{_as_written(where, text)}"
    return where, f"key {where!r}: {complaint}{_rewritten(complaint, where, text)}"


def _line_of(where: str, text: str) -> str:
    """Return what a file has behind ``KEY =``; empty where it is not on one line."""
    line = re.search(
        rf"^[ \t]*{re.escape(where.rpartition('.')[2])}[ \t]*=[ \t]*([^#\n]*)", text, re.M
    )
    return line.group(1).strip() if line else ""


def _as_written(where: str, text: str) -> str:
    written = _line_of(where, text)
    return f", found {written}" if written else ""


def _rewritten(complaint: str, where: str, text: str) -> str:
    """Return how a value of the wrong kind is to be written."""
    written, name = _line_of(where, text), where.rpartition(".")[2]
    if "Expected `str`" in complaint and _NUMBER.fullmatch(written):
        return f'; quote it: {name} = "{written}"'
    if "Expected `array`, got `str`" in complaint and written:
        return f"; write it as a list: {name} = [{written}]"
    if re.search(r"Expected `(int|float)`, got `str`", complaint):
        return "; write it as a number, without quotes and unit"
    if "Expected `int`, got `float`" in complaint:
        number = _number_in(where, text)
        return f"; write it without point and exponent: {number:_}" if number else ""
    if re.search(r"Expected `object.*`, got `array`", complaint):
        return f"; write the table once, in single brackets: [{where}]"
    if "Expected `bool`" in complaint:
        return "; write true or false, without quotes"
    return ""


def _number_in(where: str, text: str) -> int | None:
    """Return the first whole number that is written with a point or an exponent behind a key."""
    for word in re.findall(r"\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?", _line_of(where, text)):
        if re.search(r"[.eE]", word) and float(word).is_integer():
            return int(float(word))
    return None


def _fields_at(kind: type[Any], where: str) -> list[str]:
    """Names of the fields of the record at ``where`` (``npu.clocks[...]``) below ``kind``."""
    info: Any = msgspec.inspect.type_info(kind)
    for word in filter(None, re.split(r"\.|\[[^]]*\]", where)):
        info = next(field.type for field in info.fields if field.encode_name == word)
        while not hasattr(info, "fields"):
            if isinstance(info, msgspec.inspect.UnionType):
                info = next(
                    kind for kind in info.types if not isinstance(kind, msgspec.inspect.NoneType)
                )
            else:
                info = info.item_type
    return [field.encode_name for field in info.fields]
