# SPDX-License-Identifier: MIT
"""The host's half of a flash: one channel that carries the writer (onboard/), its requests and the data.

Reading, hashing and compressing run in threads ahead of the link; all three release the GIL.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from bsp.base.errors import InfrastructureError, UserError
from bsp.remote.ssh import Connection, ConnectionLostError, Process
from images.deploy.boot import slots
from images.deploy.onboard.frames import CHUNK_BYTES, Zstd
from images.deploy.transfer.agent import START, as_root, started_with
from images.disk import bmap
from images.disk.bmap import Map

from .onboard import writer
from .onboard.writer import HEADER
from .records import Opened, Written
from .source import Source

_ONBOARD = Path(__file__).parent / "onboard"
_AHEAD = 6
_LEVELS = (-3, 1, 3)
"""Each level takes nearly twice the time of the one before; on a Debian, it saves 20 % and 9 %."""
_PATIENCE = 8  # chunks
_WORTH_IT = 0.95
_ZEROS = bytes(CHUNK_BYTES)


class RefusedError(InfrastructureError):
    """The writer refused a request."""


class VanishedError(InfrastructureError):
    """The device has disappeared."""


class Link(Protocol):
    """Bytes to and from the writer."""

    def write(self, data: bytes) -> None:
        """Send."""

    def read_line(self, timeout_s: float) -> bytes:
        """Return the next line; empty when the writer has ended."""

    def close(self) -> None:
        """End the writer."""


class SshLink:
    """A writer on a board."""

    def __init__(self, connection: Connection) -> None:
        self._process: Process = connection.start([*as_root(connection.host), START])
        self._name = connection.host.name
        modules = [
            ("frames", (slots.ONBOARD_DIR / "frames.py").read_text()),
            ("writer", (_ONBOARD / "writer.py").read_text()),
        ]
        self.write(started_with(modules))

    def write(self, data: bytes) -> None:
        """As ``Link``."""
        self._process.write(data, timeout_s=300)

    def read_line(self, timeout_s: float) -> bytes:
        """As ``Link``."""
        line = self._process.read_line(timeout_s=timeout_s)
        if not line:
            completed = self._process.wait(timeout_s=5)
            if completed.exit_code == 127:
                raise UserError(
                    f"{self._name} has no python3, which a flash needs",
                    hint="on the board: apt-get install python3-minimal",
                )
            stderr = completed.stderr.decode(errors="replace").strip()
            if stderr:
                raise RefusedError(f"the writer on {self._name} ended: {stderr[-600:]}")
        return line

    def close(self) -> None:
        """As ``Link``."""
        self._process.close()


class LocalLink:
    """A writer on this machine, in a thread."""

    def __init__(self) -> None:
        there, here = os.pipe()
        back, answers = os.pipe()
        self._requests = os.fdopen(here, "wb", buffering=0)
        self._answers = os.fdopen(back, "rb")

        def serve() -> None:
            with os.fdopen(there, "rb") as source, os.fdopen(answers, "wb") as sink:
                writer.Writer(source, sink).serve()

        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """As ``Link``."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._requests.write(view) :]
        except OSError as error:
            raise ConnectionLostError(f"the writer ended: {error}") from error

    def read_line(self, timeout_s: float) -> bytes:
        """As ``Link``."""
        return self._answers.readline().rstrip(b"\n")

    def close(self) -> None:
        """As ``Link``."""
        self._requests.close()
        self._thread.join(timeout=60)
        self._answers.close()


@dataclass
class Sent:
    """What a flash has sent so far, over all its connections."""

    wire_bytes: int = 0
    chunks: int = 0


