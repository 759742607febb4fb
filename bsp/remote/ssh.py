# SPDX-License-Identifier: MIT
"""The one connection to a board: SSH inside this process, with the host's key always verified.

paramiko does the protocol. Three things differ from its defaults, all measured: the socket is our own,
with TCP_NODELAY (otherwise Nagle and delayed acknowledgements cost 40 ms per small write); AES-GCM is
offered first (paramiko offers it last, and its CTR + HMAC costs several times the CPU); and all that a
deployment sends goes through one channel.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import dataclasses
import fnmatch
import getpass
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import paramiko

from bsp.base.ask import can_ask, confirm
from bsp.base.cache import lock
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import Completed, ToolFailedError
from bsp.base.progress import say
from bsp.base.screen import screen

from .inventory import Host, resolve_jump

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_CERTIFICATE = "-cert-v01@openssh.com"
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_RETRY_EVERY_S = 0.5

# paramiko logs a traceback for each connection that breaks, which a rebooting board does; what went wrong
# reaches the user as an error of ours.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


class _PromptSocket(socket.socket):
    """A socket that neither gathers small writes nor delays acknowledgements.

    An SSH server answers a log-in with two small packets; its Nagle algorithm holds the second back until
    the first is acknowledged, which Linux delays by 40 ms. TCP_QUICKACK lasts until the next read only.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data


class _Transport(paramiko.Transport):
    """paramiko offers certificates of host keys last; here the order is that of ``_preferred_keys``."""

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

    @property
    def stderr_text(self) -> str:
        """What the program wrote to standard error so far."""
        return b"".join(self._stderr).decode(errors="replace")

    def close(self) -> None:
        """Close the channel; the program finds its input ended."""
        self._channel.close()


class Connection:
    """An open SSH connection; a context manager."""

    def __init__(self, host: Host, transport: paramiko.Transport, under: Connection | None) -> None:
        self.host = host
        self._transport = transport
        self._under = under

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


def connect(host: Host, *, timeout_s: float = 15, accept_new_key: bool = False) -> Connection:
    """Connect and log in.

    Args:
        accept_new_key: remember the key of a host that was never seen, without asking. A key that
            *changed* is never accepted.

    Raises:
        UnreachableError: nothing answers there.
        NotLetInError: no key of ours is accepted.
        UserError: the host's key is unknown, or another than the remembered one.
    """
    return _connect(host, timeout_s, (), accept_new_key=accept_new_key)


