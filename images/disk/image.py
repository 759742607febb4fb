# SPDX-License-Identifier: MIT
"""Disk images: what is written to an SD card or eMMC once, so that a board boots and can be deployed to.

The disk is made as the virtual boards' disks are (images/disk): a boot partition with our boot script and
one generation, a Debian root. Beside ``F.img`` lie ``F.img.bmap`` (see bmap.py) and ``F.img.json``: what
the image is, for whom, and how one logs in. The same inputs give the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import write_atomically
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.base.room import require_room
from bsp.profile import Board, Boot, Bootloader, load_soc

from ..bundle import manifest as bundles
from ..bundle import sign
from ..bundle.manifest import Bundle, with_required_options
from ..deploy.boot.slots import generation_files, lay_out
from . import bmap
from .filesystems import fill_fat, fill_root, journal_blocks
from .image_root import PACKAGES, Access, check_host_name, make_root, read_access
from .layout import MIB, Layout, make_empty
from .rootfs import Rootfs, root_tar
from .tree import Tree

FORMAT = 1
DISTRIBUTIONS = ("trixie", "bookworm")
DEFAULT_SIZE = "4G"
FAT_SIZE_BYTES = 512 * MIB
MIN_SIZE_BYTES = 1024 * MIB
FIRST_PARTITION_BYTES = 16 * MIB
"""Room for the bootloaders of all SoCs that have theirs on the disk."""

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAMESPACE = uuid.UUID("6f0a3c52-5a3c-5ad6-9d0e-5b1c5b1f1a77")


@dataclass(frozen=True)
class ImageRequest:
    """What an image is to be.

    Attributes:
        bundle: folder of a bundle; None has one made for the board.
        packages: Debian packages besides our own.
        hostname: None for ``npu-BOARD``.
        bootloader: file that the SoC's boot ROM starts; None where the board has one elsewhere.
        output: the image; None for ``build/images/BOARD.img``.
        force_enable: as for ``build_dts``; not with ``bundle``, which brings its tree.
    """

    board: Board
    bundle: Path | None = None
    kernel: str | None = None
    distribution: str | None = None
    packages: tuple[str, ...] = ()
    hostname: str | None = None
    ssh_key: Path | None = None
    host_key: Path | None = None
    bootloader: Path | None = None
    size: str = DEFAULT_SIZE
    output: Path | None = None
    force_enable: bool = False


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """``F.img.json``, and the plan of ``--dry-run``.

    Attributes:
        compatible: root ``compatible`` strings of the board that this is for; flash compares them.
        generation: the one that it boots; None before the bundle is made.
        host_key: the board's public key, where one is baked in.
        identity_file: private key that logs in, where it lies beside the public one on this machine.
    """

    format: int = FORMAT
    board: str
    compatible: tuple[str, ...]
    generation: str | None
    kernel_release: str | None
    cmdline: str
    distribution: str
    packages: tuple[str, ...]
    hostname: str
    ssh_key: str
    host_key: str | None
    identity_file: str | None
    table: str
    bootloader: dict[str, Any]
    partitions: tuple[dict[str, Any], ...]
    size_bytes: int
    mapped_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Image:
    """An image on this machine (``made`` is false: only planned)."""

    path: Path
    description: Description
    made: bool

    def document(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        document = {"image": str(self.path), "bmap": None, "dry_run": not self.made}
        if self.made:
            document["bmap"] = str(bmap.map_file(self.path))
        document.update(msgspec.to_builtins(self.description))
        return document


def build_image(request: ImageRequest, *, dry_run: bool = False) -> Image:
    """Make a bootable disk image.

    Raises:
        UserError: an input is missing or does not fit, the bundle is another board's.
        InfrastructureError: a package cannot be fetched, or the disk is full.
    """
    board = _with_distribution(_bootable(request.board), request.distribution)
    distribution = board.userspace.distribution
    size_bytes = parse_size(request.size)
    hostname = check_host_name(request.hostname or f"npu-{board.name}")
    access = read_access(request.ssh_key, request.host_key)
    loader = _read_bootloader(board, request.bootloader)
    output = request.output or Path("build/images") / f"{board.name}.img"
    if output.is_dir():
        raise UserError(f"{output} is a folder", hint=f"--output {output / board.name}.img")
    bundle = (
        _given_bundle(board, request.bundle, force_enable=request.force_enable)
        if request.bundle
        else None
    )
    packages = tuple(sorted({*PACKAGES, *request.packages}))

    def describe(found: Bundle | None, layout: Layout) -> Description:
        identity = access.source.with_suffix("")
        return Description(
            board=board.name,
            compatible=tuple(board.compatible),
            generation=found.generation if found else None,
            kernel_release=found.manifest.kernel_release if found else None,
            cmdline=_cmdline(board, layout),
            distribution=distribution,
            packages=packages,
            hostname=hostname,
            ssh_key=str(access.source),
            host_key=access.host_public(),
            identity_file=str(identity.absolute()) if identity.is_file() else None,
            table=layout.table,
            bootloader=loader.document(),
            partitions=(
                {"name": "boot", "type": "fat32", "start_bytes": layout.fat_start_bytes,
                 "size_bytes": layout.fat_size_bytes},
                {"name": "root", "type": "ext4", "start_bytes": layout.root_start_bytes,
                 "size_bytes": layout.root_size_bytes},
            ),
            size_bytes=size_bytes,
        )  # fmt: skip

    if dry_run:
        layout = _layout(size_bytes, loader, uuid.UUID(int=0))
        return Image(output, describe(bundle, layout), made=False)
    rootfs = root_tar(distribution, packages)
    if bundle is None:
        from ..bundle.assemble import bundle_for  # late: a given bundle needs none of it

        bundle = bundle_for(board, kernel=request.kernel, force_enable=request.force_enable)
    seed = _seed(rootfs, bundle, access, loader, board.name, hostname, size_bytes)
    layout = _layout(size_bytes, loader, seed)
    description = describe(bundle, layout)
    if not board.boot:
        raise RuntimeError(f"the profile of {board.name} has no [boot]")
    with step(f"Building the image of {board.name}") as now:
        made = _make(
            output, layout, description, bundle, rootfs, access, loader, board.boot.fat_mount
        )
        if made.mapped_bytes is None:
            raise RuntimeError("the image was made without a block map")
        now.note(f"{made.mapped_bytes / 1e6:.0f} MB of {size_bytes / 1e6:.0f} MB hold data")
    return Image(output, made, made=True)


def read_description(image: Path) -> Description | None:
    """Return what lies beside an image; None if nothing does.

    Raises:
        UserError: it is broken.
    """
    path = description_file(image)
    if not path.is_file():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except msgspec.DecodeError as error:
        raise UserError(
            f"{path} does not describe an image: {error}",
            hint="make it again; or move it away, if it is not build-image's",
        ) from error


def description_file(image: Path) -> Path:
    """Where the description of an image lies."""
    return image.with_name(f"{image.name}.json")


def parse_size(text: str) -> int:
    """Return a size in bytes: ``4G``, ``3800M``.

    Raises:
        UserError: it is none, or too small for what goes onto every disk.
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise UserError(f"{text!r} is no size", hint="--size 4G, or --size 3800M")
    size_bytes = int(found[1]) * _UNITS[found[2].upper()]
    if size_bytes < MIN_SIZE_BYTES:
        raise UserError(
            f"--size is {size_bytes} bytes; an image has {MIN_SIZE_BYTES // MIB} MiB at least",
            hint=f"--size {DEFAULT_SIZE}",
        )
    return size_bytes // MIB * MIB


