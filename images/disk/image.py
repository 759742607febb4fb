# SPDX-License-Identifier: MIT
"""Disk images: written to an SD card or eMMC once, so that a board boots and can be deployed to.

The disk is built as those of the virtual boards (images/disk): a boot partition with our boot script and
one generation, and a Debian root. Beside ``F.img`` are ``F.img.bmap`` (see bmap.py) and ``F.img.json``,
which says what the image holds, for which board it is, and which key logs in. The same inputs give the
same bytes.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base import progress
from bsp.base.cache import refuse_disk, write_atomically
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.base.room import require_room
from bsp.catalog import load_soc
from bsp.profile import Board, Boot

from ..bundle import manifest as bundles
from ..bundle import sign
from ..bundle.manifest import Bundle, with_required_options
from ..deploy.boot.slots import generation_files, lay_out
from . import bmap
from .bootloader import FIRST_PARTITION_BYTES, LoaderFile, read_bootloader
from .filesystems import fill_fat, fill_root, journal_blocks
from .image_root import PACKAGES, Access, check_host_name, make_root, read_access
from .kept_image import digest_of, inputs_of, intact_map
from .layout import MIB, Layout, make_empty
from .rootfs import Rootfs, root_tar
from .tree import Tree

FORMAT = 1
DISTRIBUTIONS = ("trixie", "bookworm")
DEFAULT_SIZE = "4G"
FAT_SIZE_BYTES = 512 * MIB
MIN_SIZE_BYTES = 1024 * MIB

MAX_SIZE_BYTES = 2 << 40
"""An MBR counts up to 2^32 sectors of 512 bytes."""
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_NAMESPACE = uuid.UUID("6f0a3c52-5a3c-5ad6-9d0e-5b1c5b1f1a77")


@dataclass(frozen=True)
class ImageRequest:
    """The flags of build-image.

    Attributes:
        bundle: folder of a bundle; None makes one for the board.
        packages: Debian packages besides our own.
        hostname: None for ``npu-BOARD``.
        bootloader: file that the SoC's boot ROM starts; None if the board has one elsewhere.
        output: the image; None for ``build/images/BOARD.img``.
        force_enable: as for ``build_dts``; not with ``bundle``, which has its device tree already.
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
    """The content of ``F.img.json``, and the plan of ``--dry-run``.

    Attributes:
        compatible: root ``compatible`` strings of the board; flash compares them with the real one's.
        generation: the generation in the image; None before the bundle is made.
        host_key: the board's public key, if the image has one.
        identity_file: private key that logs in, if it is beside the public one on this machine.
        inputs: hash of all that the image was made of.
        sha256: hash of the image: that of the hashes of its block map, in order.
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
    inputs: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Image:
    """An image on this machine; only planned if ``made`` is false; ``kept``: that of the last build."""

    path: Path
    description: Description
    made: bool
    kept: bool = False

    def document(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        document = {"image": str(self.path), "bmap": None, "dry_run": not self.made}
        document["kept"] = self.kept
        if self.made:
            document["bmap"] = str(bmap.map_file(self.path))
        document.update(msgspec.to_builtins(self.description))
        return document


def build_image(request: ImageRequest, *, dry_run: bool = False) -> Image:
    """Build a bootable disk image.

    Raises:
        UserError: an input is missing or does not fit, or the bundle is for another board.
        InfrastructureError: a package cannot be fetched, or the disk is full.
    """
    plan = _planned(request)
    board = plan.board
    bundle = (
        _given_bundle(board, request.bundle, force_enable=request.force_enable)
        if request.bundle
        else None
    )
    if dry_run:
        description = plan.describe(bundle, plan.layout(uuid.UUID(int=0)))
        return Image(plan.output, description, made=False)
    rootfs = root_tar(plan.distribution, plan.packages)
    if bundle is None:
        from ..bundle.assemble import bundle_for  # late: a given bundle needs none of it

        bundle = bundle_for(board, kernel=request.kernel, force_enable=request.force_enable)
    with step(f"Building the image of {board.name}") as now:
        image = _make(plan, bundle, rootfs)
        if image.description.mapped_bytes is None:
            raise RuntimeError("the image was made without a block map")
        if image.kept:
            now.note("nothing has changed since the last build; every block verified")
        else:
            now.note(
                f"{image.description.mapped_bytes / 1e6:.0f} MB of {plan.size_bytes / 1e6:.0f} MB hold data"
            )
    return image


@dataclass(frozen=True)
class _Plan:
    """What an image is made of besides its bundle; all of it was checked."""

    board: Board
    boot: Boot
    packages: tuple[str, ...]
    hostname: str
    access: Access
    loader: LoaderFile
    size_bytes: int
    output: Path

    @property
    def distribution(self) -> str:
        """The Debian release of the root file system."""
        return self.board.userspace.distribution

    def seed(self, rootfs: Rootfs, bundle: Bundle) -> uuid.UUID:
        """Return what identifiers on the disk are derived from: the same inputs give the same bytes."""
        inputs = (
            rootfs.key,
            bundle.generation,
            self.access.keys,
            self.access.host_public(),
            sign.trust_root(),
            self.board.name,
            self.hostname,
            self.size_bytes,
            self.loader.sha256,
        )
        return uuid.uuid5(_NAMESPACE, "\0".join(map(str, inputs)))

    def layout(self, seed: uuid.UUID) -> Layout:
        """Return how the disk is divided."""
        return Layout(
            size_bytes=self.size_bytes,
            fat_start_bytes=FIRST_PARTITION_BYTES,
            fat_size_bytes=FAT_SIZE_BYTES,
            seed=seed,
            table=self.loader.record.table if self.loader.record else "gpt",
        )

    def describe(self, bundle: Bundle | None, layout: Layout) -> Description:
        """Return the image's description, as far as it is known before the image is made."""
        identity = self.access.source.with_suffix("")
        return Description(
            board=self.board.name,
            compatible=tuple(self.board.compatible),
            generation=bundle.generation if bundle else None,
            kernel_release=bundle.manifest.kernel_release if bundle else None,
            cmdline=_cmdline(self.board, self.boot, layout),
            distribution=self.distribution,
            packages=self.packages,
            hostname=self.hostname,
            ssh_key=str(self.access.source),
            host_key=self.access.host_public(),
            identity_file=str(identity.absolute()) if identity.is_file() else None,
            table=layout.table,
            bootloader=self.loader.document(),
            partitions=(
                {"name": "boot", "type": "fat32", "start_bytes": layout.fat_start_bytes,
                 "size_bytes": layout.fat_size_bytes},
                {"name": "root", "type": "ext4", "start_bytes": layout.root_start_bytes,
                 "size_bytes": layout.root_size_bytes},
            ),
            size_bytes=self.size_bytes,
        )  # fmt: skip


