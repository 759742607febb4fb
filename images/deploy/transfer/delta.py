# SPDX-License-Identifier: MIT
"""Patches in place of whole files: for which files, against which base, and whether they are worth it.

A rebuilt kernel differs little from the one on the board. If this machine still has the content of the
board's file, the new one is sent as a zstd patch, provided that this takes less time in all: on the link,
here and on the board. These costs are measured: the link in earlier transfers, the board when its facts
are read, this machine as it makes patches.
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
"""Assumed rate of a link that is not local and was never measured: 100 Mbit/s."""
FAST_BYTES_PER_S = 400e6
_HOST_BYTES_PER_S = 150e6
_BOARD_BYTES_PER_S = 100e6
_PASSES = 2.0
"""Cost of a patch for the board, as multiples of hashing the file: reading the base, and unpacking."""
_EXPECTED_RATIO = 0.1  # of the file's size; the patch is judged again by its real size


@dataclass(frozen=True)
class Costs:
    """Rates that decide between patch and whole file, in bytes per second.

    Attributes:
        link: from here to the board.
        host: making patches, of the file's size.
        board: hashing.
    """

    link: float = SLOW_BYTES_PER_S
    host: float = _HOST_BYTES_PER_S
    board: float = _BOARD_BYTES_PER_S

    def whole_s(self, wire_bytes: float) -> float:
        """Return the time that a whole file takes."""
        return wire_bytes / self.link

    def patch_s(self, size_bytes: float, patch_bytes: float, *, made: bool) -> float:
        """Return the time that a patch takes; ``made``: without the time to make it, which is spent."""
        making_s = 0.0 if made else size_bytes / self.host
        return making_s + patch_bytes / self.link + _PASSES * size_bytes / self.board


def bases_for(
    manifest: Manifest,
    indexes: Sequence[int],
    facts: Facts,
    manifests: Mapping[str, Manifest],
) -> dict[int, Entry]:
    """Return the files on the board that patches are based on: the same path, in a generation there.

    Args:
        manifests: of generations on the board, the preferred ones first.
    """
    held: dict[str, Entry] = {}
    for generation, held_manifest in manifests.items():
        damaged = set(facts.generations.get(generation, ()))
        for entry in held_manifest.files:
            is_intact = (
                facts.fat_files.get(entry.sha256[:32]) == entry.size_bytes
                if slots.on_fat(entry)
                else entry.path not in damaged
            )
            if contents.is_patchable(entry) and is_intact:
                held.setdefault(_role(entry, held_manifest), entry)
    bases: dict[int, Entry] = {}
    for index in indexes:
        entry = manifest.files[index]
        base = held.get(_role(entry, manifest)) if contents.is_patchable(entry) else None
        if base and max(base.size_bytes, entry.size_bytes) <= LARGEST_BYTES:
            bases[index] = base
    return bases


def _role(entry: Entry, manifest: Manifest) -> str:
    """Return a file's path without the kernel's release."""
    prefix = f"modules/{manifest.kernel_release}/"
    return f"modules//{entry.path[len(prefix) :]}" if entry.path.startswith(prefix) else entry.path


class Maker:
    """Makes the patches of one transfer where they are faster than the whole file."""

    def __init__(self, bases: Mapping[int, Entry], costs: Costs) -> None:
        self._bases = {
            index: base for index, base in bases.items() if contents.is_here(base.sha256)
        }
        self._patches = Patches()
        self.costs = costs

    def has_base(self, index: int) -> bool:
        """Return whether a patch can be made for this file."""
        return index in self._bases

    @property
    def key(self) -> tuple[object, ...]:
        """The bases: what the patches depend on, apart from the costs."""
        return tuple((index, base.sha256) for index, base in sorted(self._bases.items()))

    def patch(self, index: int, content: bytes, wire_bytes: int) -> tuple[str, bytes] | None:
        """Return the SHA-256 of the base, and the patch; None if the whole file is better.

        Args:
            wire_bytes: size of the whole file on the wire, compressed.
        """
        base_entry = self._bases.get(index)
        if base_entry is None:
            return None
        size = len(content)
        whole_s = self.costs.whole_s(wire_bytes)
        if self.costs.patch_s(size, _EXPECTED_RATIO * size, made=False) >= whole_s:
            return None
        base = contents.read(base_entry.sha256)
        if base is None:
            return None
        began = time.monotonic()
        try:
            patch_bytes = self._patches.make(base, content)
        except RefusedError:
            return None
        self._learn(size, time.monotonic() - began)
        if self.costs.patch_s(size, len(patch_bytes), made=True) >= whole_s:
            return None
        return base_entry.sha256, patch_bytes

    def _learn(self, size_bytes: int, seconds: float) -> None:
        rate = size_bytes / max(seconds, 1e-6)
        # The average with the earlier rate: one small file, or one busy moment, does not decide.
        self.costs = replace(self.costs, host=(self.costs.host + rate) / 2)


def remembered_rate(host: Host) -> float | None:
    """Return the rate of the last large transfer to this host, in bytes per second; None without one."""
    try:
        return float(json.loads(_rate_file(host).read_text())["bytes_per_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember_rate(host: Host, bytes_per_s: float) -> None:
    """Remember the rate of the link to this host."""
    write_atomically(
        _rate_file(host), json.dumps({"bytes_per_s": round(bytes_per_s)}).encode() + b"\n"
    )


def _rate_file(host: Host) -> Path:
    return state_dir() / "links" / f"{host.name.replace('/', '_')}.json"
