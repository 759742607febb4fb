# SPDX-License-Identifier: MIT
"""Boards in words: the list, and one board explained."""

from __future__ import annotations

import textwrap
from pathlib import Path

from .base.output import table
from .base.words import filled
from .board_record import BoardRecord
from .catalog import board_file, load_board, load_soc, npu_of
from .dts.inputs.own_tree import OwnTree, own_tree
from .dts.npu.support import series_supports
from .kernel.distribution import all_series
from .profile import Board, Npu
from .uboot import trial_of

_WIDTH = 80
_FEW = 3


# In the table, where three columns leave little room.
_SHORT = {"no board": ".", "not recognised": "unknown", "no driver": "no driver"}


# Where names leave less room than this, the table has no titles.
_LEAST_TITLE = 16


_TRIALS = {
    "fat": "by a boot script on the FAT boot partition",
    "asked": "by a boot script, if the board's U-Boot runs one (--adopt asks it, with a boot as before)",
    "none": "not by a boot script",
}
"""How deployments are tried, by the ways of ``bsp.uboot.trial_of``."""


def _trials(rows: list[BoardRecord]) -> str:
    """Say how deployments are tried on the boards: those that differ from most by name."""
    parts = []
    for way, words in _TRIALS.items():
        names = [row["name"] for row in rows if row["trial"]["way"] == way]
        if names:
            some = ", ".join(names) if len(names) <= _FEW else f"{len(names)} boards"
            parts.append(f"{words}: {some}")
    return f"A deployment is tried {'; '.join(parts)} (./inv board NAME says why)."


def boards_table(rows: list[BoardRecord]) -> str:
    """Return the list of boards as tables for 80 columns, one for each SoC."""
    series = list(all_series())
    parts = []
    readable = [row for row in rows if row["soc"]]
    for soc in dict.fromkeys(row["soc"] for row in readable):
        mine = [row for row in readable if row["soc"] == soc]
        header = [mine[0]["soc_title"], *series]
        body = [
            [
                row["name"],
                *(_SHORT.get(row["kernels"][name], row["kernels"][name]) for name in series),
            ]
            for row in mine
        ]
        left = _WIDTH - sum(max(map(len, column)) + 2 for column in zip(header, *body, strict=True))
        if left >= _LEAST_TITLE:
            header.append("WHAT")
            body = [
                [*cells, _cut(row["title"], left)] for cells, row in zip(body, mine, strict=True)
            ]
        parts.append(table(header, body, width=_WIDTH))
    legend = (
        "works: with what ./inv build-dts adds; no driver: the kernel lacks more than device tree; "
        "unknown: the driver does not recognise this NPU; .: the kernel has no such board."
    )
    levels = {level for row in rows for level in row["kernels"].values()}
    if levels & {"vendor tree", "no tree", "no node", "two owners"}:
        legend += (
            " vendor tree, no node, two owners, no tree: the device tree beside the profile is for a "
            "vendor's kernel, does not have the NPU, has the vendor's node for it too, or cannot be used."
        )
    return (
        "\n\n".join(parts)
        + "\n\n"
        + _wrap(legend)
        + "\n\n"
        + _wrap(_trials(readable))
        + "\n\nExplain one: ./inv board NAME. Look into kernels: ./inv boards --scan."
    )


def _cut(text: str, width: int) -> str:
    """The first words of a text, as many as fit; ".." stands for the others."""
    return textwrap.shorten(text, width, placeholder="..")


def board_text(name: str) -> str:
    """Return one board explained to somebody who has never used an NPU.

    What its NPU is, in what state the kernels leave it, what this tool changes, and what the kernel
    log says when it works.

    Raises:
        UserError: there is no such board.
    """
    board = load_board(name)
    soc, npu = load_soc(board.soc), npu_of(board)
    paragraphs = [_wrap(f"{board.name}: {board.title}. SoC: {soc.title}.")]
    if npu is None:
        paragraphs.append(_wrap("This board has no NPU. It is for what runs on any board."))
    else:
        paragraphs += _npu_paragraphs(board, npu)
    paragraphs += _board_paragraphs(board, npu, soc.dts_directory, name)
    return "\n\n".join(paragraphs)


