# SPDX-License-Identifier: MIT
"""The shim's other end: a process that serves the engine on a Unix socket.

    python -m virtual.npu.shim.server --socket S --npu a311d --report R.json

A client (``shim/shim.c``) sends a hello with the descriptor of its sealed memory file, then one message for
each submit, and waits for each answer. Every client has its own memory, engine and thread; a client that
dies, lies or falls silent in the middle of a message ends its own thread and nothing else. The server
ends when its standard input does, so that it never outlives who started it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import mmap
import os
import resource
import socket
import struct
import sys
import threading
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bsp.base.cache import write_atomically
from bsp.base.errors import BspError

from ..blame import blamed
from ..decoded_cache import DecodedCache
from ..engines import Engine, Maker, maker_for
from ..faults import FaultError
from ..finding import Blame
from ..identity import AnyIdentity, load_npu
from ..jobs import JobRecord
from ..memory import Access, Buffer, Buffers, Bytes
from ..operands import load
from ..traces import recorder
from ..traces.recorder import Recorder
from ..traces.trace import Writer
from ..vivante.frontend import Words

MAGIC = b"NPUSHIM1"
_HELLO = struct.Struct("<8sQ")
_WELCOME = struct.Struct("<8s6I")
_REQUEST = struct.Struct("<II")
_BUFFER = np.dtype([("address", "<u8"), ("offset", "<u8"), ("size", "<u8"), ("flags", "<u8")])
_ANSWER = struct.Struct("<II")

MAX_CLIENTS = 16
MAX_MEMORY_BYTES = 4 << 30
MAX_BUFFERS = 65536
MAX_STREAM_BYTES = 4 << 20
MESSAGE_TIMEOUT_S = 30.0
"""A message that has begun must be there within this time; between messages a client may rest."""
MAX_ADDRESS = 1 << 32
KEPT_JOBS = 5000
CUT_OFF = "client cut off: "
"""How the fault begins of a client that went, or sent what is not a message."""

# Linux include/uapi/linux/fcntl.h
_F_GET_SEALS = 1034
_F_SEAL_SHRINK = 2


class ProtocolError(Exception):
    """A client sent what is not a message; it is cut off."""


@dataclass
class ClientReport:
    """What one client did, for whoever started the server.

    Attributes:
        faults: the findings that stopped a submit, as text.
        findings: odd things that could be run, as text.
        blamed: those of them that were looked into: somebody is to blame, or the job is not understood.
        wrong: those that say that values are wrong (``Blame.says_wrong``).
        job_list: the first jobs (at most ``KEPT_JOBS``).
        ended: the client has gone.
    """

    submits: int = 0
    nn_jobs: int = 0
    tp_jobs: int = 0
    macs: int = 0
    faults: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    job_list: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def add(self, job: JobRecord) -> None:
        """Count a job."""
        self.macs += job.macs
        if job.unit == "TP":
            self.tp_jobs += 1
        else:
            self.nn_jobs += 1
        if len(self.job_list) < KEPT_JOBS:
            self.job_list.append(asdict(job))


class Server:
    """Serves one kind of NPU to any number of clients."""

    def __init__(
        self,
        path: Path,
        identity: AnyIdentity,
        *,
        maker: Maker | None = None,
        report: Path | None = None,
        trace: Writer | None = None,
        cache: DecodedCache | None = None,
    ) -> None:
        """Listen on ``path``.

        Args:
            maker: makes an engine a client; the plain one by default.
            cache: decoded coefficients, shared by all clients; may be shared with other servers.
            report: JSON file that is written after each client.
            trace: records every submission; ended by ``close``.
        """
        self._maker = maker or maker_for(identity)
        self._trace = trace
        self._identity = identity
        self._report_path = report
        self._reports: list[ClientReport] = []
        self._lock = threading.Lock()
        self._cache = cache or DecodedCache()
        self._places = threading.BoundedSemaphore(MAX_CLIENTS)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        path.chmod(0o600)
        self._socket.listen(MAX_CLIENTS)

    @property
    def reports(self) -> list[ClientReport]:
        """What the clients did so far, in the order in which they came."""
        with self._lock:
            return list(self._reports)

    def serve(self) -> None:
        """Take clients until ``close``."""
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            if not self._places.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._client, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stop taking clients; write the report."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._trace:
            self._trace.close()
        self._write_report()

    def _client(self, connection: socket.socket) -> None:
        report = ClientReport()
        with self._lock:
            number = len(self._reports)
            self._reports.append(report)
        recorder = Recorder(self._trace, number) if self._trace else None
        try:
            with connection:
                engine = self._maker.engine(self._cache, on_job=report.add, watch=recorder)
                Session(connection, self._identity, engine, report, recorder).run()
        except (ProtocolError, OSError) as error:
            report.faults.append(f"{CUT_OFF}{error}")
        except Exception as error:
            traceback.print_exc()
            report.faults.append(f"the emulator failed: {error!r}")
        finally:
            report.ended = True
            self._places.release()
            self._write_report()

    def _write_report(self) -> None:
        if self._report_path is None:
            return
        with self._lock:
            document = {
                "npu": self._identity.name,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "clients": [asdict(report) for report in self._reports],
            }
            write_atomically(self._report_path, msgspec.json.encode(document))


class Session:
    """One client's connection, from its hello to its end."""

    def __init__(
        self,
        connection: socket.socket,
        identity: AnyIdentity,
        engine: Engine,
        report: ClientReport,
        recorder: Recorder | None = None,
    ) -> None:
        self._recorder = recorder
        self._connection = connection
        self._identity = identity
        self._report = report
        self._memory: Bytes = np.zeros(0, np.uint8)
        self._engine = engine

    def run(self) -> None:
        """Serve the client until it goes.

        Raises:
            ProtocolError: it sent what is not a message, or took too long over one.
            OSError: the connection broke.
        """
        self._connection.settimeout(MESSAGE_TIMEOUT_S)
        self._memory = self._hello()
        self._connection.sendall(_WELCOME.pack(MAGIC, *self._identity.numbers, 0))
        while header := self._receive(_REQUEST.size, may_end=True):
            text = self._submit(*_REQUEST.unpack(header))
            encoded = text.encode(errors="replace")[:4000]
            self._connection.sendall(_ANSWER.pack(1 if text else 0, len(encoded)) + encoded)

    def _hello(self) -> Bytes:
        content, descriptors, _, _ = socket.recv_fds(self._connection, _HELLO.size, 4)
        try:
            if len(content) != _HELLO.size or len(descriptors) != 1:
                raise ProtocolError("no hello with one descriptor")
            magic, size_bytes = _HELLO.unpack(content)
            if magic != MAGIC:
                raise ProtocolError(f"hello {magic!r}, expected {MAGIC!r}")
            found_bytes = os.fstat(descriptors[0]).st_size
            if found_bytes != size_bytes or not 0 < size_bytes <= MAX_MEMORY_BYTES:
                raise ProtocolError(f"memory of {size_bytes} bytes in a file of {found_bytes}")
            # Without the seal a client could shrink the file under us: a SIGBUS at the next access.
            try:
                seals = fcntl.fcntl(descriptors[0], _F_GET_SEALS)
            except OSError:
                seals = 0
            if not seals & _F_SEAL_SHRINK:
                raise ProtocolError("the memory file is not sealed against shrinking")
            return np.frombuffer(mmap.mmap(descriptors[0], size_bytes), np.uint8)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _submit(self, buffer_count: int, stream_bytes: int) -> str:
        """Run one submit; return why it failed, or ""."""
        if buffer_count > MAX_BUFFERS or stream_bytes > MAX_STREAM_BYTES or stream_bytes % 4:
            raise ProtocolError(f"submit of {buffer_count} buffers, {stream_bytes} stream bytes")
        table = np.frombuffer(self._receive(buffer_count * _BUFFER.itemsize), _BUFFER)
        stream = np.frombuffer(self._receive(stream_bytes), "<u4")
        self._report.submits += 1
        engine = self._engine
        try:
            buffers = [self._buffer(*row) for row in table.tolist()]
            if self._recorder:
                self._record(self._recorder, buffers, stream)
            else:
                engine.memory = Buffers(buffers)
                engine.submit(stream)
            text = ""
        except FaultError as error:
            text = str(blamed(error.finding))
            self._report.faults.append(text)
        except ProtocolError:
            raise
        except Exception as error:
            traceback.print_exc()
            text = f"the emulator failed: {error!r}"
            self._report.faults.append(text)
        finally:
            engine.memory = Buffers([])
        self._report.findings = [str(finding) for finding in engine.findings]
        self._report.blamed = [
            str(finding) for finding in engine.findings if finding.blame is not Blame.OPEN
        ]
        self._report.wrong = [
            str(finding) for finding in engine.findings if finding.blame.says_wrong
        ]
        return text and f"virtual NPU {self._identity.name}: {text}"

    def _record(self, recorder: Recorder, buffers: list[Buffer], stream: Words) -> None:
        recorder.begin_submit(buffers, stream)
        try:
            self._engine.memory = recorder.watched(Buffers(buffers))
            self._engine.submit(stream)
        except FaultError as error:
            recorder.end_submit(error)
            raise
        except Exception as error:
            recorder.job_ends(None)
            recorder.end_submit(FaultError("emulator", "a result or a fault", repr(error)))
            raise
        recorder.end_submit()

    def _buffer(self, address: int, offset: int, size_bytes: int, flags: int) -> Buffer:
        if offset + size_bytes > self._memory.size:
            raise ProtocolError(
                f"a buffer at {offset:#x} of {size_bytes} bytes, outside the memory"
            )
        if address + size_bytes > MAX_ADDRESS:
            raise FaultError("buffer address", "32 bits", f"{address:#x} and {size_bytes} bytes")
        if not flags or flags & ~3:
            raise FaultError("buffer flags", "READ, WRITE or both", f"{flags:#x}", address=address)
        return Buffer(address, Access(flags), self._memory[offset : offset + size_bytes])

    def _receive(self, size_bytes: int, *, may_end: bool = False) -> bytes:
        """Receive exactly so much; with ``may_end`` wait for it without limit, and b"" at the end."""
        parts = bytearray()
        self._connection.settimeout(None if may_end else MESSAGE_TIMEOUT_S)
        while len(parts) < size_bytes:
            try:
                part = self._connection.recv(min(size_bytes - len(parts), 1 << 20))
            except TimeoutError:
                raise ProtocolError(
                    f"silent for {MESSAGE_TIMEOUT_S:g} s within a message"
                ) from None
            if not part:
                if may_end and not parts:
                    return b""
                raise ProtocolError("gone within a message")
            parts += part
            self._connection.settimeout(MESSAGE_TIMEOUT_S)
        return bytes(parts)


