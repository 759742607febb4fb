# SPDX-License-Identifier: MIT
"""A board made of a folder: a real SSH server, a FAT partition and a root that are folders, and a
"reboot" that does what boot.cmd and the kernel would, including falling and hanging.

The real boot script in a real U-Boot, and real kernels, are tested in test_boot_script.py and
test_deploy_virtual.py; this is for the many cases that need no kernel.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel
from bsp.profile import Board
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Parts
from images.deploy.boot import slots, state
from images.deploy.session import Target

from . import local_sshd
from .fake_boot import boot, compile_dtb, tree_source

BOARD_MARKS = [
    pytest.mark.usefixtures("own_hosts"),
    pytest.mark.skipif(
        local_sshd.find_sshd() is None, reason="sshd is not installed (openssh-server)"
    ),
    pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed"),
    pytest.mark.skipif(
        shutil.which("mkimage") is None, reason="mkimage is not installed (u-boot-tools)"
    ),
]
"""For a file of tests on such boards."""
RELEASE = "6.12.1-test"
BOARD = "virtual"


def make_bundle(
    folder: Path,
    *,
    modules: dict[str, bytes] | None = None,
    kernel: bytes = b"kernel image",
    initrd: bytes = b"initrd",
    dtb_extra: str = "",
    compatible: str = "linux,dummy-virt",
    userspace: dict[str, bytes] | None = None,
    board: Board | None = None,
    cmdline: str | None = "console=ttyAMA0 root=LABEL=npu-root",
) -> Bundle:
    """A small bundle; ``folder`` holds its parts and itself."""
    folder.mkdir(parents=True)
    tree = folder / "parts" / "modules"
    if modules is None:
        modules = {
            f"kernel/drivers/m{number}.ko": b"module %d" % number * 50 for number in range(20)
        }
    for name, content in {"modules.dep": b"", **modules}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "kernel" / "link.ko").symlink_to("drivers/m0.ko")
    (folder / "parts" / "vmlinuz").write_bytes(kernel)
    (folder / "parts" / "initrd").write_bytes(initrd)
    dtb = compile_dtb(tree_source(compatible, dtb_extra), folder / "parts" / "board.dtb")
    payload = None
    if userspace is not None:
        payload = folder / "parts" / "userspace"
        for name, content in userspace.items():
            (payload / name).parent.mkdir(parents=True, exist_ok=True)
            (payload / name).write_bytes(content)
    parts = folder / "parts"
    built = PrebuiltKernel(
        "6.12", RELEASE, parts / "vmlinuz", tree, parts, parts / "vmlinuz", "linux-image-test", "1"
    )
    record = board or load_board(BOARD)
    return bundles.assemble(
        Parts(record, built, parts / "initrd", dtb, payload, cmdline), folder / "bundle"
    )


class FakeBoard:
    """See the module's docstring. ``behave`` says what trials do."""

    def __init__(self, folder: Path, factory: Bundle) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.fat = self.root / "boot" / "firmware"
        for name in (
            "proc/sys/kernel/random",
            "proc/device-tree",
            "sys/firmware",
            "run",
            "var/lib",
            "lib/modules",
        ):
            (self.root / name).mkdir(parents=True)
        self.fat.mkdir(parents=True)
        slots.lay_out(factory, self.fat, self.root)
        (self.root / "proc/device-tree/compatible").write_bytes(b"linux,dummy-virt\0")
        (self.root / "proc/device-tree/model").write_bytes(b"A test board\0")
        self.behave("ok")
        boot(self.root)
        self.sshd = local_sshd.start(folder / "ssh")
        self.host: Host = replace(self.sshd.host, name="fake", board=BOARD, power=self.power)

    @property
    def power(self) -> tuple[str, ...]:
        return self._command("power")

    def _command(self, what: str) -> tuple[str, ...]:
        boot = [sys.executable, "-m", "tests.support.fake_boot", what, str(self.root)]
        program = f"cd {shlex.quote(str(PROJECT))} && exec {shlex.join(boot)}"
        return ("/bin/sh", "-c", program)

    def behave(self, how: str) -> None:
        """What the next trial does.

        ok | panic | hang | stay (no reboot) | other-tree | own-name | no-activate | lacks NAME |
        silently lacks NAME

        The last two: U-Boot lacks a command that marking a trial as spent takes; what boots in place of the
        trial is told, or is not.
        """
        (self.root / "behaviour").write_text(how)

    def target(self, *, timeout_s: float = 10, **changes: object) -> Target:
        return Target(
            replace(self.host, **changes),  # type: ignore[arg-type]
            timeout_s=timeout_s,
            recovery_s=timeout_s,
            root=str(self.root),
            reboot=self._command("reboot"),
            kexec=self._command("kexec"),
        )

    def good(self) -> state.Good | None:
        own = self.fat / "npu-bsp"
        return state.choose_good(
            (own / "good.env").read_bytes(), (own / "good-copy.env").read_bytes()
        )

    def trial(self) -> str | None:
        return state.parse_trial((self.fat / "npu-bsp" / "trial.env").read_bytes())

    def running(self) -> str:
        return str((self.root / "run/npu-bsp/current").readlink().name)

    def snapshot(self) -> dict[str, bytes | str]:
        """All that a board would notice: each file of the FAT partition and of the generations."""
        found: dict[str, bytes | str] = {}
        for folder in (self.fat, self.root / slots.STORE):
            for path in sorted(folder.rglob("*")):
                if ".partial" in str(path):
                    continue
                if path.is_symlink():
                    found[str(path)] = str(path.readlink())
                elif path.is_file():
                    found[str(path)] = path.read_bytes()
        return found

    def close(self) -> None:
        pid_file = self.folder / "ssh" / "sshd.pid"
        if self.sshd.process.poll() is None:
            self.sshd.stop()
        elif pid_file.exists():  # the server that "power" started
            os.kill(int(pid_file.read_text()), signal.SIGTERM)
        # The board's half of a session may still be giving its lease back, into this folder.
        deadline = time.monotonic() + 10
        while sessions := self._sessions():
            if time.monotonic() > deadline:
                for pid in sessions:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def _sessions(self) -> list[int]:
        """Processes of SSH sessions to this board: it is in their environment."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in environ.read_bytes():
                    found.append(int(environ.parent.name))
        return found
