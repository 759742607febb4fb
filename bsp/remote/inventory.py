# SPDX-License-Identifier: MIT
"""Hosts: which machine a name means, and how it is reached.

``lab:TAGS`` is a board of a shared lab (see ``lab``); any other name is looked up among the running
virtual boards, then in the inventory file (``~/.config/npu-bsp/inventory.toml``), then in
``~/.ssh/config`` (see ``ssh_config``); what is none of these has to be written as ``user@address[:port]``.
What ``~/.ssh/config`` says about an address holds for all of them.
"""

from __future__ import annotations

import dataclasses
import getpass
import ipaddress
import json
import os
import re
from pathlib import Path
from typing import Any

from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import UserError, nearest

from .host import Host as Host
from .inventory_file import read_groups, read_inventory
from .ssh_config import ask_ssh, named_in_ssh_config, names_in_ssh_config

_PATHS = (
    "identity_file", "certificate_file", "known_hosts", "console_log", "revoked_host_keys",
)  # fmt: skip
_LISTS = ("power", "services", "tags", "known_hosts_command")
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^@:\s\[\]]+))"
    r"(?::(?P<port>\d+))?"
)


_NAME = re.compile(r"[\w.%][\w.%+-]*")


def inventory_file() -> Path:
    """The user's inventory: ``$NPU_BSP_INVENTORY``, or ``npu-bsp/inventory.toml`` in the XDG folder."""
    own = os.environ.get("NPU_BSP_INVENTORY")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "npu-bsp" / "inventory.toml"


def register(host: Host) -> None:
    """Remember a host (a virtual board that was started) until ``unregister``."""
    record = {
        key: [str(part) for part in value] if isinstance(value, tuple) else str(value)
        if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(host).items()
    }  # fmt: skip
    write_atomically(_record_file(host.name), json.dumps(record, indent=2).encode() + b"\n")


def unregister(name: str) -> None:
    """Forget a registered host; does nothing if it is not registered."""
    _record_file(name).unlink(missing_ok=True)


def registered() -> list[Host]:
    """All registered hosts, by name."""
    folder = state_dir() / "hosts"
    return [_from_record(file) for file in sorted(folder.glob("*.json"))]


def host_names() -> list[str]:
    """Names of the running virtual boards and of the inventory's hosts, sorted.

    Raises:
        UserError: the inventory is broken.
    """
    return sorted({*read_inventory(inventory_file()), *(host.name for host in registered())})


def resolve(name: str) -> Host:
    """Return the host that ``name`` means.

    Raises:
        UserError: the name is known nowhere and is not an address, or the inventory is broken.
    """
    host = _listed(name)
    if host is not None:
        return host
    if named_in_ssh_config(name):
        return _with_ssh_config(Host(name, name), already=frozenset())
    address = _address(name)
    if address is not None and (address[0] or address[2] or _is_ip(address[1])):
        return _at_address(name, address, default_user="root")
    names = sorted({*host_names(), *names_in_ssh_config()})
    start = _start_of_virtual(name)
    if start:
        raise UserError(f"the virtual board {name!r} does not run", hint=start)
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is neither a host name nor an address: expected user@address[:port]",
            hint="write such as --host root@192.168.1.30, root@board.lan:2222 or root@[fe80::1%eth0]:22",
        )
    if name in read_groups(inventory_file()):
        raise UserError(
            f"{name!r} is no host but a group of {inventory_file()}", hint=f"write group:{name}"
        )
    if any(name in host.tags for host, _ in read_inventory(inventory_file()).values()):
        raise UserError(
            f"{name!r} is no host but a tag in {inventory_file()}", hint=f"write tag:{name}"
        )
    raise UserError(
        f"unknown host {name!r}{nearest(name, names)}",
        hint=f"write --host root@{name} if it is an address, add it to {inventory_file()}, "
        "or start a virtual board: ./inv virtual.up --name NAME",
    )


def _start_of_virtual(name: str) -> str:
    """Return what starts the virtual board of that name; empty if no profile of that name is QEMU's."""
    from bsp.catalog import board_names, load_board
    from bsp.qemu.machine import start_command

    is_virtual = name in board_names() and load_board(name).qemu is not None
    return start_command(name) if is_virtual else ""


def resolve_jump(name: str) -> Host:
    """Return the host that a ``ProxyJump`` names.

    A board of the inventory is what it is there. Anything else is reached as ``ssh`` would, also a name
    that stands nowhere: as the user that ``~/.ssh/config`` says, or the local one.

    Raises:
        UserError: it is not an address, or the inventory is broken.
    """
    name = name.strip().removeprefix("ssh://")
    host = _listed(name)
    if host is not None:
        return host
    address = _address(name)
    if address is None:
        raise UserError(
            f"the jump host {name!r} is not an address",
            hint="ProxyJump takes [user@]address[:port]",
        )
    return _at_address(name, address, default_user=getpass.getuser())


