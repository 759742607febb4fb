# SPDX-License-Identifier: MIT
"""The host's half of a transfer: one connection, one channel, one stream.

The agent (onboard/) is sent as the first bytes of the channel, so nothing has to be installed. Then
requests and answers go over it, one JSON object a line, and the files of a generation as one stream of
frames. On links where it helps, chunks are compressed; what does not shrink is sent as it is.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import math
import os
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.progress import say
from bsp.base.words import counted
from bsp.dts.tree import MAX_BYTES
from bsp.remote.inventory import Host
from bsp.remote.ssh import Connection, ConnectionLostError, Process
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.manifest import Bundle, Manifest

from ..boot import slots
from ..claim import Claim, is_gone
from ..onboard import frames
from ..plan import Facts, Send
from . import contents, delta
from .shared import Shared, Sink

ONBOARD_MODULES = (
    "frames",
    "files",
    "script_image",
    "raw_sector",
    "entries",
    "board",
    "lease",
    "signature",
    "patches",
    "kept_modules",
    "stage",
    "boot_files",
    "boot_partition",
    "adopt",
    "persist",
    "kexec",
    "health",
    "agent",
)

# Makes the modules of onboard/ a package in memory, then runs it. -I -S: none of the board's settings and
# installed packages, which take a slow board longer to look for than all of this.
PYTHON = ("python3", "-I", "-S", "-c")
START = """\
import json,sys,types
i=open(0,"rb",1<<18,closefd=False)
p=types.ModuleType("onboard")
p.__path__=[]
sys.modules["onboard"]=p
for n,t in json.loads(i.read(int(i.readline()))):
    m=types.ModuleType("onboard."+n)
    m.__package__="onboard"
    sys.modules[m.__name__]=m
    setattr(p,n,m)
    exec(compile(t,"onboard/"+n+".py","exec"),m.__dict__)
