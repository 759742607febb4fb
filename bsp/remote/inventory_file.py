# SPDX-License-Identifier: MIT
"""The inventory file: hosts and groups, as TOML, checked as it is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from bsp.base.errors import UserError, nearest
from bsp.base.text import content, decoded

from ..profile_errors import explain
from .host import Host

FORMAT = 1

_Text = Annotated[str, Meta(min_length=1)]
_User = Annotated[str, Meta(pattern=r"^[^\s@-][^\s@]*$")]
_Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*$")]
# A name, IPv4 or IPv6; what ssh takes behind HostName.
_Address = Annotated[
    str,
    Meta(pattern=r"^([\w.%][\w.%+-]*|[0-9a-fA-F]*:[0-9a-fA-F]*:[0-9a-fA-F:.]*(%[\w.-]+)?)$"),
]
_WORDS = {
    "address": "a name or an IP address alone (user and port are keys of their own)",
    "port": "a port number",
    "user": "a string: the name of a user alone, without blanks",
    "power": "a list of strings: the command and its arguments",
    "services": "a list of strings: names of systemd units",
    "tags": "a list of words: letters, digits, . _ -",
    "sudo": "true or false",
    "keep": "a number from 2 up",
    "verify_every": "a number from 0 up",
}
"""What a key's value has to be, in words; of all others: a string."""

_MAX_BYTES = 16 << 20  # of an inventory: some ten thousand boards


class HostEntry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One host: ``[hosts.NAME]``; what each key means is said of ``Host``."""

    address: _Address | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] = 22
    user: _User = "root"
    identity_file: _Text | None = None
    certificate_file: _Text | None = None
    known_hosts: _Text | None = None
    host_key_alias: _Text | None = None
    proxy_jump: _Text | None = None
    power: tuple[str, ...] = ()
    board: _Text | None = None
    console_log: _Text | None = None
    sudo: bool = False
    services: tuple[str, ...] = ()
    keep: Annotated[int, Meta(ge=2)] | None = None
    verify_every: Annotated[int, Meta(ge=0)] | None = None
    tags: tuple[_Word, ...] = ()

    def host(self, name: str) -> Host:
        """Return the host that this describes; its address is its name where none is given."""
        fields = msgspec.structs.asdict(self)
        for key in ("identity_file", "certificate_file", "known_hosts", "console_log"):
            fields[key] = Path(fields[key]).expanduser() if fields[key] else None
        return Host(name, fields.pop("address") or name, **fields)


class Inventory(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file.

    Attributes:
        format: of this file; one without it is of format 1.
        hosts: name to what the file says of it, not checked yet.
        groups: name to hosts, ``tag:T`` and ``group:G``.
    """

    format: int = FORMAT
    hosts: dict[str, Any] = {}
    groups: dict[str, Any] = {}


def read_inventory(path: Path) -> dict[str, tuple[Host, frozenset[str]]]:
    """Return the hosts of an inventory file, with the keys that the file sets for each.

    The file has one table a host::

        [hosts.desk-vim3]
        address = "192.168.1.30"
        board = "vim3"
        power = ["uhubctl", "-l", "1-1", "-p", "2", "-a", "cycle"]

    Raises:
        UserError: not TOML, another format, an unknown key, or a value of a wrong type.
    """
    return {
        name: (_entry(path, name, table).host(name), frozenset(table))
        for name, table in _read(path).hosts.items()
    }


def read_groups(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the groups of an inventory file: what each consists of, as it is written.

    ::

        [groups]
        desk = ["desk-vim3", "tag:bench"]

    Raises:
        UserError: not TOML, or a value of a wrong type.
    """
    groups = _read(path).groups
    for name, words in groups.items():
        try:
            msgspec.convert(name, _Word)
        except msgspec.ValidationError as error:
            raise UserError(
                f"{path}: {name!r} is not a name for a group: letters, digits, . _ -"
            ) from error
        try:
            msgspec.convert(words, list[_Text])
        except msgspec.ValidationError as error:
            raise UserError(
                f"{path}: [groups]: {name} is {words!r}, expected a list of hosts, tag:T and group:G"
            ) from error
    return {name: tuple(words) for name, words in groups.items()}


def _read(path: Path) -> Inventory:
    try:
        text = decoded(content(path, kind="the inventory", max_bytes=_MAX_BYTES))
        if text is None:
            raise UserError(f"{path} is not a text", hint="the inventory is a TOML file, in UTF-8")
        data = tomllib.loads(text)
    except FileNotFoundError:
        return Inventory()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    for key, example in (
        ("hosts", '[hosts.NAME], address = "..."'),
        ("groups", '[groups], NAME = ["HOST"]'),
    ):
        if not isinstance(data.get(key, {}), dict):
            raise UserError(f"{path}: {key!r} must be a table", hint=f"write {example}")
    try:
        inventory = msgspec.convert(data, Inventory, strict=True)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {explain(str(error), Inventory, '')[1]}") from error
    if inventory.format != FORMAT:
        raise UserError(
            f"{path}: format is {inventory.format}, this version reads format {FORMAT}",
            hint=f"docs/hosts.md describes format {FORMAT}",
        )
    return inventory


def _entry(path: Path, name: str, table: Any) -> HostEntry:
    where = f"{path}: [hosts.{name}]"
    if not isinstance(table, dict):
        raise UserError(f"{where} must be a table")
    for key in table:
        if key not in HostEntry.__struct_fields__:
            fields = list(HostEntry.__struct_fields__)
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    for key, value in table.items():  # each alone, so that the error can name it and its value
        try:
            msgspec.convert({key: value}, HostEntry, strict=True)
        except msgspec.ValidationError as error:
            expected = _WORDS.get(key, "a string")
            raise UserError(f"{where}: {key} is {value!r}, expected {expected}") from error
    return msgspec.convert(table, HostEntry)
