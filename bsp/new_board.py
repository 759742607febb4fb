# SPDX-License-Identifier: MIT
"""A new board's profile, filled in from a device tree, a running board or a board like it.

What could not be found is in the file as a comment that begins with MISSING; ``profile_check`` lists these,
and what else keeps a profile from being complete.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .base.cache import write_atomically
from .base.errors import UserError
from .base.progress import say
from .base.result import Result
from .catalog import (
    board_file,
    board_names,
    load_board,
    load_soc,
    names_no_board,
    read_board,
    soc_names,
    user_boards_dir,
)
from .dts.compiler.compile import compile_dts
from .dts.inputs.kinds import overlay_mark
from .dts.npu.owners import npu_of_another_chip, refuse_two_owners, vendor_of
from .dts.npu.switched_off import off_notes
from .dts.tree import Tree, read_tree
from .identify import (
    doubt_error,
    find,
    is_chip_makers,
    machine_of,
    relative_of,
    soc_of,
    tie_error,
    vendor_words,
)
from .kernel.source import kernel_tree
from .profile import FORMAT, Board
from .profile_check import missing_text
from .profile_mistakes import MARK, Missing, mistakes
from .profile_source import Source
from .profile_tree_check import tree_mistakes
from .readable_boards import readable_boards

DEFAULT_KERNEL = "6.12"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")


@dataclass(frozen=True)
class NewBoard(Result):
    """A profile that was made.

    Attributes:
        file: the profile; not written in a dry run.
        notes: what was found on the way that its owner should know.
    """

    file: Path
    profile: str
    board: Board
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    dry_run: bool

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "board": self.board.name,
            "file": str(self.file),
            "soc": self.board.soc,
            "dts": self.board.dts,
            "dtb": self.board.dtb,
            "compatible": list(self.board.compatible),
            "missing": [each.__dict__ for each in self.missing],
            "notes": list(self.notes),
            "dry_run": self.dry_run,
        }

    def text(self) -> str:
        """Return the result for people."""
        where = f"{self.file}{' (dry run: not written)' if self.dry_run else ''}"
        lines = [f"{self.board.name}: {where}", "", self.profile.rstrip()]
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*lines, "", missing_text(self.board.name, self.missing)])


def new_board(
    name: str,
    source: Source,
    *,
    like: str = "",
    kernel: str = "",
    output: str = "",
    dry_run: bool = False,
) -> NewBoard:
    """Write a profile; all of it or nothing.

    Args:
        like: a board that it resembles: what the source does not tell is taken from there.
        kernel: its default kernel, whose source is searched for the board; empty: the one of ``like``, or
            6.12.
        output: the file (``NAME.toml``) or a folder for it; the user's folder of profiles by default.

    Raises:
        UserError: the name is taken or none, the SoC is not known, or the file exists.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a name for a board: small letters, digits and hyphens",
            hint="./inv new-board my-board ...",
        )
    if name in board_names():
        raise UserError(
            f"there is a board {name} already: {board_file(name)}", hint="take another name"
        )
    model = load_board(like) if like else None
    if source.tree is None and model is None:
        raise UserError(
            "nothing to fill a profile in from",
            hint="--from-dtb FILE, --from-host HOST or --like B",
        )
    file = _file(name, output)
    if file.exists():
        raise UserError(f"{file} exists already", hint="take another name, or --output")
    text, notes, beside = _text(name, source, model, kernel)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-board-") as folder:
        # What is written must be what can be read: the same file, read where nobody minds.
        trial = Path(folder) / file.name
        trial.write_text(text, encoding="utf-8")
        if beside:
            trial.with_suffix(".dtb").write_bytes(beside)
        board = read_board(trial)
        lacks = mistakes(board, text)
        if board.dtb:  # a source in the kernel was just found, and compared
            lacks += [
                Missing(each.key, each.why, each.next.replace(folder, str(file.parent)))
                for each in tree_mistakes(board)[0]
            ]
        if board.dtb:
            import msgspec

            board = msgspec.structs.replace(board, dtb=str(file.with_suffix(".dtb")))
    if not dry_run:
        _write(file, text, beside)
    return NewBoard(file, text, board, tuple(lacks), tuple(notes), dry_run)


