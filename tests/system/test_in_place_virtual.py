# SPDX-License-Identifier: MIT
"""A board as a distribution leaves it, its NPU off: taken over, switched on, switched back, given back.

A real U-Boot, a real kernel, five boots under emulation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bsp.base.process import run
from bsp.base.project import PROJECT
from bsp.remote import inventory
from bsp.remote.inventory import Host
from tests.support.live_board import reboot, said

pytestmark = [pytest.mark.full, pytest.mark.network, pytest.mark.timeout(3600)]

NAME = "virtual-a311d"
BOOT_S = 600

# As flash-kernel's: loads by the names that U-Boot's standard boot gives, and sets its own command line.
SCRIPT = """\
setenv fdt_addr_r 0x48000000
setenv bootargs "console=ttyAMA0 root=LABEL=npu-root rw rootwait"
load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} /vmlinuz
load ${devtype} ${devnum}:${distro_bootpart} ${fdt_addr_r} /board.dtb
load ${devtype} ${devnum}:${distro_bootpart} ${ramdisk_addr_r} /initrd.img
booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr_r}
"""


def invoke(*words: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *words, "--json"],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=3 * BOOT_S,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return dict(json.loads(done.stdout))


def make_stock(host: Host, folder: Path) -> None:
    """Make a fresh virtual board a board that knows nothing of us, and boot it so."""
    (folder / "boot.cmd").write_text(SCRIPT)
    script = folder / "boot.scr"
    run(["mkimage", "-A", "arm64", "-T", "script", "-d", folder / "boot.cmd", script])
    said(host, "tee", "/root/boot.scr", stdin=script.read_bytes())
    said(host, "sh", "-s", "/root/boot.scr",
         stdin=(PROJECT / "tests/support/onboard/make_stock.sh").read_bytes())  # fmt: skip
    reboot(host, timeout_s=BOOT_S)
    assert "npu_bsp" not in said(host, "cat", "/proc/cmdline")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    from virtual.boards import boards

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(tmp_path_factory.mktemp("state")))
        boards.up(NAME)
        try:
            host = inventory.resolve(NAME)
            make_stock(host, tmp_path_factory.mktemp("stock"))
            yield host
        finally:
            boards.down(NAME)


def test_from_stock_to_an_npu_and_back(stock: Host) -> None:
    words = ("--host", NAME, "--timeout", str(BOOT_S))
    built = invoke("build-dts", "--from-host", NAME)
    assert [(each["property"], each["after"]) for each in built["changes"]] == [("status", "okay")]
    assert built["kernel_facts"]["driver"] == "module"
    assert built["kernel_facts"]["knows_npu"] is True
    assert "etnaviv" not in said(stock, "dmesg")
    invoke("deploy", *words, "--dtb-only", code=2)  # no way back there yet

    adopted = invoke("deploy", *words, "--adopt")
    assert adopted["outcome"] == "confirmed"
    assert adopted["running_dtb_matches"] is True

    tried = invoke("deploy", *words, "--dtb-only")
    assert tried["outcome"] == "confirmed"
    assert tried["files_sent"] == 1
    log = said(stock, "dmesg")
    assert "model: GC8000, revision: 7120" in log
    assert "renderD128" in said(stock, "ls", "/dev/dri")
    assert invoke("deploy", *words, "--dtb-only")["outcome"] == "unchanged"

    back = invoke("rollback", *words)
    assert back["to"] == adopted["to"]
    assert "etnaviv" not in said(stock, "dmesg")

    assert "boot.scr" in invoke("deploy", *words, "--undo")["returned"]
    reboot(stock, timeout_s=BOOT_S)
    assert "npu_bsp" not in said(stock, "cat", "/proc/cmdline")
