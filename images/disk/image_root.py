# SPDX-License-Identifier: MIT
"""The files that an image lays over Debian: names, keys, network, mounts. No account has a password."""

from __future__ import annotations

import base64
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import lock, state_dir
from bsp.base.errors import UserError
from bsp.base.process import run
from images.bundle import sign

from . import enable_units
from .layout import Layout

FILES = Path(__file__).parent / "image_files"
UNITS = Path(__file__).parent / "image_units.txt"

PACKAGES = ("systemd-resolved", "systemd-timesyncd")
"""Packages besides those of virtual boards: for DNS, and for the time on boards without a clock."""

_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PUBLIC_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-\S+|sk-\S+) [A-Za-z0-9+/]+=*( .*)?")
_MAKE_KEY = "ssh-keygen -t ed25519 makes one; its public half ends in .pub"
_USUAL_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")


@dataclass(frozen=True)
class Access:
    """The SSH keys of a board.

    Attributes:
        keys: public keys that may log in as root, one per line.
        source: the file that they were read from.
        host_key: the board's private key, part of the image; None: the board makes its own at first boot.
    """

    keys: str
    source: Path
    host_key: Path | None = None

    def host_public(self) -> str | None:
        """The board's public key: ``ssh-ed25519 AAAA...``."""
        return _public_of(self.host_key) if self.host_key else None


def read_access(ssh_key: Path | None, host_key: Path | None) -> Access:
    """Return the keys of a board: the given one, the user's usual one, or one made for boards.

    Raises:
        UserError: a file is missing, or is not a key of the expected kind.
    """
    source = ssh_key or _usual_key() or _own_key()
    try:
        lines = [
            line.strip()
            for line in source.read_text().splitlines()
            if line.strip() and not line.startswith("#")
        ]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text"
        raise UserError(
            f"cannot read the SSH key {source}: {why}",
            hint=_MAKE_KEY,
        ) from error
    if lines and lines[0].startswith("-----BEGIN"):
        raise UserError(
            f"{source} is a private key; the board gets the public one",
            hint=f"--ssh-key {source}.pub",
        )
    malformed = [line for line in lines if not _is_public_key(line)]
    if malformed or not lines:
        excerpt = f"{malformed[0][:40]!r}" if malformed else "nothing"
        raise UserError(
            f"{source}: expected public SSH keys, one per line, found {excerpt}",
            hint=_MAKE_KEY,
        )
    if host_key is not None:
        public = _public_of(host_key)
        if not public.startswith("ssh-ed25519 "):
            raise UserError(
                f"{host_key} is a key of type {public.split()[0]}, expected ssh-ed25519",
                hint=f"ssh-keygen -t ed25519 -N '' -f {host_key}",
            )
    return Access("\n".join(lines) + "\n", source, host_key)


def check_host_name(name: str) -> str:
    """Return a host name.

    Raises:
        UserError: it is not valid (RFC 1123, one label).
    """
    if not _HOST_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a host name", hint="letters a-z, digits and dashes, 63 at most"
        )
    return name


def make_root(
    target: Path, layout: Layout, *, hostname: str, access: Access, fat_mount: str
) -> None:
    """Put the files of a disk's root into a folder that does not exist yet."""
    make_any_root(target, hostname=hostname, access=access)
    # Neither the root nor the boot file system of another disk in the same board.
    (target / "etc/fstab").write_text(
        f"UUID={layout.root_uuid}  /  ext4  rw,relatime  0  1\n"
        f"UUID={layout.fat_uuid}  {fat_mount}  vfat  "
        "rw,flush,umask=077,nofail,x-systemd.device-timeout=300s,"
        "x-systemd.after=npu-bsp-activate.service  0  0\n"
    )
    (target / fat_mount.lstrip("/")).mkdir(parents=True)
    signers = target / sign.BOARD_SIGNERS
    signers.parent.mkdir(parents=True, exist_ok=True)
    signers.write_text(sign.trust_root(), encoding="utf-8")


def make_any_root(target: Path, *, hostname: str, access: Access) -> None:
    """Write the files that every root needs, on any medium, into a folder that does not exist yet."""
    shutil.copytree(FILES, target)
    etc = target / "etc"
    (etc / "hostname").write_text(f"{hostname}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost {hostname}\n::1 localhost\n")
    # Empty: the board makes its own and keeps it, without the questions of a first boot.
    (etc / "machine-id").write_text("")
    (etc / "resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    for name in ("etc/.updated", "var/.updated"):  # no unit with ConditionNeedsUpdate runs at boot
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).touch()
    enable_units(UNITS, target)
    wants = etc / "systemd/system/multi-user.target.wants"
    (wants / "npu-bsp-host-key.service").symlink_to("../npu-bsp-host-key.service")
    authorized = target / "root/.ssh/authorized_keys"
    authorized.parent.mkdir(parents=True)
    for folder in (target / "root", authorized.parent):
        folder.chmod(0o700)
    authorized.write_text(access.keys)
    authorized.chmod(0o600)
    if access.host_key:
        private = etc / "ssh/ssh_host_ed25519_key"
        shutil.copyfile(access.host_key, private)
        private.chmod(0o600)
        private.with_name(private.name + ".pub").write_text(f"{access.host_public()}\n")


def _usual_key() -> Path | None:
    files = (Path.home() / ".ssh" / name for name in _USUAL_KEYS)
    return next((file for file in files if file.is_file()), None)


def _is_public_key(line: str) -> bool:
    """Whether a line is a whole public key: nobody could log in with a part of one (RFC 4253, 6.6)."""
    if not _PUBLIC_KEY.fullmatch(line):
        return False
    kind, encoded = line.split()[:2]
    try:
        blob = base64.b64decode(encoded, validate=True)
    except ValueError:
        return False
    fields, at = [], 0
    while at + 4 <= len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        fields.append(blob[at + 4 : end])
        at = end
    return at == len(blob) and len(fields) > 1 and fields[0] == kind.encode()


def _own_key() -> Path:
    """Return the key for boards of a user who has none; the first use makes it."""
    key = state_dir() / "ssh" / "id_ed25519"
    with lock(key.with_name("id_ed25519.lock")):
        if not key.with_name("id_ed25519.pub").exists():
            key.unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "npu-bsp", "-f", key])
    return key.with_name("id_ed25519.pub")


def _public_of(private: Path) -> str:
    if not private.is_file():
        raise UserError(
            f"there is no host key {private}",
            hint=f"ssh-keygen -t ed25519 -N '' -f {private}",
        )
    if _is_public_key(private.read_bytes().decode(errors="replace").strip()):
        raise UserError(
            f"{private} is a public key; the board gets the private one",
            hint=f"--host-key {private.with_suffix('')}",
        )
    keygen = run(["ssh-keygen", "-y", "-P", "", "-f", private], check=False)
    if keygen.exit_code != 0:
        raise UserError(
            f"{private} is not a private SSH key without a passphrase: "
            f"{keygen.stderr.decode(errors='replace').strip().rpartition(chr(10))[2]}",
            hint="nobody can type a passphrase on a board: ssh-keygen -p -N '' -f FILE removes it",
        )
    return " ".join(keygen.text.split()[:2])