def _planned(request: ImageRequest) -> _Plan:
    """Check all that the request names."""
    wrong = [name for name in request.packages if not _PACKAGE.fullmatch(name)]
    if wrong:
        raise UserError(
            f"{wrong[0]!r} is not a name of a Debian package: small letters, digits and + - .",
            hint="--package nano --package apt",
        )
    boot = _boot_of(request.board)
    board = msgspec.structs.replace(
        _with_distribution(request.board, request.distribution), boot=boot
    )
    plan = _Plan(
        board=board,
        boot=boot,
        packages=tuple(sorted({*PACKAGES, *request.packages})),
        hostname=check_host_name(request.hostname or f"npu-{board.name}"),
        access=read_access(request.ssh_key, request.host_key),
        loader=read_bootloader(board, request.bootloader),
        size_bytes=parse_size(request.size),
        output=request.output or Path("build/images") / f"{board.name}.img",
    )
    if plan.output.is_dir():
        raise UserError(
            f"{plan.output} is a folder", hint=f"--output {plan.output / board.name}.img"
        )
    refuse_disk(plan.output)
    if plan.output.exists() and not plan.output.is_file():
        raise UserError(f"{plan.output} is not a file", hint=f"--output {board.name}.img")
    return plan


def read_description(image: Path) -> Description | None:
    """Return the description beside an image; None if there is none.

    Raises:
        UserError: it is damaged.
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
    """Return the path of an image's description."""
    return image.with_name(f"{image.name}.json")


def parse_size(text: str) -> int:
    """Return a size in bytes: ``4G``, ``3800M``.

    Raises:
        UserError: it is not a size, or too small for the content of every disk.
    """
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match:
        raise UserError(f"{text!r} is not a size", hint="--size 4G, or --size 3800M")
    size_bytes = int(match[1]) * _UNITS[match[2].upper()]
    if size_bytes < MIN_SIZE_BYTES:
        raise UserError(
            f"--size is {size_bytes} bytes; an image has {MIN_SIZE_BYTES // MIB} MiB at least",
            hint=f"--size {DEFAULT_SIZE}",
        )
    if size_bytes > MAX_SIZE_BYTES:
        raise UserError(
            f"--size is {text}; an image has {MAX_SIZE_BYTES // _UNITS['T']} TiB at most",
            hint=f"--size {DEFAULT_SIZE}",
        )
    return size_bytes // MIB * MIB


def _boot_of(board: Board) -> Boot:
    """Return a board's [boot]; a board with only a QEMU machine gets it from that."""
    if board.boot is not None:
        return board.boot
    if board.qemu is None:
        raise UserError(
            f"the profile of {board.name} has no [boot]: it does not say how the board boots",
            hint="add [boot] to it, or choose another board: ./inv boards",
        )
    return Boot(
        fat_mount="/boot/firmware",
        cmdline=board.qemu.cmdline,
        initrd_modules=board.qemu.initrd_modules,
    )


