# SPDX-License-Identifier: MIT
"""The stream of a transfer, both ends: frames, and how their content is compressed."""

from __future__ import annotations

import struct
import zlib

TYPE_CHECKING = False  # importing typing costs a slow board more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO

HEADER = struct.Struct(">cI")
CHUNK_BYTES = 1 << 20
PATCH = struct.Struct(">II32s")
_BOUND_BYTES = CHUNK_BYTES + (CHUNK_BYTES >> 7) + 512  # ZSTD_COMPRESSBOUND of a chunk, and some
_LEVEL = 3


class RefusedError(Exception):
    """The request cannot be carried out; the board is as it was."""


class Zstd:
    """zstd through the C library, one chunk at a time. dpkg needs libzstd: every Debian has it."""

    kind = b"Z"
    # Kept for all chunks: making them takes longer than a small file does.
    _packer: int | None = None
    _unpacker: int | None = None

    def __init__(self) -> None:
        import ctypes

        lib = self._lib = ctypes.CDLL("libzstd.so.1")
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        sized: list[Any] = [pointer, pointer, size, ctypes.c_char_p, size]
        lib.ZSTD_compressCCtx.argtypes = [*sized, ctypes.c_int]
        lib.ZSTD_decompressDCtx.argtypes = sized
        lib.ZSTD_compressCCtx.restype = lib.ZSTD_decompressDCtx.restype = size
        lib.ZSTD_isError.argtypes = [size]
        lib.ZSTD_createCCtx.restype = lib.ZSTD_createDCtx.restype = pointer
        lib.ZSTD_freeCCtx.argtypes = lib.ZSTD_freeDCtx.argtypes = [pointer]
        self._room = ctypes.create_string_buffer(_BOUND_BYTES)
        self._string_at = ctypes.string_at

    def __del__(self) -> None:
        if self._packer:
            self._lib.ZSTD_freeCCtx(self._packer)
        if self._unpacker:
            self._lib.ZSTD_freeDCtx(self._unpacker)

    def compress(self, data: bytes, level: int = _LEVEL) -> bytes:
        """Return ``data``, one chunk at most, as one zstd frame."""
        self._packer = self._packer or self._lib.ZSTD_createCCtx()
        size = self._lib.ZSTD_compressCCtx(
            self._packer, self._room, _BOUND_BYTES, data, len(data), level
        )
        if self._lib.ZSTD_isError(size):
            raise ValueError("zstd cannot compress")
        return self._string_at(self._room, size)

    def decompress(self, data: bytes) -> bytes:
        """Return the content of one zstd frame, one chunk at most."""
        self._unpacker = self._unpacker or self._lib.ZSTD_createDCtx()
        size = self._lib.ZSTD_decompressDCtx(
            self._unpacker, self._room, CHUNK_BYTES, data, len(data)
        )
        if self._lib.ZSTD_isError(size):
            raise RefusedError("broken zstd frame")
        return self._string_at(self._room, size)


class Zlib:
    """zlib, one chunk at a time. Every Python has it."""

    kind = b"G"

    def compress(self, data: bytes) -> bytes:
        """Return ``data`` compressed."""
        return zlib.compress(data, _LEVEL)

    def decompress(self, data: bytes) -> bytes:
        """Return ``data`` decompressed, one chunk at most."""
        try:
            return zlib.decompressobj().decompress(data, CHUNK_BYTES)
        except zlib.error as error:
            raise RefusedError(f"broken zlib frame: {error}") from error


def codec(kind: bytes) -> Zstd | Zlib | None:
    """Return the codec of that kind; None if this machine does not have it."""
    if kind == Zlib.kind:
        return Zlib()
    try:
        return Zstd() if kind == Zstd.kind else None
    except (OSError, AttributeError):
        return None


class Frames:
    """Reads frames. Each is a kind (one letter), a length (4 bytes, big-endian) and a payload.

    F        a file begins: its index in the manifest (4 bytes); data follows, up to the file's size
    P        a patch for a file begins: its index (4 bytes), the patch's size (4 bytes), the SHA-256 of the
             file here that it is for; data follows, up to the patch's size
    R, Z, G  data: raw, a zstd frame, a zlib stream; one chunk each
    E        the end
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._codecs: dict[bytes, Zstd | Zlib | None] = {}
        self.heard: Callable[[], None] = _nothing
        """Called for each frame."""

    def next(self) -> tuple[bytes, bytes]:
        """Return the next frame as (kind, content); data comes decompressed, as kind R.

        Raises:
            EOFError: the host is gone.
            RefusedError: what comes is not a frame.
        """
        header = self._stream.read(HEADER.size)
        if len(header) != HEADER.size:
            raise EOFError("the host is gone")
        self.heard()
        kind, size = HEADER.unpack(header)
        if size > 2 * CHUNK_BYTES:
            raise RefusedError(f"frame of {size} bytes")
        payload = self._stream.read(size)
        if len(payload) != size:
            raise EOFError("the host is gone")
        if kind in (b"R", b"F", b"P", b"E"):
            return kind, payload
        if kind not in self._codecs:
            self._codecs[kind] = codec(kind)
        decoder = self._codecs[kind]
        if decoder is None:
            raise RefusedError(f"frame of kind {kind!r}, which this board cannot read")
        return b"R", decoder.decompress(payload)


def _nothing() -> None:
    pass


def ranges(numbers: list[int]) -> list[list[int]]:
    """Return sorted numbers as [[first, last], ...]."""
    result: list[list[int]] = []
    for number in numbers:
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def from_ranges(pairs: list[list[int]]) -> list[int]:
    """Return the numbers in [[first, last], ...]."""
    return [number for first, last in pairs for number in range(first, last + 1)]
