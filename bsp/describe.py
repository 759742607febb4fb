# SPDX-License-Identifier: MIT
"""Boards in words: the list, and one board explained."""

from __future__ import annotations

import textwrap
from typing import Any

from .base.output import table
from .dts.support import series_supports
from .kernel.distribution import all_series
from .profile import Board, Npu, board_names, load_board, load_soc, npu_of

_WIDTH = 80


def all_boards() -> list[dict[str, Any]]:
    """Return every shipped board as a plain document, sorted by name."""
    return [one_board(name) for name in board_names()]


def one_board(name: str) -> dict[str, Any]:
    """Return one board as a plain document, with the support level for each packaged kernel.

    Raises:
        UserError: there is no such board.
    """
    board = load_board(name)
    soc, npu = load_soc(board.soc), npu_of(board)
    return {
        "name": board.name,
        "title": board.title,
        "soc": soc.name,
        "soc_title": soc.title,
        "compatible": list(board.compatible),
        "dts": f"{soc.dts_directory}/{board.dts}" if board.dts else None,
        "kernel": board.kernel,
        "kernels": {series: _level(series, npu) for series in all_series()},
        "bootloader": bool(board.boot),
        "qemu": board.qemu.machine if board.qemu else None,
        "npu": _npu_document(npu) if npu else None,
    }


def _level(series: str, npu: Npu | None) -> str:
    """Return the support level of a kernel series: ``no npu``, ``off``, ``no driver`` or ``works``."""
    if npu is None:
        return "no npu"
    if not npu.enabled:
        return "off"
    return "works" if series_supports(series, npu) else "no driver"


def _npu_document(npu: Npu) -> dict[str, Any]:
    return {
        "node": npu.node,
        "compatible": npu.compatible,
        "driver": npu.driver,
        "model": f"GC{npu.identity.model:x} r{npu.identity.revision:x}",
        "product_id": f"{npu.identity.product_id:#x}",
        "nn_cores": npu.identity.nn_cores,
        "clocks": [{"name": clock.name, "rate_hz": clock.rate_hz} for clock in npu.clocks],
        "kernel_since": npu.kernel_since,
        "kernel_lacks": npu.kernel_lacks,
        "kernel_symbols": list(npu.kernel_symbols),
        "mesa_since": npu.mesa_since,
        "sources": list(npu.sources),
    }


def boards_table(rows: list[dict[str, Any]]) -> str:
    """Return the list of boards as a table for 80 columns."""
    series = list(all_series())
    header = ["BOARD", *(f"LINUX {name}" for name in series), "WHAT"]
    body = [
        [row["name"], *(row["kernels"][name] for name in series), f"{row['title']}, {row['soc']}"]
        for row in rows
    ]
    return (
        table(header, body, width=_WIDTH) + "\n\n" + "Explain one: ./inv board NAME. "
        "Other kernels: --kernel tarball:, git: or path:."
    )


def board_text(name: str) -> str:
    """Return one board explained: what its NPU is, and what it takes to use it.

    Raises:
        UserError: there is no such board.
    """
    board = load_board(name)
    soc, npu = load_soc(board.soc), npu_of(board)
    paragraphs = [_wrap(f"{board.name}: {board.title}. SoC: {soc.title}.")]
    if npu is None:
        paragraphs.append(_wrap("This board has no NPU. It is for what runs on any board."))
    else:
        paragraphs += _npu_paragraphs(npu)
    paragraphs += _board_paragraphs(board, soc.dts_directory)
    return "\n\n".join(paragraphs)


def _npu_paragraphs(npu: Npu) -> list[str]:
    identity = npu.identity
    asked = [
        f"{clock.name} at {clock.rate_hz / 1e6:g} MHz" for clock in npu.clocks if clock.rate_hz
    ]
    clocks = " and ".join(asked) if asked else "whatever rates the kernel's tree asks for"
    since = _rows([(series, _sentence(series, npu)) for series in all_series()])
    return [
        _wrap(
            f"The NPU is a Vivante GC{identity.model:x} revision {identity.revision:x} with "
            f"{identity.nn_cores} NN cores, driven by {npu.driver}. Its device tree node is "
            f"{npu.node} ({npu.compatible}); it is to run with {clocks}"
            f"{'' if npu.enabled else ', but the profile switches it off'}."
        ),
        _wrap(
            f"It takes Linux {npu.kernel_since} or later and Mesa {npu.mesa_since} or later. "
            f"Older kernels lack {npu.kernel_lacks}. The kernel's configuration needs "
            f"{', '.join(npu.kernel_symbols)}."
        ),
        "Kernels of the distribution:\n" + since,
    ]


def _sentence(series: str, npu: Npu) -> str:
    level = _level(series, npu)
    return {
        "works": "works; ./inv build-dts adds what this kernel's device tree lacks",
        "no driver": "the driver does not know this NPU: device tree alone will not help",
        "off": "switched off by the profile",
    }[level]


def _board_paragraphs(board: Board, directory: str | None) -> list[str]:
    rows = [("compatible", ", ".join(board.compatible)), ("kernel", f"{board.kernel} by default")]
    if board.dts:
        rows.append(("source", f"arch/arm64/boot/dts/{directory}/{board.dts}.dts"))
    else:
        rows.append(("source", "none: the device tree comes from QEMU"))
    if board.boot:
        rows.append(("deploy", f"FAT boot partition at {board.boot.fat_mount}"))
    else:
        rows.append(("deploy", "not possible: kernel and device tree are handed to QEMU"))
    if board.qemu:
        rows.append(("QEMU", f"-M {board.qemu.machine}: ./inv virtual.up --board {board.name}"))
    return [_rows(rows)]


def _rows(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"  {name.ljust(width)}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, text in rows
    )


def _wrap(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
