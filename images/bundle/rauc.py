# SPDX-License-Identifier: MIT
"""RAUC bundles: for products that update themselves with RAUC and two root slots (A/B).

A bundle has one image, for slots of class ``rootfs``: a tar of a whole Debian root that holds the
generation as plain files. RAUC writes it to the inactive slot. Kernel, RAM disk and DTB are in the slot's
``/boot``, so that one slot is one complete system. The device's bootloader selects the slot; setting that
up is the product's part.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsp.base.cache import lock, refuse_disk, write_atomically
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
"""Packages of a slot: RAUC too, for the next update, and the tool by which it sets U-Boot's variables."""

_SLOT_FOLDER = "usr/lib/npu-bsp"
_BOOT = {
    "boot/kernel": "boot/Image",
    "boot/initrd": "boot/initrd.img",
    "boot/board.dtb": "boot/board.dtb",
}
_TOOLS = {"rauc": "rauc", "mksquashfs": "squashfs-tools", "openssl": "openssl"}
_DAYS = 3650


@dataclass(frozen=True)
class Signing:
    """Key and certificate that sign a bundle, and the keyring that verifies it.

    Attributes:
        keyring: certificates that this bundle is verified against here, and the next bundle on the device.
        development: the certificate was made here, for development only.
    """

    cert: Path
    key: Path
    keyring: Path
    development: bool = False


@dataclass(frozen=True)
class RaucRequest:
    """The flags of ``--format rauc``; an empty string is a flag that was not given."""

    board: Board
    output: Path
    cert: str = ""
    key: str = ""
    keyring: str = ""
    system: str = ""
    ssh_key: str = ""


@dataclass(frozen=True)
class RaucBundle:
    """A RAUC bundle, made or planned."""

    path: Path
    document: dict[str, Any]

    def text(self) -> str:
        """For people."""
        document = self.document
        size = f", {document['size_bytes'] / 1e6:.0f} MB" if document["size_bytes"] else ""
        lines = [
            f"{'would be made: ' if document['dry_run'] else ''}{self.path}{size}",
            f"compatible  {document['compatible']}",
            f"version     {document['version'] or 'of the bundle that is made for it'}",
            "image       rootfs.tar, for slots of class rootfs",
            f"signed by   {document['cert']}"
            + (" (development only)" if document["development"] else ""),
            f"verified    {document['verified']}",
        ]
        if missing := document["missing_packages"]:
            lines.append(f"needs       {', '.join(missing)}: root installs them first")
        return "\n".join(lines)


def plan(request: RaucRequest) -> RaucBundle:
    """Check the request and return the plan of its bundle.

    Raises:
        UserError: a file is missing or has the wrong content.
    """
    signing = _signing(request, make=False)
    if request.ssh_key:
        read_access(Path(request.ssh_key).expanduser(), None)
    if request.output.exists() and not request.output.is_file():
        what = "a folder" if request.output.is_dir() else "not a file"
        raise UserError(
            f"--output: {request.output} is {what}; expected the name of a file",
            hint=f"--output {request.board.name}.raucb",
        )
    return _describe(request, signing, _system(request)[0], "", verified="not made", size=0)


@dataclass(frozen=True)
class Prepared:
    """What a RAUC bundle needs besides the generation; checked first, as building that takes minutes."""

    signing: Signing
    access: Access


