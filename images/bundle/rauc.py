# SPDX-License-Identifier: MIT
"""RAUC bundles: for products that update themselves, A/B, without this project on either side.

One image, for slots of class ``rootfs``: a tar of a whole Debian root with the generation in it as plain
files, which RAUC writes to the slot that does not run. Kernel, RAM disk and DTB are in the slot's
``/boot``, so that a slot is all or nothing. The device's bootloader chooses the slot: that part is the
product's.
"""

from __future__ import annotations

import configparser
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import lock, write_atomically
from bsp.base.errors import InfrastructureError, UserError, ValidationError
from bsp.base.packages.host_packages import install_packages
from bsp.base.process import ToolFailedError, run
from bsp.base.progress import step
from bsp.profile import Board

from ..deploy.boot.slots import GenerationFile
from ..disk.image_root import PACKAGES, Access, check_host_name, make_any_root, read_access
from ..disk.rootfs import root_tar
from ..disk.tree import Tree
from . import sign
from .manifest import Bundle

SLOT_PACKAGES = (*PACKAGES, "libubootenv-tool", "rauc", "rauc-service")
"""In the slot: RAUC for the next update, and the program that it sets U-Boot's variables with."""

_HERE = "usr/lib/npu-bsp"  # in the slot
_BOOT = {
    "boot/kernel": "boot/Image",
    "boot/initrd": "boot/initrd.img",
    "boot/board.dtb": "boot/board.dtb",
}
_TOOLS = {"rauc": "rauc", "mksquashfs": "squashfs-tools", "openssl": "openssl"}
_DAYS = 3650


@dataclass(frozen=True)
class Signing:
    """With what a bundle is signed, and what a device believes.

    Attributes:
        keyring: certificates that the bundle is verified against here, and the device's next one there.
        development: made here, for trying out.
    """

    cert: Path
    key: Path
    keyring: Path
    development: bool = False


@dataclass(frozen=True)
class RaucRequest:
    """What is asked for; empty strings are flags that were not given."""

    board: Board
    output: Path
    cert: str = ""
    key: str = ""
    keyring: str = ""
    system: str = ""
    ssh_key: str = ""


@dataclass(frozen=True)
class Made:
    """A RAUC bundle, or the plan of one."""

    path: Path
    document: dict[str, Any]

    def text(self) -> str:
        """In a few lines."""
        found = self.document
        size = f", {found['size_bytes'] / 1e6:.0f} MB" if found["size_bytes"] else ""
        lines = [
            f"{'would be made: ' if found['dry_run'] else ''}{self.path}{size}",
            f"compatible  {found['compatible']}",
            f"version     {found['version'] or 'of the bundle that is made for it'}",
            "image       rootfs.tar, for slots of class rootfs",
            f"signed by   {found['cert']}"
            + (" (development only)" if found["development"] else ""),
            f"verified    {found['verified']}",
        ]
        if missing := found["missing_packages"]:
            lines.append(f"needs       {', '.join(missing)}: root installs them first")
        return "\n".join(lines)


def plan(request: RaucRequest) -> Made:
    """Say what would be made; check all that is given.

    Raises:
        UserError: a file is missing, or is not what it should be.
    """
    signing = _signing(request, make=False)
    return _made(request, signing, _system(request)[0], "", verified="not made", size=0)


@dataclass(frozen=True)
class Prepared:
    """What a RAUC bundle needs besides one of ours; looked at before that is made, which takes minutes."""

    signing: Signing
    access: Access


def prepare(request: RaucRequest) -> Prepared:
    """See to the programs and the keys, and sign and verify a small bundle with them.

    Raises:
        UserError: as ``plan``; the key does not belong to the certificate, or the keyring to neither; only
            root can install rauc; the output cannot be written.
        ValidationError: rauc does not accept what was signed.
        InfrastructureError: a package cannot be fetched.
    """
    plan(request)
    install_packages(_missing_packages())
    signing = _signing(request, make=True)
    access = read_access(Path(request.ssh_key).expanduser() if request.ssh_key else None, None)
    check_host_name(f"npu-{request.board.name}")
    output = request.output
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        workspace = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror}", hint="--output FILE puts it elsewhere"
        ) from error
    with workspace as name, step("Signing a small bundle, to try the keys"):
        content = Path(name) / "content"
        content.mkdir()
        (content / "rootfs.tar").write_bytes(os.urandom(64 << 10))
        _sign(content, _manifest(_system(request)[0], "0", ""), Path(name) / "tried", signing)
    return Prepared(signing, access)