@dataclass(frozen=True)
class _Loader:
    """The bootloader: where the SoC wants it, and what we have of it."""

    record: Bootloader | None
    file: Path | None
    content: bytes = b""

    def document(self) -> dict[str, Any]:
        if self.record is None:
            return {"included": False, "needs": None, "note": "the machine brings its own"}
        return {
            "included": self.file is not None,
            "file": str(self.file) if self.file else None,
            "offsets_bytes": [piece.offset_bytes for piece in self.record.pieces],
            "sha256": hashlib.sha256(self.content).hexdigest() if self.file else None,
            "needs": None if self.file else f"{self.record.file}: {self.record.needs}",
        }

    def pieces(self) -> list[tuple[int, bytes]]:
        """What goes where on the disk."""
        if self.record is None or self.file is None:
            return []
        found = []
        for piece in self.record.pieces:
            end = None if piece.length_bytes is None else piece.skip_bytes + piece.length_bytes
            found.append((piece.offset_bytes, self.content[piece.skip_bytes : end]))
        return found


def _read_bootloader(board: Board, file: Path | None) -> _Loader:
    record = load_soc(board.soc).bootloader
    if file is None:
        return _Loader(record, None)
    if record is None:
        raise UserError(
            f"the profile of {board.soc} has no place for a bootloader",
            hint="leave --bootloader out: this machine brings its own",
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read the bootloader {file}: {error.strerror}",
            hint=f"it is {record.file}: {record.needs}",
        ) from error
    loader = _Loader(record, file, content)
    for offset, piece in loader.pieces():
        if not piece:
            raise UserError(
                f"{file} has {len(content)} bytes: nothing of it would lie at byte {offset}",
                hint=f"it is {record.file}: {record.needs}",
            )
        if offset + len(piece) > FIRST_PARTITION_BYTES:
            raise UserError(
                f"{file} does not fit: {len(piece)} bytes at byte {offset}, the first partition "
                f"begins at byte {FIRST_PARTITION_BYTES}"
            )
    return loader


