# SPDX-License-Identifier: MIT
"""The device's half of a flash: answers requests, one JSON object per line, until the channel closes.

``open`` comes first; its answer describes the device. ``write`` is followed by frames, each a chunk of
the image: its kind, index, length and SHA-256, then its content.

R, Z     content as it is, or one zstd frame 0        only zeros; no content H        no content: the
device should have it already E        the end

Written data is flushed, read back past the page cache and hashed, one batch while the next arrives. That
check also covers the way from the host. A chunk that is sent a second time is hashed as it arrives, too.
The number of leading chunks that have passed is stored on the board, so that an interrupted flash
continues there. The final answer lists the chunks that did not pass; the host sends them again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os
import queue
import signal
import stat
import struct
import threading
import time

from .frames import CHUNK_BYTES, RefusedError, codec

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    Record = dict[str, Any]

HEADER = struct.Struct(">cII32s")
BLOCK_BYTES = 4096
_BATCH_BYTES = 16 << 20
_QUEUED_BATCHES = 2
_SILENCE_S = 120
"""A host that is silent for this long in the middle of a stream is gone, even if TCP has not noticed."""
_GIVE_WAY_S = 20
"""How long an earlier session of the same flash may check what it has before it is killed."""
_BLKRRPART = 0x125F  # linux/fs.h
_OFD_GETLK = 36  # linux/fcntl.h
_FLOCK = struct.Struct("@hhqqi")
_ZEROS = bytes(CHUNK_BYTES)
_LOST = (5, 6, 19, 28, 121)  # EIO, ENXIO, ENODEV, ENOSPC (of a size that is now 0), EREMOTEIO


class Device:
    """A block device (or, where permitted, a plain file) and its users."""

    def __init__(self, root: str, path: str) -> None:
        self.root = root
        self.path = os.path.realpath(path)
        self.name = os.path.basename(self.path)
        try:
            self.status = os.stat(self.path)
        except OSError as error:
            raise RefusedError(f"there is no device {path}: {error.strerror}") from None
        self.is_block = stat.S_ISBLK(self.status.st_mode)
        if not self.is_block and not stat.S_ISREG(self.status.st_mode):
            raise RefusedError(f"{path} is neither a block device nor a file")
        self.sys = f"/sys/class/block/{self.name}"

    def facts(self) -> Record:
        """Return what the device is, and what forbids writing to it."""
        return {
            "path": self.path,
            "is_block": self.is_block,
            "is_partition": os.path.exists(f"{self.sys}/partition"),
            "size_bytes": self.size_bytes(),
            "sector_bytes": int(_read(f"{self.sys}/queue/logical_block_size") or 0),
            "read_only": _read(f"{self.sys}/ro") == "1",
            "removable": self.is_block and self._removable(),
            "model": _read(f"{self.sys}/device/model") or _read(f"{self.sys}/device/name"),
            "partitions": [name for name in self._names() if name != self.name],
            **self._uses(),
        }

    def identity(self) -> str:
        """Return a hash that differs for another card in the same reader, as far as sysfs tells."""
        parts = [self.path, str(self.size_bytes())]
        for name in ("serial", "wwid", "device/cid", "device/serial", "device/wwid"):
            parts.append(_read(f"{self.sys}/{name}"))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def size_bytes(self) -> int:
        """Return the capacity."""
        if not self.is_block:
            return self.status.st_size
        blocks = _read(f"{self.sys}/size")
        return int(blocks) * 512 if blocks else 0

    def _names(self) -> list[str]:
        names = [self.name]
        if self.is_block and os.path.isdir(self.sys):
            for name in sorted(os.listdir(self.sys)):
                if os.path.exists(f"{self.sys}/{name}/partition"):
                    names.append(name)
        return names

    def _removable(self) -> bool:
        """Return whether the kernel calls it removable, or it is an SD card."""
        return _read(f"{self.sys}/removable") == "1" or _read(f"{self.sys}/device/type") == "SD"

    def _uses(self) -> Record:
        if not self.is_block:
            return self._uses_of_file()
        names = self._names()
        numbers = {_read(f"/sys/class/block/{name}/dev") for name in names}
        mounted = []
        for line in _read("/proc/self/mountinfo").split("\n"):
            fields = line.split()
            if len(fields) < 10:
                continue
            source = fields[fields.index("-") + 2]
            if fields[2] in numbers or os.path.basename(os.path.realpath(source)) in names:
                mounted.append(fields[4])
        swaps = [line.split()[0] for line in _read("/proc/swaps").split("\n")[1:] if line]
        holders = []
        for name in names:
            folder = f"/sys/class/block/{name}/holders"
            holders += os.listdir(folder) if os.path.isdir(folder) else []
        return {
            "mounted": sorted(set(mounted)),
            "holds_root": "/" in mounted,
            "swap": any(os.path.basename(os.path.realpath(path)) in names for path in swaps),
            "holders": sorted(holders),
        }

    def _uses_of_file(self) -> Record:
        """Return who has a plain file for a disk: a loop device, or whoever has locked it, as QEMU does."""
        holders = []
        for name in sorted(os.listdir("/sys/class/block")):
            backing = _read(f"/sys/class/block/{name}/loop/backing_file")
            if backing and os.path.realpath(backing) == self.path:
                holders.append(f"/dev/{name}")
        if self._is_locked():
            holders.append("a program that has locked it")
        swaps = [line.split()[0] for line in _read("/proc/swaps").split("\n")[1:] if line]
        return {
            "mounted": [],
            "holds_root": False,
            "swap": self.path in map(os.path.realpath, swaps),
            "holders": holders,
        }

    def _is_locked(self) -> bool:
        free = fcntl.F_UNLCK
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False  # who opens it to write says why not
        try:
            kind: int = _FLOCK.unpack(fcntl.fcntl(handle, _OFD_GETLK, query))[0]
            return kind != free
        except OSError:
            return False  # a file system without locks
        finally:
            os.close(handle)


class Writer:
    """One session."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._sink_lock = threading.Lock()
        self._lock_handle = -1
        self._device: Device | None = None
        self._state = ""
        self._image = ""
        self._root = ""
        self._digests: dict[int, bytes] = {}
        self._suspect: set[int] = set()
        self.heard_s = time.monotonic()
        self.streaming = False
        self._checking = False

    def serve(self) -> None:
        """Answer requests until the input ends."""
        try:
            while line := self._source.readline():
                try:
                    request: Record = json.loads(line)
                    answer = {"ok": True, **self._answer(request)}
                except EOFError:
                    return
                except (RefusedError, OSError) as error:
                    answer = {"ok": False, "error": str(error), **self._after(error)}
                self._say(answer)
                if not answer["ok"]:
                    return
        finally:
            if self._lock_handle >= 0:
                os.close(self._lock_handle)

    def _say(self, answer: Record) -> None:
        with self._sink_lock:
            try:
                self._sink.write(json.dumps(answer).encode() + b"\n")
                self._sink.flush()
            except (OSError, ValueError):
                pass  # the host is gone; the progress is stored on this side

    def _after(self, error: Exception) -> Record:
        """Return whether the device still exists; its name goes a moment after its last sector."""
        number = getattr(error, "errno", None)
        gone = False
        for _ in range(20 if number in _LOST else 1):
            gone = self._device is not None and not os.path.exists(self._device.path)
            if gone:
                break
            time.sleep(0.1)
        return {"errno": number, "gone": gone}

    def _answer(self, request: Record) -> Record:
        if request["do"] == "open":
            return self._open(request)
        if request["do"] == "write":
            return self._write(request)
        if request["do"] == "done":
            return self._done()
        raise RefusedError(f"unknown request {request['do']!r}")

    def _open(self, request: Record) -> Record:
        self._root = request["root"]
        self._device = Device(self._root, request["device"])
        self._image = request["image"]
        folder = f"{self._root}/var/lib/npu-bsp/flash"
        self._state = f"{folder}/{self._device.name}.json"
        if request["lock"]:
            self._lock(request["token"])
        return {
            "device": self._device.facts(),
            "board": {
                "compatible": _strings(f"{self._root}/proc/device-tree/compatible"),
                "model": "".join(_strings(f"{self._root}/proc/device-tree/model")[:1]),
            },
            "done_chunks": self._kept(),
            "zstd": codec(b"Z") is not None,
        }

    def _lock(self, token: str) -> None:
        """Exclude other flashes until this process ends; an earlier session of the same flash is ended."""
        if not self._device:
            raise RuntimeError("no device is open")
        path = f"{self._root}/run/lock/npu-bsp-flash-{self._device.name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        started = time.monotonic()
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                pid, _, holder = os.pread(handle, 200, 0).decode(errors="replace").partition(" ")
                waited_s = time.monotonic() - started
                if holder.strip() != token or waited_s > _GIVE_WAY_S + 10:
                    os.close(handle)
                    raise RefusedError(
                        f"another flash is writing to {self._device.path} (process {pid})"
                    ) from None
                # The link of that session broke; it has not noticed yet, or still checks what has arrived.
                if pid.isdigit() and int(pid) != os.getpid():
                    try:
                        politely = waited_s < _GIVE_WAY_S
                        os.kill(int(pid), signal.SIGTERM if politely else signal.SIGKILL)
                    except OSError:
                        pass
                time.sleep(0.2)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {token}\n".encode(), 0)
        self._lock_handle = handle

    def _kept(self) -> int:
        """Return how many leading chunks of this image were found correct on this device."""
        if not self._device:
            raise RuntimeError("no device is open")
        try:
            with open(self._state, "rb") as file:
                kept: Record = json.loads(file.read())
        except (OSError, ValueError):
            return 0
        if kept.get("image") != self._image or kept.get("device") != self._device.identity():
            return 0
        return int(kept["chunks"])

    def keep(self, chunks: int) -> None:
        """Store how far this flash has come."""
        if not self._device:
            raise RuntimeError("no device is open")
        os.makedirs(os.path.dirname(self._state), exist_ok=True)
        text = json.dumps(
            {"image": self._image, "device": self._device.identity(), "chunks": chunks}
        )
        with open(self._state + ".new", "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.rename(self._state + ".new", self._state)

    def _write(self, request: Record) -> Record:
        if not self._device:
            raise RuntimeError("no device is open")
        chunks = _chunks(request["ranges"], request["image_bytes"])
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._device.is_block:
            flags |= os.O_EXCL  # the kernel refuses a mounted device
        handle = os.open(self._device.path, flags)
        try:
            checker = _Checker(handle, self, chunks, request["done"], self._digests)
            self._checking = True
            self.heard_s, self.streaming = time.monotonic(), True
            try:
                complete = self._take(handle, chunks, checker)
            finally:
                self.streaming = False
                checker.end()
                self._checking = False
            if checker.error:
                raise checker.error
            if not complete:
                raise EOFError
            self._suspect = checker.wrong
            return {"need": sorted(checker.wrong), "digest": checker.digest(len(chunks))}
        finally:
            os.close(handle)

    def _take(self, handle: int, chunks: list[tuple[int, int]], checker: _Checker) -> bool:
        """Write the chunks that arrive; return whether the stream came to its end."""
        zstd = codec(b"Z")
        while not checker.error:
            try:
                kind, index, size, digest = HEADER.unpack(self._read(HEADER.size))
                if size > 2 * CHUNK_BYTES:
                    raise RefusedError(f"frame of {size} bytes")
                data = self._read(size)
            except EOFError:
                return False
            if kind == b"E":
                return True
            offset, length = chunks[index]
            if kind != b"H":
                if kind == b"Z" and zstd:
                    data = zstd.decompress(data)
                elif kind == b"0":
                    data = _ZEROS[:length]
                # The first time a chunk is hashed only as it is read back. The second time also here,
                # to tell a bad transfer from a bad device.
                wrong = index in self._suspect and hashlib.sha256(data).digest() != digest
                if len(data) != length or wrong:
                    raise RefusedError(f"chunk {index} did not arrive as it was sent")
                _pwrite(handle, data, offset)
            checker.add(index, digest)
        return False

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            data = self._source.read1(min(size, 1 << 18))  # type: ignore[attr-defined]
            if not data:
                raise EOFError
            self.heard_s = time.monotonic()
            parts.append(data)
            size -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def give_way(self) -> None:
        """End for another session of this flash; chunks that have arrived are checked and counted first.

        Raises:
            EOFError: as if the host had closed the channel.
        """
        if self.streaming:
            self.streaming = False  # only once: the other session repeats its signal
            raise EOFError
        if not self._checking:
            os._exit(1)

    def watch(self) -> None:
        """End this process if the host is silent in the middle of a stream."""
        while True:
            time.sleep(5)
            if self.streaming and time.monotonic() - self.heard_s > _SILENCE_S:
                os._exit(1)  # the progress is stored; there is nothing else to keep

    def progress(self, done_bytes: int) -> None:
        """Tell the host how many bytes were found correct."""
        self._say({"progress": done_bytes})

    def _done(self) -> Record:
        """Forget the stored progress, and have the kernel read the new partition table."""
        if not self._device:
            raise RuntimeError("no device is open")
        if os.path.exists(self._state):
            os.unlink(self._state)
        if self._device.is_block:
            handle = os.open(self._device.path, os.O_RDONLY)
            try:
                fcntl.ioctl(handle, _BLKRRPART)
            except OSError:
                pass  # a loop device without partitions, or somebody has it open
            finally:
                os.close(handle)
        return {"partitions": self._device.facts()["partitions"]}


class _Checker:
    """Flushes, reads back and hashes what was written, in a thread of its own."""

    def __init__(
        self,
        handle: int,
        writer: Writer,
        chunks: list[tuple[int, int]],
        done: int,
        digests: dict[int, bytes],
    ) -> None:
        self._handle = handle
        self._writer = writer
        self._chunks = chunks
        self._digests = digests
        self._whole = 0  # chunks from the first on
        self._kept = done
        self._batch: list[tuple[int, bytes]] = []
        self._batch_bytes = 0
        self._done_bytes = 0
        self._last_s = time.monotonic()
        self.wrong: set[int] = set()
        self.error: Exception | None = None
        # A device is read past the cache if it supports O_DIRECT; a file is dropped from the cache first.
        self._direct = -1
        self._room = mmap.mmap(-1, CHUNK_BYTES)
        try:
            self._direct = os.open(
                f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC
            )
        except OSError:
            pass
        self._queue: queue.Queue[list[tuple[int, bytes]]] = queue.Queue(_QUEUED_BATCHES)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add(self, index: int, digest: bytes) -> None:
        """Queue a written chunk."""
        self._batch.append((index, digest))
        self._batch_bytes += self._chunks[index][1]
        # On a slow link a batch is what arrived in two seconds.
        if self._batch_bytes >= _BATCH_BYTES or time.monotonic() - self._last_s > 2:
            self._hand_over()

    def end(self) -> None:
        """Check the rest, and end the thread."""
        if self._batch:
            self._hand_over()
        self._queue.put([])
        self._thread.join()
        if self._direct >= 0:
            os.close(self._direct)

    def digest(self, count: int) -> str:
        """Return the hash over the hashes of all chunks, as read back."""
        whole = hashlib.sha256()
        for index in range(count):
            whole.update(self._digests.get(index, b"?"))
        return whole.hexdigest()

    def _hand_over(self) -> None:
        self._queue.put(self._batch)
        self._batch, self._batch_bytes = [], 0
        self._last_s = time.monotonic()

    def _run(self) -> None:
        while batch := self._queue.get():
            if self.error:
                continue
            try:
                self._check(batch)
            except OSError as error:
                self.error = error

    def _check(self, batch: list[tuple[int, bytes]]) -> None:
        os.fdatasync(self._handle)
        for index, digest in batch:
            offset, length = self._chunks[index]
            actual = hashlib.sha256(self._read_back(offset, length)).digest()
            self._digests[index] = actual
            if actual == digest:
                self.wrong.discard(index)
            else:
                self.wrong.add(index)
            self._done_bytes += length
        while self._whole in self._digests and self._whole not in self.wrong:
            self._whole += 1
        if self._whole > self._kept:
            self._writer.keep(self._whole)
            self._kept = self._whole
        self._writer.progress(self._done_bytes)

    def _read_back(self, offset: int, length: int) -> bytes | memoryview:
        if self._direct >= 0:
            try:
                if os.preadv(self._direct, [self._room], offset) >= length:
                    return memoryview(self._room)[:length]
            except OSError as error:
                if error.errno != 22:  # EINVAL: not aligned as this device requires
                    raise
        os.posix_fadvise(self._handle, offset, length, os.POSIX_FADV_DONTNEED)
        return os.pread(self._handle, length, offset)


def _chunks(ranges: list[list[int]], image_bytes: int) -> list[tuple[int, int]]:
    """Return offset and length of each chunk of an image."""
    blocks = CHUNK_BYTES // BLOCK_BYTES
    chunks = []
    for first, last in ranges:
        for block in range(first, last + 1, blocks):
            start = block * BLOCK_BYTES
            end = min(min(block + blocks, last + 1) * BLOCK_BYTES, image_bytes)
            chunks.append((start, end - start))
    return chunks


chunks_of = _chunks
"""The host divides an image in the same way."""


def _pwrite(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _strings(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            return [part.decode(errors="replace") for part in file.read().split(b"\0") if part]
    except OSError:
        return []


def main(source: BinaryIO) -> None:
    """Serve the standard streams; ``source`` has read some of the input already."""
    os.umask(0o022)
    with open(1, "wb", closefd=False) as sink:
        writer = Writer(source, sink)
        signal.signal(signal.SIGTERM, lambda *_: writer.give_way())
        threading.Thread(target=writer.watch, daemon=True).start()
        writer.serve()