def prepare(request: RaucRequest) -> Prepared:
    """Install the tools, read the keys, and try both by signing and verifying a small bundle.

    Raises:
        UserError: whatever ``plan`` raises; key, certificate and keyring do not belong together; rauc is
            missing and only root can install it; the output cannot be written.
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
    with workspace as name, step("Signing a small bundle to try the keys"):
        content = Path(name) / "content"
        content.mkdir()
        (content / "rootfs.tar").write_bytes(os.urandom(64 << 10))
        _sign(content, _manifest(_system(request)[0], "0", ""), Path(name) / "tried", signing)
    return Prepared(signing, access)


def make(request: RaucRequest, prepared: Prepared, bundle: Bundle) -> RaucBundle:
    """Make a RAUC bundle that holds a generation, and verify it by ``rauc info``.

    Raises:
        InfrastructureError: a package cannot be fetched, or the disk is full.
    """
    rootfs = root_tar(request.board.userspace.distribution, SLOT_PACKAGES)
    return pack(request, bundle, prepared.signing, prepared.access, rootfs.tar)


def pack(
    request: RaucRequest, bundle: Bundle, signing: Signing, access: Access, rootfs: Path
) -> RaucBundle:
    """Make the bundle as ``make`` does, from a root file system that is there already.

    Args:
        rootfs: tar of a Debian root.
    """
    compatible, system = _system(request)
    manifest = bundle.manifest
    version = f"{manifest.kernel_release}-{bundle.generation}"
    output = request.output
    refuse_disk(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        workspace = Path(name)
        overlay, content = workspace / "over", workspace / "content"
        content.mkdir()
        make_any_root(overlay, hostname=check_host_name(f"npu-{request.board.name}"), access=access)
        _slot_files(overlay, system, signing)
        with step("Root file system"), (content / "rootfs.tar").open("wb") as file:
            Tree(rootfs, overlay, tuple(slot_files(bundle))).write_tar(file)
        about = f"build={bundle.generation}\ndescription=npu-bsp {request.board.name}\n"
        packed = workspace / "made.raucb"
        with step("Packing and signing"):
            _sign(content, _manifest(compatible, version, about), packed, signing)
        with packed.open("rb") as file:
            os.fsync(file.fileno())
        size = packed.stat().st_size
        packed.rename(output)
    return _describe(request, signing, compatible, version, verified="by rauc info", size=size)


def _manifest(compatible: str, version: str, about: str) -> str:
    return (
        f"[update]\ncompatible={compatible}\nversion={version}\n{about}\n[bundle]\nformat=verity\n\n"
        "[image.rootfs]\nfilename=rootfs.tar\n"
    )


def _sign(content: Path, manifest: str, target: Path, signing: Signing) -> None:
    """Have rauc pack and sign a folder, and verify the result."""
    (content / "manifest.raucm").write_text(manifest, encoding="utf-8")
    _rauc(
        ["bundle", f"--cert={signing.cert}", f"--key={signing.key}",
         f"--signing-keyring={signing.keyring}", content, target],
        what=f"rauc could not make a bundle with {signing.cert} and {signing.key}",
    )  # fmt: skip
    verify(target, signing.keyring)


def verify(path: Path, keyring: Path) -> str:
    """Verify a bundle by ``rauc info``; return its output.

    Raises:
        ValidationError: no key of the keyring signed it, or it was changed.
    """
    info = run(["rauc", "info", f"--keyring={keyring}", path], check=False)
    if info.exit_code != 0:
        last_line = info.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise ValidationError(
            f"rauc does not accept {path} with the keyring {keyring}: {' '.join(last_line)}",
            hint="--rauc-keyring names the certificate that signed the one of --rauc-cert",
        )
    return info.text


def slot_files(bundle: Bundle) -> Iterator[GenerationFile]:
    """Yield a generation as plain files of a root: the device needs no knowledge of generations."""
    for name in ("manifest.json", sign.SIGNATURE):
        if (bundle.path / name).is_file():
            yield GenerationFile(bundle.path / name, f"{_SLOT_FOLDER}/{name}", 0o644)
    for entry in bundle.manifest.files:
        if entry.path in _BOOT:
            target = _BOOT[entry.path]
        elif entry.path.startswith("modules/"):
            target = f"usr/lib/{entry.path}"
        else:
            target = f"{_SLOT_FOLDER}/{entry.path}"
        yield GenerationFile(bundle.file(entry), target, entry.mode, entry.link)


def default_system(compatible: str) -> str:
    """Return the ``system.conf`` of a device with two root partitions, found by their partition names."""
    slots = "".join(
        f"\n[slot.rootfs.{number}]\ndevice=/dev/disk/by-partlabel/rootfs-{name.lower()}\n"
        f"type=ext4\nbootname={name}\n"
        for number, name in enumerate("AB")
    )
    return (
        f"[system]\ncompatible={compatible}\nbootloader=uboot\nbundle-formats=verity\n\n"
        f"[keyring]\npath=/etc/rauc/keyring.pem\n{slots}"
    )


def _slot_files(overlay: Path, system: str, signing: Signing) -> None:
    rauc = overlay / "etc/rauc"
    rauc.mkdir(parents=True)
    (rauc / "system.conf").write_text(system, encoding="utf-8")
    shutil.copyfile(signing.keyring, rauc / "keyring.pem")
    # Empty: the bootloader's command line names the root, which is the slot that it selected.
    (overlay / "etc/fstab").write_text("")
    # smoke-test and doctor look for the generation there.
    tmpfiles = overlay / "etc/tmpfiles.d/npu-bsp.conf"
    tmpfiles.parent.mkdir(parents=True, exist_ok=True)
    tmpfiles.write_text(
        f"d /run/npu-bsp 0755 root root -\nL /run/npu-bsp/current - - - - /{_SLOT_FOLDER}\n"
    )


def _describe(
    request: RaucRequest,
    signing: Signing,
    compatible: str,
    version: str,
    *,
    verified: str,
    size: int,
) -> RaucBundle:
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
    return RaucBundle(request.output, document)


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
            f"cannot read {file}: {error}", hint="--rauc-system takes the device's system.conf"
        ) from error
    compatible = parser.get("system", "compatible", fallback="")
    if not compatible:
        raise UserError(f"{file}: [system] has no compatible")
    if not any(section.startswith("slot.rootfs.") for section in parser.sections()):
        slots = ", ".join(s for s in parser.sections() if s.startswith("slot.")) or "none"
        raise UserError(
            f"{file}: expected slots of class rootfs ([slot.rootfs.0]...), found {slots}",
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
            hint="give both; or neither, for a development certificate that is made here",
        )
    if request.cert:
        cert, key = Path(request.cert).expanduser(), Path(request.key).expanduser()
        ring = Path(request.keyring).expanduser() if request.keyring else cert
        for flag, path in (("--rauc-cert", cert), ("--rauc-key", key), ("--rauc-keyring", ring)):
            if not path.is_file():
                raise UserError(f"{flag}: there is no file {path}")
            kind = "PRIVATE KEY" if flag == "--rauc-key" else "CERTIFICATE"
            if not re.search(rb"-----BEGIN [A-Z0-9 ]*%b-----" % kind.encode(), path.read_bytes()):
                raise UserError(
                    f"{flag}: {path} has no {kind.lower()} in PEM (-----BEGIN {kind}-----)",
                    hint="openssl x509 or openssl pkey, with -inform DER -outform PEM, makes one of DER",
                )
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
    """Make a key and its self-signed certificate, unless they exist."""
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
        lines = error.completed.stderr.decode(errors="replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if line.strip()), "no reason given")
        kind = InfrastructureError if "space" in reason else UserError
        raise kind(
            f"{what}: {reason}",
            hint="check that --rauc-key belongs to --rauc-cert, and --rauc-keyring to both",
        ) from error


def _missing_packages() -> list[str]:
    return sorted({package for tool, package in _TOOLS.items() if not _has(tool)})


def _has(tool: str) -> bool:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return shutil.which(tool, path=path) is not None
