# SPDX-License-Identifier: MIT
"""The scan of a kernel tree: its boards compiled, two at a time, looked at, and remembered.

What is remembered is keyed by everything that the answer depends on: the kernel source, the programs that
compile it, the profiles of the SoCs, and this package. A source that may change (``path:``) is told
apart by the size and time of each of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.at_once import at_once
from ..base.cache import cache_dir, keep
from ..base.errors import UserError
from ..base.progress import Step, step
from ..catalog import SOCS_DIR, load_soc, soc_names
from ..dts.compiler.compile import compile_dts, tool_key
from ..dts.inputs.kinds import overlay_mark
from ..dts.tree import read_tree
from ..kernel.distribution import all_series
from ..kernel.source import KernelTree, kernel_tree
from ..profile import Soc
from .classify import Row, classify, telling_words
from .drivers import driver_files, drivers_of
from .sources import Closures, Source, all_sources


@dataclass(frozen=True)
class Scan:
    """What was found in one kernel.

    Attributes:
        kernel: the source as it was named (``6.12``).
        release: ``6.12.107``.
        sources: how many boards the tree has.
        compiled: how many of them had to be compiled to know.
        rows: the boards with an NPU.
        boards: all sources, by name: also those without an NPU.
        failed: (source, message) of those that do not compile.
    """

    kernel: str
    release: str
    sources: int
    compiled: int
    rows: tuple[Row, ...]
    boards: frozenset[str]
    failed: tuple[tuple[str, str], ...]

    def document(self) -> dict[str, Any]:
        """Return the scan as a plain document; the names of its fields are stable."""
        return {
            "kernel": self.kernel,
            "release": self.release,
            "sources": self.sources,
            "compiled": self.compiled,
            "boards": [row.document() for row in self.rows],
            "failed": [{"source": source, "error": error} for source, error in self.failed],
        }


def scan_all(kernels: Sequence[str], *, fresh: bool = False) -> list[Scan]:
    """Return the scans of several kernels; of every packaged series if none is named.

    Raises:
        UserError: as :func:`scan`.
    """
    return [scan(kernel, fresh=fresh) for kernel in dict.fromkeys(kernels or all_series())]


def scan(kernel: str, *, fresh: bool = False, limit: Sequence[str] = ()) -> Scan:
    """Return which boards of a kernel have an NPU that a free driver knows or nearly knows.

    Args:
        kernel: kernel source as ``--kernel`` takes it.
        fresh: look again, also where the answer is remembered.
        limit: look at these sources only (``freescale/imx8mp-evk``); nothing is remembered then.

    Raises:
        UserError: the source cannot be read.
        InfrastructureError: it cannot be fetched.
    """
    tree = kernel_tree(kernel)
    memory = cache_dir() / "scans" / f"{_key(tree)}.json"
    if not fresh and not limit:
        try:
            return _remembered(json.loads(memory.read_bytes()), kernel)
        except (OSError, ValueError, KeyError, TypeError):
            pass  # never scanned, or the file is damaged: look
    with step(f"Scanning the device trees of Linux {tree.release}") as progress:
        result = look_at(tree, telling_sources(tree, limit), progress)
    # Where most fail, it is this machine (a full disk, a broken tool), not the source.
    if not limit and 2 * len(result.failed) <= result.compiled:
        document = {**result.document(), "all": sorted(result.boards)}
        keep(memory, json.dumps(document).encode())
    return result


def telling_sources(
    tree: KernelTree, limit: Sequence[str] = ()
) -> tuple[list[Source], list[Source]]:
    """Return (all boards of a tree, those that may have an NPU and have to be compiled)."""
    every = [source for source in all_sources(tree.path) if not limit or source.name in limit]
    words = telling_words(drivers_of(tree.path).values(), known_socs())
    closures = Closures(tree.path, words)
    return every, [source for source in every if closures.may_have(_file(tree, source))]


def look_at(tree: KernelTree, sources: tuple[list[Source], list[Source]], progress: Step) -> Scan:
    """Compile and look at the second of two lists of sources; the first is all of them."""
    every, telling = sources
    drivers, socs = drivers_of(tree.path), known_socs()
    rows: list[Row] = []
    failed: list[tuple[str, str]] = []

    with tempfile.TemporaryDirectory(prefix="npu-bsp-scan-") as work:

        def one(numbered_source: tuple[int, Source]) -> Row | None:
            number, source = numbered_source
            target = Path(work) / f"{number}.dtb"
            try:
                compile_dts(tree, source.directory, source.stem, target, arch=source.arch)
            except UserError as error:
                failed.append((source.name, error.message))
                return None
            compiled = read_tree(target.read_bytes(), source.name)
            target.unlink()
            progress.note(f"{number + 1} of {len(telling)} boards")
            if overlay_mark(compiled) is not None:
                return None  # vendors' trees have overlays among the boards
            return classify(source.name, compiled, drivers, socs)

        with at_once(os.cpu_count() or 1) as pool:
            rows = [row for row in pool.map(one, enumerate(telling)) if row is not None]
    return Scan(
        kernel=tree.name,
        release=tree.release,
        sources=len(every),
        compiled=len(telling),
        rows=tuple(rows),
        boards=frozenset(source.name for source in every),
        failed=tuple(sorted(failed)),
    )


def known_socs() -> list[Soc]:
    """Return the SoCs that a kernel's boards may have."""
    return [soc for soc in map(load_soc, soc_names()) if soc.compatible]


def _file(tree: KernelTree, source: Source) -> Path:
    return tree.path / "arch" / source.arch / "boot/dts" / source.directory / f"{source.stem}.dts"


def _key(tree: KernelTree) -> str:
    """Return what tells this scan from all others."""
    digest = hashlib.sha256()
    if tree.fixed:
        digest.update(tree.path.name.encode())
    else:
        for part in ("arch", "include", "scripts", *driver_files()):
            digest.update(_state(tree.path / part).encode())
    digest.update(tool_key("cpp", "dtc").encode())
    own = [*Path(__file__).parent.iterdir(), *(Path(__file__).parents[1] / "dts").rglob("*.py")]
    for file in sorted([*own, *SOCS_DIR.glob("*.toml")]):
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return f"{tree.label}-{digest.hexdigest()[:24]}"


def _state(path: Path) -> str:
    """Size and time of a file, or of the device tree files in a folder."""
    if path.is_file():
        status = path.stat()
        return f"{path} {status.st_size} {status.st_mtime_ns}\n"
    lines = []
    for folder, _, files in os.walk(path):
        for file in files:
            if file.endswith((".dts", ".dtsi", ".h")):
                try:
                    status = os.stat(f"{folder}/{file}")  # noqa: PTH116 (tens of thousands)
                except FileNotFoundError:  # a link into a part of the tree that is not there
                    lines.append(f"{folder}/{file} leads nowhere")
                    continue
                lines.append(f"{folder}/{file} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(sorted(lines))


def _remembered(document: dict[str, Any], kernel: str) -> Scan:
    return Scan(
        kernel=kernel,
        release=document["release"],
        sources=document["sources"],
        compiled=document["compiled"],
        rows=tuple(Row.from_json(row) for row in document["boards"]),
        boards=frozenset(document["all"]),
        failed=tuple((entry["source"], entry["error"]) for entry in document["failed"]),
    )
