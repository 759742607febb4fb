# SPDX-License-Identifier: MIT
"""A disk in somebody else's layout, made without root: partitions, file systems, what boots from them.

The root file system is that of the virtual boards (images/disk), without anything of ours that boots or
deploys; the kernel's modules lie where distributions have them.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bsp.base.cache import cache_dir, make_once, remove
from bsp.base.process import run
from bsp.base.progress import step
from bsp.base.project import PROJECT
from bsp.base.room import require_room
from bsp.kernel.packaged import PrebuiltKernel
from bsp.profile import Board
from images.deploy.boot.slots import GenerationFile
from images.disk import SIZE_BYTES, Disk, boot_settings, make_keys, system_files
from images.disk.filesystems import fill_fat, fill_root
from images.disk.initrd import ROOT_INIT, build_initrd
from images.disk.layout import MIB, SECTOR_BYTES
from images.disk.layout import Layout as Places
from images.disk.rootfs import Rootfs, root_tar
from images.disk.tree import Tree

from .layout import Layout
from .parts import Parts

_SOURCES = ("images/disk", "virtual/layouts", "virtual/uboots/like.py")
_KEPT = 2
_NEEDED_MIB = 2048
# Partition types of the UEFI and Discoverable Partitions specifications; of an MBR.
_TYPES = {
    ("gpt", "esp"): "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    ("gpt", "fat"): "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7",
    ("gpt", "root"): "B921B045-1DF0-41C3-AF44-4C6F280D3FAE",
    ("dos", "esp"): "ef",
    ("dos", "fat"): "c",
    ("dos", "root"): "83",
}


def build_layout(layout: Layout, board: Board, kernel: PrebuiltKernel, dtb: Path) -> Disk:
    """Return the disk of a board in a layout, cached.

    Raises:
        UserError: a tool is missing, or the kernel lacks what the layout needs.
        InfrastructureError: a package cannot be fetched, or the disk is full.
    """
    rootfs = _rootfs(layout, board, kernel, dtb)
    folder = cache_dir() / "disks"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{board.name}-{layout.name}"

    def make(target: Path) -> None:
        with step(f"Building the disk of {board.name}, as {layout.about.partition(':')[0]}"):
            _make(layout, board, kernel, dtb, rootfs, target)
        disks = [path for path in folder.glob(f"{name}-{'[0-9a-f]' * 16}") if path.is_dir()]
        for old in sorted(disks, key=lambda path: path.stat().st_mtime)[: -(_KEPT - 1)]:
            remove(old)

    path = make_once(folder / f"{name}-{_key(layout, board, kernel, dtb, rootfs)}", make)
    return Disk(
        image=path / "disk.img",
        identity_file=path / "id_ed25519",
        host_key=" ".join((path / "host_key.pub").read_text().split()[:2]),
        boot=path / "boot",
        cmdline="",
    )


def _rootfs(layout: Layout, board: Board, kernel: PrebuiltKernel, dtb: Path) -> Rootfs:
    """The Debian that the layout is put on; with its own kernel, where its own packages boot it."""
    suite = board.userspace.distribution
    if layout.settings is None:
        return root_tar(suite, layout.packages)
    parts = Parts(kernel, None, dtb, uuid.UUID(int=0), "")
    return root_tar(suite, (*layout.packages, kernel.package), settings=layout.settings(parts))


def places(layout: Layout, seed: uuid.UUID) -> Places:
    """Return where the partitions of a layout lie on the disk, with identifiers made from ``seed``."""
    fat_bytes = layout.fat.size_bytes if layout.fat else 0
    return Places(SIZE_BYTES, layout.start_bytes, fat_bytes, seed, layout.table)


def table_of(layout: Layout, where: Places) -> str:
    """Return the partition table, as ``sfdisk`` reads it."""
    lines = [f"label: {layout.table}"]
    if layout.table == "gpt":
        lines.append(f"label-id: {where.identifier('disk')}")
    else:
        lines.append(f"label-id: 0x{where.identifier('disk').int & 0xFFFFFFFF:08x}")
    parts = [(where.root_start_bytes, where.root_size_bytes, "root", layout.fat is None)]
    if layout.fat:
        kind = "esp" if layout.fat.esp else "fat"
        parts.insert(0, (where.fat_start_bytes, where.fat_size_bytes, kind, not layout.fat.esp))
    for start, size, kind, boots in parts:
        words = [
            f"start={start // SECTOR_BYTES}",
            f"size={size // SECTOR_BYTES}",
            f"type={_TYPES[layout.table, kind]}",
        ]
        if layout.table == "gpt":
            words += [f"name={kind}", f"uuid={where.identifier(kind)}"]
            words += ["attrs=LegacyBIOSBootable"] if boots else []
        elif boots:
            words.append("bootable")
        lines.append(", ".join(words))
    return "\n".join(lines) + "\n"


def fstab(layout: Layout, where: Places) -> str:
    """Return the mounts of a board in a layout."""
    lines = [f"UUID={where.root_uuid}  /  ext4  rw,relatime  0  0"]
    if layout.fat:
        # On a busy machine udev takes longer than the minute and a half that systemd waits for a device.
        options = "rw,umask=077,x-systemd.device-timeout=300"
        lines.append(f"UUID={where.fat_uuid}  {layout.fat.mount}  vfat  {options}  0  0")
    return "\n".join(lines) + "\n"


def _key(layout: Layout, board: Board, kernel: PrebuiltKernel, dtb: Path, rootfs: Rootfs) -> str:
    digest = hashlib.sha256()
    for text in (layout.name, rootfs.key, kernel.package, kernel.version):
        digest.update(text.encode() + b"\0")
    digest.update(msgspec.json.encode([board.name, board.compatible, boot_settings(board)[1]]))
    digest.update(dtb.read_bytes())
    for name in _SOURCES:
        path = PROJECT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _make(
    layout: Layout, board: Board, kernel: PrebuiltKernel, dtb: Path, rootfs: Rootfs, target: Path
) -> None:
    target.mkdir()
    (target / "boot").mkdir()
    # QEMU fills its own up to 1 MiB, which is more room than boards have before the kernel.
    unpadded = target / "boot/board.dtb"
    run(["dtc", "-q", "-I", "dtb", "-O", "dtb", "-o", unpadded, dtb])
    require_room(target.parent, _NEEDED_MIB * MIB, "a disk")
    where = places(layout, uuid.uuid4())
    with tempfile.TemporaryDirectory(prefix="workspace-", dir=target.parent) as name:
        fat, over, initrd = Path(name) / "fat", Path(name) / "over", None
        fat.mkdir()
        system_files(board, over)
        make_keys(target, over)
        (over / "etc/fstab").write_text(fstab(layout, where))
        if layout.initrd and layout.settings is None:
            modules = boot_settings(board)[1]
            initrd = build_initrd(kernel, modules, init=ROOT_INIT, target=Path(name) / "initrd")
        parts = Parts(kernel, initrd, unpadded, where.root_uuid, where.fat_uuid)
        boot = fat if layout.fat else over / "boot"
        boot.mkdir(exist_ok=True)
        layout.fill(parts, boot, over)
        if layout.fat and not layout.fat.mount.startswith("/run/"):
            (over / layout.fat.mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
        image = target / "disk.img"
        with image.open("wb") as file:
            file.truncate(SIZE_BYTES)
        run(["sfdisk", "--quiet", image], stdin=table_of(layout, where).encode())
        tree = Tree(rootfs.tar, over, () if layout.settings else tuple(_modules(kernel)))
        if layout.fat:
            fill_fat(
                image, where, fat, epoch_s=tree.epoch_s,
                label=layout.fat.label, bits=layout.fat.bits,
            )  # fmt: skip
        fill_root(image, where, tree, label=layout.root_label)
    image.chmod(0o444)


def _modules(kernel: PrebuiltKernel) -> Iterator[GenerationFile]:
    """The kernel's modules, where distributions have them."""
    folder = kernel.modules.resolve()
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            if not path.is_symlink():
                below = path.relative_to(folder).as_posix()
                target = f"usr/lib/modules/{kernel.release}/{below}"
                yield GenerationFile(path, target, 0o644)
