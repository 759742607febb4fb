# SPDX-License-Identifier: MIT
"""Which board is this? The one answer, for every command that asks it.

A board is identified by the first ``compatible`` string of its profile. Of several profiles the one wins
whose string comes first in the machine's list, which goes from the most specific string to the most
general one (Devicetree Specification 0.4, 2.3.1). Where two have the same string, the user's own profile
wins over a shipped one; where that does not decide, nothing is guessed.

Trees of boards that were derived from a reference board often keep its string. Profiles of such boards
have ``[identity]``, and their string counts only where nothing in the tree contradicts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .base.errors import UserError
from .catalog import (
    board_file,
    is_own,
    load_soc,
    names_no_board,
    plain_string,
    runs_as,
    soc_names,
)
from .dts.npu.owners import vendor_of
from .dts.tree import Tree
from .profile import Board, BoardIdentity
from .readable_boards import readable_boards

# Firmware keeps some memory for itself (OP-TEE, frame buffers) and leaves it out of the tree.
_LEAST_SHARE_OF_MEMORY = 0.75


@dataclass(frozen=True)
class Machine:
    """What a machine, or a device tree, says that it is.

    Attributes:
        compatible: the root's strings, most specific first.
        model: the root's ``model``; empty: it has none; None: not known.
        memory_mib: as its tree describes it; None: not known.
        vendor: which node shows that its tree is for a vendor's NPU driver, in words; empty: none does.
    """

    compatible: tuple[str, ...]
    model: str | None = None
    memory_mib: int | None = None
    vendor: str = ""


@dataclass(frozen=True)
class Match:
    """The profile that fits a machine best.

    Attributes:
        board: None: no profile fits.
        place: index of the string in the machine's list that the profile was found by. Above 0 the
            machine is another board, which is compatible with this one.
        doubts: what contradicts the string, in words; empty: nothing.
        tied: all boards that fit equally well, where that is more than one; ``board`` is then None.
    """

    board: Board | None = None
    place: int = 0
    doubts: tuple[str, ...] = ()
    tied: tuple[Board, ...] = ()


def machine_of(tree: Tree) -> Machine:
    """Return what a device tree says that its machine is."""
    model = (tree.strings("/", "model") or [""])[0]
    return Machine(tuple(tree.compatible), model, memory_mib_of(tree), vendor_words(tree))


def find(machine: Machine, *, chosen: Board | None = None, boards: Iterable[Board] = ()) -> Match:
    """Return which profile fits a machine best.

    Args:
        chosen: the profile that the user names; it wins where several fit equally, and is not questioned.
        boards: profiles to choose from; all that there are by default.

    Raises:
        UserError: a shipped profile is broken.
    """
    candidates = list(boards) or readable_boards()
    if chosen is not None and chosen not in candidates:
        candidates.append(chosen)
    for place, word in enumerate(machine.compatible):
        fitting = [board for board in candidates if _claims(board, word, place, machine)]
        if not fitting:
            continue
        if chosen in fitting:
            return Match(chosen, place)
        doubts = {board.name: _doubts(board, machine) for board in fitting}
        undoubted = [board for board in fitting if not doubts[board.name]] or fitting
        best = [board for board in undoubted if is_own(board)] or undoubted
        if len(best) > 1:
            return Match(place=place, tied=tuple(best))
        return Match(best[0], place, doubts[best[0].name])
    return Match()


def identify(machine: Machine | Sequence[str], *, what: str, chosen: Board | None = None) -> Board:
    """Return the board that a machine is, or is compatible with.

    Args:
        machine: what it says that it is; or only its ``compatible`` strings.
        what: the machine or tree, for the error.
        chosen: the profile that the user names.

    Raises:
        UserError: no profile is for it, several are, or what else it says contradicts its string.
    """
    if not isinstance(machine, Machine):
        machine = Machine(tuple(machine))
    match = find(machine, chosen=chosen)
    if match.tied:
        raise tie_error(match.tied, what)
    if match.board is None:
        raise _unknown(machine, what)
    if match.doubts:
        raise doubt_error(match.board, match.doubts, what)
    return match.board


def tie_error(tied: Sequence[Board], what: str) -> UserError:
    """Return the error for a machine that two profiles claim."""
    names = [board.name for board in tied]
    return UserError(
        f"{what} is {tied[0].compatible[0]!r}, and the boards {' and '.join(names)} both claim that",
        hint=f"--board {' or --board '.join(names)} says which; or correct 'compatible' in "
        f"{board_file(names[-1])}, or remove that file",
    )


def doubt_error(board: Board, doubts: Sequence[str], what: str) -> UserError:
    """Return the error for a machine that has a reference board's string and says something else, too."""
    return UserError(
        f"{what} says {board.compatible[0]!r}, the string of {board.title} ({board.name}), which trees of "
        f"other boards often keep; but {'; '.join(doubts)}",
        hint=f"if it is another board: ./inv new-board NAME --like {board.name} with --from-host HOST or "
        f"--from-dtb FILE; if it is this one, --board {board.name} says so",
    )