def _listed(name: str) -> Host | None:
    """The running virtual board, board of a lab or host of the inventory of that name."""
    if not name or name.startswith("-") or re.search(r"[\s/]", name):
        raise UserError(f"{name!r} is not a host name", hint="write --host user@address[:port]")
    if name.startswith("lab:"):
        from . import lab  # late: labgrid is for those who have a lab

        return _with_ssh_config(lab.host(name), already=frozenset({"user", "port"}))
    record = _record_file(name)
    if record.exists():
        return _from_record(record)
    listed = read_inventory(inventory_file())
    if name in listed:
        host, settings = listed[name]
        _check_board(host)
        return _with_ssh_config(host, already=settings)
    return None


def _check_board(host: Host) -> None:
    """Refuse a host of the inventory whose profile does not exist: nothing would compare the two."""
    from bsp.catalog import board_names

    if host.board is None or host.board.endswith(".toml") or host.board in board_names():
        return
    raise UserError(
        f"{inventory_file()}: [hosts.{host.name}]: board is {host.board!r}, which is no board"
        f"{nearest(host.board, board_names())}",
        hint="./inv boards lists the boards",
    )


def _address(name: str) -> tuple[str, str, int] | None:
    """Take ``[user@]address[:port]`` apart: user or empty, address, port or 0; None: it is none."""
    user, at, rest = name.rpartition("@")
    if (user or not at) and _is_ip(rest):  # 2001:db8::1, without brackets: all of it is the address
        return user, rest, 0
    parsed = _ADDRESS.fullmatch(name)
    if parsed is None:
        return None
    port = int(parsed["port"] or 0)
    if parsed["port"] and not 0 < port < 65536:
        raise UserError(f"{name}: port {port} is outside 1-65535")
    return parsed["user"] or "", parsed["six"] or parsed["host"], port


def _at_address(name: str, address: tuple[str, str, int], *, default_user: str) -> Host:
    user, where, port = address
    already = frozenset(key for key, value in (("user", user), ("port", port)) if value)
    host = Host(name, where, port or 22, user or default_user)
    return _with_ssh_config(host, already=already)


def _from_record(path: Path) -> Host:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for key in _PATHS:
            record[key] = Path(record[key]) if record.get(key) else None
        for key in _LISTS:
            record[key] = tuple(record.get(key, ()))
        for key in ("more_identity_files", "more_known_hosts"):
            record[key] = tuple(map(Path, record.get(key, ())))
        system = record.get("system_known_hosts")
        record["system_known_hosts"] = None if system is None else tuple(map(Path, system))
        return Host(**record)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is broken: {error}", hint=f"rm {path}") from error


def _record_file(name: str) -> Path:
    return state_dir() / "hosts" / f"{name.replace('/', '_')}.json"


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _with_ssh_config(host: Host, *, already: frozenset[str]) -> Host:
    """Fill what ``ssh`` makes of ``~/.ssh/config`` into the fields that were not given (``already``).

    Raises:
        UserError: ``ssh`` cannot read it.
    """
    answer = ask_ssh(
        host.address,
        user=host.user if "user" in already else "",
        port=host.port if "port" in already else 0,
        default_user=host.user,
    )
    if answer is None:
        return host
    identities = [file for file in answer.identity_files if file.exists()]
    certificates = [file for file in answer.certificate_files if file.exists()]
    changes: dict[str, Any] = {"address": answer.address, "user": answer.user, "port": answer.port}
    if host.identity_file is None and identities:
        changes["identity_file"], *others = identities
        changes["more_identity_files"] = tuple(others)
    if host.certificate_file is None and certificates:
        changes["certificate_file"] = certificates[0]
    if host.known_hosts is None and answer.known_hosts:
        changes["known_hosts"], *others = answer.known_hosts
        changes["more_known_hosts"] = tuple(others)
    changes["identities_only"] = answer.identities_only
    changes["identity_agent"] = answer.identity_agent
    changes["known_hosts_command"] = answer.known_hosts_command
    changes["hash_known_hosts"] = answer.hash_known_hosts
    changes["system_known_hosts"] = answer.system_known_hosts
    changes["revoked_host_keys"] = host.revoked_host_keys or answer.revoked_host_keys
    if host.host_key_alias is None:
        changes["host_key_alias"] = answer.host_key_alias
    if host.proxy_jump is None:
        changes["proxy_jump"] = answer.proxy_jump
        changes["proxy_command"] = answer.proxy_command
        changes["proxy_hands_on"] = answer.proxy_hands_on
    return dataclasses.replace(host, **changes)
