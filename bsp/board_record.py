# SPDX-License-Identifier: MIT
"""Boards as records: what ``boards --json`` and ``board --json`` print."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TypedDict

from .base.errors import UserError
from .catalog import BOARDS_DIR, board_file, board_names, load_board, load_soc, npu_of
from .dts.inputs.own_tree import OwnTree, own_tree
from .dts.npu.support import series_supports
from .kernel.distribution import all_series
from .profile import Board, Expectation, Npu
from .readable_boards import one_line
from .uboot import trial_of


class TrialRecord(TypedDict):
    """How a deployment is tried on a board, and why so."""

    way: str
    why: str


class ClockRecord(TypedDict):
    """A clock of an NPU, and the rate that the profile wants; None: the tree's own."""

    name: str
    rate_hz: int | None


class VendorRecord(TypedDict):
    """How a vendor's kernel describes an NPU."""

    driver: str
    compatible: list[str]
    devices: list[str]


class NpuRecord(TypedDict):
    """A board's NPU, as ``board --json`` prints it."""

    about: str
    node: str
    compatible: str
    driver: str
    model: str | None
    product_id: str | None
    nn_cores: int | None
    clocks: list[ClockRecord]
    kernel_since: str | None
    kernel_lacks: str
    kernel_symbols: list[str]
    mesa_since: str | None
    dmesg: list[str]
    vendor: list[VendorRecord]
    sources: list[str]


class BoardRecord(TypedDict):
    """A board, as ``board --json`` and ``boards --json`` print it.

    Attributes:
        dtb_state, dtb_problem: of a device tree beside the profile; None where there is none.
        kernels: by packaged kernel series, the support level in a word or two.
        expect: the profile's ``[expect]``.
        problem: why a profile of the user's own cannot be used as it is, with its file; None: it can.
            One that cannot be read has nothing but this and its name: the other fields are empty.
    """

    name: str
    title: str
    soc: str
    soc_title: str
    compatible: list[str]
    dts: str | None
    dtb: str | None
    dtb_state: str | None
    dtb_problem: str | None
    kernel: str
    kernels: dict[str, str]
    expect: dict[str, str]
    bootloader: bool
    trial: TrialRecord
    qemu: str | None
    npu: NpuRecord | None
    problem: str | None


def all_boards() -> list[BoardRecord]:
    """Return every board as a plain document, sorted by name.

    A profile of the user's own that is broken, or that claims another one's compatible string, has the
    reason in ``problem``.

    Raises:
        UserError: a shipped profile is broken.
    """
    rows = [_row(name) for name in board_names()]
    both = claimed_twice([load_board(row["name"]) for row in rows if row["problem"] is None])
    for row in rows:
        row["problem"] = row["problem"] or both.get(row["name"])
    return rows


def complaint(rows: Sequence[BoardRecord]) -> str:
    """Return a line for each profile that cannot be used as it is, for stderr; empty: all can."""
    wrong = [row for row in rows if row["problem"]]
    lines = [f"error: {row['problem']}" for row in wrong]
    named = [row["name"] for row in wrong if row["name"].isprintable()]
    if named:
        lines.append(f"hint: ./inv board {shlex.quote(named[0])} --check lists all that is wrong")
    return "\n".join(lines)


def _row(name: str) -> BoardRecord:
    try:
        return one_board(name)
    except UserError as error:
        file = board_file(name)
        if file.parent == BOARDS_DIR:
            raise
        return _unreadable(name, one_line(file, error.message))


def claimed_twice(boards: Sequence[Board]) -> dict[str, str]:
    """Return which boards claim the string of another, by name, and which other in words.

    A profile of the user's own wins over a shipped one, which may have come with a later version; two
    whose ``[identity]`` tells them apart do not claim the same.
    """
    problems = {}
    for board in boards:
        own = board_file(board.name).parent != BOARDS_DIR
        others = [
            other.name
            for other in boards
            if other.compatible[0] == board.compatible[0]
            and other.name != board.name
            and (board_file(other.name).parent != BOARDS_DIR) == own
            and not _told_apart(board, other)
        ]
        if others:
            names = " and ".join(sorted([board.name, *others]))
            problems[board.name] = (
                f"boards {names} both claim {board.compatible[0]!r}: a board is recognised by the first of "
                f"its compatible strings; correct 'compatible' in {board_file(board.name)}, or remove it"
            )
    return problems