def _bootable(board: Board) -> Board:
    """The board with a [boot]; what only QEMU's machine is described for boots its disk the same way."""
    if board.boot is not None:
        return board
    if board.qemu is None:
        raise UserError(
            f"the profile of {board.name} has no [boot]: it does not say how the board boots",
            hint="add [boot] to it, or choose another board: ./inv boards",
        )
    boot = Boot(
        fat_mount="/boot/firmware",
        cmdline=board.qemu.cmdline,
        initrd_modules=board.qemu.initrd_modules,
    )
    return msgspec.structs.replace(board, boot=boot)


def _with_distribution(board: Board, asked: str | None) -> Board:
    distribution = asked or board.userspace.distribution
    if distribution not in DISTRIBUTIONS:
        raise UserError(
            f"{distribution!r} is no distribution that images are made of",
            hint=f"--distribution {' or '.join(DISTRIBUTIONS)}",
        )
    userspace = msgspec.structs.replace(board.userspace, distribution=distribution)
    return msgspec.structs.replace(board, userspace=userspace)


def _cmdline(board: Board, layout: Layout) -> str:
    """The command line of the first generation: this disk's root, whatever other disks there are."""
    if not board.boot:
        raise RuntimeError(f"the profile of {board.name} has no [boot]")
    console = load_soc(board.soc).console
    given = (board.boot.cmdline or (f"console={console}" if console else "")).split()
    words = [word for word in given if not word.startswith("root=")]
    for word in ("rw", "rootwait"):
        if word not in words:
            words.append(word)
    return with_required_options(" ".join([*words, f"root=UUID={layout.root_uuid}"]))


def _given_bundle(board: Board, folder: Path, *, force_enable: bool) -> Bundle:
    if force_enable:
        raise UserError(
            "--force-enable is for a device tree that is built; --bundle brings its own",
            hint="./inv bundle --board B --force-enable makes such a bundle",
        )
    bundle = bundles.load(folder)
    if bundle.manifest.board != board.name:
        raise UserError(
            f"{folder} is a bundle for {bundle.manifest.board}, the image is to be for {board.name}",
            hint=f"--board {bundle.manifest.board}, or another --bundle",
        )
    sign.check_signature(bundle)
    with step("Reading the bundle"):
        sign.check_content(bundle)
    return bundle


def _layout(size_bytes: int, loader: _Loader, seed: uuid.UUID) -> Layout:
    return Layout(
        size_bytes=size_bytes,
        fat_start_bytes=FIRST_PARTITION_BYTES,
        fat_size_bytes=FAT_SIZE_BYTES,
        seed=seed,
        table=loader.record.table if loader.record else "gpt",
    )


def _seed(
    rootfs: Rootfs, bundle: Bundle, access: Access, loader: _Loader, *rest: object
) -> uuid.UUID:
    words: list[object] = [
        rootfs.key,
        bundle.generation,
        access.keys,
        access.host_public(),
        sign.trust_root(),
    ]
    words += rest
    words.append(hashlib.sha256(loader.content).hexdigest())
    return uuid.uuid5(_NAMESPACE, "\0".join(map(str, words)))


def _make(
    output: Path,
    layout: Layout,
    description: Description,
    bundle: Bundle,
    rootfs: Rootfs,
    access: Access,
    loader: _Loader,
    fat_mount: str,
) -> Description:
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = rootfs.tar.stat().st_size + 2 * bundle.manifest.total_bytes + 64 * MIB
    require_room(output.parent, needed, "the image", hint="--output puts it elsewhere")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        workspace = Path(name)
        fat, over = workspace / "fat", workspace / "over"
        fat.mkdir()
        make_root(over, layout, hostname=description.hostname, access=access, fat_mount=fat_mount)
        lay_out(bundle, fat, over, cmdline=description.cmdline, whole=False)
        tree = Tree(rootfs.tar, over, tuple(generation_files(bundle)))
        image = workspace / "disk.img"
        make_empty(image, layout)
        with image.open("r+b") as file:
            for offset, piece in loader.pieces():
                file.seek(offset)
                file.write(piece)
        with step("Boot partition"):
            fill_fat(image, layout, fat, epoch_s=tree.epoch_s)
        with step("Root file system"):
            fill_root(image, layout, tree)
        with step("Block map"):
            whole = bmap.whole(layout.size_bytes)
            found = bmap.stored(image) if bmap.keeps_zeros(workspace) else whole
            # Holes, but what an earlier flash of the same image left there would be taken for its own.
            for first, last in journal_blocks(image, layout):
                found = bmap.with_blocks(found, first, last)
            made = bmap.hashed(image, found)
        digest = hashlib.sha256("".join(str(each.sha256) for each in made.ranges).encode())
        done = msgspec.structs.replace(
            description, mapped_bytes=made.mapped_bytes, sha256=digest.hexdigest()
        )
        # The image last: what lies beside one is always its own.
        for old in (output, bmap.map_file(output), description_file(output)):
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        bmap.write(bmap.map_file(output), made)
        text = msgspec.json.format(msgspec.json.encode(done), indent=2) + b"\n"
        write_atomically(description_file(output), text)
        with image.open("rb") as file:
            os.fsync(file.fileno())
        image.rename(output)
    return done