def make(request: RaucRequest, prepared: Prepared, bundle: Bundle) -> Made:
    """Make a RAUC bundle of one of ours, and have ``rauc info`` verify it.

    Raises:
        InfrastructureError: a package cannot be fetched, or there is no room.
    """
    rootfs = root_tar(request.board.userspace.distribution, SLOT_PACKAGES)
    return pack(request, bundle, prepared.signing, prepared.access, rootfs.tar)


def pack(
    request: RaucRequest, bundle: Bundle, signing: Signing, access: Access, rootfs: Path
) -> Made:
    """As ``make``, with all that it needs at hand.

    Args:
        rootfs: tar of a Debian root.
    """
    compatible, system = _system(request)
    manifest = bundle.manifest
    version = f"{manifest.kernel_release}-{bundle.generation}"
    output = request.output
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        workspace = Path(name)
        over, content = workspace / "over", workspace / "content"
        content.mkdir()
        make_any_root(over, hostname=check_host_name(f"npu-{request.board.name}"), access=access)
        _slot_files(over, system, signing)
        with step("Root file system"), (content / "rootfs.tar").open("wb") as file:
            Tree(rootfs, over, tuple(slot_files(bundle))).write_tar(file)
        about = f"build={bundle.generation}\ndescription=npu-bsp {request.board.name}\n"
        made = workspace / "made.raucb"
        with step("Packing and signing"):
            _sign(content, _manifest(compatible, version, about), made, signing)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        size = made.stat().st_size
        made.rename(output)
    return _made(request, signing, compatible, version, verified="by rauc info", size=size)


def _manifest(compatible: str, version: str, about: str) -> str:
    return (
        f"[update]\ncompatible={compatible}\nversion={version}\n{about}\n[bundle]\nformat=verity\n\n"
        "[image.rootfs]\nfilename=rootfs.tar\n"
    )


def _sign(content: Path, manifest: str, made: Path, signing: Signing) -> None:
    """Have rauc make a bundle of a folder, and verify it."""
    (content / "manifest.raucm").write_text(manifest, encoding="utf-8")
    _rauc(
        ["bundle", f"--cert={signing.cert}", f"--key={signing.key}",
         f"--signing-keyring={signing.keyring}", content, made],
        what=f"rauc could not make a bundle with {signing.cert} and {signing.key}",
    )  # fmt: skip
    verify(made, signing.keyring)


def verify(path: Path, keyring: Path) -> str:
    """Have ``rauc info`` verify a bundle; return what it says.

    Raises:
        ValidationError: it is not signed by who the keyring trusts, or it was changed.
    """
    done = run(["rauc", "info", f"--keyring={keyring}", path], check=False)
    if done.exit_code != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValidationError(
            f"rauc does not accept {path} with the keyring {keyring}: {' '.join(said)}",
            hint="--rauc-keyring names the certificate that signed the one of --rauc-cert",
        )
    return done.text


def slot_files(bundle: Bundle) -> Iterator[GenerationFile]:
    """A generation as plain files of a root: nothing on the device has to know of generations."""
    for name in ("manifest.json", sign.SIGNATURE):
        if (bundle.path / name).is_file():
            yield GenerationFile(bundle.path / name, f"{_HERE}/{name}", 0o644)
    for entry in bundle.manifest.files:
        if entry.path in _BOOT:
            target = _BOOT[entry.path]
        elif entry.path.startswith("modules/"):
            target = f"usr/lib/{entry.path}"
        else:
            target = f"{_HERE}/{entry.path}"
        yield GenerationFile(bundle.file(entry), target, entry.mode, entry.link)


def default_system(compatible: str) -> str:
    """The ``system.conf`` of a device with two root partitions, which are found by their names."""
    slots = "".join(
        f"\n[slot.rootfs.{number}]\ndevice=/dev/disk/by-partlabel/rootfs-{name.lower()}\n"
        f"type=ext4\nbootname={name}\n"
        for number, name in enumerate("AB")
    )
    return (
        f"[system]\ncompatible={compatible}\nbootloader=uboot\nbundle-formats=verity\n\n"
        f"[keyring]\npath=/etc/rauc/keyring.pem\n{slots}"
    )


def _slot_files(over: Path, system: str, signing: Signing) -> None:
    rauc = over / "etc/rauc"
    rauc.mkdir(parents=True)
    (rauc / "system.conf").write_text(system, encoding="utf-8")
    shutil.copyfile(signing.keyring, rauc / "keyring.pem")
    # The root is the slot that the bootloader chose: its command line says which.
    (over / "etc/fstab").write_text("")
    # smoke-test and doctor look there.
    tmpfiles = over / "etc/tmpfiles.d/npu-bsp.conf"
    tmpfiles.parent.mkdir(parents=True, exist_ok=True)
    tmpfiles.write_text(
        f"d /run/npu-bsp 0755 root root -\nL /run/npu-bsp/current - - - - /{_HERE}\n"
    )


