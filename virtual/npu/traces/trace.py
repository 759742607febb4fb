# SPDX-License-Identifier: MIT
"""Traces: what was submitted to an NPU and what came out, in a file. docs/traces.md has the format.

A trace is a header and any number of submissions: a command stream, its buffers, and for each job the
memory that it read, as far as the trace does not have it already, and what it wrote.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from bsp.base.errors import InfrastructureError, UserError

from ..identity import AnyIdentity
from ..memory import Bytes
from ..tflite.operations import Operation

MAGIC = b"NPUTRACE"
FORMAT = 1
MAX_RECORD_BYTES = 256 << 20
MAX_FILE_BYTES = 4 << 30
DEFAULT_LIMIT_BYTES = 1 << 30
"""So much is recorded unless asked otherwise; then recording stops, and the trace is good so far."""
_PREFIX = struct.Struct("<8sI")
_CHUNK = struct.Struct("<II")
_HASH_BYTES = 32

Address = Annotated[int, Meta(ge=0, lt=1 << 32)]
Size = Annotated[int, Meta(ge=0, le=1 << 32)]
Piece = tuple[Address, bytes]
"""GPU address, and what stands there."""


class TraceError(UserError):
    """A file is not a trace, or a broken one."""


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="header"):
    """What a trace was recorded on.

    Attributes:
        created: UTC, ISO 8601.
        door: ``shim`` or ``device``.
        npu: the whole identity, so that a trace does not hang on a file of today.
        mode: ``hw`` or ``exact``; in exact mode ``operations`` has the model's scales (of a Vivante NPU).
        software: name to version, as far as known.
    """

    created: str
    door: str
    npu: AnyIdentity
    mode: str
    operations: list[Operation] = []
    software: dict[str, str] = {}


class Submit(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="submit"):
    """A submission begins; its ``Job`` records and one ``End`` follow.

    Attributes:
        client: which process; each has an address space of its own.
        buffers: (address, size in bytes, 1 read | 2 write). By the device door, which does not see
            buffers, the pages that were touched.
        stream: command words, little endian.
    """

    client: Annotated[int, Meta(ge=0, lt=1 << 16)]
    buffers: Annotated[
        list[tuple[Address, Size, Annotated[int, Meta(ge=1, le=3)]]], Meta(max_length=65536)
    ]
    stream: Annotated[bytes, Meta(max_length=4 << 20)]


class Job(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="job"):
    """One job.

    Attributes:
        before: memory that the job sees and that differs from what the trace had there so far (zeros
            at first).
        writes: (address, size) of what the job writes into.
        after: what differs there afterwards.
        ran: False if it stopped at a fault.
    """

    unit: str
    address: Address
    before: list[Piece]
    writes: list[tuple[Address, Size]]
    after: list[Piece]
    ran: bool
    seconds: float


class End(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="end"):
    """A submission's end; ``fault`` says what stopped it, ``fault_field`` which field; "" for nothing."""

    fault: str = ""
    fault_field: str = ""


Record = Header | Submit | Job | End

_TABLE_BYTES = 256


def _from_array(value: Any) -> bytes:
    """A table of an operation as bytes."""
    return bytes(np.asarray(value, np.uint8))


def _to_array(_: type, value: Any) -> Bytes:
    if not isinstance(value, bytes) or len(value) != _TABLE_BYTES:
        raise ValueError(f"a table of {_TABLE_BYTES} bytes expected")
    return np.frombuffer(value, np.uint8)


_encoder = msgspec.msgpack.Encoder(enc_hook=_from_array)
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(
    Record, strict=True, dec_hook=_to_array
)


def packed(record: Record) -> bytes:
    """Return a record as it stands in the file: two sizes, then its compressed content."""
    raw = _encoder.encode(record)
    stored = zlib.compress(raw, 1)
    return _CHUNK.pack(len(stored), len(raw)) + stored


