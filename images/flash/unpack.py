# SPDX-License-Identifier: MIT
"""Compressed images: unpacked once, into a file without a name.

So nothing is written to a device before the whole image was unpacked without an error, and an interrupted
flash can continue in the middle. All streams of a file are read, one after another: pigz, pbzip2, pixz
and ``cat`` make such files. Trailing data that is neither a stream nor padding is an error.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from bsp.base.cache import cache_dir
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.progress import step

_PIECE_BYTES = 1 << 18
_ZEROS = bytes(_PIECE_BYTES)
_TOOLS = {
    "xz": ["xz", "--decompress", "--stdout", "--format=xz", "--threads=0"],
    "zstd": ["zstd", "--decompress", "--stdout", "--quiet", "--long=31"],
}
"""They read standard input, as they reject files with an unknown suffix."""


class DamagedError(Exception):
    """The file ends too early, or its content is damaged."""


def unpack(
    image: Path, kind: str, *, head_bytes: int, check_head: Callable[[bytes], object]
) -> IO[bytes]:
    """Return a file with the content of a compressed image; closing it removes it.

    Args:
        kind: compression, as formats.read_through returns it.
        check_head: called with the first ``head_bytes`` (or all, if fewer) before the rest is unpacked.

    Raises:
        UserError: it is truncated or damaged; and whatever ``check_head`` raises.
        InfrastructureError: the disk is full.
    """
    folder = cache_dir()
    file = tempfile.TemporaryFile(prefix="flash.", dir=folder)  # noqa: SIM115 - handed to the caller
    unpacked = 0
    try:
        with (
            step(f"Unpacking {image.name} ({kind})") as progress,
            contextlib.closing(pieces(image, kind)) as source,
        ):
            head = b""
            for piece in source:
                if len(head) < head_bytes:
                    head += piece
                    if len(head) >= head_bytes:
                        check_head(head)
                if piece != _ZEROS[: len(piece)]:  # holes are zeros, in a file of our own
                    _write(file.fileno(), piece, unpacked)
                unpacked += len(piece)
                progress.note(f"{unpacked / 1e6:.0f} MB")
            if len(head) < head_bytes:
                check_head(head)
            file.truncate(unpacked)
    except DamagedError as error:
        file.close()
        raise UserError(
            f"{image} is truncated or damaged: {kind} reports after {unpacked} bytes: {error}",
            hint="download or copy it again, and compare its checksum with the published one",
        ) from error
    except OSError as error:
        file.close()
        raise InfrastructureError(
            f"cannot unpack {image} in {folder} after {unpacked / 1e6:.0f} MB: {error.strerror or error}",
            hint="NPU_BSP_CACHE=FOLDER names a folder with more room",
        ) from error
    except BaseException:
        file.close()
        raise
    return file


def pieces(image: Path, kind: str) -> Generator[bytes]:
    """Unpack a file, piece by piece.

    Raises:
        DamagedError: it is truncated or damaged.
    """
    if kind in _TOOLS:
        return _with_tool(image, _TOOLS[kind])
    return _gzip(image) if kind == "gzip" else _bzip2(image)


def _with_tool(image: Path, command: list[str]) -> Generator[bytes]:
    reader, writer = os.pipe()

    def serve() -> str:
        with os.fdopen(writer, "wb") as sink, image.open("rb") as source:
            completed = run(command, stdin=source, stdout=sink, check=False)
        message = completed.stderr.decode(errors="replace").strip()
        return "" if completed.exit_code == 0 else message or f"exit code {completed.exit_code}"

    with ThreadPoolExecutor(1) as pool, os.fdopen(reader, "rb") as source:
        tool_error = pool.submit(serve)
        while piece := source.read(_PIECE_BYTES):
            yield piece
        if problem := tool_error.result():
            raise DamagedError(problem.splitlines()[-1])


def _gzip(image: Path) -> Generator[bytes]:
    try:
        with gzip.open(image) as source:
            while piece := source.read(_PIECE_BYTES):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DamagedError(str(error)) from error


def _bzip2(image: Path) -> Generator[bytes]:
    # bz2.open, like bzip2 itself, mistakes a damaged second stream for the end of the file.
    with image.open("rb") as file:
        data = file.read(_PIECE_BYTES)
        while data.strip(b"\0"):
            decoder = bz2.BZ2Decompressor()
            while not decoder.eof:
                if decoder.needs_input and not data:
                    data = file.read(_PIECE_BYTES)
                    if not data:
                        raise DamagedError("the file ends in the middle of a stream")
                try:
                    piece = decoder.decompress(data, _PIECE_BYTES)
                except (OSError, ValueError) as error:
                    raise DamagedError(str(error)) from error
                data = b""
                if piece:
                    yield piece
            data = decoder.unused_data
            while not data.strip(b"\0") and (more := file.read(_PIECE_BYTES)):
                data = data.lstrip(b"\0") + more


def _write(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
