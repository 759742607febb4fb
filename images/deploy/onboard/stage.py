# SPDX-License-Identifier: MIT
"""Builds a generation beside the others: from what is here, and what the host's stream brings.

All of it is made in GENERATION.partial and renamed when it is whole and flushed. An interrupted transfer
leaves that folder; the next one goes on from the files in it that are whole.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import stat
import zlib

from .board import Board
from .entries import problem_of
from .files import (
    MTIME_S,
    PARTIAL,
    flush,
    flush_filesystem,
    intact,
    is_generation,
    link_of,
    make_way,
    names_in,
    on_fat,
    read,
    sha256_of,
    write_whole,
)
from .frames import PATCH, Frames, RefusedError, from_ranges, ranges
from .kept_modules import discard_modules
from .patches import LARGEST_BYTES, Patches
from .signature import check as check_signature
from .signature import keep as keep_signature

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .board import Record
    from .files import Entry

    Sources = dict[tuple[str, int], str]  # SHA-256 and mode -> a whole file here like that


# What may be written outside of generations, and where it is enabled.
_OUR_FILES = re.compile(r"usr/local/lib/npu-bsp/[a-z-]+|etc/systemd/system/npu-bsp-[a-z]+\.service")
_OUR_LINKS = re.compile(r"etc/systemd/system/[a-z-]+\.target\.wants/npu-bsp-[a-z]+\.service")


def stage(board: Board, request: Record, frames: Frames) -> Record:
    """Build a generation; or answer with the files that are lacking after all, to be sent again."""
    generation = request["generation"]
    content = _receive_manifest(board, request, frames)
    check_signature(board, content, request)
    entries = _checked_entries(content, generation)
    _check_ours(request)
    folder = f"{board.store}/{generation}{PARTIAL}"
    os.makedirs(folder, exist_ok=True)
    os.makedirs(board.files, exist_ok=True)
    write_whole(f"{folder}/manifest.json", content)

    coming = set(from_ranges(request["send"]))
    here = _sources(board, request["bases"])
    rest = [index for index in range(len(entries)) if index not in coming]
    lacking = _place_present(board, entries, rest, folder, here)
    placed = _receive_files(board, entries, folder, frames, here)
    lacking = sorted({*lacking, *(coming - placed)})
    if lacking:
        # Most of these are second copies of what has just come.
        came = [entries[index] for index in placed]
        here = {_like(entry): board.place(folder, entry) for entry in came if not on_fat(entry)}
        lacking = _place_present(board, entries, lacking, folder, here)
    if lacking:
        return {"need": ranges(lacking)}
    pinned = keep_signature(board, folder, request)
    _finish(board, request, folder)
    return {"need": [], "pinned": pinned}


def _checked_entries(content: bytes, generation: str) -> list[Entry]:
    """The files of a manifest that is what the request calls it, and leads nowhere else."""
    try:
        manifest = json.loads(content)
        named = manifest["generation"]
        entries: list[Entry] = manifest["files"]
        problem = problem_of(
            (
                entry["path"],
                entry.get("sha256"),
                entry.get("size_bytes", 0),
                entry.get("mode", 0o644),
                entry.get("link"),
            )
            for entry in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedError(f"the manifest is broken: {error!r}") from None
    if named != generation:
        raise RefusedError(f"the manifest is that of generation {named}, not of {generation}")
    if problem:
        raise RefusedError(f"the manifest is refused: {problem}")
    return entries


def _check_ours(request: Record) -> None:
    for file in request["onboard"]:
        if not _OUR_FILES.fullmatch(file["target"]):
            raise RefusedError(f"{file['target']!r} is not a file of npu-bsp")
    for name, points_to in request["onboard_links"].items():
        if not _OUR_LINKS.fullmatch(name) or points_to != f"../{name.rpartition('/')[2]}":
            raise RefusedError(f"{name!r} is not a link of npu-bsp")


def make_folder(top: str, below: str, made: set[str]) -> None:
    """Make the folder ``below`` in ``top``; what is in the way and no folder (a link!) is removed.

    Args:
        made: folders known to be there; added to.
    """
    if not below or below in made:
        return
    make_folder(top, below.rpartition("/")[0], made)
    path = f"{top}/{below}"
    try:
        os.mkdir(path)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkdir(path)
    made.add(below)


def _like(entry: Entry) -> tuple[str, int]:
    return entry["sha256"], entry.get("mode", 0o644)


def _receive_manifest(board: Board, request: Record, frames: Frames) -> bytes:
    """The manifest comes as runs of lines of one that is here, and new lines."""
    new: list[bytes] = []
    while (part := frames.next())[0] != b"E":
        new.append(part[1])
    fresh = iter(b"".join(new).split(b"\n"))
    base = board.manifest(request["base"])[0].split(b"\n") if request["base"] else []
    lines: list[bytes] = []
    for first, count in request["manifest"]:
        lines.extend(base[first : first + count] if first >= 0 else itertools.islice(fresh, count))
    content = b"\n".join(lines)
    if hashlib.sha256(content).hexdigest() != request["manifest_sha256"]:
        raise RefusedError("the manifest did not arrive as it was sent")
    return content


def _sources(board: Board, bases: list[str]) -> Sources:
    """Where content lies already, in files that are as they were made."""
    sources: Sources = {}
    for base in bases:
        damaged = board.checked.get(base)
        for entry in board.manifest(base)[1]:
            if entry.get("link") is None and not on_fat(entry):
                path = f"{board.store}/{base}/{entry['path']}"
                if entry["path"] not in damaged if damaged is not None else intact(path, entry):
                    sources.setdefault(_like(entry), path)
    return sources


def _place_present(
    board: Board, entries: list[Entry], indexes: list[int], folder: str, here: Sources
) -> list[int]:
    """Place what need not come: symbolic links, resumed files, hard links. Return what is lacking."""
    lacking = []
    made: set[str] = set()
    for index in indexes:
        entry = entries[index]
        if on_fat(entry):  # its content is hashed before it is booted: see arm
            if not os.path.exists(board.fat_file(entry)):
                lacking.append(index)
            continue
        path = f"{folder}/{entry['path']}"
        make_folder(folder, entry["path"].rpartition("/")[0], made)
        source = here.get(_like(entry)) if entry.get("link") is None else None
        if source:
            try:
                os.link(source, path)
            except FileExistsError:
                make_way(path)
                os.link(source, path)
        elif not intact(path, entry):
            if entry.get("link") is None:
                lacking.append(index)
            else:
                make_way(path)
                os.symlink(entry["link"], path)
    return lacking


def _receive_files(
    board: Board, entries: list[Entry], folder: str, frames: Frames, here: Sources
) -> set[int]:
    """Write what comes; return the indexes of the files, all of them whole.

    A patch that does not fit what is here is not an error: the host sends that file whole.
    """
    placed: set[int] = set()
    made: set[str] = set()
    by_content = {sha256: path for (sha256, _), path in here.items()}
    while (part := frames.next())[0] != b"E":
        if part[0] not in (b"F", b"P"):
            raise RefusedError(f"expected a file, found frame {part[0]!r}")
        index = int.from_bytes(part[1][:4], "big")
        if index >= len(entries) or entries[index].get("link") is not None:
            raise RefusedError(f"file {index} is not in the manifest")
        entry = entries[index]
        path = board.place(folder, entry)
        if not on_fat(entry):
            make_folder(folder, entry["path"].rpartition("/")[0], made)
        beside = path + PARTIAL if on_fat(entry) else path
        if part[0] == b"F":
            _write_file(beside, entry, _pieces(entry["path"], entry.get("size_bytes", 0), frames))
        elif not _patch_file(board, beside, entry, part[1], frames, by_content):
            continue
        if on_fat(entry):
            os.rename(beside, path)
        placed.add(index)
    return placed


def _patch_file(
    board: Board, path: str, entry: Entry, head: bytes, frames: Frames, here: dict[str, str]
) -> bool:
    """Make a file from one that is here and a patch; False if these do not make what they should."""
    if len(head) != PATCH.size:
        raise RefusedError("a patch begins with something else")
    _, size, digest = PATCH.unpack(head)
    if max(size, entry.get("size_bytes", 0)) > LARGEST_BYTES:
        raise RefusedError(f"{entry['path']} is too large for a patch")
    patch = b"".join(_pieces(entry["path"], size, frames))
    base = read(here.get(digest.hex()) or f"{board.files}/{digest.hex()[:32]}")
    try:
        content = Patches().apply(base, patch, entry.get("size_bytes", 0))
        _write_file(path, entry, [content])
    except (RefusedError, MemoryError):
        return False
    return True


def _pieces(name: str, size: int, frames: Frames) -> Iterator[bytes]:
    """The data that follows, ``size`` bytes of it."""
    while size > 0:
        kind, data = frames.next()
        if kind != b"R" or not 0 < len(data) <= size:
            raise RefusedError(f"{name} does not have the size that the manifest says")
        size -= len(data)
        yield data


def _write_file(path: str, entry: Entry, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file, and hash it on the way; what is not as the manifest says does not stay."""
    digest = hashlib.sha256()
    mode = entry.get("mode", 0o644)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        handle = os.open(path, flags, mode)
    except FileExistsError:
        # A new file always: writing through a hard link would change another generation.
        make_way(path)
        handle = os.open(path, flags, mode)
    try:
        for data in pieces:
            digest.update(data)
            written = os.write(handle, data)
            while written < len(data):
                written += os.write(handle, data[written:])
        if digest.hexdigest() != entry["sha256"]:
            raise RefusedError(f"{entry['path']} did not arrive as the manifest says")
        if on_fat(entry):
            os.fsync(handle)
        else:
            os.utime(handle, (MTIME_S, MTIME_S))
    except BaseException:
        make_way(path)
        raise
    finally:
        os.close(handle)