def _write(file: Path, text: str, beside: bytes) -> None:
    """Write the profile, and the DTB first that it names; if one fails there is neither.

    A DTB that lies there already, as where ``--from-dtb`` names it, stays, with what lies behind its end.
    """
    dtb = file.with_suffix(".dtb")
    is_there = dtb.is_file() and dtb.read_bytes()[: len(beside)] == beside
    if beside and dtb.exists() and not is_there:
        raise UserError(
            f"{dtb} exists already, and is another device tree",
            hint="take another name, or --output",
        )
    try:
        if beside and not is_there:
            write_atomically(dtb, beside)
        write_atomically(file, text.encode())
    except BaseException as error:
        if beside and not is_there:
            dtb.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write {file}: {error.strerror}", hint="--output takes another folder"
            ) from error
        raise


def _file(name: str, output: str) -> Path:
    if not output:
        return user_boards_dir() / f"{name}.toml"
    path = Path(output).absolute()
    if path.suffix == ".toml" and path.stem != name:
        raise UserError(
            f"a profile's file is called like the board: expected {name}.toml, found {path.name}",
            hint=f"--output {path.parent}",
        )
    return path if path.suffix == ".toml" else path / f"{name}.toml"


def _text(
    name: str, source: Source, like: Board | None, kernel: str
) -> tuple[str, list[str], bytes]:
    """Return the profile, what its owner should know, and the DTB that belongs beside it, if any."""
    tree = source.tree
    kernel = kernel or (like.kernel if like else DEFAULT_KERNEL)
    identity: list[str] = []
    notes: list[str] = []
    if tree is None:
        if like is None:
            raise RuntimeError("there is neither a tree nor a board to be like")
        soc, dts, beside = like.soc, None, b""
        title = f"{like.title}, a relative"
        body = _unknown_board(name, like)
    else:
        soc = _soc(tree, source.what, like)
        title = (tree.strings("/", "model") or [name])[0]
        borrowed = _borrowed(tree, source.what, like)
        dts = None if borrowed else _upstream(soc, tree, kernel)
        beside = source.blob if dts is None else b""
        body = _known_board(name, tuple(tree.compatible), borrowed)
        identity, notes = _identity(name, tree, title, borrowed)
        notes = [*_npu_notes(soc, tree, source.what), *filter(None, [borrowed]), *notes]
    origins = " and ".join(
        [*filter(None, [source.what]), *([f"the board {like.name}"] if like else [])]
    )
    lines = [
        "# SPDX-License-Identifier: MIT",
        f"# Made from {origins}.",
        f"format = {FORMAT}",
        f"name = {_string(name)}",
        f"title = {_string(title)}",
        f"soc = {_string(soc)}",
        _tree_line(name, dts, beside),
        *body,
        f"kernel = {_string(kernel)}",
        *identity,
    ]
    expected = _expected(soc, dts, kernel) if dts else None
    if expected:
        lines += ["", "[expect]", f"{_string(kernel_tree(kernel).series)} = {_string(expected)}"]
    return "\n".join([*lines, "", *_boot_lines(soc, source, like)]) + "\n", notes, beside


def _tree_line(name: str, dts: str | None, beside: bytes) -> str:
    """Where the device tree is: upstream's, the file beside the profile, or for the user to say."""
    if dts:
        return f"dts = {_string(dts)}"
    if beside:
        return f"dtb = {_string(f'{name}.dtb')}  # no board file upstream: its own device tree"
    return f'{MARK}dts: the file below the SoC\'s device trees, or dtb = "FILE" beside this one'


def _unknown_board(name: str, like: Board) -> list[str]:
    """The compatible strings of a board of which no tree is at hand, only a relative."""
    own = [f"unknown,{name}", *like.compatible[1:]]
    return [
        f"{MARK}compatible: the first string has to be this board's own",
        f"compatible = {json.dumps(own)}",
    ]