m.main(i)
"""

_SLOW_ROUND_TRIP_S = 0.002
_SLOW_BYTES_PER_S = 14e6  # 100 Mbit/s; compressing for a faster link would cost more than it saves
_MEASURE_AFTER_BYTES = 12 << 20  # Linux buffers up to 4 MB here and 6 MB there, SSH 2 MB
_MEASURED_BYTES = 4 << 20
_SAMPLES = 32
_SAMPLE_BYTES = 16 << 10
_WORTH_IT = 0.9
_SMALL_BYTES = 200
_WRITE_BYTES = 256 << 10
_READ_ALL_S = 900.0  # all generations from a slow card


class BoardRefusedError(InfrastructureError):
    """The agent could not do what it was asked to; the board is as it was."""


def as_root(host: Host) -> tuple[str, ...]:
    """The start of a command that runs our Python code as root on a board (docs/operators.md)."""
    return ("sudo", "-n", "/usr/bin/python3", *PYTHON[1:]) if host.sudo else PYTHON


class HeldError(UserError):
    """Another deployment has the board; ``lease`` is what the board knows of it."""

    def __init__(self, message: str, lease: Mapping[str, Any]) -> None:
        super().__init__(
            message,
            hint='wait for it to end, or take the board from it: --steal --reason "TEXT"',
        )
        self.lease = lease


class Agent:
    """The agent on a board, through one channel; a context manager."""

    def __init__(
        self,
        connection: Connection,
        *,
        root: str,
        timeout_s: float,
        additions: Mapping[str, str] | None = None,
        shared: Shared | None = None,
        claim: Claim | None = None,
    ) -> None:
        """Start the agent; it is read and compiled over there while this side goes on.

        Args:
            root: prefix of all paths on the board; for the tests.
            additions: see ``Target.additions``.
            shared: see ``Target.shared``.
            claim: to the board, for those requests that change it.
        """
        self.connection = connection
        self._root = root
        self._timeout_s = timeout_s
        self._shared = shared
        self._claim = claim or Claim()
        self._far = _is_far(connection)
        self._rate = delta.remembered_rate(connection.host)
        # What is sent to many boards shares one way out of this machine, and is compressed only once.
        self._compress = (
            shared is not None or self._far or (self._rate or math.inf) < _SLOW_BYTES_PER_S
        )
        self._process: Process = connection.start([*as_root(connection.host), START])
        folder = slots.ONBOARD_DIR
        added = additions or {}
        modules = [
            (name, (folder / f"{name}.py").read_text() + added.get(name, ""))
            for name in ONBOARD_MODULES
        ]
        source = json.dumps(modules).encode()
        self._write(b"%d\n%s" % (len(source), source))
        self.codecs: tuple[str, ...] = ()

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def open(
        self,
        generation: str | None,
        *,
        fat_mount: str,
        lock: bool,
        thorough: bool = False,
        tree: bool = False,
        exact: bool = False,
    ) -> Facts:
        """Ask what the board is and has.

        Args:
            generation: the one that is to run there; None to look at all of them.
            fat_mount: where its boot partition is mounted.
            lock: take the board's lease: other deployments stay out until this one ends.
            thorough: read all files of the generations, where size and time are believed otherwise.
            tree: bring the running device tree along, whatever runs.
            exact: boot files lie there, whatever else is mounted.

        Raises:
            UserError: the board has no Python 3, or another deployment to it is running.
        """
        request: dict[str, Any] = {
            "do": "open",
            "root": self._root,
            "fat": fat_mount,
            "exact": exact,
            "lock": self._claim.request(f"deploy {generation or ''}".strip()) if lock else None,
            "far": self._compress,
            "generation": generation,
            "thorough": thorough,
            "tree": tree,
            "onboard": [file.target for file in slots.ONBOARD_FILES],
        }
        try:
            limit_s = _READ_ALL_S if thorough else None
            answer = self.ask(request, timeout_s=limit_s)
        except HeldError as error:
            if not is_gone(error.lease):
                raise
            say(f"{error.message}: that process of this machine has ended; going on in its place")
            request["lock"]["steal"] = "the process that had it has ended"
            answer = self.ask(request, timeout_s=limit_s)
        facts = msgspec.convert(answer, Facts)
        self.codecs = facts.codecs
        return facts

    def ask(self, request: dict[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            BoardRefusedError: it was refused.
            HeldError: another deployment has the board.
            ConnectionLostError: the connection broke.
        """
        self._write(json.dumps(request).encode() + b"\n")
        return self._answer(timeout_s or self._timeout_s)

    def manifest(self, generation: str) -> Manifest:
        """Return the manifest of a generation on the board: remembered here, or asked for.

        Raises:
            UserError: it is not what its name says.
        """
        return bundles.decode(
            self._manifest_bytes(generation), f"generation {generation} on the board"
        )

    def _manifest_bytes(self, generation: str) -> bytes:
        file = _remembered(generation)
        if file.exists():
            return file.read_bytes()
        answer = self.ask({"do": "manifest", "generation": generation})
        content = zlib.decompress(base64.b64decode(answer["manifest"]))
        bundles.decode(content, f"generation {generation} on the board")
        remember(generation, content)
        return content

    def stage(
        self, bundle: Bundle, step: Send, *, args: dict[str, str], facts: Facts, progress: Progress
    ) -> None:
        """Have the generation built on the board.

        Raises:
            UserError: a file system on the board is full.
            BoardRefusedError, ConnectionLostError: it is not there; what came is kept for the next try.
        """
        content = (bundle.path / "manifest.json").read_bytes()
        base = self._manifest_bytes(step.base) if step.base else b""
        runs, fresh = line_difference(base, content)
        request = {
            "do": "stage",
            "generation": bundle.generation,
            "base": step.base,
            "bases": step.bases,
            "manifest": runs,
            "manifest_sha256": hashlib.sha256(content).hexdigest(),
            "send": frames.ranges(sorted(step.indexes)),
            "args": args,
            **onboard_request(facts),
            **_signature(bundle),
        }
        indexes = list(step.indexes)
        maker = self._patch_maker(bundle, step, facts)
        for _ in range(3):
            stream = _Stream(self._process.write, self.codecs, self._compress, progress)
            try:
                self._process.write(json.dumps(request).encode() + b"\n")
                stream.data(fresh)
                stream.end()
                if self._shared:
                    stream.flush()
                    self._send_shared(self._shared, bundle, indexes, stream, maker)
                else:
                    _send_files(stream, bundle, indexes, maker)
                    self._learn(stream)
            except ConnectionLostError:
                self._answer(5)  # if the agent gave up (a full disk, a damaged file), it says why
                raise
            progress.wire_bytes += stream.wire_bytes
            answer = self._answer(max(self._timeout_s, 300))
            indexes = frames.from_ranges(answer["need"])
            if answer.get("pinned"):
                say(
                    f"{self.connection.host.name} takes only bundles of this machine's signers from now on"
                )
            if not indexes:
                remember(bundle.generation, content)
                return
            # The board has lost files since it was asked, or they are damaged: send these, and whole.
            request["send"] = frames.ranges(indexes)
            maker = None
        raise BoardRefusedError(
            f"the board keeps asking for {counted(len(indexes), 'file')} of the bundle"
        )

    def _patch_maker(self, bundle: Bundle, step: Send, facts: Facts) -> delta.Maker | None:
        """Who makes patches against what the board holds; None where none can be of use."""
        zstd = frames.Zstd.kind.decode()
        if not (self._compress and zstd in self.codecs and step.indexes and contents.are_kept()):
            return None
        known = {}
        for generation in step.bases:
            with contextlib.suppress(UserError):
                known[generation] = self.manifest(generation)
        bases = delta.bases_for(bundle.manifest, step.indexes, facts, known)
        near = delta.SLOW_BYTES_PER_S if self._far else delta.FAST_BYTES_PER_S
        costs = delta.Costs(link=self._rate or near)
        if facts.hash_bytes_per_s:
            costs = replace(costs, board=facts.hash_bytes_per_s)
        with contextlib.suppress(OSError, AttributeError):  # no zstd on this machine
            return delta.Maker(bases, costs)
        return None

    def _learn(self, stream: _Stream) -> None:
        """Remember what the link gets through."""
        if stream.bytes_per_s is not None:
            delta.remember_rate(self.connection.host, stream.bytes_per_s)

    def _send_shared(
        self,
        shared: Shared,
        bundle: Bundle,
        indexes: list[int],
        stream: _Stream,
        maker: delta.Maker | None,
    ) -> None:
        def make(sink: Sink) -> Progress:
            made = Progress()
            _send_files(_Stream(sink, codecs, True, made), bundle, indexes, maker)
            return made

        codecs = self.codecs
        patches = maker.key if maker else ()
        key = (bundle.generation, str(bundle.path), codecs, tuple(indexes), patches)
        spool = shared.stream(key, make)
        for piece in spool.pieces():
            stream.ready_made(piece)
        stream.progress.include(spool.result)

    def _write(self, data: bytes) -> None:
        try:
            self._process.write(data)
        except ConnectionLostError:
            self._answer(5)  # if the agent gave up, it says why
            raise

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        line = self._process.read_line(timeout_s=timeout_s)
        if not line:
            completed = self._process.wait(timeout_s=5)
            said = completed.stderr.decode(errors="replace").strip()
            if completed.exit_code == 127:
                raise UserError(
                    f"{self.connection.host.name} has no python3, which a deployment needs",
                    hint="on the board: apt-get install python3-minimal",
                )
            if self.connection.host.sudo and "sudo:" in said:
                raise UserError(
                    f"{self.connection.host.user} may not start a deployment on "
                    f"{self.connection.host.name}: {said[-300:]}",
                    hint="docs/operators.md has the one sudo rule that it takes; sudo -l there lists "
                    "what it has",
                )
            if completed.exit_code == -1:  # it was killed, or the SSH server was
                raise ConnectionLostError(
                    f"the session on {self.connection.host.name} ended: {said[-600:] or 'killed'}"
                )
            raise BoardRefusedError(
                f"the agent on {self.connection.host.name} ended with code "
                f"{completed.exit_code}: {said[-600:]}"
            )
        answer: dict[str, Any] = json.loads(line)
        if answer.pop("ok"):
            return answer
        if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{self.connection.host.name} is full: {answer['error']}",
                hint="remove what does not belong there; what it runs is untouched",
            )
        name, user = self.connection.host.name, self.connection.host.user
        if answer.get("errno") in (errno.EACCES, errno.EPERM):
            raise UserError(
                f"{user} may not do this on {name}: {answer['error']}",
                hint="log in as root, or as a user with the sudo rule of docs/operators.md and sudo = true",
            )
        if "lease" in answer:
            raise HeldError(f"{name}: {answer['error']}", answer["lease"])
        if str(answer["error"]).startswith("signature: "):
            raise UserError(
                f"{name} refused the bundle; nothing was changed there: {answer['error'][11:]}",
                hint="./inv bundle --sign DIR signs a bundle of your own. To have the board trust your "
                f"key, from a machine that it lets in: ssh {name} 'cat >> /{sign.BOARD_SIGNERS}' "
                f"< {sign.allowed_signers_file()}",
            )
        raise BoardRefusedError(f"{name}: {answer['error']}")


