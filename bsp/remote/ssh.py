# SPDX-License-Identifier: MIT
"""SSH connections to boards, through paramiko; the host key is always verified (``known_hosts``).

Three things differ from paramiko's defaults, all measured: the socket is our own, with TCP_NODELAY
(otherwise Nagle and delayed acknowledgements cost 40 ms per small write); AES-GCM is offered first
(paramiko offers it last, and its CTR + HMAC costs several times the CPU); and a deployment sends everything
through one channel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

import paramiko

from bsp.base.at_once import ended_by
from bsp.base.errors import BspError, InfrastructureError, UserError
from bsp.base.process import Completed, ToolFailedError

from .inventory import Host, resolve_jump
from .known_hosts import KnownHosts
from .proxy_command import CommandSocket, through_command
from .user_keys import offered_keys

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_RETRY_EVERY_S = 0.5
_LEAST_ANSWER_S = 2.0
_ATTEMPT_S = 30.0  # under emulation the first key exchange takes seconds
_READ_BYTES = 32 << 10

# paramiko logs a traceback for each connection that breaks, as on every reboot of a board; the user gets an
# error of ours instead.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _PromptSocket(socket.socket):
    """A socket that neither gathers small writes nor delays acknowledgements.

    An SSH server answers a log-in with two small packets; its Nagle algorithm holds the second back until
    the first is acknowledged, which Linux delays by 40 ms. TCP_QUICKACK lasts until the next read only.

    paramiko reads each packet in two: all that has come is read at once, and handed out from there.
    """

    _ahead = b""

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        data = super().recv(max(size, _READ_BYTES), flags)
        data, self._ahead = data[:size], data[size:]
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class _Transport(paramiko.Transport):
    """A transport that keeps the order of ``_preferred_keys``, where paramiko puts certificates last."""

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        return tuple(self._preferred_keys)  # type: ignore[attr-defined]  # not in its stubs


class UnreachableError(InfrastructureError):
    """Nothing answers at the host's address, or it does not speak SSH (yet)."""


class AuthenticationError(UserError):
    """The host does not accept any of our keys."""


class ConnectionLostError(InfrastructureError):
    """The connection broke while it was in use."""