def _with_distribution(board: Board, name: str | None) -> Board:
    distribution = name or board.userspace.distribution
    if distribution not in DISTRIBUTIONS:
        raise UserError(
            f"there are no images of {distribution!r}",
            hint=f"--distribution {' or '.join(DISTRIBUTIONS)}",
        )
    userspace = msgspec.structs.replace(board.userspace, distribution=distribution)
    return msgspec.structs.replace(board, userspace=userspace)


def _cmdline(board: Board, boot: Boot, layout: Layout) -> str:
    """Return the command line of the first generation; its root is the one of this very disk."""
    console = load_soc(board.soc).console
    options = (boot.cmdline or (f"console={console}" if console else "")).split()
    words = [word for word in options if not word.startswith("root=")]
    for word in ("rw", "rootwait"):
        if word not in words:
            words.append(word)
    return with_required_options(" ".join([*words, f"root=UUID={layout.root_uuid}"]))


def _given_bundle(board: Board, folder: Path, *, force_enable: bool) -> Bundle:
    if force_enable:
        raise UserError(
            "--force-enable changes the device tree that is built; --bundle has its own already",
            hint="./inv bundle --board B --force-enable makes such a bundle",
        )
    bundle = bundles.load(folder)
    if bundle.manifest.board != board.name:
        raise UserError(
            f"{folder} is a bundle for {bundle.manifest.board}, but the image is for {board.name}",
            hint=f"--board {bundle.manifest.board}, or another --bundle",
        )
    sign.check_signature(bundle)
    with step("Reading the bundle"):
        sign.check_content(bundle)
    return bundle


def _make(plan: _Plan, bundle: Bundle, rootfs: Rootfs) -> Image:
    layout = plan.layout(plan.seed(rootfs, bundle))
    description = plan.describe(bundle, layout)
    output = plan.output
    output.parent.mkdir(parents=True, exist_ok=True)
    needed = rootfs.tar.stat().st_size + 2 * bundle.manifest.total_bytes + 64 * MIB
    require_room(output.parent, needed, "the image", hint="--output puts it elsewhere")
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        workspace = Path(name)
        fat, overlay = workspace / "fat", workspace / "over"
        fat.mkdir()
        make_root(
            overlay,
            layout,
            hostname=plan.hostname,
            access=plan.access,
            fat_mount=plan.boot.fat_mount,
        )
        lay_out(bundle, fat, overlay, cmdline=description.cmdline, whole=False)
        tree = Tree(rootfs.tar, overlay, tuple(generation_files(bundle)))
        inputs = inputs_of(
            (fat, overlay),
            layout, rootfs.key, tree.epoch_s, bundle.generation, plan.loader.record, plan.loader.sha256,
        )  # fmt: skip
        described = msgspec.structs.replace(description, inputs=inputs)
        if kept := _kept(output, described):
            return kept
        image = workspace / "disk.img"
        make_empty(image, layout)
        with image.open("r+b") as file:
            for offset, piece in plan.loader.pieces():
                file.seek(offset)
                file.write(piece)
        with step("Boot partition"):
            fill_fat(image, layout, fat, epoch_s=tree.epoch_s)
        with step("Root file system"):
            fill_root(image, layout, tree)
        with step("Block map"):
            whole_map = bmap.whole(layout.size_bytes)
            block_map = bmap.stored(image) if bmap.keeps_zeros(workspace) else whole_map
            # Holes, but a journal that an earlier flash of the same image left there would be replayed.
            for first, last in journal_blocks(image, layout):
                block_map = bmap.with_blocks(block_map, first, last)
            hashed_map = bmap.hashed(image, block_map)
        described = msgspec.structs.replace(
            described, mapped_bytes=hashed_map.mapped_bytes, sha256=digest_of(hashed_map)
        )
        # The image comes last, so that the files beside an image always belong to it.
        for stale in (output, bmap.map_file(output), description_file(output)):
            with contextlib.suppress(FileNotFoundError):
                stale.unlink()
        bmap.write(bmap.map_file(output), hashed_map)
        _write_description(output, described)
        with image.open("rb") as file:
            os.fsync(file.fileno())
        image.rename(output)
    return Image(output, described, made=True)


def _kept(output: Path, described: Description) -> Image | None:
    """Return the image that lies there, if it has these inputs and nothing of it was changed."""
    try:
        last = read_description(output)
    except UserError:  # damaged
        return None
    if last is None or last.inputs != described.inputs or not last.sha256 or not output.is_file():
        return None
    with step("Verifying the image of the last build"):
        block_map = intact_map(output, last.sha256)
    if block_map is None:
        progress.say(f"{output} was changed since it was built; it is built again")
        return None
    described = msgspec.structs.replace(
        described, mapped_bytes=block_map.mapped_bytes, sha256=last.sha256
    )
    if described != last:  # the same bytes, by another name of the key, say
        _write_description(output, described)
    return Image(output, described, made=True, kept=True)


def _write_description(image: Path, described: Description) -> None:
    text = msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n"
    write_atomically(description_file(image), text)