def _npu_paragraphs(board: Board, npu: Npu) -> list[str]:
    about = f" This one is {npu.about}." if npu.about else ""
    own = own_tree(board, npu)
    if own is not None and not own.usable:
        states = _wrap(
            f"Its own device tree decides, whatever the kernel: {own.why.rstrip('.')}. What to do: "
            f"{own.hint.rstrip('.')}."
        )
    else:
        states = _rows([(series, _sentence(series, board, npu, own)) for series in all_series()])
    return [
        _wrap(
            "WHAT IT IS. An NPU (neural processing unit) is a part of the chip that runs trained "
            f"neural networks many times faster than its CPU.{about} The free driver in the Linux "
            f"kernel is called {npu.driver}; Mesa's Teflon hands a TensorFlow Lite model's operations "
            "to it."
        ),
        _wrap(
            f"WHERE IT IS. A device tree tells the kernel what hardware there is. The NPU is its node "
            f"{npu.node} ({npu.compatible}){_identity(npu)}. {_clocks(npu)}"
        ),
        "YOUR KERNEL, AND WHAT THIS TOOL CHANGES.\n" + states,
        _wrap(_needs(npu)),
        *_log_paragraphs(board, npu),
    ]


def _identity(npu: Npu) -> str:
    identity = npu.identity
    if identity is None:
        return ""
    return (
        f", a Vivante GC{identity.model:x} revision {identity.revision:x} with "
        f"{identity.nn_cores} NN cores"
    )


def _clocks(npu: Npu) -> str:
    profile_rates = [
        f"{clock.name} at {clock.rate_hz / 1e6:g} MHz" for clock in npu.clocks if clock.rate_hz
    ]
    rates = (
        " and ".join(profile_rates)
        if profile_rates
        else "whatever rates the kernel's tree asks for"
    )
    text = f"It is to run with {rates}{'' if npu.enabled else ', but the profile switches it off'}."
    if any(clock.firmware_rates for clock in npu.clocks):
        text += " ./inv build-dts --npu-rate sets a higher one where the NPU's supply promises its voltage."
    elif npu.rate_clocks:
        text += " ./inv build-dts --npu-rate 400MHz sets another rate."
    return text


def _needs(npu: Npu) -> str:
    symbols = ", ".join(npu.kernel_symbols)
    if npu.kernel_since is None:
        return f"WHAT IT NEEDS. It lacks {npu.kernel_lacks}. It would need a kernel with {symbols}."
    return (
        f"WHAT IT NEEDS. Linux {npu.kernel_since} or later"
        + (f" and Mesa {npu.mesa_since} or later" if npu.mesa_since else "")
        + f". Older kernels lack {npu.kernel_lacks}. The kernel's configuration needs {symbols}."
    )


def _log_paragraphs(board: Board, npu: Npu) -> list[str]:
    if npu.kernel_since is None or not npu.dmesg:
        return [
            _wrap(
                "WHAT YOU WILL SEE. No network will run on this NPU with the kernels above; models run on "
                "the CPU. ./inv boards --scan --kernel K says whether a newer kernel knows it."
            )
        ]
    log_lines = "\n".join(filled(line, _WIDTH, first="    ", rest="      ") for line in npu.dmesg)
    devices = "/dev/dri/renderD128" if npu.driver == "etnaviv" else "/dev/accel/accel0"
    return [
        _wrap(f"WHAT YOU WILL SEE. When it works, `dmesg | grep {npu.driver}` on the board says:")
        + f"\n{log_lines}\n"
        + _wrap(
            f"and there is {devices} (or a higher number). Then run ./inv smoke-test label_image --host "
            "NAME, which proves that the NPU computes, and computes right."
        )
    ]


