# SPDX-License-Identifier: MIT
"""Bundles: the content of one generation of a board, as a folder with a manifest.

    manifest.json                           lists the files, with the SHA-256 of each
    manifest.json.sig                       its signature: see sign.py
    sbom.spdx.json                          versions, licences and sources of its parts: see sbom.py
    boot/{kernel,initrd,board.dtb}          what the boot loader loads
    modules/RELEASE/...                     appears on the board as /lib/modules/RELEASE
    userspace/...                           appears on the board as /run/npu-bsp/current/userspace

A bundle is content-addressed: its generation is a hash of its manifest, so that the same inputs give
the same generation.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bsp.base.cache import remove, write_atomically
from bsp.base.errors import UserError
from bsp.base.progress import step
from images.deploy.onboard.entries import problem_of

if TYPE_CHECKING:  # a deployment of a finished bundle loads neither apt nor profiles
    from bsp.kernel.packaged import PrebuiltKernel
    from bsp.profile import Board

FORMAT = 1
GENERATION_DIGITS = 12
DTB_MAX_BYTES = 2 << 20
"""The kernel's Documentation/arch/arm64/booting.rst, section 2."""

# Kernel options of every generation: without them a kernel that panics, or that hangs on a board with a
# watchdog, would stay down. The second makes systemd open the watchdog, where there is one.
_REQUIRED_OPTIONS = {"panic": "10", "systemd.watchdog_sec": "60"}
# The manifest lists neither itself nor its signature.
_NOT_LISTED = ("manifest.json", "manifest.json.sig")
_BOOT_PARTS = ("boot/kernel", "boot/initrd", "boot/board.dtb")
# modprobe finds no module without it.
_MODULE_INDEX = "modules.dep"
# Links to the folder where the kernel was built: dangling on a board.
_BUILD_LINKS = ("build", "source")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One file of a bundle.

    Attributes:
        path: below the bundle, with forward slashes.
        sha256: of the content; empty for a symbolic link.
        mode: permission bits.
        link: what a symbolic link points to; None for a regular file.
    """

    path: str
    sha256: str = ""
    size_bytes: int = 0
    mode: int = 0o644
    link: str | None = None


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``manifest.json``.

    Attributes:
        generation: first 12 hexadecimal digits of the SHA-256 of the rest of the manifest.
        compatible: root ``compatible`` strings of the board this is for, most specific first.
        cmdline: kernel command line; None keeps the one that the board runs with.
        inputs: names and versions of what the bundle was made from.
    """

    format: int
    generation: str
    board: str
    compatible: tuple[str, ...]
    kernel_release: str
    cmdline: str | None
    files: tuple[Entry, ...]
    inputs: dict[str, str]

    def entry(self, path: str) -> Entry:
        """Return the entry of a file.

        Raises:
            KeyError: the file is not listed.
        """
        for entry in self.files:
            if entry.path == path:
                return entry
        raise KeyError(path)

    @property
    def total_bytes(self) -> int:
        """Total size of the regular files."""
        return sum(entry.size_bytes for entry in self.files)


@dataclass(frozen=True)
class Parts:
    """The parts that a bundle is assembled from.

    Attributes:
        kernel: its image and modules are used, its device trees are not.
        cmdline: kernel command line; None keeps the one that the board runs with.
        inputs: names and versions for the manifest, besides the kernel's.
        sbom: the SPDX document; empty for none.
    """

    board: Board
    kernel: PrebuiltKernel
    initrd: Path
    dtb: Path
    userspace: Path | None
    cmdline: str | None
    inputs: Mapping[str, str] = field(default_factory=dict)
    sbom: bytes = b""


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine."""

    path: Path
    manifest: Manifest

    @property
    def generation(self) -> str:
        """The generation's name on a board."""
        return self.manifest.generation

    def file(self, entry: Entry) -> Path:
        """Return the path of an entry's content."""
        return self.path / entry.path


def check_dtb_size(dtb: Path, size_bytes: int) -> None:
    """Refuse a device tree that is too large for an arm64 kernel.

    Raises:
        UserError: it is.
    """
    if size_bytes > DTB_MAX_BYTES:
        raise UserError(
            f"{dtb} has {size_bytes} bytes; arm64 kernels take {DTB_MAX_BYTES} at most",
            hint="a tool may have padded it: dtc -I dtb -O dtb packs it again",
        )


