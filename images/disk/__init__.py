# SPDX-License-Identifier: MIT
"""Disks for virtual boards: FAT boot partition and ext4 root with a factory generation, made without root.

The cache keeps one disk for the same inputs; each board that is started writes to a copy-on-write overlay.
A disk comes with two new SSH keys: the host key of the board, and the key that logs in to it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bsp.base.cache import cache_dir, make_once, remove
from bsp.base.process import run
from bsp.base.progress import step
from bsp.base.project import PROJECT
from bsp.base.room import require_room
from bsp.kernel.packaged import PrebuiltKernel
from bsp.profile import Board
from images.bundle import sign
from images.bundle.manifest import Bundle, Parts, assemble
from images.deploy.boot.slots import generation_files, lay_out
from images.disk.initrd import ROOT_INIT, build_initrd
from images.disk.rootfs import Rootfs, root_tar

from .filesystems import fill_fat, fill_root
from .layout import MIB, Layout, make_empty
from .tree import Tree

HERE = Path(__file__).parent

SIZE_BYTES = 4096 * MIB
"""A power of two, as QEMU requires of an SD card."""
FAT_START_BYTES = 1 * MIB
FAT_SIZE_BYTES = 512 * MIB
ROOT_START_BYTES = FAT_START_BYTES + FAT_SIZE_BYTES

# Part of the cache key: a change in any of these makes another disk.
_SOURCES = (
    "images/disk", "images/bundle/manifest.py", "images/deploy/boot", "images/deploy/onboard",
)  # fmt: skip
# A new disk replaces the oldest of the same board; a machine that runs from one keeps its file open.
_KEPT = 4


@dataclass(frozen=True)
class Disk:
    """A disk in the cache, read-only.

    Attributes:
        image: raw image, sparse.
        identity_file: private key that logs in as root.
        host_key: the board's public key: ``ssh-ed25519 AAAA...``.
        boot: folder with the factory generation's ``kernel``, ``initrd`` and ``board.dtb``.
        cmdline: the kernel command line that the factory generation boots with.
    """

    image: Path
    identity_file: Path
    host_key: str
    boot: Path
    cmdline: str


def build_disk(board: Board, kernel: PrebuiltKernel, dtb: Path) -> Disk:
    """Return the disk of a board whose factory generation is this kernel and DTB; the cache keeps it.

    Raises:
        UserError: a tool is missing, or the kernel lacks a module that the profile asks for.
        InfrastructureError: a package cannot be fetched, or the disk is full.
    """
    rootfs = root_tar(board.userspace.distribution)
    folder = cache_dir() / "disks"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Building the disk of {board.name}"):
            _make(board, kernel, dtb, rootfs, target)
        _drop_old(folder, board.name)

    path = make_once(folder / f"{board.name}-{_key(board, kernel, dtb, rootfs)}", make)
    return Disk(
        image=path / "disk.img",
        identity_file=path / "id_ed25519",
        host_key=" ".join((path / "host_key.pub").read_text().split()[:2]),
        boot=path / "boot",
        cmdline=(path / "cmdline").read_text().strip(),
    )


def boot_settings(board: Board) -> tuple[str, tuple[str, ...]]:
    """Return the kernel command line and the initial RAM disk's modules of a virtual board."""
    if board.boot and board.boot.cmdline:
        return board.boot.cmdline, board.boot.initrd_modules
    if board.qemu:
        return board.qemu.cmdline, board.qemu.initrd_modules
    raise ValueError(f"{board.name} has neither boot.cmdline nor a QEMU machine")