def _sentence(series: str, board: Board, npu: Npu, own: OwnTree | None) -> str:
    if not npu.enabled:
        return "switched off by the profile"
    if own is not None:
        return _own_sentence(series, npu, own)
    stated = board.expect.get(series)
    if stated is None:
        works = npu.kernel_since is not None and series_supports(series, npu)
        stated = "enable" if works else "not recognised"
    since = f"; take Linux {npu.kernel_since} or later" if npu.kernel_since else ""
    return {
        "no board": "does not have this board: no device tree to start from",
        "no node": f"does not describe the NPU, so device tree alone will not help{since}",
        "no driver": f"describes the NPU, but has no driver for it{since}",
        "not recognised": f"{npu.driver} does not recognise this NPU: switching it on does not help{since}",
        "cannot be told": f"nobody has written down the numbers by which {npu.driver} would know this NPU",
        "two owners": "has the vendor's node for the NPU switched on as well: switch it off first",
        "supply missing": "does not say what supplies the NPU with power, and this tool does not guess",
        "enable": "leaves the NPU switched off; ./inv build-dts switches it on "
        '(status = "okay", and clock rates where the tree has none), nothing else; then it works',
        "works": "has the NPU switched on; ./inv build-dts passes the device tree on as it is",
    }[stated]


def _own_sentence(series: str, npu: Npu, own: OwnTree) -> str:
    """Say what a kernel does with a tree that comes from a file and not from its source."""
    if npu.kernel_since is None or not series_supports(series, npu):
        since = f"; take Linux {npu.kernel_since} or later" if npu.kernel_since else ""
        return f"its driver {npu.driver} does not know this NPU{since}"
    if own.state == "enable":
        return f"knows this NPU; {own.file.name} leaves it switched off, and ./inv build-dts switches it on"
    if own.state == "switched off":
        return (
            f"knows this NPU; somebody switched it off in {own.file.name}, and ./inv build-dts asks before "
            "it switches it on (docs/device-tree.md)"
        )
    return f"knows this NPU, and {own.file.name} has it switched on"


def _own_file(file: Path, name: str) -> str:
    """Say where a board's own device tree is, shortly where that is plain."""
    beside = file.parent == board_file(name).parent
    return f"{file.name} beside the profile" if beside else str(file)


def _board_paragraphs(board: Board, npu: Npu | None, directory: str | None, name: str) -> list[str]:
    rows = [("compatible", ", ".join(board.compatible)), ("kernel", f"{board.kernel} by default")]
    if board.dts:
        rows.append(("source", f"{directory}/{board.dts}.dts in arch/arm64/boot/dts"))
    elif board.dtb:
        rows.append(("source", f"none in the kernel, but {_own_file(Path(board.dtb), name)}"))
    elif board.qemu:
        rows.append(("source", "none: the device tree comes from QEMU"))
    else:
        rows.append(("source", "none: the profile names neither dts nor dtb"))
    if board.boot:
        rows.append(("deploy", f"FAT boot partition at {board.boot.fat_mount}"))
    else:
        rows.append(("deploy", "not described: the board's file has no [boot] section"))
    trial = trial_of(board)
    rows.append(("trial", f"{_TRIALS[trial.way]}: {trial.why}"))
    for vendor in npu.vendor if npu else ():
        strings = " or ".join(f'"{string}"' for string in vendor.compatible)
        text = f"a tree with a node {strings} is for the vendor's kernel, which has {vendor.driver}"
        rows.append(("vendor", text))
    if board.qemu:
        rows.append(("QEMU", f"-M {board.qemu.machine}: ./inv virtual.up --board {board.name}"))
    return [_rows(rows)]


def _rows(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        filled(text, _WIDTH, first=f"  {name.ljust(width)}  ", rest=" " * (width + 4))
        for name, text in rows
    )


def _wrap(text: str) -> str:
    return filled(text, _WIDTH)
