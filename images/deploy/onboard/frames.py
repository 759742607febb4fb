# SPDX-License-Identifier: MIT
"""The stream of a transfer, both ends: frames, and how their content is compressed."""

from __future__ import annotations

import ctypes
import struct
import zlib
from typing import Any, BinaryIO

HEADER = struct.Struct(">cI")
CHUNK_BYTES = 1 << 20


class RefusedError(Exception):
    """The request cannot be carried out; the board is as it was."""


class Zstd:
    """zstd through the C library, one chunk at a time. dpkg needs libzstd: every Debian has it."""

    kind = b"Z"

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libzstd.so.1")
        for name in ("ZSTD_compress", "ZSTD_decompress", "ZSTD_compressBound"):
            getattr(self._lib, name).restype = ctypes.c_size_t
        self._lib.ZSTD_compressBound.argtypes = [ctypes.c_size_t]
        sized: list[Any] = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
        self._lib.ZSTD_decompress.argtypes = sized
        self._lib.ZSTD_compress.argtypes = [*sized, ctypes.c_int]
        self._lib.ZSTD_isError.argtypes = [ctypes.c_size_t]

    def compress(self, data: bytes) -> bytes:
        """Return ``data`` as one zstd frame."""
        room = self._lib.ZSTD_compressBound(len(data))
        target = ctypes.create_string_buffer(room)
        size = self._lib.ZSTD_compress(target, room, data, len(data), 3)
        if self._lib.ZSTD_isError(size):
            raise ValueError("zstd cannot compress")
        return ctypes.string_at(target, size)

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return the content of one zstd frame, at most ``limit`` bytes."""
        target = ctypes.create_string_buffer(limit)
        size = self._lib.ZSTD_decompress(target, limit, data, len(data))
        if self._lib.ZSTD_isError(size):
            raise RefusedError("broken zstd frame")
        return ctypes.string_at(target, size)


class Zlib:
    """zlib, one chunk at a time. Every Python has it."""

    kind = b"G"

    def compress(self, data: bytes) -> bytes:
        """Return ``data`` compressed."""
        return zlib.compress(data, 3)

    def decompress(self, data: bytes, limit: int) -> bytes:
        """Return ``data`` decompressed, at most ``limit`` bytes."""
        try:
            return zlib.decompressobj().decompress(data, limit)
        except zlib.error as error:
            raise RefusedError(f"broken zlib frame: {error}") from error


def codecs() -> list[Zstd | Zlib]:
    """The codecs of this machine, best first."""
    try:
        return [Zstd(), Zlib()]
    except (OSError, AttributeError):
        return [Zlib()]


def frame(kind: bytes, payload: bytes | memoryview = b"") -> bytes:
    """Return one frame: its kind, its length (4 bytes, big-endian), its payload."""
    return HEADER.pack(kind, len(payload)) + bytes(payload)


class Frames:
    """Reads frames.

    F        a file begins: its index in the manifest (4 bytes); data follows, up to the file's size
    R, Z, G  data: raw, a zstd frame, a zlib stream; one chunk each
    E        the end
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._codecs = {codec.kind: codec for codec in codecs()}

    def next(self) -> tuple[bytes, bytes]:
        """Return the next frame as (kind, content); data comes decompressed, as kind R.

        Raises:
            EOFError: the host is gone.
            RefusedError: what comes is no frame.
        """
        kind, size = HEADER.unpack(self._exactly(HEADER.size))
        if size > 2 * CHUNK_BYTES:
            raise RefusedError(f"frame of {size} bytes")
        payload = self._exactly(size)
        codec = self._codecs.get(kind)
        return (b"R", codec.decompress(payload, CHUNK_BYTES)) if codec else (kind, payload)

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) != size:
            raise EOFError("the host is gone")
        return data


def ranges(numbers: list[int]) -> list[list[int]]:
    """Sorted numbers as [[first, last], ...]."""
    result: list[list[int]] = []
    for number in numbers:
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def from_ranges(pairs: list[list[int]]) -> list[int]:
    """The numbers in [[first, last], ...]."""
    return [number for first, last in pairs for number in range(first, last + 1)]
