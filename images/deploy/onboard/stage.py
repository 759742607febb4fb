# SPDX-License-Identifier: MIT
"""Builds a generation beside the others: from what is here, and what the host's stream brings.

All of it is made in GENERATION.partial and renamed when it is whole and flushed. An interrupted transfer
leaves that folder; the next one goes on from the files in it that are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil

from .board import Board, Record
from .files import (
    MTIME_S,
    PARTIAL,
    Entry,
    flush,
    flush_filesystem,
    intact,
    is_generation,
    make_way,
    names_in,
    on_fat,
    sha256_of,
    write_whole,
)
from .frames import Frames, RefusedError, from_ranges, ranges

Sources = dict[str, tuple[str, Entry]]
"""SHA-256 -> a file here with that content, and its entry."""


def stage(board: Board, request: Record, frames: Frames) -> Record:
    """Build a generation; or answer with the files that are lacking after all, to be sent again."""
    generation = request["generation"]
    content = _receive_manifest(board, request, frames)
    entries: list[Entry] = json.loads(content)["files"]
    folder = f"{board.store}/{generation}{PARTIAL}"
    os.makedirs(folder, exist_ok=True)
    os.makedirs(board.files, exist_ok=True)
    write_whole(f"{folder}/manifest.json", content)

    coming = set(from_ranges(request["send"]))
    here = _sources(board, request["bases"])
    rest = [index for index in range(len(entries)) if index not in coming]
    lacking = _place_present(board, entries, rest, folder, here)
    placed = _receive_files(board, entries, folder, frames)
    lacking = sorted({*lacking, *(coming - placed)})
    if lacking:
        # Most of these are second copies of what has just come.
        here = {entries[index]["sha256"]: (board.place(folder, entries[index]), entries[index])
                for index in placed if not on_fat(entries[index])}  # fmt: skip
        lacking = _place_present(board, entries, lacking, folder, here)
    if lacking:
        return {"need": ranges(lacking)}
    _finish(board, request, folder)
    return {"need": []}


def _receive_manifest(board: Board, request: Record, frames: Frames) -> bytes:
    """The manifest comes as runs of lines of one that is here, and new lines."""
    new: list[bytes] = []
    while (part := frames.next())[0] != b"E":
        new.append(part[1])
    fresh = iter(b"".join(new).split(b"\n"))
    base = board.manifest(request["base"])[0].split(b"\n") if request["base"] else []
    lines: list[bytes] = []
    for first, count in request["manifest"]:
        lines.extend(
            base[first : first + count] if first >= 0 else (next(fresh) for _ in range(count))
        )
    content = b"\n".join(lines)
    if hashlib.sha256(content).hexdigest() != request["manifest_sha256"]:
        raise RefusedError("the manifest did not arrive as it was sent")
    return content


def _sources(board: Board, bases: list[str]) -> Sources:
    """Where content lies already."""
    found: Sources = {}
    for base in bases:
        for entry in board.manifest(base)[1]:
            if entry.get("link") is None and not on_fat(entry):
                found.setdefault(entry["sha256"], (f"{board.store}/{base}/{entry['path']}", entry))
    return found


def _place_present(
    board: Board, entries: list[Entry], indexes: list[int], folder: str, here: Sources
) -> list[int]:
    """Place what need not come: symbolic links, resumed files, hard links. Return what is lacking."""
    lacking = []
    made: set[str] = set()
    for index in indexes:
        entry = entries[index]
        if on_fat(entry):
            if sha256_of(board.fat_file(entry)) != entry["sha256"]:
                lacking.append(index)
            continue
        path = f"{folder}/{entry['path']}"
        parent = path.rpartition("/")[0]
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        if entry.get("link") is not None:
            if not intact(path, entry):
                make_way(path)
                os.symlink(entry["link"], path)
        elif not _link_from(path, entry, here) and not intact(path, entry):
            lacking.append(index)
    return lacking


def _link_from(path: str, entry: Entry, here: Sources) -> bool:
    """Hard-link the file with this content, if there is one that is as it was made."""
    source, other = here.get(entry["sha256"], ("", {}))
    if not source or other.get("mode") != entry.get("mode") or not intact(source, entry):
        return False
    try:
        os.link(source, path)
    except FileExistsError:
        make_way(path)
        os.link(source, path)
    return True


def _receive_files(board: Board, entries: list[Entry], folder: str, frames: Frames) -> set[int]:
    """Write what comes; return the indexes of the files, all of them whole."""
    placed: set[int] = set()
    made: set[str] = set()
    while (part := frames.next())[0] != b"E":
        if part[0] != b"F":
            raise RefusedError(f"expected a file, found frame {part[0]!r}")
        index = int.from_bytes(part[1], "big")
        entry = entries[index]
        path = board.place(folder, entry)
        parent = path.rpartition("/")[0]
        if parent not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        _receive_file(path + PARTIAL if on_fat(entry) else path, entry, frames)
        if on_fat(entry):
            os.rename(path + PARTIAL, path)
        placed.add(index)
    return placed


def _receive_file(path: str, entry: Entry, frames: Frames) -> None:
    digest = hashlib.sha256()
    left = entry.get("size_bytes", 0)
    mode = entry.get("mode", 0o644)
    make_way(path)
    # A new file always: writing through a hard link would change another generation.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        while left > 0:
            kind, data = frames.next()
            if kind != b"R" or not 0 < len(data) <= left:
                raise RefusedError(f"{entry['path']} does not have the size that the manifest says")
            left -= len(data)
            digest.update(data)
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
        if digest.hexdigest() != entry["sha256"]:
            raise RefusedError(f"{entry['path']} did not arrive as the manifest says")
        if on_fat(entry):
            os.fsync(handle)
        else:
            os.fchmod(handle, mode)
            os.utime(handle, (MTIME_S, MTIME_S))
    except BaseException:
        make_way(path)
        raise
    finally:
        os.close(handle)


def _finish(board: Board, request: Record, folder: str) -> None:
    """Everything is there: flush it and give it its name."""
    for file in request["onboard"]:
        write_whole(board.at(file["target"]), file["content"].encode(), file["mode"])
    for name, points_to in request["onboard_links"].items():
        link = board.at(name)
        if not os.path.islink(link):
            os.makedirs(os.path.dirname(link), exist_ok=True)
            os.symlink(points_to, link)
    final = f"{board.store}/{request['generation']}"
    flush_filesystem(folder)
    if os.path.exists(final):  # a damaged one
        os.rename(final, f"{final}.old{PARTIAL}")
    os.rename(folder, final)
    flush(board.store)
    shutil.rmtree(f"{final}.old{PARTIAL}", ignore_errors=True)
    flush(board.files)
    write_whole(f"{board.own}/{request['generation']}/args.env", request["args"].encode())
    flush(board.own)


def discard(board: Board, request: Record) -> Record:
    """Remove all generations, boot files and leftovers but those of ``keep`` and ``resume``."""
    keep = set(request["keep"])
    resume = request["resume"]
    folders = {*keep, f"{resume}{PARTIAL}"}
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
    return {"removed": sorted(set(removed))}
