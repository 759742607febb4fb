# SPDX-License-Identifier: MIT
"""The doctor's visits to a virtual board with an NPU: healthy, and with faults really put in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bsp.remote import inventory, ssh
from bsp.remote.ssh import Connection
from tests.support.kernel_modules import compiled
from userspace.npu.doctor import doctor
from userspace.npu.doctor.facts import parse_facts
from userspace.npu.validate.machine import DEPLOYED_USERSPACE
from virtual.boards import boards

from .conftest import NpuBoard

_LIBRARY = f"$(readlink -f {DEPLOYED_USERSPACE}/lib/libteflon.so)"
_MANIFEST = f"$(readlink -f {DEPLOYED_USERSPACE}/manifest.json)"
# Put in, take out. The files of a generation stay as they are: others are mounted over them.
FAULTS = {
    "permissions": (
        "chmod 600 /dev/dri/renderD128",
        "chmod 660 /dev/dri/renderD128",
    ),
    "library": (f"mount --bind /dev/null {_LIBRARY}", f"umount {_LIBRARY}"),
    "module": (
        "echo 'blacklist etnaviv' >/etc/modprobe.d/test.conf; modprobe -r etnaviv",
        "rm /etc/modprobe.d/test.conf; modprobe etnaviv; udevadm settle",
    ),
    # The same library with another version in its strings: a Mesa that old has no package.
    "mesa": (
        f"sed 's/25\\.0\\.7-2/24.0.7-2/' {_LIBRARY} >/tmp/old.so; mount --bind /tmp/old.so {_LIBRARY}",
        f"umount {_LIBRARY}; rm /tmp/old.so",
    ),
    "runtime": (
        f'sed \'s/"python": "3.13"/"python": "3.11"/\' {_MANIFEST} >/tmp/m.json; '
        f"mount --bind /tmp/m.json {_MANIFEST}",
        f"umount {_MANIFEST}; rm /tmp/m.json",
    ),
    # As in a container that was not given the device.
    "container": (
        "touch /.dockerenv; mv /dev/dri/renderD128 /dev/dri/hidden",
        "rm /.dockerenv; mv /dev/dri/hidden /dev/dri/renderD128",
    ),
    # The same library, whose only driver for NPUs has another's name.
    "delegate-driver": (
        f"LC_ALL=C sed 's/\\x00etnaviv\\x00/\\x00rocket\\x00\\x00/g' {_LIBRARY} >/tmp/other.so; "
        f"mount --bind /tmp/other.so {_LIBRARY}",
        f"umount {_LIBRARY}; rm /tmp/other.so",
    ),
    "vendor-runtime": (
        f"touch /usr/lib/librknnrt.so; mount --bind /dev/null {_LIBRARY}",
        f"rm /usr/lib/librknnrt.so; umount {_LIBRARY}",
    ),
    # What the kernel says when it cuts an unused regulator, before the driver is there.
    "supplies": (
        "modprobe -r etnaviv; echo '<6>vdd_npu: disabling' >/dev/kmsg",
        "modprobe etnaviv; udevadm settle",
    ),
    # As if npu-bsp had not booted it: a script behind the first partition's, and newer.
    "boot-script": (
        "echo console=ttyAMA0 >/tmp/cmdline; mount --bind /tmp/cmdline /proc/cmdline; echo >/boot/boot.scr",
        "rm /boot/boot.scr; umount /proc/cmdline; rm /tmp/cmdline",
    ),
    # A server that looks for a GPU, and a display in sysfs: Debian's kernel has no driver without one.
    "displays": (
        "cp -a /sys/class/drm /tmp/drm; mkdir -p /tmp/drm/card9/device /tmp/drm/card9/card9-HDMI-A-1; "
        "ln -s /nowhere/meson-drm /tmp/drm/card9/device/driver; mount --bind /tmp/drm /sys/class/drm; "
        "mkdir -p /usr/lib/xorg; touch /usr/lib/xorg/Xorg; chmod 755 /usr/lib/xorg/Xorg",
        "umount /sys/class/drm; rm -r /tmp/drm /usr/lib/xorg",
    ),
}
# The same with kernel modules of the tests, which `modules` has put into /tmp.
MODULE_FAULTS = {
    "stack": (
        "modprobe -r etnaviv; insmod /tmp/galcore.ko",
        "rmmod galcore; modprobe etnaviv; udevadm settle",
        "galcore, the vendor's driver, holds the NPU",
    ),
    "memory": (
        "modprobe -r etnaviv; insmod /tmp/cma_holder.ko; modprobe etnaviv",
        "modprobe -r etnaviv; rmmod cma_holder; modprobe etnaviv; udevadm settle",
        "of 65536 KiB free",
    ),
}
SLOW = ("permissions", "library", "module")
pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def desk(npu_board: NpuBoard) -> NpuBoard:
    """The board of this session, its driver loaded anew: other tests have had it hang and fault."""
    with ssh.connect(npu_board.host, timeout_s=60) as connection:
        again = "modprobe -r etnaviv; modprobe etnaviv; udevadm settle"
        connection.run(["sh", "-ec", again], timeout_s=60)
    return npu_board


@contextmanager
def fault(connection: Connection, put_in: str, take_out: str) -> Iterator[None]:
    try:
        connection.run(["sh", "-ec", put_in], timeout_s=60)
        yield
    finally:
        connection.run(["sh", "-c", take_out], timeout_s=60)


def test_a_healthy_board(desk: NpuBoard) -> None:
    document = doctor.doctor(desk.host)
    assert document["first_broken"] is None, document["checks"]
    assert {check["status"] for check in document["checks"]} == {"ok"}
    assert document["generation"] == desk.result.to


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SLOW else pytest.mark.full) for name in FAULTS],
)
def test_a_fault_is_named_first(desk: NpuBoard, name: str) -> None:
    with ssh.connect(desk.host, timeout_s=60) as connection:
        with fault(connection, *FAULTS[name]):
            answer = doctor.ask(connection)
        document = doctor.judge(parse_facts(answer.text), host="desk")
    assert document["first_broken"] == name
    assert document["next"]


@pytest.fixture(scope="module")
def modules(desk: NpuBoard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Put the tests' kernel modules on the board."""
    with ssh.connect(desk.host, timeout_s=60) as connection:
        release = connection.run(["uname", "-r"], timeout_s=60).text.strip()
        made = compiled(["galcore", "cma_holder"], release, tmp_path_factory.mktemp("kernel"))
        for name, file in made.items():
            put = f"cat >/tmp/{name}.ko"
            connection.run(["sh", "-c", put], stdin=file.read_bytes(), timeout_s=60)
        yield connection
        connection.run(["rm", *(f"/tmp/{name}.ko" for name in made)], timeout_s=60)


@pytest.mark.full
@pytest.mark.parametrize("name", MODULE_FAULTS)
def test_a_fault_in_the_kernel_is_named_first(modules: Connection, name: str) -> None:
    put_in, take_out, found = MODULE_FAULTS[name]
    with fault(modules, put_in, take_out):
        answer = doctor.ask(modules)
    document = doctor.judge(parse_facts(answer.text), host="desk")
    assert document["first_broken"] == name, document["checks"]
    assert found in next(each["found"] for each in document["checks"] if each["name"] == name)


@pytest.mark.full
def test_a_kernel_that_is_too_old(boards_state: Path) -> None:
    """The board's disk with Linux 6.1, whose etnaviv does not know the NPU."""
    boards.up("virtual-a311d", name="old", kernel="6.1")
    try:
        document = doctor.doctor(inventory.resolve("old"))
    finally:
        boards.down("old")
    assert document["kernel"].startswith("6.1.")
    assert document["first_broken"] == "kernel", document["checks"]
    assert "--kernel 6.12" in document["next"]
