# SPDX-License-Identifier: MIT
"""Boards that boot as other people's images do: up, the whole way to an NPU, and back.

The short test boots a layout with U-Boot as the distribution built it. The long ones take each layout from
"node disabled" to a passing Teflon row, through a device tree that hangs, to what it was before; they build
U-Boots and a kernel, so that the first run takes long.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from bsp.base.packages.apt import Archive
from bsp.base.project import PROJECT
from bsp.kernel.distribution import packaged
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from bsp.uboot import Trial
from images.deploy.adopt import adopt
from images.deploy.session import Target
from tests.support.live_board import reboot, said
from virtual.layouts.layout import LAYOUTS, Layout
from virtual.uboots.like import FDTFILE, uboot_like

pytestmark = [pytest.mark.network]

BOARD = "virtual-a311d"
BOOT_S = 600
NPU_STATUS = "/proc/device-tree/npu@10000000/status"
UBOOTS = {
    "armbian": "like:khadas-vim3",
    "toradex": "like:verdin-imx8mp",
    # Looks for scripts before it starts EFI programs; U-Boot's newer standard boot does not.
    "grub-efi": "like:khadas-vim3",
}
"""What the long tests boot a layout with, where it is not its default."""


def invoke(*words: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *words, "--json"],
        cwd=PROJECT, capture_output=True, text=True, check=False, timeout=3 * BOOT_S,
    )  # fmt: skip
    assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
    return dict(json.loads(done.stdout))


@contextmanager
def running(layout: str, state: Path, uboot: str = "") -> Iterator[Host]:
    from virtual.boards import boards

    name = f"of-{layout}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(state))
        boards.up(BOARD, name=name, layout=layout, uboot=uboot, timeout_s=BOOT_S)
        try:
            yield inventory.resolve(name)
        finally:
            boards.down(name)


def finds_npu(host: Host) -> bool:
    """Whether the driver has found the NPU; SSH answers while udev is still loading modules."""
    deadline = time.monotonic() + BOOT_S
    while "model: GC8000, revision: 7120" not in said(host, "dmesg"):
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def boot_files(host: Host) -> str:
    """Each file and link below what U-Boot reads, with its content's hash."""
    place = "/boot" if "/run/media" not in said(host, "cat", "/proc/mounts") else "/run/media"
    script = (
        f"cd {place} && find . -type f -exec sha256sum {{}} + | sort -k 2; "
        "find . -type l -printf '%p %l\\n' | sort"
    )
    return said(host, "sh", "-c", script)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("layout", "flags"),
    [("armbian", ("--dtb-only",)), ("extlinux-fat", ())],
    ids=["armbian", "extlinux-fat"],
)
def test_it_boots_with_its_npu_switched_off_and_is_adopted(
    layout: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    with running(layout, tmp_path) as host:
        assert said(host, "cat", NPU_STATUS) == "disabled\0"
        assert "npu_bsp" not in said(host, "cat", "/proc/cmdline")
        expected = LAYOUTS[layout]
        mounts = said(host, "cat", "/proc/mounts")
        assert (f" {expected.fat.mount} vfat" in mounts) if expected.fat else ("vfat" not in mounts)
        assert said(host, "modprobe", "--dry-run", "--verbose", "etnaviv")
        words = ("deploy", "--host", host.name, "--timeout", str(BOOT_S), "--adopt", *flags)
        adopted = invoke(*words)
        assert adopted["outcome"] == "confirmed"
        assert "npu_bsp.slot=trial" in said(host, "cat", "/proc/cmdline")
        assert said(host, "cat", NPU_STATUS) == ("okay\0" if flags else "disabled\0")
        if flags:
            assert finds_npu(host)
            assert invoke(*words)["outcome"] == "unchanged"


@pytest.mark.timeout(1200)
def test_it_boots_by_grub_and_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the root of the other layouts: one with Debian's own packages takes minutes to make."""
    bare = replace(LAYOUTS["grub-efi"], settings=None, packages=())
    monkeypatch.setitem(cast("dict[str, Layout]", LAYOUTS), "grub-efi", bare)
    with running("grub-efi", tmp_path, UBOOTS["grub-efi"]) as host:
        assert said(host, "cat", NPU_STATUS) == "disabled\0"
        assert "BOOT_IMAGE=/boot/vmlinuz-" in said(host, "cat", "/proc/cmdline")
        words = ("deploy", "--host", host.name, "--timeout", str(BOOT_S), "--adopt")
        found = invoke(*words, "--dry-run")["survey"]
        assert found["layout"] == "grub-efi", found
        assert invoke(*words)["outcome"] == "confirmed"
        assert "npu_bsp.slot=trial" in said(host, "cat", "/proc/cmdline")


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_node_disabled_to_an_npu_and_back(layout: str, tmp_path: Path) -> None:
    with running(layout, tmp_path, UBOOTS.get(layout, "")) as host:
        before = boot_files(host)
        switched_on = switch_on(host, tmp_path)
        if layout == "armbian":
            falls_back(host, tmp_path)
        hangs(host, tmp_path)
        deployed_and_rolled_back(host, switched_on)
        give_back(host)
        assert boot_files(host) == before


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("layout", "lacks"),
    [("armbian", ()), ("armbian", ("cmp",)), ("toradex", ())],
    ids=["armbian", "armbian-cmp", "toradex"],
)
def test_a_u_boot_that_is_not_known_is_asked_before_a_trial(
    layout: str, lacks: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A maker's own, which may lack what no U-Boot of upstream's lacks; Armbian's script hands that on."""
    uboot = UBOOTS.get(layout) or LAYOUTS[layout].uboot
    known = uboot_like(uboot)
    name = "-without-".join([known.name, *lacks])
    own = msgspec.structs.replace(known, name=name, lacks=(*known.lacks, *lacks))
    monkeypatch.setattr("virtual.boards.way.uboot_like", lambda _: own)
    monkeypatch.setattr("images.deploy.adopt.trial_of", lambda _: Trial("asked", "not known"))
    with running(layout, tmp_path, uboot) as host:
        before = boot_files(host)
        result = adopt(Target(host, timeout_s=BOOT_S), board=None)
        steps = [str(each["name"]).partition(" boot")[0] for each in result.steps]
        line = said(host, "cat", "/proc/cmdline")
        if lacks:
            assert result.outcome == "rolled-back"
            # U-Boot has its commands that read and write memory together.
            assert result.uboot_lacks == ("mw", "cmp"), (result.problem, line)
            assert "npu_bsp.lacks=mw,cmp" in line
            assert "Trial" not in steps
            assert boot_files(host) == before
        else:
            assert result.outcome == "confirmed", result.problem
            assert steps.index("Probe") < steps.index("Trial")
            assert "npu_bsp.slot=trial" in line
            assert "npu_bsp.lacks" not in line


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_tried_by_kexec(tmp_path: Path) -> None:
    with running("armbian", tmp_path, UBOOTS["armbian"]) as host:
        try_by_kexec(host)


@pytest.mark.full
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("layout", "keeper"),
    [
        ("armbian", "armbian"),
        ("extlinux-ext4", "u-boot-menu"),
        ("grub-efi", "grub"),
        ("toradex", "toradex"),
    ],
)
def test_kept_by_the_distribution(layout: str, keeper: str, tmp_path: Path) -> None:
    with running(layout, tmp_path, UBOOTS.get(layout, "")) as host:
        install(host, "kexec-tools")
        if (
            layout == "grub-efi"
        ):  # what its installer does, which cannot be done while there is no board
            said(host, "grub-install", "--efi-directory=/boot/efi", "--removable", "--no-nvram")
            said(host, "update-grub")
        persist(host, keeper)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_an_update_of_the_kernel_where_the_distribution_keeps_the_npu_on(tmp_path: Path) -> None:
    with running("extlinux-ext4", tmp_path) as host:
        install(host, "kexec-tools")
        before = boot_files(host)
        keep(host, "u-boot-menu")
        new = updated(host)
        reboot(host, timeout_s=BOOT_S)
        state = invoke("status", "--host", host.name)
        assert (state["kernel"], state["npu_on"], state["kept_by"]) == (new, True, "u-boot-menu")
        assert finds_npu(host)
        invoke("deploy", "--host", host.name, "--undo")
        after = boot_files(host)
        assert "npu-bsp" not in after
        changed = set(before.splitlines()) - set(after.splitlines())
        assert {line.split()[1] for line in changed} == {"./extlinux/extlinux.conf"}
        said(host, "u-boot-update")  # as it writes that without us
        assert boot_files(host) == after