def _finish(board: Board, request: Record, folder: str) -> None:
    """Everything is there: flush it and give it its name."""
    install_onboard(board, request)
    final = f"{board.store}/{request['generation']}"
    flush_filesystem(folder)
    if os.path.exists(final):
        _mend_from(folder, final, json.loads(read(f"{folder}/manifest.json"))["files"])
    else:
        os.rename(folder, final)
    flush(board.store)
    flush(board.files)
    board.checked[request["generation"]] = set()
    write_whole(
        f"{board.own}/{request['generation']}/args.env",
        base64.b64decode(request["args"][board.form]),
    )
    flush(board.own)


def install_onboard(board: Board, request: Record) -> None:
    """Put the files outside the generations in place that the host sends, and their links."""
    for file in request["onboard"]:
        write_whole(board.at(file["target"]), file["content"].encode(), file["mode"])
    for name, points_to in request["onboard_links"].items():
        link = board.at(name)
        if link_of(link) != points_to:
            os.makedirs(os.path.dirname(link), exist_ok=True)
            make_way(link)
            os.symlink(points_to, link)


def _mend_from(folder: str, final: str, entries: list[Entry]) -> None:
    """Replace what is damaged in a generation by what has just been made whole in ``folder``.

    File by file, each in one step: the generation may be the one that runs, its modules mounted.
    """
    import shutil

    own = [str(entry["path"]) for entry in entries if not on_fat(entry)]
    about = [name for name in names_in(folder) if name.startswith("manifest.json")]
    made: set[str] = set()
    for path in own + about:
        make_folder(final, path.rpartition("/")[0], made)
        new, old = f"{folder}/{path}", f"{final}/{path}"
        try:
            same = os.path.samestat(os.lstat(new), os.lstat(old))
        except OSError:
            same = False
        if not same and not (link_of(new) is not None and link_of(new) == link_of(old)):
            _replace(new, old)
    flush_filesystem(final)
    shutil.rmtree(folder)