class Writer:
    """Writes a trace beside its place and moves it there on ``close``; safe to share by threads."""

    def __init__(
        self, path: Path, header: Header, *, limit_bytes: int = DEFAULT_LIMIT_BYTES
    ) -> None:
        """Begin a trace.

        Raises:
            UserError: nothing can be written there.
        """
        self._path = path
        self._limit_bytes = min(limit_bytes, MAX_FILE_BYTES // 2)
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self.submissions = 0
        self.full = False
        try:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        self._temporary = Path(name)
        self._file: IO[bytes] | None = os.fdopen(handle, "wb")
        self._put(_PREFIX.pack(MAGIC, FORMAT) + packed(header))

    def add(self, records: Sequence[bytes]) -> None:
        """Add a submission's packed records, all or none: none once the limit is reached."""
        with self._lock:
            size = sum(map(len, records))
            if self._file is None or self.full or self._size_bytes + size > self._limit_bytes:
                self.full = True
                return
            for record in records:
                self._put(record)
            self.submissions += 1

    def close(self) -> None:
        """End the trace and put it in its place.

        Raises:
            InfrastructureError: the disk does not take it.
        """
        with self._lock:
            if self._file is None:
                return
            try:
                self._put(_CHUNK.pack(0, 0))
                self._file.write(self._hash.digest())
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                mask = os.umask(0)
                os.umask(mask)
                self._temporary.chmod(0o666 & ~mask)
                self._temporary.replace(self._path)
            except OSError as error:
                self._temporary.unlink(missing_ok=True)
                raise InfrastructureError(f"cannot write {self._path}: {error}") from error
            finally:
                self._file = None

    def _put(self, content: bytes) -> None:
        if self._file is None:
            raise RuntimeError("the trace is not open")
        self._file.write(content)
        self._hash.update(content)
        self._size_bytes += len(content)


def read(path: Path) -> Iterator[Record]:
    """Yield a trace's records, the header first; the whole file's hash is checked before.

    Raises:
        TraceError: it cannot be read, is cut short, damaged, or no trace.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            _check(path, file, size_bytes)
            file.seek(_PREFIX.size)
            number = 0
            while True:
                stored, raw = _CHUNK.unpack(_exactly(path, file, _CHUNK.size))
                if not stored and not raw:
                    if file.tell() != size_bytes - _HASH_BYTES:
                        raise TraceError(f"{path}: records go on behind its end")
                    return
                yield _unpacked(path, number, _exactly(path, file, stored), raw)
                number += 1
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error


def header_of(records: Iterator[Record], path: Path) -> Header:
    """Return the header, the first of a trace's records.

    Raises:
        TraceError: something else stands there.
    """
    first = next(records, None)
    if not isinstance(first, Header):
        raise TraceError(f"{path}: the first record is not a header")
    for operation in first.operations:
        for scale in (operation.real, operation.mesa_real):
            if not (math.isfinite(scale) and 0 <= scale < 1 << 16):
                raise TraceError(f"{path}: {operation.name} has a scale of {scale}")
    return first


def _check(path: Path, file: IO[bytes], size_bytes: int) -> None:
    prefix = file.read(_PREFIX.size)
    if prefix[:8] != MAGIC:
        raise TraceError(f"{path} is not a trace of an NPU: it begins with {prefix[:8]!r}")
    if len(prefix) < _PREFIX.size or size_bytes < _PREFIX.size + _CHUNK.size + _HASH_BYTES:
        raise TraceError(f"{path} is cut short: {size_bytes} bytes")
    if size_bytes > MAX_FILE_BYTES:
        raise TraceError(f"{path} has {size_bytes} bytes; at most {MAX_FILE_BYTES} are read")
    _, version = _PREFIX.unpack(prefix)
    if version != FORMAT:
        raise TraceError(
            f"{path} has trace format {version}; this reads format {FORMAT}",
            hint="use the version of npu-bsp that recorded it",
        )
    digest = hashlib.sha256(prefix)
    left = size_bytes - _PREFIX.size - _HASH_BYTES
    while left:
        part = _exactly(path, file, min(left, 1 << 20))
        digest.update(part)
        left -= len(part)
    stored = _exactly(path, file, _HASH_BYTES)
    if digest.digest() != stored:
        raise TraceError(
            f"{path} is damaged or cut short: its SHA-256 is {digest.hexdigest()[:16]}..., "
            f"expected {stored.hex()[:16]}..."
        )


def _unpacked(path: Path, number: int, stored: bytes, raw_bytes: int) -> Record:
    if raw_bytes > MAX_RECORD_BYTES:
        raise TraceError(f"{path}: record {number} of {raw_bytes} bytes is too large")
    inflate = zlib.decompressobj()
    try:
        raw = inflate.decompress(stored, raw_bytes + 1)
        if len(raw) != raw_bytes or not inflate.eof or inflate.unused_data:
            raise TraceError(f"{path}: record {number} does not have its {raw_bytes} bytes")
        return _decoder.decode(raw)
    except (zlib.error, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TraceError(f"{path}: record {number}: {error}") from error


def _exactly(path: Path, file: IO[bytes], size_bytes: int) -> bytes:
    content = file.read(size_bytes)
    if len(content) != size_bytes:
        raise TraceError(f"{path} is cut short")
    return content
