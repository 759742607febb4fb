# SPDX-License-Identifier: MIT
"""What boot.cmd, the kernel and npu-bsp-activate do, on the folders of a FakeBoard. Starts fast."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from pathlib import Path

from bsp.dts.tree import read_tree
from images.deploy.boot import state

STORE = "var/lib/npu-bsp/generations"


def compile_dtb(source: str, target: Path) -> Path:
    subprocess.run(
        ["dtc", "-q", "-I", "dts", "-O", "dtb", "-o", str(target)],
        input=source.encode(),
        check=True,
    )
    return target


def tree_source(compatible: str = "linux,dummy-virt", extra: str = "") -> str:
    return f"""/dts-v1/;
/ {{ compatible = "{compatible}"; model = "A test board"; #address-cells = <2>; #size-cells = <2>;
    chosen {{ bootargs = "before"; }};
    memory@40000000 {{ device_type = "memory"; reg = <0 0x40000000 0 0x40000000>; }};
    npu@1000 {{ compatible = "vivante,gc"; reg = <0 0x1000 0 0x1000>; {extra} }};
}};"""


def boot(root: Path, *, trial_allowed: bool = True) -> str:
    """What boot.cmd, the kernel and npu-bsp-activate do, on folders. Returns the slot booted."""
    fat = root / "boot/firmware"
    own = fat / "npu-bsp"
    how = (root / "behaviour").read_text()
    if (fat / "extlinux/extlinux.conf").exists() or b"npu-bsp" not in _read(fat / "boot.scr"):
        return boot_old_way(root)
    trial = state.parse_trial(_read(own / "trial.env"))
    good = state.choose_good(_read(own / "good.env"), _read(own / "good-copy.env"))
    lacks = how.partition("lacks ")[2]  # what U-Boot needs to mark a trial as spent
    if lacks:
        trial = None
    else:
        (own / "trial.env").write_bytes(state.SPENT)
    slot = "trial" if trial and trial_allowed else "good"
    if slot == "good" and good is None:  # boot.cmd falls back on what it keeps
        kept = [fat / "extlinux/before-npu-bsp.conf", fat / "boot-before-npu-bsp.scr"]
        assert any(path.exists() for path in kept), "nothing boots this board"
        return boot_old_way(root, lacks)
    assert slot == "trial" or good
    generation = trial if slot == "trial" and trial else good.good if good else ""
    if slot == "trial" and how == "panic":
        return boot(root, trial_allowed=False)
    arguments = state.parse_args((own / generation / "args.env").read_bytes())
    assert arguments
    if slot == "trial" and how == "hang":
        return "hang"
    dtb = (fat / arguments["npu_dtb"].lstrip("/")).read_bytes()
    if slot == "trial" and how == "other-tree":
        dtb = compile_dtb(
            tree_source(extra='status = "disabled";'), root / "other.dtb"
        ).read_bytes()
    if slot == "trial" and how == "other-board":  # somebody exchanged it meanwhile
        (root / "proc/device-tree/serial-number").write_bytes(b"9999\0")
    (root / "sys/firmware/fdt").write_bytes(dtb)
    if how == "own-name":  # the tree that it boots with has another name for it than the one before
        strings = read_tree(dtb, "the deployed tree").get("/", "compatible") or b""
        (root / "proc/device-tree/compatible").write_bytes(strings)
    _write(root / "proc/cmdline", f"{arguments['npu_args']} npu_bsp.slot={slot}{_told(lacks)}\n")
    _write(root / "proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
    store = root / STORE / generation
    manifest = json.loads((store / "manifest.json").read_bytes())
    (root / "proc/sys/kernel/osrelease").write_text(manifest["kernel_release"] + "\n")
    shutil.rmtree(root / "run/npu-bsp", ignore_errors=True)
    (root / "run/npu-bsp").mkdir(parents=True)
    if not (slot == "trial" and how == "no-activate"):
        (root / "run/npu-bsp/current").symlink_to(store)
    modules = root / "lib/modules" / manifest["kernel_release"]
    if (store / "modules").exists():
        modules.unlink(missing_ok=True)
        modules.symlink_to(store / "modules" / manifest["kernel_release"])
    return slot


def _told(lacks: str) -> str:
    return f" npu_bsp.lacks={lacks}" if lacks else ""


def boot_old_way(root: Path, lacks: str = "") -> str:
    """What extlinux or a distribution's boot script does with the kernel in /boot.

    Args:
        lacks: what our boot script misses in U-Boot.
    """
    how = (root / "behaviour").read_text()
    told = "" if how.startswith("silently") else _told(lacks)
    (root / "sys/firmware/fdt").write_bytes((root / "boot/old.dtb").read_bytes())
    (root / "proc/cmdline").write_text(
        f"root=LABEL=old console=ttyAMA0 BOOT_IMAGE=/vmlinuz{told}\n"
    )
    _write(root / "proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
    shutil.rmtree(root / "run/npu-bsp", ignore_errors=True)
    return "old"


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _write(path: Path, text: str) -> None:
    """In one step: whoever polls sees what a kernel would say, before or after, and not an empty file."""
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.rename(path)


def boot_by_kexec(root: Path) -> str:
    """What the kernel does that the fake ``kexec -l`` was handed: it copies its files below ``loaded``."""
    how = (root / "behaviour").read_text()
    if how == "panic":
        return boot_old_way(root)
    if how == "hang":
        return "hang"
    dtb = (root / "loaded/dtb").read_bytes()
    if how == "other-tree":
        other = tree_source(extra='status = "disabled";')
        dtb = compile_dtb(other, root / "other.dtb").read_bytes()
    (root / "sys/firmware/fdt").write_bytes(dtb)
    _write(root / "proc/cmdline", (root / "loaded/cmdline").read_text())
    _write(root / "proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
    return "kexec"


def main() -> None:
    command, root = sys.argv[1], Path(sys.argv[2])
    ssh = root.parent / "ssh"
    if command == "reboot" and (root / "behaviour").read_text() == "stay":
        return
    slot = boot_by_kexec(root) if command == "kexec" else boot(root)
    if slot == "hang":  # nothing answers any more
        os.kill(int((ssh / "sshd.pid").read_text()), signal.SIGTERM)
    elif command == "power":
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin:/sbin")
        subprocess.Popen(
            [str(sshd), "-D", "-e", "-f", str(ssh / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


if __name__ == "__main__":
    main()
