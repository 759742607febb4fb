# SPDX-License-Identifier: MIT
"""Device tree source to DTB, byte for byte what the kernel's own build makes, without make.

As in the kernel's ``scripts/Makefile.dtbs`` (``cmd_dtc``; ``scripts/Makefile.lib`` before 6.11).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ...base.cache import cache_dir, make_once
from ...base.errors import UserError, nearest
from ...base.process import Completed, require_tool, run
from ...kernel.source import KernelTree, board_sources
from .compile_errors import undefined_macro
from .newer_dtc import needs_newer_dtc, newer_dtc

_PREFIXES = "scripts/dtc/include-prefixes"


def compile_dts(
    tree: KernelTree,
    directory: str,
    stem: str,
    target: Path,
    *,
    arch: str = "arm64",
    symbols: bool = False,
) -> None:
    """Compile ``arch/<arch>/boot/dts/<directory>/<stem>.dts`` of a kernel tree to ``target``.

    Args:
        symbols: with the labels that overlays refer to, also where the kernel's build leaves them out.

    Raises:
        UserError: the tree has no such board, or its source does not compile.
    """
    folder = Path(f"arch/{arch}/boot/dts") / directory
    source = folder / f"{stem}.dts"
    if not (tree.path / source).is_file():
        sources = board_sources(tree.path / folder) if (tree.path / folder).is_dir() else []
        raise UserError(
            f"Linux {tree.release} ({tree.name}) has no {source}{_similar(stem, sources)}",
            hint="take a kernel that has the board, or give its device tree with --base-dtb",
        )
    makefile = tree.path / folder / "Makefile"
    rules = makefile.read_text(encoding="utf-8", errors="replace") if makefile.exists() else ""
    # cpp's messages are bounded, as nobody reads them before dtc has ended.
    labels = ["-@"] if symbols or has_symbols(rules, stem) else []
    preprocess: list[str | Path] = [
        "cpp", "-w", "-fmax-errors=20", "-nostdinc", "-I", _PREFIXES, "-undef", "-D__DTS__",
        "-x", "assembler-with-cpp", source,
    ]  # fmt: skip
    arguments: list[str | Path] = [
        "-q", *labels, "-b", "0", "-i", folder, "-i", _PREFIXES,
        "-I", "dts", "-O", "dtb", "-o", target, "-",
    ]  # fmt: skip
    first, second = _piped(preprocess, ["dtc", *arguments], tree.path)
    too_old = False
    if second.exit_code and needs_newer_dtc(tree.path, second.stderr.decode(errors="replace")):
        newer = newer_dtc()
        too_old = not newer
        if newer:
            first, second = _piped(preprocess, [*newer, *arguments], tree.path)
    if first.exit_code or second.exit_code:
        raise _why_not(tree, source, first, second, too_old=too_old)


def _why_not(
    tree: KernelTree, source: Path, first: Completed, second: Completed, *, too_old: bool
) -> UserError:
    """The error for source that does not compile, from what cpp and dtc said.

    Each may have failed for want of the other; the one that says something has the reason.
    """
    messages = ((first.stderr if first.exit_code else b"") or second.stderr).decode(
        errors="replace"
    )
    reason = "" if first.exit_code else undefined_macro(tree.path, messages)
    lines = [*([reason] if reason else []), *messages.strip().splitlines()[:8]]
    hint = "the first of these lines names the place"
    if reason:
        hint = (
            "the header that defines it is older than the source, or not in this tree: complete its "
            "include/dt-bindings"
        )
    elif too_old:
        hint = (
            "it takes dtc 1.7 or later (Debian 13 has it), which could not be fetched; this machine's "
            "is older"
        )
    text = "\n".join(lines)
    return UserError(
        f"{source} of Linux {tree.release} ({tree.name}) does not compile:\n{text}", hint=hint
    )


def _similar(stem: str, sources: Sequence[str]) -> str:
    """Return a suggestion for a misspelt source; a board of another chip is none, however it is spelt."""
    chip = re.split(r"[-_.]", stem, maxsplit=1)[0].lower()
    same_chip = [each for each in sources if each != stem and each.lower().startswith(chip)]
    return nearest(stem, same_chip, cutoff=0.8)


def _piped(
    first: Sequence[str | Path], second: Sequence[str | Path], cwd: Path
) -> tuple[Completed, Completed]:
    """Run two programs, the first one's output going into the second; neither is checked."""
    require_tool(str(second[0]))  # before the first one starts
    ends: list[Completed] = []
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb") as writer:

        def consume() -> None:
            writer.close()  # ours: the second must see the end when the first ends
            ends.append(run(second, cwd=cwd, stdin=reader, check=False))
            reader.close()  # and the first must not wait for a second that has ended

        ends.insert(0, run(first, cwd=cwd, stdout=writer, check=False, meanwhile=consume))
    return ends[0], ends[1]


def compiled(tree: KernelTree, directory: str, stem: str, *, symbols: bool = False) -> Path:
    """Return a board's DTB of a kernel tree that does not change, compiled once.

    Args:
        symbols: as for :func:`compile_dts`.

    Raises:
        UserError: as :func:`compile_dts`.
    """
    folder = cache_dir() / "dtbs" / tree.path.name / directory
    folder.mkdir(parents=True, exist_ok=True)
    return make_once(
        folder / f"{stem}-{'symbols-' if symbols else ''}{tool_key('cpp', 'dtc')}.dtb",
        lambda target: compile_dts(tree, directory, stem, target, symbols=symbols),
    )


def tool_key(*names: str) -> str:
    """Return what tells these installed programs from other versions of them."""
    stats = [Path(require_tool(name)).stat() for name in names]
    return "-".join(f"{stat.st_size:x}.{stat.st_mtime_ns:x}" for stat in stats)


def has_symbols(makefile: str, stem: str) -> bool:
    """Whether the kernel compiles a board with ``-@`` (``__symbols__``).

    It does for the base of a composite (``foo-dtbs := base.dtb overlay.dtbo`` with ``foo.dtb`` among
    the targets), and where the folder's Makefile says so in ``DTC_FLAGS`` or ``DTC_FLAGS_<stem>``.
    """
    targets: set[str] = set()
    composites: dict[str, list[str]] = {}
    joined = re.sub(r"\\\n", " ", makefile)
    for line in joined.splitlines():
        match = re.match(r"\s*([\w.,+()$-]+)\s*[:+?]?=\s*(.*)", line.split("#")[0])
        if not match:
            continue
        name, words = match.group(1), match.group(2).split()
        if name in ("DTC_FLAGS", f"DTC_FLAGS_{stem}") and "-@" in words:
            return True
        if name.startswith("dtb-"):
            targets.update(words)
        elif name.endswith("-dtbs"):
            composites.setdefault(name[: -len("-dtbs")], []).extend(words)
    return any(
        f"{stem}.dtb" in parts and f"{name}.dtb" in targets for name, parts in composites.items()
    )
