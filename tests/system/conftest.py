# SPDX-License-Identifier: MIT
"""All tests of this folder boot QEMU: they are slow, whether they say so or not.

Its boards are started once, and stopped behind the last of these tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bsp.catalog import load_board
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.bundle.manifest import Bundle
from images.deploy.deployment import Deployment

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="package")
def boards_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder (``NPU_BSP_STATE``) that the virtual boards of this session share."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(folder))
        yield folder


@pytest.fixture(scope="package")
def virtual_board(boards_state: Path) -> Iterator[Host]:
    """One virtual board for all slow tests of a session: booted through U-Boot, answers over SSH.

    Its state folder is the session's, so that the user's virtual boards are left alone.
    Tests may deploy to it and reset it, and leave it answering.
    """
    from virtual.boards import boards

    boards.up("virtual")
    try:
        yield inventory.resolve("virtual")
    finally:
        boards.down("virtual")


@dataclass(frozen=True)
class NpuBoard:
    """A virtual board with an NPU that a deployment switched on; and what it was like before.

    Attributes:
        factory: the generation that it was made with.
        bundle: what was deployed.
    """

    host: Host
    factory: str
    status_at_birth: str
    dmesg_at_birth: str
    bundle: Bundle
    result: Deployment


@pytest.fixture(scope="package")
def npu_board(boards_state: Path) -> Iterator[NpuBoard]:
    """One virtual board with an emulated NPU for all slow tests of a session, our generation running.

    Tests leave it answering, with its NPU on; but for the last one of ``test_npu_board.py``.
    """
    from images.bundle.assemble import bundle_for
    from images.deploy.deploy import deploy
    from images.deploy.session import Target
    from images.deploy.status import status
    from virtual.boards import boards

    name = "virtual-a311d"
    boards.up(name)
    try:
        host = inventory.resolve(name)
        with ssh.connect(host, timeout_s=60) as connection:
            node = "/proc/device-tree/npu@10000000/status"
            born = connection.run(["cat", node], timeout_s=60).text
            dmesg = connection.run(["dmesg"], timeout_s=60).text
        factory = str(status(Target(host))["running"])
        bundle = bundle_for(load_board(name))
        result = deploy(Target(host), bundle=bundle, board=None)
        yield NpuBoard(host, factory, born, dmesg, bundle, result)
    finally:
        boards.down(name)