def _known_board(name: str, compatible: tuple[str, ...], borrowed: str) -> list[str]:
    """The compatible strings of a board whose tree is at hand; ``borrowed``: why they are another's."""
    if not borrowed:
        return [f"compatible = {json.dumps(list(compatible))}"]
    return [
        f"{MARK}compatible: the first string has to be this board's own; {borrowed}",
        f"compatible = {json.dumps([f'unknown,{name}', *compatible])}",
    ]


def _identity(name: str, tree: Tree, title: str, borrowed: str) -> tuple[list[str], list[str]]:
    """Return the profile's [identity], where its strings alone do not tell the board, and notes on it."""
    compatible = tuple(tree.compatible)
    if not tree.strings("/", "model"):
        return [], []
    models = f"models = {json.dumps([title], ensure_ascii=False)}"
    if borrowed:
        comment = (
            "# Until a tree with its own string runs there, it is recognised by these two together."
        )
        return ["", comment, "[identity]", models, f"runs_as = {_string(compatible[0])}"], []
    if not is_chip_makers(compatible):
        return [], []
    comment = (
        "# A reference board's string, which trees of other boards often keep: the model tells."
    )
    note = (
        f"{compatible[0]} is a string of the chip's maker, as reference boards have it, and trees of "
        f"other boards often keep it: only a machine whose model is {title!r} is taken for {name}"
    )
    return ["", comment, "[identity]", models], [note]


def _soc(tree: Tree, what: str, like: Board | None) -> str:
    own = soc_of(tree.compatible)
    if own and like and own != like.soc:
        raise UserError(
            f"{what} has the SoC {own}, the board {like.name} has {like.soc}",
            hint="leave --like out, or name a board with the same SoC",
        )
    if own:
        return own
    if like:
        return like.soc
    vendor = vendor_words(tree)
    raise UserError(
        (f"{what} is of a vendor's kernel: {vendor}. It says" if vendor else f"{what} says")
        + f" that it is {', '.join(tree.compatible) or 'nothing'}: no SoC with an NPU that a free "
        "driver knows",
        hint=f"known SoCs: {', '.join(soc_names())}; --like B takes the SoC of another board",
    )


def _borrowed(tree: Tree, what: str, like: Board | None) -> str:
    """Say why the tree's first ``compatible`` string is not the board's own; empty: it is.

    Raises:
        UserError: the board has a profile already, or it is not said which board it resembles.
    """
    match = find(machine_of(tree))
    if match.tied:
        raise tie_error(match.tied, what)
    first = (tree.compatible or [""])[0]
    if match.board is not None and match.place == 0:
        if not match.doubts:
            raise UserError(
                f"{what} is of {match.board.title}, which has a profile: {match.board.name}",
                hint=f"./inv board {match.board.name}",
            )
        if like is None:
            raise doubt_error(match.board, match.doubts, what)
        return f"{first} is the string of {match.board.name}, but {'; '.join(match.doubts)}"
    if first and not names_no_board(first):
        return ""
    name = f"{first!r} is the name of a chip or a module" if first else "its tree has none"
    if like is None:
        raise UserError(
            f"{what} does not say which board it is: {name}, which many boards have"
            if first
            else f"{what} does not say which board it is: its root has no compatible",
            hint=f"./inv new-board NAME --like {relative_of(tree.compatible)} with the same file or host "
            "goes on with a string of its own",
        )
    return name