def _connect(
    host: Host, timeout_s: float, through: tuple[tuple[str, int], ...], *, accept_new_key: bool
) -> Connection:
    """As ``connect``; ``through`` are the addresses and ports that this connection is to lead to."""
    deadline = time.monotonic() + timeout_s
    under, sock = _reach(host, timeout_s, through, accept_new_key=accept_new_key)
    transport: paramiko.Transport | None = None
    try:
        transport = _Transport(sock, disabled_algorithms={"pubkeys": ["ssh-rsa"]})
        transport.banner_timeout = timeout_s
        known = _KnownHosts(host)
        options = transport.get_security_options()
        options.ciphers = [cipher for cipher in _CIPHERS if cipher in options.ciphers]
        options.digests = [mac for mac in _MACS if mac in options.digests]
        options.key_types = known.preferred(options.key_types)
        try:
            transport.start_client(timeout=max(deadline - time.monotonic(), 0.1))
            key = transport.get_remote_server_key()
            if not known.certified(key):
                known.verify(key, accept_new_key=accept_new_key)
            _log_in(transport, host)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise UnreachableError(
                f"{host.name} ({host.address}:{host.port}) answers, but does not let an SSH session "
                f"begin: {error or type(error).__name__}",
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
    deadline = time.monotonic() + timeout_s
    while True:
        left_s = deadline - time.monotonic()
        try:
            # Under emulation the first key exchange takes seconds; a dead port answers at once.
            return connect(host, timeout_s=max(min(left_s, 30.0), 0.1))
        except (UnreachableError, ConnectionLostError) as error:
            if deadline - time.monotonic() < _RETRY_EVERY_S:
                raise UnreachableError(
                    f"{host.name} did not answer within {timeout_s:g} s; last: {error.message}",
                    hint="look at its console",
                ) from error
        time.sleep(_RETRY_EVERY_S)


def _reach(
    host: Host, timeout_s: float, through: tuple[tuple[str, int], ...], *, accept_new_key: bool
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
        under = _connect(jump, timeout_s, (*through, here), accept_new_key=accept_new_key)
        try:
            channel = under.transport.open_channel(
                "direct-tcpip", (host.address, host.port), ("127.0.0.1", 0), timeout=timeout_s
            )
        except (paramiko.SSHException, OSError) as error:
            under.close()
            raise UnreachableError(
                f"{host.address}:{host.port} cannot be reached from {jump.name}: {error}"
            ) from error
        return under, channel
    try:
        sock = socket.create_connection((host.address, host.port), timeout=timeout_s)
    except OSError as error:
        raise UnreachableError(
            f"cannot reach {host.name} at {host.address}:{host.port}: {error.strerror or error}",
            hint="check that it is switched on and on the network, and the address and port",
        ) from error
    prompt = _PromptSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
    prompt.settimeout(timeout_s)
    prompt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return None, prompt


class _KnownHosts:
    """The host keys that the user has accepted."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._file = host.known_hosts or Path.home() / ".ssh" / "known_hosts"
        self._keys: dict[str, paramiko.PKey] = {}
        self._revoked: set[str] = set()
        self._authorities: set[str] = set()
        files = [self._file] if host.known_hosts else [_SYSTEM_KNOWN_HOSTS, self._file]
        for file in files:
            for line in _lines(file):
                self._read(line)

    def _read(self, line: str) -> None:
        """Take one line of a known-hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            return
        names, kind, key = fields[:3]
        if marker == "@revoked":
            self._revoked.add(key)
        elif marker == "@cert-authority":
            plain = self._host.host_key_alias or self._host.address
            if _names(names, self._host.key_name) or _names(names, plain):
                self._authorities.add(key)
        elif not marker and _names(names, self._host.key_name):
            # A key of a kind that is not known here cannot be the one that is offered.
            with contextlib.suppress(paramiko.SSHException, ValueError):
                self._keys[kind] = paramiko.PKey.from_type_string(kind, base64.b64decode(key))

    def preferred(self, offered: Iterable[str]) -> list[str]:
        """Key types to ask the server for: those that we know of this host first."""

        def rank(kind: str) -> int:
            base = "ssh-rsa" if kind.startswith("rsa-sha2") else kind
            return 0 if base in self._keys else 1

        plain = sorted(offered, key=rank)
        return [f"{kind}{_CERTIFICATE}" for kind in plain if self._authorities] + plain

    def certified(self, key: paramiko.PKey) -> bool:
        """Whether an authority of ours vouches for the server's key (``@cert-authority``).

        Raises:
            UserError: one does, and not for this host or not now, and the key itself is not known either.
        """
        blob = key.public_blob
        if blob is None or not blob.key_type.endswith(_CERTIFICATE) or not self._authorities:
            return False
        problem = self._wrong_with(blob.key_type, blob.key_blob)
        if problem and key.get_name() not in self._keys:
            raise UserError(
                f"the certificate that {self._host.name} shows for its host key is not good: {problem}",
                hint="have its host key signed anew: ssh-keygen -s CA -h -n NAME ...",
            )
        return not problem and key.get_base64() not in self._revoked

    def _wrong_with(self, kind: str, blob: bytes) -> str:
        """Why a certificate does not hold; paramiko has only checked that the host has its key."""
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        try:
            read = serialization.load_ssh_public_identity(
                kind.encode() + b" " + base64.b64encode(blob)
            )
            if not isinstance(read, serialization.SSHCertificate):
                return "it is none"
            read.verify_cert_signature()
        except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
            return f"it cannot be verified ({error or 'wrong signature'})"
        authority = read.signature_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        signer = authority.split()[1].decode()
        if signer not in self._authorities or signer in self._revoked:
            return "none of the authorities in known_hosts made it"
        if read.type is not serialization.SSHCertificateType.HOST:
            return "it is a user's certificate"
        if not read.valid_after <= time.time() < read.valid_before:
            return "it is not valid now: expired, or a clock is wrong"
        name = (self._host.host_key_alias or self._host.address).lower()
        if name.encode() not in [each.lower() for each in read.valid_principals]:
            names = b", ".join(read.valid_principals).decode(errors="replace") or "no name at all"
            return f"it is for {names}, not for {name}"
        return "it has options that are not known" if read.critical_options else ""

    def verify(self, key: paramiko.PKey, *, accept_new_key: bool) -> None:
        """Compare the server's key with the remembered one; ask about a new one."""
        host = self._host
        shown = f"{key.get_name()} {key.fingerprint}"
        if key.get_base64() in self._revoked:
            raise UserError(
                f"the host key of {host.name} ({shown}) is marked as revoked in {self._file}"
            )
        known = self._keys.get(key.get_name())
        if known is not None and known.asbytes() == key.asbytes():
            return
        if self._keys:
            other = ", ".join(
                f"{name} {kept.fingerprint}" for name, kept in sorted(self._keys.items())
            )
            raise UserError(
                f"the host key of {host.name} ({host.address}:{host.port}) is not the remembered one: "
                f"expected {other}, found {shown}. This may be another machine, a reinstalled board, "
                "or somebody in between",
                hint=f"if the change is legitimate: ssh-keygen -f {self._file} -R '{host.key_name}'",
            )
        if not accept_new_key:
            self._ask(shown)
        self._remember(key)
        say(f"remembered the host key of {host.name}: {shown}")

    def _ask(self, shown: str) -> None:
        host = self._host
        if not can_ask():
            raise UserError(
                f"the host key of {host.name} ({host.address}:{host.port}) is not known yet: {shown}",
                hint="compare the fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` "
                "on the board, then repeat with --accept-new-key",
            )
        contact = f"First contact with {host.name} ({host.address}:{host.port})."
        if not confirm(f"{contact}\nIts key: {shown}\nTrust this host from now on?"):
            raise UserError(f"the host key of {host.name} was not accepted")

    def _remember(self, key: paramiko.PKey) -> None:
        if self._file == Path(os.devnull):
            return
        line = f"{self._host.key_name} {key.get_name()} {key.get_base64()}\n"
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock(self._file.with_name(f".{self._file.name}.lock")):
            old = self._file.read_text() if self._file.exists() else ""
            separator = "" if not old or old.endswith("\n") else "\n"
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a") as file:
                file.write(separator + line)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _names(patterns: str, host: str) -> bool:
    """Whether the first field of a known-hosts line is about a host: names, wildcards, a hashed name."""
    if patterns.startswith("|1|"):
        return paramiko.HostKeys.hash_host(host, patterns) == patterns
    found = False
    for pattern in patterns.split(","):
        # fnmatch knows [sets], which these patterns do not; ports are written in such brackets.
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(host.lower(), plain.lower()):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def _log_in(transport: paramiko.Transport, host: Host) -> None:
    """Authenticate with the host's identity file, the agent's keys, then the user's usual keys."""
    tried: list[str] = []
    for name, key in _our_keys(host):
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
        f"{host.user}@{host.name} ({host.address}:{host.port}) lets none of our keys in: {keys}",
        hint=f"ssh-copy-id -p {host.port} {host.user}@{host.address}, or set identity_file "
        "in the inventory",
    )


def _our_keys(host: Host) -> Iterator[tuple[str, paramiko.PKey]]:
    """The keys to try, in order: the host's identity files, the agent's keys, the user's usual ones."""
    if host.identity_file and not host.identity_file.exists():
        raise UserError(f"the identity file of {host.name} is not there: {host.identity_file}")
    files = [host.identity_file] if host.identity_file else []
    agent = paramiko.Agent()
    try:
        held = {key.asbytes(): key for key in agent.get_keys()}
        for number, file in enumerate([*files, *host.more_identity_files]):
            public = _public_part(file)
            if public in held:
                yield f"{file}, which the agent holds", held.pop(public)
            else:
                with contextlib.suppress(*([UserError] if number else [])):
                    yield from _with_certificate(file, host.certificate_file)
        for number, key in enumerate(held.values()):
            yield f"agent key {number + 1}", key
    finally:
        agent.close()
    files += host.more_identity_files
    for name in _DEFAULT_KEYS:
        file = Path.home() / ".ssh" / name
        if file.exists() and file not in files:
            with contextlib.suppress(UserError):
                yield from _with_certificate(file, host.certificate_file)


def _public_part(file: Path) -> bytes:
    """The public key of an identity file: the file itself or what lies beside it; empty if neither is."""
    for each in (file, file.with_name(f"{file.name}.pub")):
        with contextlib.suppress(OSError, ValueError, IndexError):
            return base64.b64decode(each.read_text().split()[1], validate=True)
    return b""


def _with_certificate(file: Path, certificate: Path | None) -> Iterator[tuple[str, paramiko.PKey]]:
    """A key with its certificate, if it has one (beside it, as FILE-cert.pub, or named), then without."""
    key = _read_key(file)
    if certificate is not None:
        try:
            key.load_certificate(str(certificate))
        except (ValueError, OSError, paramiko.SSHException):
            key.public_blob = None  # of another key
    if key.public_blob is not None:
        certified = copy.copy(key)
        yield f"{file} with its certificate", certified
        key.public_blob = None
    yield str(file), key


def _read_key(file: Path) -> paramiko.PKey:
    try:
        try:
            return paramiko.PKey.from_path(file)
        except (paramiko.PasswordRequiredException, TypeError):
            if not can_ask():
                raise UserError(
                    f"the key {file} has a passphrase and there is no terminal to ask on",
                    hint=f"ssh-add {file}",
                ) from None
            with screen.paused():
                passphrase = getpass.getpass(f"Passphrase of {file}: ", stream=sys.stderr)
            return paramiko.PKey.from_path(file, passphrase)
    except UserError:
        raise
    except (paramiko.SSHException, OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read the private key {file}: {error}") from error
