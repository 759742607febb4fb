# SPDX-License-Identifier: MIT
"""The whole way: an image that was built here boots, is flashed onto a second disk over a link that is cut
twice, and boots from there; a device that vanishes in the middle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.catalog import load_board
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.disk.image import ImageRequest, build_image
from images.flash.command import FlashRequest, flash
from virtual.boards import boards

from ..support import local_sshd
from ..support.relay import Relay

pytestmark = [pytest.mark.full, pytest.mark.network]
_UP_S = 1200.0


@dataclass(frozen=True)
class Second:
    """A board that runs from an image and has a second disk, and another image for that."""

    host: Host
    image: Path
    target: Path
    identity: Path


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    folder = tmp_path_factory.mktemp("images")
    key = local_sshd.make_key(folder / "user")
    host_key = local_sshd.make_key(folder / "host")
    board = load_board("virtual")
    request = ImageRequest(board=board, ssh_key=folder / "user.pub", host_key=host_key)
    first = build_image(replace(request, output=folder / "first.img")).path
    other = replace(request, hostname="second-disk", host_key=None, output=folder / "second.img")
    image = build_image(other).path
    target = folder / "target.img"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(tmp_path_factory.mktemp("state")))
        boards.up("virtual", name="flash", disk=first, extra_disk=f"{target}:4G", timeout_s=_UP_S)
        try:
            yield Second(inventory.resolve("flash"), image, target, key)
        finally:
            if "flash" in {board.name for board, _ in boards.listed().boards}:
                boards.down("flash")


def _run(host: Host, *words: str) -> str:
    with ssh.connect(host, timeout_s=60) as connection:
        return connection.run(words, timeout_s=120).text.strip()


def test_the_running_root_is_never_overwritten(second: Second) -> None:
    with pytest.raises(UserError, match="root file system"):
        flash(FlashRequest("/dev/vda", second.image, host=second.host), yes=True)
    _run(second.host, "umount", "/boot/firmware")
    try:
        with pytest.raises(UserError, match="partition"):
            flash(FlashRequest("/dev/vda1", second.image, host=second.host), yes=True)
    finally:
        _run(second.host, "mount", "/boot/firmware")


def test_a_device_that_vanishes_while_it_is_written_to(second: Second) -> None:
    device = _run(second.host, "readlink", "-f", "/sys/class/block/vdb/device/..")
    assert "/pci" in device

    begun = "until test -e /var/lib/npu-bsp/flash/vdb.json; do sleep 0.2; done"

    def pull() -> None:
        _run(second.host, "timeout", "100", "sh", "-c", f"{begun}; echo 1 > {device}/remove")

    puller = threading.Thread(target=pull)
    puller.start()
    try:
        with pytest.raises(InfrastructureError) as raised:
            flash(FlashRequest("/dev/vdb", second.image, host=second.host), yes=True)
    finally:
        puller.join()
        _run(second.host, "sh", "-c", "echo 1 > /sys/bus/pci/rescan; udevadm settle")
    assert "disappeared" in raised.value.message or "cannot be written" in raised.value.message
    assert len(raised.value.message.splitlines()) == 1


def test_an_image_is_flashed_with_the_link_cut_twice_and_boots_from_there(
    second: Second, tmp_path: Path
) -> None:
    with Relay(second.host.port, cut_after_bytes=(30_000_000, 70_000_000)) as relay:
        known = tmp_path / "known_hosts"
        assert second.host.known_hosts
        key = second.host.known_hosts.read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{relay.port} {key}")
        host = replace(second.host, port=relay.port, known_hosts=known)
        result = flash(FlashRequest("/dev/vdb", second.image, host=host), yes=True)
        assert relay.cuts == 2
    assert result.verified_bytes == result.plan["mapped_bytes"]
    assert result.chunks_sent < result.chunks + 60
    boards.down("flash")
    boards.up(
        "virtual", name="flashed", disk=second.target, identity=second.identity, timeout_s=_UP_S
    )
    try:
        flashed = inventory.resolve("flashed")
        assert _run(flashed, "hostname") == "second-disk"
        assert _run(flashed, "systemctl", "is-system-running") == "running"
    finally:
        boards.down("flashed")