def _unknown(machine: Machine, what: str) -> UserError:
    first, soc = machine.compatible[:1], soc_of(machine.compatible)
    strings = ", ".join(machine.compatible) or "nothing that says what it is"
    if first and names_no_board(first[0]):
        return UserError(
            f"{what} is {strings}: {first[0]!r} is the name of a chip or a module, which many boards have, "
            "and of no board",
            hint=f"./inv new-board NAME --like {relative_of(machine.compatible)} with --from-host HOST or "
            "--from-dtb FILE writes a profile with a string of its own; --board says which board it is",
        )
    return UserError(
        f"{what} is {strings}, which no profile is for"
        + (f"; its SoC {soc} is known" if soc else ""),
        hint="./inv new-board NAME --from-host HOST (or --from-dtb FILE) writes one"
        if soc
        else "./inv boards lists the boards; --board says which one it is",
    )


def _claims(board: Board, word: str, place: int, machine: Machine) -> bool:
    """Whether a profile is for machines with this string at this place."""
    if board.compatible[0] == word:
        return not names_no_board(word)
    return place == 0 and runs_as(board, machine.compatible, machine.model or "")


def _doubts(board: Board, machine: Machine) -> tuple[str, ...]:
    """Return what contradicts that a machine with a board's string is that board."""
    identity = _identity(board)
    if identity == BoardIdentity() or identity.runs_as == machine.compatible[0]:
        return ()
    doubts = []
    if machine.model is not None and _plain(machine.model) not in map(_plain, identity.models):
        expected = " or ".join(repr(model) for model in identity.models)
        its_model = f"its model is {machine.model!r}" if machine.model else "it has no model"
        doubts.append(f"{its_model}, not {expected}")
    if machine.memory_mib and not _fits(machine.memory_mib, identity.memory_mib):
        expected = " or ".join(str(size) for size in identity.memory_mib)
        doubts.append(f"it has {machine.memory_mib} MiB of memory, not {expected}")
    strange = [word for word in machine.compatible if word not in board.compatible]
    if strange:
        doubts.append(f"its compatible has {', '.join(map(repr, strange))}, too")
    if machine.vendor and not (is_own(board) and board.identity.models):
        doubts.append(
            f"{machine.vendor}, and such trees keep the string of the board they came from"
        )
    return tuple(doubts)


def _identity(board: Board) -> BoardIdentity:
    """A profile's ``[identity]``; one that has none has that of the shipped profile with its string."""
    if board.identity != BoardIdentity():
        return board.identity
    same = [
        each
        for each in readable_boards()
        if each.compatible[0] == board.compatible[0] and not is_own(each)
    ]
    return same[0].identity if same else BoardIdentity()


def _fits(found_mib: int, sold_mib: Sequence[int]) -> bool:
    return not sold_mib or any(
        _LEAST_SHARE_OF_MEMORY * size <= found_mib <= size for size in sold_mib
    )


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def soc_of(compatible: Sequence[str]) -> str | None:
    """Return the SoC with an NPU that the first known ``compatible`` string is of; None: none is known."""
    socs = [load_soc(name) for name in soc_names()]
    for word in map(plain_string, compatible):
        for soc in socs:
            if word in soc.without_npu:
                return None
            if word in soc.compatible:
                return soc.name
    return None


def is_chip_makers(compatible: Sequence[str]) -> bool:
    """Whether a machine's first string is one that the chip's maker has given, as to its reference boards.

    Other makers' trees often keep such a string (``rockchip,rk3588-evb1-v10``, ``fsl,imx8mp-evk``).
    """
    soc = soc_of(compatible)
    if soc is None or not compatible:
        return False
    makers = {each.partition(",")[0] for each in load_soc(soc).compatible}
    return compatible[0].partition(",")[0] in makers and not names_no_board(compatible[0])


def relative_of(compatible: Sequence[str]) -> str:
    """Return a shipped board with the same SoC, for ``--like``; ``BOARD`` where none is known."""
    soc = soc_of(compatible)
    same = [board for board in readable_boards() if board.soc == soc and not is_own(board)]

    def distance(board: Board) -> tuple[int, bool, bool]:
        shared = len(set(board.compatible) & set(compatible))
        return -shared, not board.identity.models, board.qemu is None

    return min(same, key=distance).name if same else "BOARD"


def vendor_words(tree: Tree) -> str:
    """Say which vendor's driver a tree is for, by the nodes that only such kernels have; else nothing."""
    for name in soc_names():
        npu = load_soc(name).npu
        node_and_vendor = vendor_of(tree, npu) if npu else None
        if node_and_vendor:
            path, vendor = node_and_vendor
            return f"its node {path} is for the vendor's NPU driver {vendor.driver}"
    return ""


def memory_mib_of(tree: Tree) -> int | None:
    """Return how much memory a tree describes, in MiB; None where it describes none."""
    address = (tree.cells("/", "#address-cells") or [2])[0]
    size = (tree.cells("/", "#size-cells") or [1])[0]
    total = 0
    for path in tree.nodes:
        if tree.strings(path, "device_type") != ["memory"] or size not in (1, 2):
            continue
        words = tree.cells(path, "reg")
        for at in range(0, len(words) - address - size + 1, address + size):
            entry = words[at + address : at + address + size]
            total += entry[0] << 32 | entry[1] if size == 2 else entry[0]
    return total >> 20 or None
