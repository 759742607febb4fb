# SPDX-License-Identifier: MIT
"""Host keys: the known_hosts files of a user, and the check of the key that a server shows against them."""

from __future__ import annotations

import base64
import contextlib
import copy
import fnmatch
import hmac
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import paramiko

from bsp.base.cache import lock
from bsp.base.errors import UserError
from bsp.base.process import run
from bsp.base.progress import say
from bsp.base.terminal.ask import can_ask, confirm

from .host import Host
from .known_hosts_command import printed_lines

_CERTIFICATE = "-cert-v01@openssh.com"
_REVOCATION_LIST = b"SSHKRL\n\0"  # of OpenSSH, PROTOCOL.krl
# What OpenSSH reads where nobody names other files (ssh_config(5)).
_USER_FILES = ("known_hosts", "known_hosts2")
_SYSTEM_FILES = (Path("/etc/ssh/ssh_known_hosts"), Path("/etc/ssh/ssh_known_hosts2"))

_COMMAND = Path("KnownHostsCommand")  # where keys come from that no file has
_SALT_BYTES = 20  # of a hashed name: those of a SHA-1 (hostfile.c)
_ANY = "certificate"


class KnownHosts:
    """The host keys that are known of a host, from the files that ``ssh`` reads; any of them will do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        files = [Path.home() / ".ssh" / name for name in _USER_FILES]
        if host.known_hosts:
            files = [host.known_hosts, *host.more_known_hosts]
        self._file = files[0]  # new keys go there
        self._keys: list[tuple[paramiko.PKey, Path]] = []
        # Of the host's name without its port: good for a key that is there, no reason to refuse another.
        self._keys_of_name: list[paramiko.PKey] = []
        self._revoked: set[str] = set()
        self._authorities: set[str] = set()
        system = _SYSTEM_FILES if host.system_known_hosts is None else host.system_known_hosts
        for file in dict.fromkeys([*system, *files]):
            for line in _lines(file):
                self._read(line, file)
        for file in set(_SYSTEM_FILES) - set(system):
            # Whatever files a user has for a host: what is revoked for all stays so.
            for line in _lines(file):
                if line.startswith("@revoked"):
                    self._read(line, file)

        self._asked = not host.known_hosts_command
        self._orders = self._kinds()
        if host.known_hosts_command:
            self._orders |= self._order_of_command()

    def _kinds(self) -> set[str]:
        """The types of keys, and of certificates' authorities, that are known of the host."""
        return {key.get_name() for key, _ in self._keys} | ({_ANY} if self._authorities else set())

    def _order_of_command(self) -> set[str]:
        """Return what kinds of keys ``KnownHostsCommand`` has; none of them is trusted for that yet."""
        kept = copy.copy(self)
        kept._keys, kept._keys_of_name = [], []
        kept._revoked, kept._authorities = set(), set()
        kept._read_command("ORDER", None)
        return kept._kinds()

    def _ask_command(self, key: paramiko.PKey) -> None:
        """Read what ``KnownHostsCommand`` prints of the key that the server has shown, once."""
        if not self._asked:
            self._asked = True
            self._read_command("HOSTNAME", key)

    def _read_command(self, reason: str, key: paramiko.PKey | None) -> None:
        command = self._host.known_hosts_command
        for line in printed_lines(command, name=self._host.key_name, reason=reason, key=key):
            self._read(line, _COMMAND)

    def _read(self, line: str, file: Path) -> None:
        """Parse one line of a known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        fields = line.split()
        marker = fields.pop(0) if fields and fields[0].startswith("@") else ""
        if len(fields) < 3 or fields[0].startswith("#"):
            return
        names, kind, key = fields[:3]
        if marker == "@revoked":
            self._revoked.add(key)
        elif marker == "@cert-authority":
            plain = self._host.host_key_alias or self._host.address
            if _matches(names, self._host.key_name) or _matches(names, plain):
                self._authorities.add(key)
        elif not marker:
            of_host = _matches(names, self._host.key_name)
            if not of_host and (
                self._host.host_key_alias or not _matches(names, self._host.address)
            ):
                return
            # We offer no key type that paramiko lacks (ssh-dss), so the server cannot present such a key.
            # What else paramiko and cryptography raise is of damaged lines, which ssh skips as well.
            with contextlib.suppress(Exception):
                parsed = paramiko.PKey.from_type_string(kind, base64.b64decode(key))
                if of_host:
                    self._keys.append((parsed, file))
                else:
                    self._keys_of_name.append(parsed)

    def preferred(self, offered: Iterable[str]) -> list[str]:
        """Order key types for the key exchange: types of which we have a key of this host come first."""

        def rank(kind: str) -> int:
            base = "ssh-rsa" if kind.startswith("rsa-sha2") else kind
            return 0 if base in self._orders else 1

        plain = sorted(offered, key=rank)
        return [f"{kind}{_CERTIFICATE}" for kind in plain if _ANY in self._orders] + plain

    def certified(self, key: paramiko.PKey) -> bool:
        """Whether a trusted authority (``@cert-authority``) has signed the server's host key.

        Raises:
            UserError: the certificate is not valid for this host or at this time, and known_hosts does not
                have the plain key either.
        """
        self._ask_command(key)
        blob = key.public_blob
        if blob is None or not blob.key_type.endswith(_CERTIFICATE) or not self._authorities:
            return False
        problem = self._certificate_problem(blob.key_type, blob.key_blob)
        if problem and not any(each.get_name() == key.get_name() for each, _ in self._keys):
            raise UserError(
                f"the certificate that {self._host.name} shows for its host key is not good: {problem}",
                hint="have its host key signed anew: ssh-keygen -s CA -h -n NAME ...",
            )
        return not problem and not self._is_revoked(key)

    def _is_revoked(self, key: paramiko.PKey) -> bool:
        """Whether a key is marked in known_hosts, or stands in the list of ``RevokedHostKeys``.

        As with ``ssh``, a list that cannot be read revokes every key.
        """
        if key.get_base64() in self._revoked:
            return True
        listed = self._host.revoked_host_keys
        if listed is None:
            return False
        try:
            content = listed.read_bytes()
        except OSError:
            return True
        if not content.startswith(_REVOCATION_LIST):  # a plain list of keys
            return key.get_base64().encode() in content.split()
        with tempfile.NamedTemporaryFile("w", suffix=".pub") as file:
            file.write(f"{key.get_name()} {key.get_base64()}\n")
            file.flush()
            query = run(["ssh-keygen", "-Q", "-f", listed, file.name], check=False)
        return query.exit_code != 0

    def _certificate_problem(self, kind: str, blob: bytes) -> str:
        """Return why a certificate is not valid; empty if it is.

        paramiko has checked only that the server holds the private key.
        """
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        try:
            certificate = serialization.load_ssh_public_identity(
                kind.encode() + b" " + base64.b64encode(blob)
            )
            if not isinstance(certificate, serialization.SSHCertificate):
                return "it is not a certificate"
            certificate.verify_cert_signature()
        except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
            return f"it cannot be verified ({error or 'wrong signature'})"
        authority = certificate.signature_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        signer = authority.split()[1].decode()
        if signer not in self._authorities or signer in self._revoked:
            return "no authority in known_hosts signed it"
        if certificate.type is not serialization.SSHCertificateType.HOST:
            return "it is a user's certificate"
        if not certificate.valid_after <= time.time() < certificate.valid_before:
            return "it is not valid now: expired, or a clock is wrong"
        name = (self._host.host_key_alias or self._host.address).lower()
        if name.encode() not in [principal.lower() for principal in certificate.valid_principals]:
            names = (
                b", ".join(certificate.valid_principals).decode(errors="replace")
                or "no name at all"
            )
            return f"it is for {names}, not for {name}"
        return "it has options that are not known" if certificate.critical_options else ""

    def verify(self, key: paramiko.PKey, *, accept_new_key: bool) -> None:
        """Compare the server's key with the remembered one; ask whether to trust the key of a new host."""
        host = self._host
        self._ask_command(key)
        shown = f"{key.get_name()} {key.fingerprint}"
        if self._is_revoked(key):
            lists = " or ".join(map(str, filter(None, [self._file, host.revoked_host_keys])))
            raise UserError(
                f"the host key of {host.name} ({shown}) is marked as revoked in {lists}"
            )
        remembered = [each for each, _ in self._keys] or self._keys_of_name
        if any(each.asbytes() == key.asbytes() for each in remembered):
            return
        if self._keys:
            expected = ", ".join(
                sorted({f"{each.get_name()} {each.fingerprint}" for each in remembered})
            )
            files = dict.fromkeys(file for _, file in self._keys)
            raise UserError(
                f"the host key of {host.name} ({host.address}:{host.port}) is not the remembered one: "
                f"expected {expected}, found {shown}. This may be another machine, a reinstalled board, "
                "or somebody in between",
                hint="if the change is legitimate: "
                + "; ".join(_taken_out(file, host.key_name) for file in files),
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
        name = self._host.key_name
        if self._host.hash_known_hosts:
            salt = os.urandom(_SALT_BYTES)
            digest = hmac.digest(salt, name.lower().encode(), "sha1")
            name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
        line = f"{name} {key.get_name()} {key.get_base64()}\n"
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock(self._file.with_name(f".{self._file.name}.lock")):
            old = self._file.read_text() if self._file.exists() else ""
            separator = "" if not old or old.endswith("\n") else "\n"
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(handle, "a") as file:
                file.write(separator + line)


def _taken_out(file: Path, name: str) -> str:
    """Return what takes a host's keys out of where they come from."""
    if file == _COMMAND:
        return "have KnownHostsCommand print the new one"
    return f"ssh-keygen -f {file} -R '{name}'"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _is_hash_of(host: str, hashed: str) -> bool:
    """Whether a hashed name (``|1|SALT|HASH``) is a host's; a damaged one is no host's."""
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hashed.split("|")[2:])
    except ValueError:
        return False
    return hmac.compare_digest(hmac.digest(salt, host.encode(), "sha1"), digest)


def _matches(patterns: str, host: str) -> bool:
    """Whether the first field of a known_hosts line matches a host: names, wildcards, a hashed name."""
    if patterns.startswith("|1|"):
        return _is_hash_of(host, patterns)
    matched = False
    for pattern in patterns.split(","):
        # known_hosts patterns have no [sets]; brackets enclose the host of [host]:port.
        plain = pattern.removeprefix("!").replace("[", "[[]")
        if fnmatch.fnmatchcase(host.lower(), plain.lower()):
            if pattern.startswith("!"):
                return False
            matched = True
    return matched