# Armbian's kernels are not in Debian's archive, and foreign images have no package of theirs installed.
DEBIANS = sorted(name for name, layout in LAYOUTS.items() if layout.settings)


@pytest.mark.full
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("layout", DEBIANS)
def test_an_update_of_the_kernel_of_an_adopted_board(layout: str, tmp_path: Path) -> None:
    """Where packages write what U-Boot reads first, their kernel runs; else the generation runs on."""
    with running(layout, tmp_path, UBOOTS.get(layout, "")) as host:
        switch_on(host, tmp_path)
        old = said(host, "uname", "-r").strip()
        new = updated(host)
        said(host, "rm", "-r", f"/lib/modules/{old}")  # as removing the old package does
        rivals = invoke("status", "--host", host.name)["rivals"]
        assert rivals == (["extlinux/extlinux.conf"] if layout == "extlinux-ext4" else [])
        reboot(host, timeout_s=BOOT_S)
        state = invoke("status", "--host", host.name)
        assert state["kernel"] == (new if rivals else old)
        assert state["npu_on"] == (not rivals)
        if rivals:
            assert state["running"] is None
            switch_on(host, tmp_path, first_broken="boot-script")
            assert said(host, "uname", "-r").strip() == new
        else:
            assert state["running"] == state["good"]
        assert finds_npu(host)