def _server(identity: AnyIdentity, arguments: argparse.Namespace) -> Server:
    maker = maker_for(
        identity,
        exact_for=arguments.exact_for,
        audit_for=arguments.audit_for,
        operands=load(arguments.operands) if arguments.operands else None,
    )
    trace = None
    if arguments.record:
        trace = recorder.begin(
            arguments.record,
            identity,
            door="shim",
            operations=maker.operations,
            exact=bool(arguments.exact_for),
            software=dict(each.split("=", 1) for each in arguments.software),
        )
    return Server(arguments.socket, identity, maker=maker, report=arguments.report, trace=trace)


def main(argv: list[str] | None = None) -> int:
    """Serve until standard input ends; 2 when the arguments are wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--socket", type=Path, required=True, help="path of the Unix socket to make"
    )
    parser.add_argument("--npu", required=True, help="which NPU: a file in identities/")
    parser.add_argument(
        "--exact-for", type=Path, help=".tflite file: compute exactly as TFLite does"
    )
    parser.add_argument("--audit-for", type=Path, help=".tflite file: compare each job with it")
    parser.add_argument("--operands", type=Path, help="file of ``operands``: what its ADDs add")
    parser.add_argument("--record", type=Path, help="trace file: record all submissions")
    parser.add_argument(
        "--software", action="append", default=[], help="NAME=VERSION, for the trace's header"
    )
    parser.add_argument("--report", type=Path, help="JSON file that says what the clients did")
    arguments = parser.parse_args(argv)
    try:
        server = _server(load_npu(arguments.npu), arguments)
    except BspError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    threading.Thread(target=server.serve, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while sys.stdin.buffer.read(4096):
        pass
    server.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
