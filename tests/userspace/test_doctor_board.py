# SPDX-License-Identifier: MIT
"""The doctor's visits to a virtual board with an NPU: healthy, and with faults really put in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bsp.board import ssh
from bsp.board.ssh import Connection
from tests.conftest import NpuBoard
from userspace.npu.doctor import doctor
from userspace.npu.doctor.facts import parse_facts
from userspace.npu.machine import DEPLOYED_USERSPACE

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
def fault(connection: Connection, name: str) -> Iterator[None]:
    put_in, take_out = FAULTS[name]
    try:
        connection.run(["sh", "-ec", put_in], timeout_s=60)
        yield
    finally:
        connection.run(["sh", "-c", take_out], timeout_s=60)


@pytest.mark.slow
def test_a_healthy_board(desk: NpuBoard) -> None:
    document = doctor.doctor(desk.host)
    assert document["first_broken"] is None, document["checks"]
    assert {check["status"] for check in document["checks"]} == {"ok"}
    assert document["generation"] == desk.result.to


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.full)
        for name in FAULTS
    ],
)
def test_a_fault_is_named_first(desk: NpuBoard, name: str) -> None:
    with ssh.connect(desk.host, timeout_s=60) as connection:
        with fault(connection, name):
            answer = doctor.ask(connection)
        document = doctor.judge(parse_facts(answer.text), host="desk")
    assert document["first_broken"] == name
    assert document["next"]