def assemble(parts: Parts, target: Path) -> Bundle:
    """Make a bundle in ``target``, a folder that does not exist yet.

    Raises:
        UserError: a part is missing.
    """
    for what, path in (
        ("kernel", parts.kernel.image),
        ("initrd", parts.initrd),
        ("DTB", parts.dtb),
    ):
        if not path.is_file():
            raise UserError(f"the {what} for the bundle is missing: {path}")
    check_dtb_size(parts.dtb, parts.dtb.stat().st_size)
    release = parts.kernel.release
    if not (parts.kernel.modules / _MODULE_INDEX).is_file():
        raise UserError(
            f"the modules of kernel {release} are incomplete: {parts.kernel.modules} has no "
            f"{_MODULE_INDEX}",
            hint=f"depmod -b FOLDER {release}, where FOLDER/lib/modules/{release} is that folder",
        )
    with step("Assembling the bundle") as progress:
        try:
            (target / "boot").mkdir(parents=True)
            _place_kernel(parts.kernel.image, target / "boot/kernel")
            # Copied, not linked: the user may go on editing these two files.
            shutil.copyfile(parts.initrd, target / "boot/initrd")
            shutil.copyfile(parts.dtb, target / "boot/board.dtb")
            _place_tree(parts.kernel.modules, target / "modules" / release)
            for name in _BUILD_LINKS:
                (target / "modules" / release / name).unlink(missing_ok=True)
            if parts.userspace:
                _place_tree(parts.userspace, target / "userspace")
            if parts.sbom:
                (target / "sbom.spdx.json").write_bytes(parts.sbom)
            manifest = describe(
                target,
                board=parts.board.name,
                compatible=parts.board.compatible,
                kernel_release=release,
                cmdline=None if parts.cmdline is None else with_required_options(parts.cmdline),
                inputs={
                    "kernel": f"{parts.kernel.package} {parts.kernel.version}",
                    **parts.inputs,
                },
            )
            write_atomically(target / "manifest.json", encode(manifest))
        except BaseException:
            remove(target)
            raise
        progress.note(f"generation {manifest.generation}, {manifest.total_bytes / 1e6:.0f} MB")
    return Bundle(target, manifest)


