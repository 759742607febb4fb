# SPDX-License-Identifier: MIT
"""Patches in place of whole files: which, against what, and whether they are worth it.

A rebuilt kernel differs little from the one on the board. Where this machine still has what the board
holds, the file travels as a zstd patch, if that takes less time in all: on the link, here and on the board.
What it costs is measured: the link in earlier transfers, the board when it is asked what it has, this
machine as it goes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bsp.base.cache import state_dir, write_atomically
from bsp.remote.inventory import Host
from images.bundle.manifest import Entry, Manifest

from ..boot import slots
from ..onboard.frames import RefusedError
from ..onboard.patches import LARGEST_BYTES, Patches
from ..plan import Facts
from . import contents

SLOW_BYTES_PER_S = 12e6
"""What a link that nothing is known of, and that is not near, is taken for: 100 Mbit/s."""
FAST_BYTES_PER_S = 400e6
_HOST_BYTES_PER_S = 150e6
_BOARD_BYTES_PER_S = 100e6
_PASSES = 2.0
"""What a patch costs a board, in times of hashing the file: reading the old one, and unpacking."""
_HOPED_FOR = 0.1  # of the file's size; what is made is judged again by the size that it has


@dataclass(frozen=True)
class Costs:
    """What bytes cost, in bytes per second.

    Attributes:
        link: from here to the board.
        host: making patches, of the file's size.
        board: hashing.
    """

    link: float = SLOW_BYTES_PER_S
    host: float = _HOST_BYTES_PER_S
    board: float = _BOARD_BYTES_PER_S

    def whole_s(self, wire_bytes: float) -> float:
        """What a whole file takes."""
        return wire_bytes / self.link

    def patch_s(self, size_bytes: float, patch_bytes: float, *, made: bool) -> float:
        """What a patch takes; ``made``: the time to make it is spent already."""
        making_s = 0.0 if made else size_bytes / self.host
        return making_s + patch_bytes / self.link + _PASSES * size_bytes / self.board


def bases_for(
    manifest: Manifest,
    indexes: Sequence[int],
    facts: Facts,
    known: Mapping[str, Manifest],
) -> dict[int, Entry]:
    """Return what the board holds in place of files to be sent: the same path, in a generation there.

    Args:
        known: manifests of generations on the board, the preferred ones first.
    """
    held: dict[str, Entry] = {}
    for generation, other in known.items():
        damaged = set(facts.generations.get(generation, ()))
        for entry in other.files:
            there = (
                facts.fat_files.get(entry.sha256[:32]) == entry.size_bytes
                if slots.on_fat(entry)
                else entry.path not in damaged
            )
            if contents.is_patchable(entry) and there:
                held.setdefault(_role(entry, other), entry)
    found: dict[int, Entry] = {}
    for index in indexes:
        entry = manifest.files[index]
        base = held.get(_role(entry, manifest)) if contents.is_patchable(entry) else None
        if base and max(base.size_bytes, entry.size_bytes) <= LARGEST_BYTES:
            found[index] = base
    return found


def _role(entry: Entry, manifest: Manifest) -> str:
    """A file's path without the kernel's release."""
    prefix = f"modules/{manifest.kernel_release}/"
    return f"modules//{entry.path[len(prefix) :]}" if entry.path.startswith(prefix) else entry.path


class Maker:
    """Makes the patches of one transfer, and says where a whole file is better."""

    def __init__(self, bases: Mapping[int, Entry], costs: Costs) -> None:
        self._bases = {
            index: base for index, base in bases.items() if contents.is_here(base.sha256)
        }
        self._patches = Patches()
        self.costs = costs
        self.made_bytes = 0

    def has_base(self, index: int) -> bool:
        """Whether a patch can be made for this file."""
        return index in self._bases

    @property
    def key(self) -> tuple[object, ...]:
        """What the choice depends on, but for the costs."""
        return tuple((index, base.sha256) for index, base in sorted(self._bases.items()))

    def patch(self, index: int, content: bytes, wire_bytes: int) -> tuple[str, bytes] | None:
        """Return the SHA-256 of the base, and the patch; None if the whole file is better.

        Args:
            wire_bytes: what the whole file would take on the wire.
        """
        base_entry = self._bases.get(index)
        if base_entry is None:
            return None
        size = len(content)
        whole_s = self.costs.whole_s(wire_bytes)
        if self.costs.patch_s(size, _HOPED_FOR * size, made=False) >= whole_s:
            return None
        base = contents.read(base_entry.sha256)
        if base is None:
            return None
        began = time.monotonic()
        try:
            made = self._patches.make(base, content)
        except RefusedError:
            return None
        self._learn(size, time.monotonic() - began)
        if self.costs.patch_s(size, len(made), made=True) >= whole_s:
            return None
        return base_entry.sha256, made

    def _learn(self, size_bytes: int, seconds: float) -> None:
        self.made_bytes += size_bytes
        rate = size_bytes / max(seconds, 1e-6)
        # Half of what was known: one small file, or one busy moment, does not decide.
        self.costs = replace(self.costs, host=(self.costs.host + rate) / 2)


def remembered_rate(host: Host) -> float | None:
    """Bytes per second that the last large transfer to this host got through; None: there was none."""
    try:
        return float(json.loads(_rate_file(host).read_text())["bytes_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_rate(host: Host, bytes_per_s: float) -> None:
    """Remember how fast the link to this host was."""
    write_atomically(
        _rate_file(host), json.dumps({"bytes_per_s": round(bytes_per_s)}).encode() + b"\n"
    )


def _rate_file(host: Host) -> Path:
    return state_dir() / "links" / f"{host.name.replace('/', '_')}.json"