def _upstream(soc: str, tree: Tree, kernel: str) -> str | None:
    """The kernel's source of a board: the file whose tree has the same first ``compatible`` string."""
    directory = load_soc(soc).dts_directory
    if directory is None or not tree.compatible:
        return None
    linux = kernel_tree(kernel)
    folder = linux.path / "arch/arm64/boot/dts" / directory
    word = f'"{tree.compatible[0]}"'
    for file in sorted(folder.glob("*.dts")):
        if not file.is_file() or word not in file.read_text(encoding="utf-8", errors="replace"):
            continue
        with tempfile.TemporaryDirectory(prefix="npu-bsp-board-") as work:
            target = Path(work) / "board.dtb"
            try:
                compile_dts(linux, directory, file.stem, target)
            except UserError as error:
                say(f"{file.name} names the board, and is passed over: {error.message}")
                continue
            source = read_tree(target.read_bytes(), file.name)
        if source.compatible == tree.compatible and overlay_mark(source) is None:
            return file.stem
    return None


def _expected(soc: str, dts: str, kernel: str) -> str | None:
    from .scan.scan import scan

    rows = scan(kernel, limit=[f"{load_soc(soc).dts_directory}/{dts}"]).rows
    return rows[0].expectation() if rows else None


def _npu_notes(soc: str, tree: Tree, what: str) -> list[str]:
    npu = load_soc(soc).npu
    if npu is None:
        return [f"{load_soc(soc).title} has no NPU that a kernel describes yet"]
    refuse_two_owners(tree, npu, what)
    foreign = npu_of_another_chip(tree, npu)
    if foreign is not None:
        raise UserError(
            f"{what} is of another chip than {load_soc(soc).title}: its NPU is {foreign} "
            f"({', '.join(tree.strings(foreign, 'compatible'))}), not at {npu.node.rpartition('@')[2]}",
            hint=f"--like takes a board with the same chip; {what} says that it is "
            f"{', '.join(tree.compatible)}",
        )
    notes = []
    vendor = vendor_of(tree, npu)
    if vendor:
        path, maker = vendor
        notes.append(
            f"its tree is for a vendor's kernel: {path} ({', '.join(maker.compatible)}) is for the driver "
            f"{maker.driver}. {npu.driver} wants an upstream kernel's tree: --from-dtb one of those"
        )
    if npu.compatible in tree.strings(npu.node, "compatible"):
        notes.append(f"the NPU is {npu.node}, {tree.status(npu.node) or 'with an empty status'}")
        notes += off_notes(tree, npu)
        lacks = [name for name in npu.requires if tree.get(npu.node, name) is None]
        notes += [f"{npu.node} has no {each}, which {npu.driver} needs" for each in lacks]
    else:
        notes.append(
            f"the tree has no node {npu.node} ({npu.compatible}): build-dts will refuse it"
        )
    return notes


def _boot_lines(soc: str, source: Source, like: Board | None) -> list[str]:
    """The table ``[boot]``: from the running board, else from boards that are like it."""
    mount = source.fat_mounts[0] if source.fat_mounts else None
    if mount is None and source.fat_mounts is None and like and like.boot:
        mount = like.boot.fat_mount
    modules: Sequence[str] = source.modules or ()
    origin = "loaded on the running board"
    if not modules:
        modules, origin = _modules_like(soc, like)
    lines = ["[boot]"]
    if mount:
        lines.append(f"fat_mount = {_string(mount)}")
    else:
        none = "the running board has no FAT file system mounted" if source.fat_mounts == () else ""
        lines.append(
            f"{MARK}boot.fat_mount: where the board mounts its FAT boot partition{none and '; '}{none}"
        )
        lines.append('fat_mount = "/boot/firmware"')
    if modules:
        lines.append(f"initrd_modules = {json.dumps(list(modules))}  # {origin}")
    else:
        lines.append(f"{MARK}boot.initrd_modules: the drivers of the storage that the root is on")
        lines.append("initrd_modules = []")
    return lines


def _modules_like(soc: str, like: Board | None) -> tuple[Sequence[str], str]:
    boards = [like] if like else [each for each in readable_boards() if each.soc == soc]
    for board in boards:
        for table_ in (board.boot, board.qemu):
            if table_ is not None and table_.initrd_modules:
                return table_.initrd_modules, f"as {board.name} has them"
    return (), ""


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML forbids it