def _made(
    request: RaucRequest,
    signing: Signing,
    compatible: str,
    version: str,
    *,
    verified: str,
    size: int,
) -> Made:
    document = {
        "path": str(request.output),
        "format": "rauc",
        "board": request.board.name,
        "compatible": compatible,
        "version": version or None,
        "slots": ["rootfs"],
        "cert": str(signing.cert),
        "keyring": str(signing.keyring),
        "development": signing.development,
        "verified": verified,
        "size_bytes": size or None,
        "dry_run": not size,
        "missing_packages": _missing_packages(),
    }
    return Made(request.output, document)


def _system(request: RaucRequest) -> tuple[str, str]:
    """Return ``compatible`` and the text of the device's ``system.conf``."""
    if not request.system:
        compatible = f"npu-bsp-{request.board.name}"
        return compatible, default_system(compatible)
    file = Path(request.system).expanduser()
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        text = file.read_text(encoding="utf-8")
        parser.read_string(text)
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise UserError(
            f"cannot read {file}: {error}", hint="--rauc-system wants the device's system.conf"
        ) from error
    compatible = parser.get("system", "compatible", fallback="")
    if not compatible:
        raise UserError(f"{file}: [system] has no compatible")
    if not any(section.startswith("slot.rootfs.") for section in parser.sections()):
        found = ", ".join(s for s in parser.sections() if s.startswith("slot.")) or "none"
        raise UserError(
            f"{file}: expected slots of class rootfs ([slot.rootfs.0]...), found {found}",
            hint="the bundle has one image, a whole root file system: docs/lab.md",
        )
    keyring = parser.get("keyring", "path", fallback="")
    if keyring != "/etc/rauc/keyring.pem":
        raise UserError(
            f"{file}: expected [keyring] path=/etc/rauc/keyring.pem, where the keyring is put; found "
            f"{keyring or 'none'}"
        )
    return compatible, text


def _signing(request: RaucRequest, *, make: bool) -> Signing:
    if bool(request.cert) != bool(request.key):
        raise UserError(
            "--rauc-cert and --rauc-key belong together",
            hint="give both; or neither, for a certificate made here for trying out",
        )
    if request.cert:
        cert, key = Path(request.cert).expanduser(), Path(request.key).expanduser()
        ring = Path(request.keyring).expanduser() if request.keyring else cert
        for flag, path in (("--rauc-cert", cert), ("--rauc-key", key), ("--rauc-keyring", ring)):
            if not path.is_file():
                raise UserError(f"{flag}: there is no file {path}")
        return Signing(cert, key, ring)
    if request.keyring:
        raise UserError("--rauc-keyring needs --rauc-cert and --rauc-key")
    folder = sign.config_dir()
    cert, key = folder / "rauc-development.cert.pem", folder / "rauc-development.key.pem"
    if make:
        install_packages([] if _has("openssl") else ["openssl"])
        development_certificate(cert, key)
    return Signing(cert, key, cert, development=True)


def development_certificate(cert: Path, key: Path) -> None:
    """Make a key and a certificate that it signed itself, unless they are there."""
    cert.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock(cert.with_name("rauc-development.lock")):
        if cert.exists() and key.exists():
            return
        with tempfile.TemporaryDirectory() as name:
            new_key, new_cert = Path(name) / "key", Path(name) / "cert"
            run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                 "-nodes", "-days", str(_DAYS), "-subj", "/O=npu-bsp/CN=for development only",
                 "-keyout", new_key, "-out", new_cert])  # fmt: skip
            write_atomically(key, new_key.read_bytes(), mode=0o600)
            write_atomically(cert, new_cert.read_bytes())


def _rauc(words: list[str | Path], *, what: str) -> None:
    try:
        run(["rauc", *words])
    except ToolFailedError as error:
        said = error.completed.stderr.decode(errors="replace").strip().splitlines()
        why = next((line for line in reversed(said) if line.strip()), "no reason given")
        kind = InfrastructureError if "space" in why else UserError
        raise kind(
            f"{what}: {why}",
            hint="check that --rauc-key belongs to --rauc-cert, and --rauc-keyring to both",
        ) from error


def _missing_packages() -> list[str]:
    return sorted({package for tool, package in _TOOLS.items() if not _has(tool)})


def _has(tool: str) -> bool:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return shutil.which(tool, path=path) is not None
