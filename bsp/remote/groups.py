# SPDX-License-Identifier: MIT
"""What ``--host`` means where it may be several: names with commas, ``tag:T``, ``group:G``.

Tags stand with the hosts of the inventory; groups are lists of hosts, tags and other groups. The order is
that in which they are written, which is the order of a fleet's waves; nobody is in it twice.
"""

from __future__ import annotations

from bsp.base.errors import UserError, nearest

from .inventory import Host, inventory_file, resolve
from .inventory_file import read_groups, read_inventory

_TAG, _GROUP = "tag:", "group:"


def is_multi_host(text: str) -> bool:
    """Whether ``--host TEXT`` is written as more than one host (a tag that one host has, too)."""
    if text.startswith("lab:"):  # one board; its commas are between tags
        return False
    return "," in text or text.startswith((_TAG, _GROUP))


def resolve_all(text: str) -> list[Host]:
    """Return the hosts that ``--host TEXT`` means, each once.

    Raises:
        UserError: a name, tag or group is not known, or groups contain each other.
    """
    names: dict[str, None] = {}
    for word in text.split(","):
        if not word.strip():
            raise UserError(
                f"--host {text!r} has an empty name", hint="write --host one,other or --host tag:T"
            )
        names.update(dict.fromkeys(_names(word.strip(), ())))
    return [resolve(name) for name in names]


def _names(word: str, within: tuple[str, ...]) -> list[str]:
    """The names of hosts that one word means; ``within``: the groups that it was found in."""
    file = inventory_file()
    if word.startswith(_TAG):
        tag = word.removeprefix(_TAG)
        listed = read_inventory(file)
        names = [name for name, (host, _) in listed.items() if tag in host.tags]
        if not names:
            tags = sorted({host_tag for host, _ in listed.values() for host_tag in host.tags})
            raise UserError(
                f"no host in {file} has the tag {tag!r}{nearest(tag, tags)}",
                hint=f'tags = ["{tag}"] in the entries of those that should have it',
            )
        return names
    if word.startswith(_GROUP):
        name = word.removeprefix(_GROUP)
        groups = read_groups(file)
        if name not in groups:
            raise UserError(
                f"there is no group {name!r} in {file}{nearest(name, sorted(groups))}",
                hint=f'[groups], {name} = ["HOST", "tag:T"]',
            )
        if name in within:
            raise UserError(
                f"{file}: the group {name!r} contains itself: {' > '.join((*within, name))}"
            )
        return [host for part in groups[name] for host in _names(part, (*within, name))]
    return [word]