def _told_apart(one: Board, other: Board) -> bool:
    models = set(one.identity.models), set(other.identity.models)
    return all(models) and models[0].isdisjoint(models[1])


def one_board(name: str) -> BoardRecord:
    """Return one board as a plain document, with the support level for each packaged kernel.

    Raises:
        UserError: there is no such board.
    """
    board = load_board(name)
    soc, npu = load_soc(board.soc), npu_of(board)
    own = own_tree(board, npu) if npu else None
    trial = trial_of(board)
    return {
        "name": board.name,
        "title": board.title,
        "soc": soc.name,
        "soc_title": soc.title,
        "compatible": list(board.compatible),
        "dts": f"{soc.dts_directory}/{board.dts}" if board.dts else None,
        "dtb": board.dtb,
        "dtb_state": own.state if own else None,
        "dtb_problem": own.why or None if own else None,
        "kernel": board.kernel,
        "kernels": {series: _level(series, board, npu, own) for series in all_series()},
        "expect": dict(board.expect),
        "bootloader": bool(board.boot),
        "trial": {"way": trial.way, "why": trial.why},
        "qemu": board.qemu.machine if board.qemu else None,
        "npu": _npu_document(npu) if npu else None,
        "problem": None,
    }


def _unreadable(name: str, why: str) -> BoardRecord:
    """Return the row of a profile of which nothing can be told but why."""
    return {
        "name": name,
        "title": "",
        "soc": "",
        "soc_title": "",
        "compatible": [],
        "dts": None,
        "dtb": None,
        "dtb_state": None,
        "dtb_problem": None,
        "kernel": "",
        "kernels": {},
        "expect": {},
        "bootloader": False,
        "trial": {"way": "", "why": ""},
        "qemu": None,
        "npu": None,
        "problem": why,
    }


def _level(series: str, board: Board, npu: Npu | None, own: OwnTree | None) -> str:
    """Return the support level of a kernel series in a word or two: ``works``, ``no driver``..."""
    if npu is None:
        return "no npu"
    if not npu.enabled:
        return "off"
    if own is not None and not own.usable:
        return _OWN_LEVELS[own.state]
    stated = board.expect.get(series) if own is None else None
    if stated is not None:
        return _LEVELS[stated]
    if npu.kernel_since is None:
        return "not recognised"
    return "works" if series_supports(series, npu) else "no driver"


_LEVELS: dict[Expectation, str] = {
    "no board": "no board",
    "no node": "no driver",
    "no driver": "no driver",
    "not recognised": "not recognised",
    "cannot be told": "not known",
    "two owners": "two owners",
    "supply missing": "no supply",
    "enable": "works",
    "works": "works",
}


# With a device tree beside the profile, it decides before any kernel does.
_OWN_LEVELS = {
    "no tree": "no tree",
    "vendor tree": "vendor tree",
    "no node": "no node",
    "supply missing": "no supply",
    "two owners": "two owners",
}


def _npu_document(npu: Npu) -> NpuRecord:
    identity = npu.identity
    return {
        "about": npu.about,
        "node": npu.node,
        "compatible": npu.compatible,
        "driver": npu.driver,
        "model": f"GC{identity.model:x} r{identity.revision:x}" if identity else None,
        "product_id": f"{identity.product_id:#x}" if identity else None,
        "nn_cores": identity.nn_cores if identity else None,
        "clocks": [{"name": clock.name, "rate_hz": clock.rate_hz} for clock in npu.clocks],
        "kernel_since": npu.kernel_since,
        "kernel_lacks": npu.kernel_lacks,
        "kernel_symbols": list(npu.kernel_symbols),
        "mesa_since": npu.mesa_since,
        "dmesg": list(npu.dmesg),
        "vendor": [
            {"driver": one.driver, "compatible": list(one.compatible), "devices": list(one.devices)}
            for one in npu.vendor
        ],
        "sources": list(npu.sources),
    }