class Process:
    """A program that runs on the board; its standard input and output are this object's.

    One thread may write while another reads. What the program writes to standard error is collected.
    """

    def __init__(self, channel: paramiko.Channel, argv: tuple[str, ...], host: Host) -> None:
        self._channel = channel
        self._argv = argv
        self._host = host
        self._pending = b""
        self._stderr: list[bytes] = []
        self._stderr_reader = threading.Thread(target=self._collect_stderr, daemon=True)
        self._stderr_reader.start()

    def _collect_stderr(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := self._channel.recv_stderr(65536):
                self._stderr.append(data)

    def write(self, data: bytes | memoryview, *, timeout_s: float = 60) -> None:
        """Send bytes to the program.

        Raises:
            ConnectionLostError: the connection broke, or nothing was taken for ``timeout_s``.
        """
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(data)  # type: ignore[arg-type]  # any buffer will do
        except TimeoutError as error:
            raise ConnectionLostError(
                f"{self._host.name} took no data for {timeout_s:g} s"
            ) from error
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise ConnectionLostError(
                f"the connection to {self._host.name} broke: {error}"
            ) from error

    def end_input(self) -> None:
        """Tell the program that nothing more comes."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def read_some(self, *, timeout_s: float) -> bytes:
        """Return what the program has printed next; empty when it has ended.

        Raises:
            ConnectionLostError: nothing came for ``timeout_s``.
        """
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        self._channel.settimeout(max(timeout_s, 0.001))
        try:
            return self._channel.recv(262144)
        except TimeoutError as error:
            raise ConnectionLostError(
                f"{self._host.name} did not answer within {timeout_s:g} s ({shlex.join(self._argv)[:80]})"
            ) from error

    def read_line(self, *, timeout_s: float) -> bytes:
        """Return the next line without its newline; what is left of one when the program ends."""
        deadline = time.monotonic() + timeout_s
        parts: list[bytes] = []
        while True:
            data = self.read_some(timeout_s=deadline - time.monotonic())
            line, newline, rest = data.partition(b"\n")
            parts.append(line)
            if newline or not data:
                self._pending = rest
                return b"".join(parts)

    def wait(self, *, timeout_s: float) -> Completed:
        """Wait for the end of the program and return its result, with what was not read before.

        Raises:
            ConnectionLostError: the connection broke, or ``timeout_s`` passed.
        """
        deadline = time.monotonic() + timeout_s
        out: list[bytes] = []
        while data := self.read_some(timeout_s=deadline - time.monotonic()):
            out.append(data)
        if not self._channel.status_event.wait(max(deadline - time.monotonic(), 0.001)):
            raise ConnectionLostError(f"{self._host.name}: {self._argv[0]} did not end in time")
        self._stderr_reader.join(timeout=1)
        code = self._channel.exit_status
        if code == -1 and not self._channel.get_transport().is_active():
            raise ConnectionLostError(f"the connection to {self._host.name} broke")
        return Completed(self._argv, code, b"".join(out), b"".join(self._stderr))

    def close(self) -> None:
        """Close the channel; the program finds its input ended."""
        self._channel.close()


class Connection:
    """An open SSH connection; a context manager."""

    def __init__(self, host: Host, transport: paramiko.Transport, under: Connection | None) -> None:
        self.host = host
        self._transport = transport
        self._under = under
        self._registered = contextlib.ExitStack()
        self._registered.enter_context(ended_by(transport.close))

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, and the one it goes through."""
        self._registered.close()
        self._transport.close()
        if self._under:
            self._under.close()

    @property
    def transport(self) -> paramiko.Transport:
        """paramiko's own object, for what this class does not cover."""
        return self._transport

    def start(self, argv: Iterable[str], *, timeout_s: float = 30) -> Process:
        """Start a program on the board.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        words = tuple(argv)
        try:
            channel = self._transport.open_session(timeout=timeout_s)
            channel.settimeout(timeout_s)
            process = Process(channel, words, self.host)
            channel.exec_command(shlex.join(words))
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise ConnectionLostError(
                f"the connection to {self.host.name} broke: {error}"
            ) from error
        return process

    def run(
        self,
        argv: Iterable[str],
        *,
        stdin: bytes | Iterable[bytes] | None = None,
        timeout_s: float = 60,
        check: bool = True,
    ) -> Completed:
        """Run a program on the board to its end and return what it printed.

        Args:
            argv: the program and its arguments; quoted here, for the board's shell.
            stdin: bytes, or pieces of them, to feed it.

        Raises:
            ToolFailedError: it ended with a code other than 0 and ``check`` is true.
            ConnectionLostError: the connection broke, or ``timeout_s`` passed.
        """
        deadline = time.monotonic() + timeout_s
        process = self.start(argv, timeout_s=timeout_s)
        feeder: threading.Thread | None = None
        try:
            if stdin is None:
                process.end_input()
            else:
                # A view: paramiko cuts the rest of a large one anew for each packet, without copying it.
                pieces: Iterable[bytes | memoryview] = (
                    [memoryview(stdin)] if isinstance(stdin, bytes) else stdin
                )

                def feed() -> None:
                    # A program may end without reading all of its input; its exit code says why.
                    with contextlib.suppress(ConnectionLostError):
                        for piece in pieces:
                            process.write(piece, timeout_s=max(deadline - time.monotonic(), 0.001))
                    process.end_input()

                feeder = threading.Thread(target=feed, daemon=True)
                feeder.start()
            completed = process.wait(timeout_s=deadline - time.monotonic())
        finally:
            process.close()
            if feeder:
                feeder.join(timeout=5)
        if check and completed.exit_code != 0:
            raise ToolFailedError(completed, hint=f"this ran on {self.host.name}")
        return completed


def connect(
    host: Host,
    *,
    timeout_s: float = 15,
    answer_s: float | None = None,
    accept_new_key: bool = False,
) -> Connection:
    """Connect and log in.

    Args:
        answer_s: how long the host may take to accept the connection, and to send its first line;
            ``timeout_s`` if it is None.
        accept_new_key: trust and remember the key of a new host without asking. A key that *changed* is
            never accepted.

    Raises:
        UnreachableError: nothing answers at the address.
        AuthenticationError: the host accepts none of our keys.
        UserError: the host's key is unknown, or differs from the remembered one.
    """
    limits = _Limits(timeout_s, timeout_s if answer_s is None else min(answer_s, timeout_s))
    return _connect(host, limits, (), accept_new_key=accept_new_key)


def answer_limit_s(waited_s: float) -> float:
    """Return ``connect``'s ``answer_s`` for a board that may still be booting.

    A connection that begins before the board's network is up is asked for again only after 3, 6 and 18 s
    (TCP's retransmission, and that of QEMU's user network); a new one finds the board at once. So the limit
    is small. It grows with the time waited, for boards that are slow to answer.
    """
    return min(max(waited_s / 10, _LEAST_ANSWER_S), _ATTEMPT_S)


@dataclass(frozen=True)
class _Limits:
    """Times, in seconds, for a whole log-in, and for the answer of the host."""

    timeout_s: float
    answer_s: float


def _connect(
    host: Host, limits: _Limits, through: tuple[tuple[str, int], ...], *, accept_new_key: bool
) -> Connection:
    """Connect; ``through`` lists the hosts that are reached through this one, to detect loops."""
    deadline = time.monotonic() + limits.timeout_s
    under, sock = _reach(host, limits, through, accept_new_key=accept_new_key)
    transport: paramiko.Transport | None = None
    began = time.monotonic()
    try:
        transport = _Transport(sock, disabled_algorithms={"pubkeys": ["ssh-rsa"]})
        transport.banner_timeout = limits.answer_s
        known_hosts = KnownHosts(host)
        options = transport.get_security_options()
        options.ciphers = [cipher for cipher in _CIPHERS if cipher in options.ciphers]
        options.digests = [mac for mac in _MACS if mac in options.digests]
        options.key_types = known_hosts.preferred(options.key_types)
        try:
            with ended_by(transport.close):
                transport.start_client(timeout=max(deadline - time.monotonic(), 0.1))
                key = transport.get_remote_server_key()
                if not known_hosts.certified(key):
                    known_hosts.verify(key, accept_new_key=accept_new_key)
                _log_in(transport, host)
        except (paramiko.SSHException, OSError, EOFError) as error:
            reason = str(error) or type(error).__name__
            if not transport.remote_version and time.monotonic() >= began + limits.answer_s:
                reason = f"it sent nothing for {limits.answer_s:g} s"
            if isinstance(sock, CommandSocket):
                raise UnreachableError(
                    f"the ProxyCommand of {host.name} ({host.proxy_command}) does not lead to an SSH "
                    f"server: {sock.complaint() or reason}",
                    hint=f"ssh {host.name} true",
                ) from error
            raise UnreachableError(
                f"{host.name} ({host.address}:{host.port}) answers, but does not let an SSH session "
                f"begin: {reason}",
                hint="check the port, and that an SSH server runs there",
            ) from error
    except BaseException:
        if transport:
            transport.close()
        sock.close()
        if under:
            under.close()
        raise
    transport.set_keepalive(10)
    return Connection(host, transport, under)


def wait_until_up(host: Host, *, timeout_s: float) -> Connection:
    """Connect as soon as the host answers.

    Raises:
        UnreachableError: it did not within ``timeout_s``.
        UserError: as ``connect``.
    """
    return next(answers(host, timeout_s=timeout_s))


def answers(
    host: Host, *, timeout_s: float, not_yet: tuple[type[BspError], ...] = ()
) -> Iterator[Connection]:
    """Yield a connection each time that the host answers, for the caller to close.

    Args:
        not_yet: what else than no answer says that it is still booting.

    Raises:
        UnreachableError: the time is up.
        UserError: as ``connect``.
    """
    began = time.monotonic()
    last = "it answered"
    waited_for: tuple[type[BspError], ...] = (UnreachableError, ConnectionLostError, *not_yet)
    while True:
        waited_s = time.monotonic() - began
        try:
            connection = connect(
                host,
                timeout_s=max(min(timeout_s - waited_s, _ATTEMPT_S), 0.1),
                answer_s=answer_limit_s(waited_s),
            )
        except waited_for as error:
            last = error.message
        else:
            yield connection
        if began + timeout_s - time.monotonic() < _RETRY_EVERY_S:
            raise UnreachableError(
                f"{host.name} did not answer within {timeout_s:g} s; last: {last}",
                hint="look at its console",
            )
        time.sleep(_RETRY_EVERY_S)


def _reach(
    host: Host, limits: _Limits, through: tuple[tuple[str, int], ...], *, accept_new_key: bool
) -> tuple[Connection | None, socket.socket | paramiko.Channel]:
    """Open the byte stream to the SSH server: a socket, or a channel through another host."""
    if host.proxy_jump:
        *before, last = host.proxy_jump.split(",")
        jump = resolve_jump(last)
        if before:
            jump = dataclasses.replace(jump, proxy_jump=",".join(before))
        here = (host.address, host.port)
        if jump.proxy_jump and (jump.address, jump.port) in (*through, here):
            raise UserError(
                f"the way to {jump.name} leads through {jump.name} itself",
                hint="ProxyJump in ~/.ssh/config holds for the jump host too: write `Host * "
                f"!{jump.name}` there, or `ProxyJump none` for it",
            )
        whole = _Limits(limits.timeout_s, limits.timeout_s)
        under = _connect(jump, whole, (*through, here), accept_new_key=accept_new_key)
        try:
            channel = under.transport.open_channel(
                "direct-tcpip", (host.address, host.port), ("127.0.0.1", 0), timeout=limits.answer_s
            )
        except (paramiko.SSHException, OSError) as error:
            under.close()
            raise UnreachableError(
                f"{host.address}:{host.port} cannot be reached from {jump.name}: {error}"
            ) from error
        return under, channel
    if host.proxy_command:
        return None, through_command(
            host.proxy_command, timeout_s=limits.timeout_s, hands_on=host.proxy_hands_on
        )
    try:
        sock = socket.create_connection((host.address, host.port), timeout=limits.answer_s)
    except OSError as error:
        raise UnreachableError(
            f"cannot reach {host.name} at {host.address}:{host.port}: {error.strerror or error}",
            hint="check that it is switched on and on the network, and the address and port",
        ) from error
    prompt = _PromptSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    prompt.settimeout(limits.timeout_s)
    prompt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return None, prompt


def _log_in(transport: paramiko.Transport, host: Host) -> None:
    """Authenticate with the host's identity file, the agent's keys, then the user's usual keys."""
    tried: list[str] = []
    for name, key in offered_keys(host):
        tried.append(name)
        try:
            transport.auth_publickey(host.user, key)
        except paramiko.BadAuthenticationType:
            break
        except paramiko.AuthenticationException:
            if transport.is_active():
                continue
            break
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise UnreachableError(
                f"{host.name} ended the connection while logging in: {error}"
            ) from error
        if transport.is_authenticated():
            return
    keys = f"tried {', '.join(tried)}" if tried else "there is no key to try"
    raise AuthenticationError(
        f"{host.user}@{host.name} ({host.address}:{host.port}) accepts none of our keys: {keys}",
        hint=f"ssh-copy-id -p {host.port} {host.user}@{host.address}, or set identity_file "
        "in the inventory",
    )