def _replace(new: str, old: str) -> None:
    """Give a file the name of another, whatever stands in the way of that."""
    import shutil

    if os.path.isdir(old) and not os.path.islink(old):
        shutil.rmtree(old)
    os.rename(new, old)


def mend(board: Board, request: Record) -> Record:
    """Make whole again what is damaged in other generations, from whole files of any; name what is left."""
    _check_ours(request)
    install_onboard(board, request)
    names = [name for name in board.generations() if name in board.checked]
    here = _sources(board, names)
    left: dict[str, list[str]] = {}
    import shutil

    for name, damaged in request["generations"].items():
        folder = f"{board.store}/{name}"
        beside = f"{folder}{PARTIAL}"
        os.makedirs(beside, exist_ok=True)
        made: set[str] = set()
        for entry in _checked_entries(board.manifest(name)[0], name):
            if entry["path"] not in damaged:
                continue
            if on_fat(entry):
                if sha256_of(board.fat_file(entry)) != entry["sha256"]:
                    left.setdefault(name, []).append(entry["path"])
                continue
            source = here.get(_like(entry)) if entry.get("link") is None else None
            if source is None and entry.get("link") is None:
                left.setdefault(name, []).append(entry["path"])
                continue
            make_folder(folder, entry["path"].rpartition("/")[0], made)
            new = f"{beside}/file"
            make_way(new)
            os.link(source, new) if source else os.symlink(entry["link"], new)
            _replace(new, f"{folder}/{entry['path']}")
        shutil.rmtree(beside)
        if "args.env" in damaged:
            if arguments := request["args"].get(name):
                content = base64.b64decode(arguments[board.form])
                write_whole(f"{board.own}/{name}/args.env", content)
                flush(board.own)
            else:
                left.setdefault(name, []).append("args.env")
    flush_filesystem(board.store)
    return {"left": left}


def restore_manifest(board: Board, request: Record) -> Record:
    """Put the manifest of a generation back that the host remembers."""
    name = request["generation"]
    content = zlib.decompress(base64.b64decode(request["manifest"]))
    _checked_entries(content, name)
    if name in names_in(board.store):
        write_whole(f"{board.store}/{name}/manifest.json", content)
        board.forget(name)
    return {}


def discard(board: Board, request: Record) -> Record:
    """Remove all generations, boot files and leftovers but those of ``keep`` and ``resume``."""
    keep = set(request["keep"])
    resume = request["resume"]
    folders = {*keep, f"{resume}{PARTIAL}"}
    import shutil

    used = board.used_files(sorted(keep), resume)
    removed = []
    # What makes a generation bootable goes first, then its content.
    for name in names_in(board.own):
        if is_generation(name) and name not in keep:
            shutil.rmtree(f"{board.own}/{name}")
            removed.append(name)
    for name in names_in(board.files):
        if name not in used:
            os.unlink(f"{board.files}/{name}")
            removed.append(name)
    for name in names_in(board.store):
        if name not in folders:
            shutil.rmtree(f"{board.store}/{name}", ignore_errors=True)
            removed.append(name)
    discard_modules(board, sorted(keep))
    return {"removed": sorted(set(removed))}
