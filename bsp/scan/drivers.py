# SPDX-License-Identifier: MIT
"""What the NPU drivers of a kernel tree know: their match tables and their hardware database."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import Struct

from ..profile import Identity
from .c_source import integer, seen_by_compiler

FILE = Path(__file__).with_name("drivers.toml")

# The kernel's wildcard in etnaviv_hwdb.c: ~0U matches any value.
_ANY = 0xFFFF_FFFF


class _Driver(Struct, frozen=True, forbid_unknown_fields=True):
    match: str
    database: str | None = None
    node_names: str | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    drivers: dict[str, _Driver]


@dataclass(frozen=True)
class Entry:
    """One identity in a hardware database; a value of 0xffffffff matches any."""

    model: int
    revision: int
    product_id: int
    customer_id: int
    eco_id: int
    nn_cores: int

    def knows(self, identity: Identity) -> bool:
        """Whether the driver takes this entry for an NPU, compared as ``etnaviv_hwdb.c`` does."""
        return (self.model, self.revision) == (identity.model, identity.revision) and all(
            mine in (_ANY, its)
            for mine, its in (
                (self.product_id, identity.product_id),
                (self.customer_id, identity.customer_id),
                (self.eco_id, identity.eco_id),
            )
        )


@dataclass(frozen=True)
class Driver:
    """An NPU driver of one kernel tree.

    Attributes:
        compatible: the strings in its match table; empty if the tree has no such driver.
        entries: its hardware database; None if it needs none.
        node_names: regular expression for the names of NPU nodes; None: all that it matches are NPUs.
    """

    name: str
    compatible: tuple[str, ...]
    entries: tuple[Entry, ...] | None
    node_names: str | None

    def takes(self, compatible: Sequence[str]) -> bool:
        """Whether the driver matches a node with these strings."""
        return any(string in self.compatible for string in compatible)

    def knows(self, identity: Identity | None) -> bool | None:
        """Whether the driver's database has an NPU.

        None where the driver needs no list, or where the NPU's numbers are not known, so that it cannot be
        told.
        """
        if self.entries is None or identity is None:
            return None
        return any(entry.knows(identity) and entry.nn_cores for entry in self.entries)

    def is_npu(self, node_path: str) -> bool:
        """Whether a node that the driver matches is an NPU, by its name."""
        name = node_path.rpartition("/")[2].partition("@")[0]
        return self.node_names is None or re.fullmatch(self.node_names, name) is not None


def drivers_of(tree: Path) -> dict[str, Driver]:
    """Return the NPU drivers of a kernel tree by name; also those that it does not have (yet)."""
    return {
        name: Driver(
            name,
            compatible_strings(_text(tree / entry.match)),
            database_entries(_text(tree / entry.database)) if entry.database else None,
            entry.node_names,
        )
        for name, entry in _known().items()
    }


def has_database(driver: str) -> bool:
    """Whether a driver takes only NPUs whose identity is in its source."""
    return _known()[driver].database is not None


def driver_files() -> tuple[str, ...]:
    """Return the files of a kernel tree that :func:`drivers_of` reads."""
    return tuple(
        file for entry in _known().values() for file in (entry.match, entry.database) if file
    )


def compatible_strings(source: str) -> tuple[str, ...]:
    """Return the strings in a driver's ``of_device_id`` table that are compiled."""
    code = seen_by_compiler(source)
    return tuple(dict.fromkeys(re.findall(r'\.compatible\s*=\s*"([^"]+)"', code)))


def database_entries(source: str) -> tuple[Entry, ...]:
    """Return the identities in ``etnaviv_hwdb.c``; in older kernels an entry may lack NN cores.

    What is commented out or left out by ``#if`` does not count.
    """
    entries = []
    for block in re.findall(r"\{([^{}]*\.model\s*=[^{}]*)\}", seen_by_compiler(source)):
        numbers = {
            name: _ANY if "~" in value else integer(value)
            for name, value in re.findall(
                r"\.(\w+)\s*=[\s(]*(~?\s*(?:0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*)", block
            )
        }
        if "model" not in numbers:
            continue  # a name that is defined elsewhere
        entries.append(
            Entry(
                numbers["model"],
                numbers.get("revision", _ANY),
                numbers.get("product_id", 0),
                numbers.get("customer_id", 0),
                numbers.get("eco_id", 0),
                numbers.get("nn_core_count", 0),
            )
        )
    return tuple(entries)


@functools.cache
def _known() -> dict[str, _Driver]:
    file = msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), _File)
    return file.drivers


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