class Session:
    """One connection of a flash; a context manager."""

    def __init__(self, link: Link, *, root: str, timeout_s: float) -> None:
        self._link = link
        self._root = root
        self._timeout_s = timeout_s

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def open(self, device: str, *, image: str, token: str, lock: bool) -> Opened:
        """Ask what the device is, and up to which chunk a flash of this image has come.

        Raises:
            RefusedError: there is no such device, or another flash is writing to it.
        """
        request = {"do": "open", "root": self._root, "device": device, "image": image, "token": token,
                   "lock": lock}  # fmt: skip
        return cast(Opened, self._ask(request))

    def send(
        self,
        source: Source,
        indexes: Iterable[int],
        *,
        done: int,
        compress: bool,
        sent: Sent,
        digests: dict[int, bytes],
        progress: Callable[[int], object],
    ) -> Written:
        """Send chunks, of those before ``done`` only the hashes; return the writer's verdict.

        Args:
            digests: receives the hash of each chunk.
            progress: called with the number of bytes that were read back and found correct.

        Raises:
            UserError: the image differs from its map.
            VanishedError: the device has disappeared.
            RefusedError: the writer gave up for another reason.
            ConnectionLostError: the link broke.
        """
        image, block_map = source.path, source.map
        ranges = [[mapped.first, mapped.last] for mapped in block_map.ranges]
        chunks = chunks_of(block_map)
        expected = _expected(block_map)
        self._write_line(
            {"do": "write", "ranges": ranges, "image_bytes": block_map.image_bytes, "done": done}
        )
        answers = _Answers(self._link, progress)
        try:
            for index, kind, digest, data in _prepared(source, chunks, indexes, done, compress):
                if index in expected and expected[index] != digest:
                    start, length = chunks[index]
                    raise UserError(
                        f"{image} differs from its block map at bytes {start}-{start + length - 1}",
                        hint="it is damaged, or was changed since the map was made: build it again",
                    )
                digests[index] = digest
                frame = HEADER.pack(kind, index, len(data), digest) + data
                self._link.write(frame)
                sent.wire_bytes += len(frame)
                sent.chunks += kind != b"H"
                if answers.ended:
                    break
            else:
                self._link.write(HEADER.pack(b"E", 0, 0, bytes(32)))
        except ConnectionLostError:
            answer = answers.wait(10)  # if the writer gave up, its answer has the reason
            if answer is None:
                raise
            return cast(Written, self._checked(answer))
        answer = answers.wait(max(self._timeout_s, 600))
        if answer is None:
            raise ConnectionLostError("the writer ended without an answer")
        return cast(Written, self._checked(answer))

    def done(self) -> None:
        """Tell the writer that the flash is complete."""
        self._ask({"do": "done"})

    def _write_line(self, request: dict[str, Any]) -> None:
        self._link.write(json.dumps(request).encode() + b"\n")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._write_line(request)
        line = self._link.read_line(self._timeout_s)
        if not line:
            raise ConnectionLostError("the writer ended without an answer")
        return self._checked(json.loads(line))

    def _checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer.pop("ok"):
            return answer
        if answer.get("gone"):
            raise VanishedError(answer["error"])
        raise RefusedError(answer["error"])


class _Answers:
    """Reads the writer's answers while frames are sent, in a thread."""

    def __init__(self, link: Link, progress: Callable[[int], object]) -> None:
        self._link = link
        self._progress = progress
        self._answer: dict[str, Any] | None = None
        self._last = threading.Event()
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while line := self._link.read_line(3600):
                answer = json.loads(line)
                if "progress" not in answer:
                    self._answer = answer
                    return
                self._progress(answer["progress"])
        except (InfrastructureError, OSError, ValueError):
            return
        finally:
            self.ended = True

    def wait(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the last answer; None if the link broke before it came."""
        self._thread.join(timeout_s)
        return self._answer


def chunks_of(block_map: Map) -> list[tuple[int, int]]:
    """Return offset and length of each chunk."""
    ranges = [[mapped.first, mapped.last] for mapped in block_map.ranges]
    return writer.chunks_of(ranges, block_map.image_bytes)


def _expected(block_map: Map) -> dict[int, bytes]:
    """Return the hashes of chunks that are whole ranges of the map; the others were compared beforehand."""
    per_chunk = CHUNK_BYTES // bmap.BLOCK_BYTES
    hashes: dict[int, bytes] = {}
    index = 0
    for mapped in block_map.ranges:
        count = -(-mapped.blocks // per_chunk)
        if count == 1 and mapped.sha256:
            hashes[index] = bytes.fromhex(mapped.sha256)
        index += count
    return hashes


class _Level:
    """The compression level: the slower the link is than this machine, the higher."""

    def __init__(self) -> None:
        self._at = 1
        self._score = 0

    @property
    def now(self) -> int:
        """Return zstd's level for the next chunk."""
        return _LEVELS[self._at]

    def note(self, *, was_ready: bool) -> None:
        """Record whether a chunk was ready when the link asked for it, or the link had to wait."""
        self._score += 1 if was_ready else -1
        if abs(self._score) >= _PATIENCE:
            step = 1 if self._score > 0 else -1
            self._at = min(max(self._at + step, 0), len(_LEVELS) - 1)
            self._score = 0


def _prepared(
    source: Source,
    chunks: list[tuple[int, int]],
    indexes: Iterable[int],
    done: int,
    compress: bool,
) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Yield index, kind, hash and content of each chunk to send, in order; some are prepared ahead."""
    local = threading.local()
    handle = source.content.fileno()
    level = _Level()

    def prepare(index: int) -> tuple[int, bytes, bytes, bytes]:
        start, length = chunks[index]
        data = os.pread(handle, length, start)
        if len(data) != length:
            raise UserError(
                f"{source.path} became shorter while it was sent", hint="build it again"
            )
        digest = hashlib.sha256(data).digest()
        if index < done:
            return index, b"H", digest, b""
        if data == _ZEROS[:length]:
            return index, b"0", digest, b""
        if compress:
            if not hasattr(local, "zstd"):
                local.zstd = Zstd()
            small = local.zstd.compress(data, level.now)
            if len(small) < _WORTH_IT * length:
                return index, b"Z", digest, small
        return index, b"R", digest, data

    pending: deque[Future[tuple[int, bytes, bytes, bytes]]] = deque()
    pool = ThreadPoolExecutor(2)
    try:
        for index in indexes:
            pending.append(pool.submit(prepare, index))
            if len(pending) >= _AHEAD:
                level.note(was_ready=pending[0].done())
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