def load(path: Path) -> Bundle:
    """Return the bundle in a folder. Only its manifest is read and checked; ``check`` looks at the files.

    Raises:
        UserError: the folder is not a bundle, or its manifest is damaged.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise UserError(
            f"{path} is not a bundle: it has no manifest.json",
            hint="./inv bundle --board B makes one",
        )
    return Bundle(path, decode(file.read_bytes(), str(file)))


def check(bundle: Bundle) -> None:
    """Refuse an incomplete bundle: each file must exist and have the listed size.

    Contents are not hashed here: the board does so as they arrive.

    Raises:
        UserError: a file is missing, or has another size.
    """
    folder = str(bundle.path)  # pathlib takes ten times as long for thousands of files
    for entry in bundle.manifest.files:
        try:
            status = os.lstat(f"{folder}/{entry.path}")
        except OSError as error:
            raise UserError(
                f"{folder}: {entry.path} is missing", hint="make the bundle again"
            ) from error
        if stat.S_ISLNK(status.st_mode) != (entry.link is not None) or (
            entry.link is None and status.st_size != entry.size_bytes
        ):
            raise UserError(
                f"{folder}: {entry.path} is not as the manifest says "
                f"(expected {entry.size_bytes} bytes, found {status.st_size})",
                hint="make the bundle again",
            )


def describe(
    folder: Path,
    *,
    board: str,
    compatible: tuple[str, ...],
    kernel_release: str,
    cmdline: str | None,
    inputs: Mapping[str, str],
) -> Manifest:
    """Return the manifest of the files in ``folder``."""
    files = tuple(sorted(_entries(folder), key=lambda entry: entry.path))
    manifest = Manifest(
        format=FORMAT,
        generation="",
        board=board,
        compatible=compatible,
        kernel_release=kernel_release,
        cmdline=cmdline,
        files=files,
        inputs=dict(sorted(inputs.items())),
    )
    return msgspec.structs.replace(manifest, generation=generation_of(manifest))


def only_described(manifest: Manifest, files: Mapping[str, bytes], folder: Path) -> Bundle:
    """Return a bundle with only some of its files in ``folder``: the board has the others already.

    Args:
        manifest: its generation is computed here.
        files: path -> content of the files to write.
    """
    manifest = msgspec.structs.replace(manifest, generation=generation_of(manifest))
    for path, content in files.items():
        write_atomically(folder / path, content)
    write_atomically(folder / "manifest.json", encode(manifest))
    return Bundle(folder, manifest)


def generation_of(manifest: Manifest) -> str:
    """Return the generation: a hash of the manifest without its ``generation`` field."""
    nameless = msgspec.structs.replace(manifest, generation="")
    return hashlib.sha256(encode(nameless)).hexdigest()[:GENERATION_DIGITS]


def _names_itself(manifest: Manifest, data: bytes) -> bool:
    """Check the generation on the bytes that ``encode`` wrote: 20 ms faster than ``generation_of``.

    False also for bytes that another writer formatted.
    """
    named, nameless = (f'"generation":"{name}"'.encode() for name in (manifest.generation, ""))
    digest = hashlib.sha256(data.replace(named, nameless, 1)).hexdigest()
    return digest[:GENERATION_DIGITS] == manifest.generation


def encode(manifest: Manifest) -> bytes:
    """Return ``manifest.json``, one file per line, so that diff can compare two manifests."""
    head = msgspec.to_builtins(msgspec.structs.replace(manifest, files=()))
    head.pop("files")
    lines = b",\n".join(msgspec.json.encode(entry) for entry in manifest.files)
    return msgspec.json.encode(head, order="sorted")[:-1] + b',"files":[\n' + lines + b"\n]}\n"


def decode(data: bytes, where: str) -> Manifest:
    """Parse ``manifest.json``.

    Raises:
        UserError: this version cannot read it, or its generation is not the hash of its content.
    """
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.DecodeError as error:
        raise UserError(
            f"{where}: not a manifest: {error}", hint="make the bundle again"
        ) from error
    if manifest.format != FORMAT:
        raise UserError(f"{where}: format is {manifest.format}, this version reads {FORMAT}")
    problem = problem_of(
        (entry.path, entry.sha256, entry.size_bytes, entry.mode, entry.link)
        for entry in manifest.files
    )
    if problem:
        raise UserError(f"{where}: {problem}", hint="make the bundle again")
    if not _names_itself(manifest, data) and generation_of(manifest) != manifest.generation:
        raise UserError(
            f"{where}: the generation is {manifest.generation}, its content says "
            f"{generation_of(manifest)}",
            hint="make the bundle again",
        )
    for path in _BOOT_PARTS:
        if not any(entry.path == path and entry.link is None for entry in manifest.files):
            raise UserError(f"{where}: {path} is missing", hint="make the bundle again")
    return manifest


def with_required_options(cmdline: str) -> str:
    """Add the options that every generation needs to a kernel command line, where they are missing."""
    words = cmdline.split()
    present = {word.partition("=")[0] for word in words}
    words += [f"{name}={value}" for name, value in _REQUIRED_OPTIONS.items() if name not in present]
    return " ".join(words)


def _entries(folder: Path) -> Iterator[Entry]:
    # Imported late: a deployment does not need it.
    from concurrent.futures import ThreadPoolExecutor

    top = str(folder)  # pathlib takes ten times as long for thousands of files
    listing: list[tuple[str, os.stat_result]] = []
    for root, directories, files in os.walk(top):
        links = [name for name in directories if os.path.islink(f"{root}/{name}")]  # noqa: PTH114
        for name in (*files, *links):
            relative = f"{root}/{name}"[len(top) + 1 :]
            if relative not in _NOT_LISTED:
                listing.append((relative, os.lstat(f"{root}/{name}")))
    # hashlib releases the GIL; the largest file comes first, so that it is not hashed alone at the end.
    listing.sort(key=lambda each: -each[1].st_size)

    def describe_one(listed: tuple[str, os.stat_result]) -> Entry:
        relative, status = listed
        path = f"{top}/{relative}"
        if stat.S_ISLNK(status.st_mode):
            return Entry(relative, link=os.readlink(path), mode=0o777)  # noqa: PTH115
        # Of the mode only the executable bit is kept: the rest depends on the umask of the build.
        mode = 0o755 if status.st_mode & 0o111 else 0o644
        with open(path, "rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256")
        return Entry(relative, digest.hexdigest(), status.st_size, mode)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield from pool.map(describe_one, listing)


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file systems differ."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        shutil.copymode(source, target)


def _place_tree(source: Path, target: Path) -> None:
    def link_or_copy(original: str, copy: str) -> str:
        _place(Path(original), Path(copy))
        return copy

    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)


def _place_kernel(source: Path, target: Path) -> None:
    """Place a kernel as the plain Image that every U-Boot's ``booti`` takes.

    Compressed images need ``kernel_comp_addr_r``, which many boards do not set; the header of an
    EFI zboot image is described in the kernel's drivers/firmware/efi/libstub/zboot-header.S.
    """
    import gzip
    import zlib

    head = source.read_bytes()[:32]
    if head[:2] == b"MZ" and head[4:8] == b"zimg":
        data = source.read_bytes()
        start, size = (int.from_bytes(head[at : at + 4], "little") for at in (8, 12))
        kind = head[24:32].rstrip(b"\0")
        if kind != b"gzip":
            raise UserError(f"{source}: EFI zboot image with {kind.decode()} compression")
        target.write_bytes(zlib.decompressobj(31).decompress(data[start : start + size]))
    elif head[:2] == b"\x1f\x8b":
        target.write_bytes(gzip.decompress(source.read_bytes()))
    else:
        _place(source, target)
