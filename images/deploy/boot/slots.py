# SPDX-License-Identifier: MIT
"""The paths of a generation on a board, and how a new disk gets its first one.

The boot partition, FAT; or ``/boot`` on ext4::

    /boot.scr                            boot.cmd, compiled
    /npu-bsp/{good,good-copy,trial}.env  see state.py
    /npu-bsp/files/SHA256                kernels, RAM disks and DTBs by content: generations share them
    /npu-bsp/GENERATION/args.env         which of them a generation boots, and its command line

Root file system::

    /var/lib/npu-bsp/generations/GENERATION/{manifest.json,modules/RELEASE/,userspace/}
    /usr/local/lib/npu-bsp/, /etc/systemd/system/npu-bsp-*.service      see onboard/
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bsp.catalog import load_board, load_soc
from images.bundle.manifest import Bundle, Entry, Manifest

from .. import onboard
from ..onboard.script_image import script_image
from . import state

ONBOARD_DIR = Path(onboard.__file__).parent
BOOT_CMD = Path(__file__).parent / "boot.cmd"
_ADDRESSES = "# @ADDRESSES@"

FAT_FOLDER = "npu-bsp"
STORE = "var/lib/npu-bsp/generations"

MTIME_S = 946_684_800
"""All files of a generation carry this time (1 January 2000): one that was written to since shows it."""

_EXECUTABLE = 0o755


@dataclass(frozen=True)
class OnboardFile:
    """A file of npu-bsp outside the generations: its source, and its path below the root."""

    source: Path
    target: str
    mode: int


ONBOARD_FILES = (
    OnboardFile(ONBOARD_DIR / "activate", "usr/local/lib/npu-bsp/activate", _EXECUTABLE),
    OnboardFile(ONBOARD_DIR / "watch-trial", "usr/local/lib/npu-bsp/watch-trial", _EXECUTABLE),
    OnboardFile(
        ONBOARD_DIR / "npu-bsp-activate.service",
        "etc/systemd/system/npu-bsp-activate.service",
        0o644,
    ),
    OnboardFile(
        ONBOARD_DIR / "npu-bsp-trial.service", "etc/systemd/system/npu-bsp-trial.service", 0o644
    ),
)
ONBOARD_LINKS = {
    "etc/systemd/system/sysinit.target.wants/npu-bsp-activate.service": "../npu-bsp-activate.service",
    "etc/systemd/system/sysinit.target.wants/npu-bsp-trial.service": "../npu-bsp-trial.service",
}
"""What ``systemctl enable`` would make."""


def on_fat(entry: Entry) -> bool:
    """Return whether an entry of a bundle goes to the FAT boot partition."""
    return entry.path.startswith("boot/")


def fat_path(sha256: str) -> str:
    """Path on the partition, with its leading slash, of a boot file."""
    return f"/{FAT_FOLDER}/files/{sha256[:32]}"


def args_env(manifest: Manifest, cmdline: str, form: state.Form = state.Form.SCRIPT) -> bytes:
    """Return the ``args.env`` that boots a manifest with ``cmdline``."""
    return state.render_args(
        f"{cmdline} npu_bsp.generation={manifest.generation}",
        kernel=fat_path(manifest.entry("boot/kernel").sha256),
        initrd=fat_path(manifest.entry("boot/initrd").sha256),
        dtb=fat_path(manifest.entry("boot/board.dtb").sha256),
        form=form,
    )


def args_forms(manifest: Manifest, cmdline: str) -> dict[str, str]:
    """Return the ``args.env`` in each form."""
    return state.in_each_form(lambda form: args_env(manifest, cmdline, form))


def boot_script(board: str, *, root: str = "") -> bytes:
    """Return boot.cmd, compiled to the image that U-Boot runs, for a board; the same bytes each time.

    Args:
        board: name of its profile; where its SoC has no addresses, U-Boot's own variables count.
        root: folder of the partition that boot.scr and npu-bsp/ lie in: nothing, or ``/boot``.
    """
    text = BOOT_CMD.read_text(encoding="ascii")
    where = load_soc(load_board(board).soc).addresses
    lines = [
        f"setenv npu_at_{what} {getattr(where, what):#x}" if where else f"setenv npu_at_{what}"
        for what in ("kernel", "dtb", "initrd")
    ]
    lines.append(f"setenv npu_root {root}".rstrip())
    return script_image(text.replace(_ADDRESSES, "\n".join(lines)))


def lay_out(
    bundle: Bundle,
    fat_root: Path,
    rootfs_root: Path,
    *,
    cmdline: str | None = None,
    whole: bool = True,
) -> None:
    """Put a bundle as the good generation into two folders: the FAT partition's and the root's.

    The folders may hold other things already; a factory disk is made of them.

    Args:
        cmdline: kernel command line in place of the bundle's own.
        whole: with the files of the generation's folder; who makes a disk of it takes these from
            ``generation_files``.

    Raises:
        ValueError: the bundle takes its command line from a running board; there is none here.
    """
    manifest = bundle.manifest
    cmdline = cmdline or manifest.cmdline
    if cmdline is None:
        raise ValueError(f"{bundle.path}: a factory generation needs a kernel command line")
    fat_root.mkdir(parents=True, exist_ok=True)
    (fat_root / "boot.scr").write_bytes(boot_script(manifest.board))
    own = fat_root / FAT_FOLDER
    (own / "files").mkdir(parents=True, exist_ok=True)
    good = state.render_good(state.Good(bundle.generation))
    (own / "good.env").write_bytes(good)
    (own / "good-copy.env").write_bytes(good)
    (own / "trial.env").write_bytes(state.SPENT)
    (own / bundle.generation).mkdir(exist_ok=True)
    (own / bundle.generation / "args.env").write_bytes(args_env(manifest, cmdline))

    for entry in boot_entries(manifest):
        target = fat_root / fat_path(entry.sha256).lstrip("/")
        if not target.exists():
            shutil.copyfile(bundle.file(entry), target)
    for file in generation_files(bundle) if whole else ():
        target = rootfs_root / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.link is not None:
            target.symlink_to(file.link)
        else:
            shutil.copyfile(file.source, target)
            target.chmod(file.mode)
            os.utime(target, (MTIME_S, MTIME_S))
    install_onboard(rootfs_root)


@dataclass(frozen=True)
class GenerationFile:
    """A file of a generation's folder: its source, and its path below the root."""

    source: Path
    target: str
    mode: int
    link: str | None = None


def generation_files(bundle: Bundle) -> Iterator[GenerationFile]:
    """Return the files of a generation outside the FAT partition, by path."""
    folder = f"{STORE}/{bundle.generation}"
    yield GenerationFile(bundle.path / "manifest.json", f"{folder}/manifest.json", 0o644)
    for entry in bundle.manifest.files:
        if not on_fat(entry):
            yield GenerationFile(
                bundle.file(entry), f"{folder}/{entry.path}", entry.mode, entry.link
            )


def install_onboard(rootfs_root: Path) -> None:
    """Put the files of ``onboard/`` into a root file system, enabled."""
    for file in ONBOARD_FILES:
        target = rootfs_root / file.target
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.source, target)
        target.chmod(file.mode)
    for name, points_to in ONBOARD_LINKS.items():
        link = rootfs_root / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(points_to)


def boot_entries(manifest: Manifest) -> Iterator[Entry]:
    """Return the entries that go to the FAT partition."""
    return (entry for entry in manifest.files if on_fat(entry))