class Progress:
    """How far a transfer is; the numbers of the result."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.sent_files = 0
        self.wire_bytes = 0
        self.patched_files = 0
        self.patch_bytes = 0

    def add(self, size_bytes: int, *, patch_bytes: int | None = None) -> None:
        """A file went out, whole or as a patch."""
        self.sent_files += 1
        self.sent_bytes += size_bytes
        if patch_bytes is not None:
            self.patched_files += 1
            self.patch_bytes += patch_bytes

    def include(self, other: Progress) -> None:
        """Add the files that another one counted."""
        self.sent_files += other.sent_files
        self.sent_bytes += other.sent_bytes
        self.patched_files += other.patched_files
        self.patch_bytes += other.patch_bytes


class _Stream:
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
        worth = compress
        for at in range(0, len(content), frames.CHUNK_BYTES):
            chunk = content[at : at + frames.CHUNK_BYTES]
            if self._compress and worth and len(chunk) > _SMALL_BYTES:
                codec = self._codec = self._codec or self._choose()
                small = codec.compress(chunk)
                worth = len(small) < _WORTH_IT * len(chunk)
                if worth:
                    self._write(codec.kind, small)
                    continue
            self._write(b"R", chunk)
        return worth

    def _choose(self) -> frames.Zstd | frames.Zlib:
        """The best codec that both ends have."""
        found = (frames.codec(kind.encode()) for kind in self._codecs)
        return next((codec for codec in found if codec), frames.Zlib())

    def file(self, index: int, path: str, size_bytes: int) -> None:
        """Write one file."""
        self._write(b"F", struct.pack(">I", index))
        left = size_bytes
        worth = not path.endswith(contents.COMPRESSED)
        handle = os.open(path, os.O_RDONLY)
        try:
            while left > 0:
                chunk = os.read(handle, min(left, frames.CHUNK_BYTES))
                if not chunk:
                    raise UserError(f"{path} became shorter while it was sent", hint="deploy again")
                worth = self.data(chunk, compress=worth)
                left -= len(chunk)
        finally:
            os.close(handle)
        self.progress.add(size_bytes)

    def ready_made(self, content: bytes) -> None:
        """Send frames that were made before."""
        self._out(content)

    def wire_size(self, content: bytes) -> int:
        """About what ``content`` would take on the wire: samples from all over it are compressed."""
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
        """What the link took, by the time that writing to it took; None: too little to say."""
        if self._timed_bytes < _MEASURED_BYTES:
            return None
        return self._timed_bytes / max(self._timed_s, 1e-6)

    def end(self) -> None:
        """Write the end mark."""
        self._write(b"E", b"")

    def flush(self) -> None:
        """Send what is gathered."""
        if self._pending:
            self._out(self._pending)
            self._pending = bytearray()
            rate = self.bytes_per_s
            if rate is not None and rate < _SLOW_BYTES_PER_S:
                self._compress = True

    def _out(self, content: bytes | bytearray) -> None:
        began = time.monotonic()
        self._sink(memoryview(content))
        if self.wire_bytes > _MEASURE_AFTER_BYTES:  # the first ones only fill windows and buffers
            self._timed_s += time.monotonic() - began
            self._timed_bytes += len(content)
        self.wire_bytes += len(content)

    def _write(self, kind: bytes, payload: bytes) -> None:
        self._pending += frames.HEADER.pack(kind, len(payload))
        self._pending += payload
        if len(self._pending) >= _WRITE_BYTES:
            self.flush()


def _send_files(
    stream: _Stream, bundle: Bundle, indexes: list[int], maker: delta.Maker | None
) -> None:
    folder = str(bundle.path)
    for index in indexes:
        entry = bundle.manifest.files[index]
        if maker and maker.has_base(index):
            content = (bundle.path / entry.path).read_bytes()
            made = maker.patch(index, content, stream.wire_size(content))
            if made:
                stream.patch(index, *made, len(content))
                continue
        stream.file(index, f"{folder}/{entry.path}", entry.size_bytes)
    stream.end()
    stream.flush()


def line_difference(base: bytes, content: bytes) -> tuple[list[list[int]], bytes]:
    """Return ``content`` as runs of lines of ``base`` and new lines.

    Each run is [first line of the base, number of lines], or [-1, number of new lines]; the new lines
    follow each other in the bytes returned.
    """
    numbers = {line: number for number, line in enumerate(base.split(b"\n"))}
    runs: list[list[int]] = []
    fresh: list[bytes] = []
    for line in content.split(b"\n"):
        number = numbers.get(line, -1) if base else -1
        if number < 0:
            fresh.append(line)
        if runs and (
            runs[-1][0] < 0 if number < 0 else runs[-1][0] >= 0 and sum(runs[-1]) == number
        ):
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs, b"\n".join(fresh)


def remembered(generation: str) -> bytes | None:
    """The manifest of a generation, if this machine has seen it."""
    file = _remembered(generation)
    return file.read_bytes() if file.exists() else None


def remember(generation: str, manifest: bytes) -> None:
    """Keep a manifest on this machine: the next difference is made against it."""
    file = _remembered(generation)
    if not file.exists():
        write_atomically(file, manifest)


def _remembered(generation: str) -> Path:
    return state_dir() / "manifests" / f"{generation}.json"


def onboard_request(facts: Facts) -> dict[str, Any]:
    """The files outside the generations that the board lacks or has in another version."""
    lacking = [
        {"target": file.target, "mode": file.mode, "content": file.source.read_text()}
        for file in slots.ONBOARD_FILES
        if facts.onboard.get(file.target) != hashlib.sha256(file.source.read_bytes()).hexdigest()
    ]
    return {"onboard": lacking, "onboard_links": slots.ONBOARD_LINKS}


def _signature(bundle: Bundle) -> dict[str, str]:
    """The signature of a bundle that has one, and whom a board without signers is to trust."""
    try:
        signature = (bundle.path / sign.SIGNATURE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return {"signature": signature, "signers": sign.trust_root()}


def _is_far(connection: Connection) -> bool:
    """Whether the round trip is one of a network worth compressing for (from Linux's TCP_INFO)."""
    sock = connection.transport.sock
    if not isinstance(sock, socket.socket) or not hasattr(socket, "TCP_INFO"):
        return True  # through another host
    # struct tcp_info, tcpi_min_rtt: unlike the smoothed one, it is not that of a busy machine.
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
    (round_trip_us,) = struct.unpack_from("I", info, 148) if len(info) >= 152 else (0,)
    return float(round_trip_us) > _SLOW_ROUND_TRIP_S * 1e6


def decompress_fdt(text: str | None) -> bytes | None:
    """The device tree in an answer of the agent; None where there is none that can be unpacked.

    Of one that is larger than any can be, only the start.
    """
    if text is None:
        return None
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text), MAX_BYTES + 1)
    except (zlib.error, ValueError):
        return None


def each_known(agent: Agent, facts: Facts) -> Iterator[Manifest]:
    """Manifests of the generations on the board, as far as they can be read."""
    for generation, damaged in facts.generations.items():
        if "manifest.json" not in damaged:
            with contextlib.suppress(UserError):  # of another version of this program, or damaged
                yield agent.manifest(generation)


__all__ = ["Agent", "BoardRefusedError", "ConnectionLostError", "Progress"]
