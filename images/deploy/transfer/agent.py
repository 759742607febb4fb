# SPDX-License-Identifier: MIT
"""The host's half of a transfer: one connection, one channel, the requests to the agent on the board.

The agent (onboard/) is sent as the first bytes of the channel, so that nothing has to be installed. Then
requests and answers follow, one JSON object per line, and the files of a generation as one stream of
frames (stream.py).
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import json
import math
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping
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
from ..plan import Facts, RunningSystem, Send, Verified
from . import contents, delta
from .shared import Shared, Sink
from .stream import SLOW_BYTES_PER_S, Progress, Stream, send_files

ONBOARD_MODULES = (  # the last one is the agent itself
    "frames",
    "files",
    "script_image",
    "raw_sector",
    "entries",
    "root_disk",
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

# Imports the last of the modules sent, and calls its main. Each of the others is compiled where it is first
# imported: compiling all of them takes a slow board as long as the requests do. -I -S: Python ignores the
# board's settings and installed packages, as a slow board takes longer to search them than for the rest.
PYTHON = ("python3", "-I", "-S", "-c")
START = """\
import json,sys,zlib
i=open(0,"rb",1<<18,closefd=False)
t={"onboard."+n:s for n,s in json.loads(zlib.decompress(i.read(int(i.readline()))))}
n=[*t][-1]
t["onboard"]=""
class Sent:
    def find_spec(self,name,path=None,target=None):
        if name in t:
            return type(json.__spec__)(name,self,is_package=name=="onboard")
    def create_module(self,spec):
        pass
    def exec_module(self,m):
        exec(compile(t[m.__name__],m.__name__.replace(".","/")+".py","exec"),m.__dict__)
sys.meta_path.insert(0,Sent())
__import__(n)
sys.modules[n].main(i)
"""

_SLOW_ROUND_TRIP_S = 0.002
_READ_ALL_S = 900.0  # for all generations on a slow card
_SURVEY_S = 600.0  # unpacking kernels and RAM disks
_VERIFY_S = 300.0


class BoardRefusedError(InfrastructureError):
    """The agent could not carry out a request; the board is unchanged."""


@functools.cache
def _agent_source(additions: tuple[tuple[str, str], ...]) -> bytes:
    """Return the agent's modules as ``START`` reads them: the same for all boards of a fleet."""
    appended = dict(additions)
    modules = [
        (name, (slots.ONBOARD_DIR / f"{name}.py").read_text() + appended.get(name, ""))
        for name in ONBOARD_MODULES
    ]
    return started_with(modules)


def started_with(modules: list[tuple[str, str]]) -> bytes:
    """Return what ``START`` reads first: the names and texts of modules, the one that has ``main`` last."""
    packed = zlib.compress(json.dumps(modules).encode())
    return b"%d\n%s" % (len(packed), packed)


def as_root(host: Host) -> tuple[str, ...]:
    """Return the start of a command that runs our Python code as root on a board (docs/operators.md)."""
    return ("sudo", "-n", "/usr/bin/python3", *PYTHON[1:]) if host.sudo else PYTHON


