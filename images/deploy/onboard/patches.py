# SPDX-License-Identifier: MIT
"""Makes and applies patches between two files, as ``zstd --patch-from`` does, through the C library."""

from __future__ import annotations

from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from typing import Any

# ZSTD_cParameter and ZSTD_dParameter of zstd.h; all of them are part of its stable interface.
_LEVEL, _WINDOW_LOG, _LONG_DISTANCE, _WINDOW_LOG_MAX = 100, 101, 160, 100
_LARGEST_WINDOW = 30
_SMALLEST_WINDOW = 10
# The fastest one: matches with the other file are what counts, and long-distance matching finds these.
_FAST = 1
_LONG_FROM_BYTES = 1 << 20  # below that a file fits into the ordinary tables
LARGEST_BYTES = 256 << 20
"""Of a file that a patch is made for: both files are held in memory, here and on the board."""


class Patches:
    """Makes and applies patches.

    Raises:
        OSError, AttributeError: this machine has no libzstd, or one older than 1.4.
    """

    def __init__(self) -> None:
        import ctypes

        self._ctypes = ctypes
        lib = self._lib = ctypes.CDLL("libzstd.so.1")
        pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        for name, result, arguments in (
            ("ZSTD_createCCtx", pointer, []),
            ("ZSTD_createDCtx", pointer, []),
            ("ZSTD_freeCCtx", size, [pointer]),
            ("ZSTD_freeDCtx", size, [pointer]),
            ("ZSTD_CCtx_setParameter", size, [pointer, number, number]),
            ("ZSTD_DCtx_setParameter", size, [pointer, number, number]),
            ("ZSTD_CCtx_refPrefix", size, [pointer, ctypes.c_char_p, size]),
            ("ZSTD_DCtx_refPrefix", size, [pointer, ctypes.c_char_p, size]),
            ("ZSTD_compressBound", size, [size]),
            ("ZSTD_compress2", size, [pointer, pointer, size, ctypes.c_char_p, size]),
            ("ZSTD_decompressDCtx", size, [pointer, pointer, size, ctypes.c_char_p, size]),
            ("ZSTD_isError", ctypes.c_uint, [size]),
        ):
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments

    def make(self, base: bytes, content: bytes) -> bytes:
        """Return what turns ``base`` into ``content``."""
        lib = self._lib
        context = lib.ZSTD_createCCtx()
        try:
            window = max((len(base) + len(content)).bit_length(), _SMALLEST_WINDOW)
            self._tried(lib.ZSTD_CCtx_setParameter(context, _LEVEL, _FAST))
            self._tried(lib.ZSTD_CCtx_setParameter(context, _WINDOW_LOG, window))
            if len(content) >= _LONG_FROM_BYTES:
                self._tried(lib.ZSTD_CCtx_setParameter(context, _LONG_DISTANCE, 1))
            self._tried(lib.ZSTD_CCtx_refPrefix(context, base, len(base)))
            room = lib.ZSTD_compressBound(len(content))
            patch = self._ctypes.create_string_buffer(room)
            size = self._tried(lib.ZSTD_compress2(context, patch, room, content, len(content)))
            return bytes(memoryview(patch)[:size])
        finally:
            lib.ZSTD_freeCCtx(context)

    def apply(self, base: bytes, patch: bytes, size: int) -> memoryview:
        """Return the content, ``size`` bytes, that ``patch`` turns ``base`` into.

        Raises:
            RefusedError: it is not a patch, it is one for another file, or it makes more than ``size``.
        """
        lib = self._lib
        context = lib.ZSTD_createDCtx()
        try:
            self._tried(lib.ZSTD_DCtx_setParameter(context, _WINDOW_LOG_MAX, _LARGEST_WINDOW))
            self._tried(lib.ZSTD_DCtx_refPrefix(context, base, len(base)))
            content = self._ctypes.create_string_buffer(max(size, 1))
            content_bytes = self._tried(
                lib.ZSTD_decompressDCtx(context, content, size, patch, len(patch))
            )
            if content_bytes != size:
                raise RefusedError(f"a patch made {content_bytes} bytes, expected {size}")
            return memoryview(content).cast("B")[:size]
        finally:
            lib.ZSTD_freeDCtx(context)

    def _tried(self, result: Any) -> int:
        if self._lib.ZSTD_isError(result):
            raise RefusedError("zstd cannot make or apply this patch")
        return int(result)