def switch_on(host: Host, folder: Path, *, first_broken: str = "status") -> str:
    """Adopt a board, and put a tree with the NPU on trial; return the generation that has it."""
    words = ("--host", host.name, "--timeout", str(BOOT_S))
    found = invoke("doctor", "--host", host.name, code=4)
    assert found["first_broken"] == first_broken, found["first_broken"]

    tree = folder / "of-the-board.dtb"
    built = invoke("build-dts", "--from-host", host.name, "--output", str(tree))
    assert [(each["property"], each["after"]) for each in built["changes"]] == [("status", "okay")]

    adopted = invoke("deploy", *words, "--adopt")
    assert adopted["outcome"] == "confirmed"
    assert adopted["running_dtb_matches"] is True
    tried = invoke("deploy", *words, "--dtb-only")
    assert tried["outcome"] == "confirmed"
    assert finds_npu(host)
    return str(tried["to"])


def falls_back(host: Host, folder: Path) -> None:
    """A tree without the PCI host, where the disk is: the RAM disk gives up, and the kernel panics."""
    without_disk = folder / "without-disk.dtb"
    without_disk.write_bytes(said_bytes(host, "/sys/firmware/fdt"))
    subprocess.run(["fdtput", "-r", str(without_disk), "/pcie@10000000"], check=True)
    rolls_back(host, without_disk, timeout_s=240)


def hangs(host: Host, folder: Path) -> None:
    """A tree with which the kernel stops before its first interrupt, and cannot even reset itself."""
    silent = folder / "silent.dtb"
    silent.write_bytes(said_bytes(host, "/sys/firmware/fdt"))
    for node in ("/intc@8000000", "/psci"):
        subprocess.run(["fdtput", "-t", "s", str(silent), node, "compatible", "none"], check=True)
    fell = rolls_back(host, silent, timeout_s=90)
    assert "did not answer within 90 s" in fell["problem"], fell["problem"]


def rolls_back(host: Host, tree: Path, *, timeout_s: int) -> dict[str, Any]:
    """Try a tree with which the board does not come up; the one before runs again, by itself or reset."""
    words = ("--host", host.name, "--timeout", str(timeout_s))
    fell = invoke("deploy", *words, "--dtb-only", "--dtb", str(tree), code=5)
    assert fell["outcome"] == "rolled-back"
    assert finds_npu(host)
    return fell


def deployed_and_rolled_back(host: Host, before: str) -> None:
    """A kernel, tree and userspace of ours, and back to what ran before."""
    words = ("--host", host.name, "--timeout", str(BOOT_S))
    whole = invoke("deploy", *words)
    assert whole["outcome"] == "confirmed"
    row = teflon(host)
    assert row["status"] == "pass", row
    assert invoke("rollback", *words)["to"] == before


def give_back(host: Host) -> None:
    """Have the board boot as before it was adopted."""
    invoke("deploy", "--host", host.name, "--undo")
    reboot(host, timeout_s=BOOT_S)
    assert "npu_bsp" not in said(host, "cat", "/proc/cmdline")
    assert said(host, "cat", NPU_STATUS) == "disabled\0"