class HeldError(UserError):
    """Another deployment holds the board; ``lease`` is its lease."""

    def __init__(self, message: str, lease: Mapping[str, Any]) -> None:
        super().__init__(
            message,
            hint='wait for it to end, or take its lease: --steal --reason "TEXT"',
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
        """Start the agent; the board reads and compiles it while this side continues.

        Args:
            root: prefix of all paths on the board; for the tests.
            additions: see ``Target.additions``.
            shared: see ``Target.shared``.
            claim: names the owner of the lease; for requests that change the board.
        """
        self.connection = connection
        self._root = root
        self._timeout_s = timeout_s
        self._shared = shared
        self._claim = claim or Claim()
        self._far = _is_far(connection)
        self._rate = delta.remembered_rate(connection.host)
        # A stream to many boards shares this machine's link, and is compressed only once.
        self._compress = (
            shared is not None or self._far or (self._rate or math.inf) < SLOW_BYTES_PER_S
        )
        self._process: Process = connection.start([*as_root(connection.host), START])
        self._write(_agent_source(tuple((additions or {}).items())))
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
        """Ask for the facts about the board.

        Args:
            generation: the one that is to run there; None to look at all of them.
            fat_mount: where its boot partition is mounted.
            lock: take the board's lease, which excludes other deployments until this one ends.
            thorough: hash all files of the generations instead of trusting size and time.
            tree: return the running device tree, whatever runs.
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
            say(f"{error.message}: that process of this machine has ended; taking over its lease")
            request["lock"]["steal"] = "the process that had it has ended"
            answer = self.ask(request, timeout_s=limit_s)
        facts = msgspec.convert(answer, Facts)
        self.codecs = facts.codecs
        return facts

    def running_system(self) -> RunningSystem:
        """Return what the board runs, and from which files."""
        answer = self.ask({"do": "survey"}, timeout_s=_SURVEY_S)
        return msgspec.convert(answer, RunningSystem)

    def verify(self, generation: str) -> Verified:
        """Hash all files of a generation, and the modules where they are loaded from."""
        answer = self.ask({"do": "verify", "generation": generation}, timeout_s=_VERIFY_S)
        return msgspec.convert(answer, Verified)

    def ask(self, request: dict[str, Any], *, timeout_s: float | None = None) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises:
            BoardRefusedError: the agent refused it.
            HeldError: another deployment holds the board.
            ConnectionLostError: the connection broke.
        """
        self._write(json.dumps(request).encode() + b"\n")
        return self._answer(timeout_s or self._timeout_s)

    def manifest(self, generation: str) -> Manifest:
        """Return the manifest of a generation on the board, or the copy on this machine.

        Raises:
            UserError: its content does not match its name.
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
        """Build the generation on the board.

        Raises:
            UserError: a file system on the board is full.
            BoardRefusedError, ConnectionLostError: it is incomplete; the next try resumes what has arrived.
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
            stream = Stream(self._process.write, self.codecs, self._compress, progress)
            try:
                self._process.write(json.dumps(request).encode() + b"\n")
                stream.data(fresh)
                stream.end()
                if self._shared:
                    stream.flush()
                    self._send_shared(self._shared, bundle, indexes, stream, maker)
                else:
                    send_files(stream, bundle, indexes, maker)
                    self._learn(stream)
            except ConnectionLostError:
                self._answer(
                    5
                )  # if the agent gave up (a full disk, a damaged file), its answer has the reason
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
            # The board lost files since it was asked, or they are damaged: send these, without patches.
            request["send"] = frames.ranges(indexes)
            maker = None
        raise BoardRefusedError(
            f"the board still requests {counted(len(indexes), 'file')} of the bundle after three transfers"
        )

    def _patch_maker(self, bundle: Bundle, step: Send, facts: Facts) -> delta.Maker | None:
        """Return the maker of patches against files on the board; None if patches cannot help."""
        zstd = frames.Zstd.kind.decode()
        if not (self._compress and zstd in self.codecs and step.indexes and contents.are_kept()):
            return None
        manifests = {}
        for generation in step.bases:
            with contextlib.suppress(UserError):
                manifests[generation] = self.manifest(generation)
        bases = delta.bases_for(bundle.manifest, step.indexes, facts, manifests)
        link_bytes_per_s = delta.SLOW_BYTES_PER_S if self._far else delta.FAST_BYTES_PER_S
        costs = delta.Costs(link=self._rate or link_bytes_per_s)
        if facts.hash_bytes_per_s:
            costs = replace(costs, board=facts.hash_bytes_per_s)
        with contextlib.suppress(OSError, AttributeError):  # no zstd on this machine
            return delta.Maker(bases, costs)
        return None

    def _learn(self, stream: Stream) -> None:
        """Remember the rate of the link."""
        if stream.bytes_per_s is not None:
            delta.remember_rate(self.connection.host, stream.bytes_per_s)

    def _send_shared(
        self,
        shared: Shared,
        bundle: Bundle,
        indexes: list[int],
        stream: Stream,
        maker: delta.Maker | None,
    ) -> None:
        def make(sink: Sink) -> Progress:
            progress = Progress()
            send_files(Stream(sink, codecs, True, progress), bundle, indexes, maker)
            return progress

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
            self._answer(5)  # if the agent gave up, its answer has the reason
            raise

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        line = self._process.read_line(timeout_s=timeout_s)
        if not line:
            completed = self._process.wait(timeout_s=5)
            stderr = completed.stderr.decode(errors="replace").strip()
            if completed.exit_code == 127:
                raise UserError(
                    f"{self.connection.host.name} has no python3, which a deployment needs",
                    hint="on the board: apt-get install python3-minimal",
                )
            if self.connection.host.sudo and "sudo:" in stderr:
                raise UserError(
                    f"{self.connection.host.user} may not start a deployment on "
                    f"{self.connection.host.name}: {stderr[-300:]}",
                    hint="docs/operators.md has the one sudo rule that it takes; sudo -l there lists "
                    "what it has",
                )
            if completed.exit_code == -1:  # it was killed, or the SSH server was
                raise ConnectionLostError(
                    f"the session on {self.connection.host.name} ended: {stderr[-600:] or 'killed'}"
                )
            raise BoardRefusedError(
                f"the agent on {self.connection.host.name} ended with code "
                f"{completed.exit_code}: {stderr[-600:]}"
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
    """Return the manifest of a generation; None if this machine has no copy."""
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
    """Return the files outside the generations that the board lacks or has in another version."""
    lacking = [
        {"target": file.target, "mode": file.mode, "content": file.source.read_text()}
        for file in slots.ONBOARD_FILES
        if facts.onboard.get(file.target) != hashlib.sha256(file.source.read_bytes()).hexdigest()
    ]
    return {"onboard": lacking, "onboard_links": slots.ONBOARD_LINKS}


def _signature(bundle: Bundle) -> dict[str, str]:
    """Return the signature of a bundle, if any, and the signers for a board that has none yet."""
    try:
        signature = (bundle.path / sign.SIGNATURE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    return {"signature": signature, "signers": sign.trust_root()}


def _is_far(connection: Connection) -> bool:
    """Return whether the round trip (from TCP_INFO) is that of a network on which compression pays.

    Raises:
        ConnectionLostError: it broke.
    """
    sock = connection.transport.sock
    if not isinstance(sock, socket.socket) or not hasattr(socket, "TCP_INFO"):
        return True  # through another host
    # struct tcp_info, tcpi_min_rtt: unlike the smoothed one, it is not that of a busy machine.
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 152)
    except OSError as error:  # paramiko closes it where the other end is gone
        raise ConnectionLostError(
            f"the connection to {connection.host.name} broke: {error.strerror}"
        ) from error
    (round_trip_us,) = struct.unpack_from("I", info, 148) if len(info) >= 152 else (0,)
    return float(round_trip_us) > _SLOW_ROUND_TRIP_S * 1e6


def decompress_fdt(text: str | None) -> bytes | None:
    """Return the device tree in an answer of the agent; None if there is none or it is damaged.

    Of one that is larger than any can be, only the start.
    """
    if text is None:
        return None
    try:
        return zlib.decompressobj().decompress(base64.b64decode(text), MAX_BYTES + 1)
    except (zlib.error, ValueError):
        return None


def each_known(agent: Agent, facts: Facts) -> Iterator[Manifest]:
    """Yield the manifests of the generations on the board, except those that cannot be read."""
    for generation, damaged in facts.generations.items():
        if "manifest.json" not in damaged:
            with contextlib.suppress(UserError):  # of another version of this program, or damaged
                yield agent.manifest(generation)


__all__ = ["Agent", "BoardRefusedError", "ConnectionLostError", "Progress"]
