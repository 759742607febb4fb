# SPDX-License-Identifier: MIT
"""The files of a generation as one stream of frames, from the host to the board.

Where the link is slow, chunks are compressed; a chunk that does not shrink is sent as it is.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable

from bsp.base.errors import UserError
from images.bundle.manifest import Bundle

from ..onboard import frames
from . import contents, delta

SLOW_BYTES_PER_S = 14e6  # 100 Mbit/s; compressing for a faster link would cost more than it saves
_MEASURE_AFTER_BYTES = 12 << 20  # Linux buffers up to 4 MB here and 6 MB there, SSH 2 MB
_MEASURED_BYTES = 4 << 20
_SAMPLES = 32
_SAMPLE_BYTES = 16 << 10
_WORTH_IT = 0.9
_SMALL_BYTES = 200
_WRITE_BYTES = 256 << 10


class Progress:
    """The progress of a transfer, and the figures of its result."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.sent_files = 0
        self.wire_bytes = 0
        self.patched_files = 0
        self.patch_bytes = 0

    def add(self, size_bytes: int, *, patch_bytes: int | None = None) -> None:
        """Count a file that was sent, whole or as a patch."""
        self.sent_files += 1
        self.sent_bytes += size_bytes
        if patch_bytes is not None:
            self.patched_files += 1
            self.patch_bytes += patch_bytes

    def include(self, other: Progress) -> None:
        """Add the files that another progress counted."""
        self.sent_files += other.sent_files
        self.sent_bytes += other.sent_bytes
        self.patched_files += other.patched_files
        self.patch_bytes += other.patch_bytes


class Stream:
    """Writes frames, gathered into large writes."""

    def __init__(
        self,
        sink: Callable[[memoryview], object],
        codecs: tuple[str, ...],
        far: bool,
        progress: Progress,
    ) -> None:
        self._sink = sink
        self.progress = progress
        self._codecs = codecs
        self._codec: frames.Zstd | frames.Zlib | None = None
        self._compress = far
        self._pending = bytearray()
        self._timed_bytes = 0
        self._timed_s = 0.0
        self.wire_bytes = 0

    def data(self, content: bytes, *, compress: bool = True) -> bool:
        """Write data frames; return whether compression was worth it."""
        is_worth_it = compress
        for at in range(0, len(content), frames.CHUNK_BYTES):
            chunk = content[at : at + frames.CHUNK_BYTES]
            if self._compress and is_worth_it and len(chunk) > _SMALL_BYTES:
                codec = self._codec = self._codec or self._choose()
                small = codec.compress(chunk)
                is_worth_it = len(small) < _WORTH_IT * len(chunk)
                if is_worth_it:
                    self._write(codec.kind, small)
                    continue
            self._write(b"R", chunk)
        return is_worth_it

    def _choose(self) -> frames.Zstd | frames.Zlib:
        """Return the best codec that both ends have."""
        codecs = (frames.codec(kind.encode()) for kind in self._codecs)
        return next((codec for codec in codecs if codec), frames.Zlib())

    def file(self, index: int, path: str, size_bytes: int) -> None:
        """Write one file."""
        self._write(b"F", struct.pack(">I", index))
        left = size_bytes
        is_worth_it = not path.endswith(contents.COMPRESSED)
        handle = os.open(path, os.O_RDONLY)
        try:
            while left > 0:
                chunk = os.read(handle, min(left, frames.CHUNK_BYTES))
                if not chunk:
                    raise UserError(f"{path} became shorter while it was sent", hint="deploy again")
                is_worth_it = self.data(chunk, compress=is_worth_it)
                left -= len(chunk)
        finally:
            os.close(handle)
        self.progress.add(size_bytes)

    def ready_made(self, content: bytes) -> None:
        """Send frames that were made before."""
        self._out(content)

    def wire_size(self, content: bytes) -> int:
        """Estimate the compressed size of ``content`` from samples all over it."""
        if not self._compress or not content:
            return len(content)
        step = max(len(content) // _SAMPLES, 1)
        starts = range(0, len(content), step)
        sample = b"".join(content[at : at + _SAMPLE_BYTES] for at in starts)[: frames.CHUNK_BYTES]
        codec = self._codec = self._codec or self._choose()
        return len(content) * len(codec.compress(sample)) // len(sample)

    def patch(self, index: int, base_sha256: str, patch: bytes, size_bytes: int) -> None:
        """Write one file of ``size_bytes`` as a patch for one that the board has."""
        self._write(b"P", frames.PATCH.pack(index, len(patch), bytes.fromhex(base_sha256)))
        self.data(patch, compress=False)
        self.progress.add(size_bytes, patch_bytes=len(patch))

    @property
    def bytes_per_s(self) -> float | None:
        """The rate of the link, by the time that writing took; None: too little was sent to tell."""
        if self._timed_bytes < _MEASURED_BYTES:
            return None
        return self._timed_bytes / max(self._timed_s, 1e-6)

    def end(self) -> None:
        """Write the end mark."""
        self._write(b"E", b"")

    def flush(self) -> None:
        """Send the gathered frames."""
        if self._pending:
            self._out(self._pending)
            self._pending = bytearray()
            rate = self.bytes_per_s
            if rate is not None and rate < SLOW_BYTES_PER_S:
                self._compress = True

    def _out(self, content: bytes | bytearray) -> None:
        began = time.monotonic()
        self._sink(memoryview(content))
        if self.wire_bytes > _MEASURE_AFTER_BYTES:  # the first bytes only fill windows and buffers
            self._timed_s += time.monotonic() - began
            self._timed_bytes += len(content)
        self.wire_bytes += len(content)

    def _write(self, kind: bytes, payload: bytes) -> None:
        self._pending += frames.HEADER.pack(kind, len(payload))
        self._pending += payload
        if len(self._pending) >= _WRITE_BYTES:
            self.flush()


def send_files(
    stream: Stream, bundle: Bundle, indexes: list[int], maker: delta.Maker | None
) -> None:
    """Write files of a bundle, each as a patch where the maker finds one worth it, and the end mark."""
    folder = str(bundle.path)
    for index in indexes:
        entry = bundle.manifest.files[index]
        if maker and maker.has_base(index):
            content = (bundle.path / entry.path).read_bytes()
            file_patch = maker.patch(index, content, stream.wire_size(content))
            if file_patch:
                stream.patch(index, *file_patch, len(content))
                continue
        stream.file(index, f"{folder}/{entry.path}", entry.size_bytes)
    stream.end()
    stream.flush()