def try_by_kexec(host: Host) -> None:
    """The NPU on by kexec, and off after the next reset: nothing on the disk has changed."""
    install(host, "kexec-tools")
    before = boot_files(host)
    tried = invoke("deploy", "--host", host.name, "--timeout", str(BOOT_S), "--try")
    assert tried["outcome"] == "tried"
    assert tried["running_dtb_matches"] is True
    assert "npu_bsp.try=" in said(host, "cat", "/proc/cmdline")
    assert finds_npu(host)
    assert boot_files(host) == before
    reboot(host, timeout_s=BOOT_S)
    assert said(host, "cat", NPU_STATUS) == "disabled\0"


def keep(host: Host, keeper: str) -> None:
    """Have the distribution keep the NPU on."""
    words = ("--host", host.name)
    kept = invoke("deploy", *words, "--timeout", str(BOOT_S), "--try", "--persist")
    assert kept["outcome"] == "persisted", kept
    assert kept["running_dtb_matches"] is True
    assert "npu_bsp" not in said(host, "cat", "/proc/cmdline")
    assert finds_npu(host)
    assert invoke("status", *words)["kept_by"] == keeper


def persist(host: Host, keeper: str) -> None:
    """The NPU kept on by the distribution, through a reset; and off again, with every file as it was."""
    before = boot_files(host)
    keep(host, keeper)
    reboot(host, timeout_s=BOOT_S)
    assert finds_npu(host)
    invoke("deploy", "--host", host.name, "--undo")
    assert boot_files(host) == before
    reboot(host, timeout_s=BOOT_S)
    assert said(host, "cat", NPU_STATUS) == "disabled\0"


def updated(host: Host) -> str:
    """Install a newer kernel of Debian's, as its own updates do; return its release."""
    suite, package, _ = packaged("7.3", image=True)
    debs = Archive(suite, "arm64").download([package], with_dependencies=True)
    old, new = said(host, "uname", "-r").strip(), package.removeprefix("linux-image-")
    # Packages have the trees of boards that exist.
    tree = f"/usr/lib/linux-image-{old}/{FDTFILE}"
    put = f"test ! -e {tree} || install -D -t /usr/lib/linux-image-{new} {tree}"
    said(host, "sh", "-c", put)
    # Of what it depends on, the board has the rest; what makes RAM disks is initramfs-tools there.
    debs = [deb for deb in debs if deb.name.startswith("linux-")]
    needed_first = [deb for deb in debs if deb.name.startswith("linux-base_")]
    for some in (needed_first, [deb for deb in debs if deb not in needed_first]):
        install_files(host, some)
    return new


def install(host: Host, package: str) -> None:
    """Install a package with what it depends on."""
    there = set(said(host, "dpkg-query", "--show", "--showformat", "${Package}\n").split())
    debs = Archive("trixie", "arm64").download([package], with_dependencies=True)
    install_files(host, [deb for deb in debs if deb.name.partition("_")[0] not in there])


def install_files(host: Host, debs: list[Path]) -> None:
    """As ``apt install`` does, with packages of this machine's cache: the board has no network."""
    with ssh.connect(host, timeout_s=120) as connection:
        connection.run(["mkdir", "--parents", "/var/tmp/debs"])
        for deb in debs:
            put = ["sh", "-c", f"cat > '/var/tmp/debs/{deb.name}'"]
            connection.run(put, stdin=deb.read_bytes(), timeout_s=300)
        command = "DEBIAN_FRONTEND=noninteractive dpkg --install *.deb && rm -r /var/tmp/debs"
        connection.run(["sh", "-c", f"cd /var/tmp/debs && {command}"], timeout_s=1800)


def said_bytes(host: Host, path: str) -> bytes:
    with ssh.connect(host, timeout_s=120) as connection:
        return connection.run(["cat", path], timeout_s=120).stdout


def teflon(host: Host) -> dict[str, Any]:
    from userspace.npu.validate.label_image import SmokeTestRequest
    from userspace.npu.validate.smoke import smoke_test

    request = SmokeTestRequest(delegate="cpu,teflon", runs=1, budget_s=2, views=0)
    rows = smoke_test("label_image", request, host=host)["results"]
    return dict(next(row for row in rows if row["delegate"] == "teflon"))