def _key(board: Board, kernel: PrebuiltKernel, dtb: Path, rootfs: Rootfs) -> str:
    digest = hashlib.sha256()
    cmdline, modules = boot_settings(board)
    texts = (rootfs.key, kernel.package, kernel.version, cmdline, sign.trust_root(), *modules)
    for text in texts:
        digest.update(text.encode() + b"\0")
    digest.update(msgspec.json.encode([board.name, board.compatible]))
    digest.update(dtb.read_bytes())
    for name in _SOURCES:
        path = PROJECT / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _make(board: Board, kernel: PrebuiltKernel, dtb: Path, rootfs: Rootfs, target: Path) -> None:
    target.mkdir()
    require_room(target.parent, 2048 * MIB, "a disk")
    cmdline, modules = boot_settings(board)
    with tempfile.TemporaryDirectory(prefix="workspace-", dir=target.parent) as name:
        workspace = Path(name)
        initrd = build_initrd(kernel, modules, init=ROOT_INIT, target=workspace / "initrd")
        bundle = assemble(
            Parts(
                board=board, kernel=kernel, initrd=initrd, dtb=dtb, userspace=None, cmdline=cmdline
            ),
            workspace / "bundle",
        )
        fat, extra = workspace / "fat", workspace / "extra"
        fat.mkdir()
        system_files(board, extra)
        signers = extra / sign.BOARD_SIGNERS
        signers.parent.mkdir(parents=True)
        signers.write_text(sign.trust_root(), encoding="utf-8")
        (extra / "boot/firmware").mkdir(parents=True)
        lay_out(bundle, fat, extra, whole=False)
        make_keys(target, extra)
        image = target / "disk.img"
        layout = Layout(SIZE_BYTES, FAT_START_BYTES, FAT_SIZE_BYTES, seed=uuid.uuid4())
        tree = Tree(rootfs.tar, extra, tuple(generation_files(bundle)))
        make_empty(image, layout)
        fill_fat(image, layout, fat, epoch_s=tree.epoch_s)
        fill_root(image, layout, tree)
        _keep_boot_files(bundle, target)
    image.chmod(0o444)


def _drop_old(folder: Path, board: str) -> None:
    disks = [path for path in folder.glob(f"{board}-{'[0-9a-f]' * 16}") if path.is_dir()]
    for path in sorted(disks, key=lambda path: path.stat().st_mtime)[: -(_KEPT - 1)]:
        remove(path)


def system_files(board: Board, extra: Path) -> None:
    """Write the files that every virtual board's Debian gets: settings, names, units."""
    shutil.copytree(HERE / "root", extra)
    hostname = f"npu-{board.name}"
    (extra / "etc/hostname").write_text(f"{hostname}\n")
    (extra / "etc/hosts").write_text(f"127.0.0.1 localhost {hostname}\n::1 localhost\n")
    # Neither empty nor missing: systemd would take either for a first boot.
    (extra / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    # Newer than /usr: no unit with ConditionNeedsUpdate runs at boot.
    for name in ("etc/.updated", "var/.updated"):
        (extra / name).parent.mkdir(exist_ok=True)
        (extra / name).touch()
    enable_units(HERE / "units.txt", extra)


def enable_units(listed: Path, extra: Path) -> None:
    """Do in a folder what ``systemctl enable`` and ``mask`` would do, for a list such as units.txt."""
    units = extra / "etc/systemd/system"
    for line in listed.read_text().splitlines():
        words = line.split("#")[0].split()
        if not words:
            continue
        verb, unit, *wanted_by = words
        link = units / wanted_by[0] / unit if verb == "enable" else units / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"/usr/lib/systemd/system/{unit}" if verb == "enable" else "/dev/null")


def make_keys(target: Path, extra: Path) -> None:
    """Make a board's host key in ``extra``, and in ``target`` the key that logs in to it."""
    ssh = extra / "etc/ssh"
    ssh.mkdir(parents=True, exist_ok=True)
    for path, comment in (
        (ssh / "ssh_host_ed25519_key", "npu-bsp virtual board"),
        (target / "id_ed25519", "npu-bsp virtual boards"),
    ):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path])
    shutil.copyfile(ssh / "ssh_host_ed25519_key.pub", target / "host_key.pub")
    authorized = extra / "root/.ssh/authorized_keys"
    authorized.parent.mkdir(mode=0o700, parents=True)
    (extra / "root").chmod(0o700)
    shutil.copyfile(target / "id_ed25519.pub", authorized)
    authorized.chmod(0o600)


def _keep_boot_files(bundle: Bundle, target: Path) -> None:
    shutil.copytree(bundle.path / "boot", target / "boot")
    cmdline = f"{bundle.manifest.cmdline} npu_bsp.generation={bundle.generation}"
    (target / "cmdline").write_text(cmdline + "\n")
