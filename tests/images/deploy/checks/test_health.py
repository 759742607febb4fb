# SPDX-License-Identifier: MIT
"""What is checked on a trial before it is confirmed, on a board made of a folder."""

from __future__ import annotations

import base64
import zlib
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bsp.catalog import load_board
from bsp.profile import Board, Health
from bsp.remote.inventory import Host
from images.bundle.manifest import Bundle
from images.deploy.boot import state
from images.deploy.checks.health import Checks, checks_for, examine
from images.deploy.checks.switched_off import is_on
from images.deploy.deploy import deploy
from images.deploy.session import session
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.fake_boot import compile_dtb
from userspace.npu.validate.label_image import SmokeTestRequest, quick

pytestmark = BOARD_MARKS


@pytest.fixture(scope="module")
def update(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("update") / "update", kernel=b"another kernel")


@pytest.fixture(scope="module")
def with_userspace(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("userspace") / "bundle"
    return make_bundle(folder, userspace={"bin/runner.py": b"# runs models"})


def npu_board(**changes: object) -> Board:
    """A profile with an NPU, whose ``[health]`` is as given."""
    asked = Health(**changes)  # type: ignore[arg-type]
    return msgspec.structs.replace(load_board("virtual-a311d"), health=asked)


def tree(folder: Path, status: str) -> bytes:
    source = f"""/dts-v1/; / {{ #address-cells = <1>; #size-cells = <1>;
        npu@10000000 {{ status = "{status}"; reg = <0x10000000 0x1000>; }}; }};"""
    return compile_dtb(source, folder / f"{status}.dtb").read_bytes()


def test_a_render_node_is_asked_for_where_the_device_tree_switches_the_npu_on(
    with_userspace: Bundle, tmp_path: Path
) -> None:
    host, manifest = Host("h", "h"), with_userspace.manifest
    on, off = tree(tmp_path, "okay"), tree(tmp_path, "disabled")
    assert checks_for(host, npu_board(), manifest, on).driver == "etnaviv"
    assert checks_for(host, npu_board(), manifest, off).driver == ""
    assert checks_for(host, npu_board(), manifest, None).driver == ""
    old = msgspec.structs.replace(manifest, kernel_release="6.1.0-18-arm64")
    assert checks_for(host, npu_board(), old, on).driver == ""
    # The profile has the last word.
    assert checks_for(host, npu_board(render_node=False), manifest, on).driver == ""
    assert checks_for(host, npu_board(render_node=True), old, off).driver == "etnaviv"
    assert checks_for(host, load_board("virtual"), manifest, on).driver == ""


def test_services_come_from_profile_and_inventory_and_the_smoke_test_needs_a_userspace(
    with_userspace: Bundle, update: Bundle
) -> None:
    board = npu_board(services=("ssh.service", "a.service"), smoke_test=True, deadline_s=7)
    host = Host("h", "h", services=("b.service", "a.service"))
    found = checks_for(host, board, with_userspace.manifest, None)
    assert found == Checks(("ssh.service", "a.service", "b.service"), "", True, 7)
    assert not checks_for(host, board, update.manifest, None).smoke_test
    assert checks_for(host, None, update.manifest, None).services == ("b.service", "a.service")


@pytest.mark.slow
def test_a_service_that_is_not_up_is_named_and_rolls_back(
    board: FakeBoard, factory: Bundle, update: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurried = msgspec.structs.replace(load_board("virtual"), health=Health(deadline_s=1))
    monkeypatch.setattr("images.deploy.confirm.profile_named", lambda _: unhurried)
    target = board.target(services=("no-such-thing.service",))
    result = deploy(target, bundle=update, board=None)
    assert (result.outcome, result.exit_code) == ("rolled-back", 5)
    assert "not healthy: service no-such-thing.service" in result.problem
    assert [check["ok"] for check in result.document()["health"]] == [False]
    assert board.running() == factory.generation
    assert board.good() == state.Good(factory.generation)


def test_without_health_checks_the_same_is_confirmed(board: FakeBoard, update: Bundle) -> None:
    target = replace(board.target(services=("no-such-thing.service",)), check_health=False)
    result = deploy(target, bundle=update, board=None)
    assert result.outcome == "confirmed", result.problem
    assert result.document()["health"] == []


@pytest.mark.slow
def test_a_render_node_is_found_by_its_driver(board: FakeBoard) -> None:
    checks = Checks(driver="etnaviv", deadline_s=0.1)
    with session(board.target()) as agent:
        agent.open(None, fat_mount="/boot/firmware", lock=False)
        (missing,) = examine(agent, board.host, checks)
        assert not missing.ok
        assert missing.found == "no device node at all"
        for number, driver in ((128, "panfrost"), (129, "etnaviv")):
            entry = board.root / f"sys/class/drm/renderD{number}/device"
            entry.mkdir(parents=True)
            (board.root / "sys/drivers" / driver).mkdir(parents=True)
            (entry / "driver").symlink_to(board.root / "sys/drivers" / driver)
        (unborn,) = examine(agent, board.host, checks)
        assert not unborn.ok  # the driver is there; udev has not made the node
        assert "/dev/dri/renderD128 of panfrost" in unborn.found
        (board.root / "dev/dri").mkdir(parents=True)
        (board.root / "dev/dri/renderD129").touch()
        (found,) = examine(agent, board.host, checks)
        assert found.ok
        assert found.found == "/dev/dri/renderD129; /dev/dri/renderD128 of panfrost"
        links = board.root / "dev/dri/by-path"
        links.mkdir()
        (links / "platform-etnaviv-render").symlink_to("../renderD129")
        (named,) = examine(agent, board.host, checks)
        by_path = "/dev/dri/renderD129 (by-path/platform-etnaviv-render)"
        assert named.found == f"{by_path}; /dev/dri/renderD128 of panfrost"


@pytest.mark.slow
def test_rockets_node_has_a_device_without_a_driver(board: FakeBoard) -> None:
    """Linux drivers/accel/rocket/rocket_drv.c: the cores share a platform device "rknn"."""
    checks = Checks(driver="rocket", deadline_s=0.1)
    device = board.root / "sys/devices/platform/rknn"
    device.mkdir(parents=True)
    (board.root / "sys/class/accel/accel0").mkdir(parents=True)
    (board.root / "sys/class/accel/accel0/device").symlink_to(device)
    (board.root / "dev/accel").mkdir(parents=True)
    with session(board.target()) as agent:
        agent.open(None, fat_mount="/boot/firmware", lock=False)
        (unborn,) = examine(agent, board.host, checks)
        assert not unborn.ok
        (board.root / "dev/accel/accel0").touch()
        (found,) = examine(agent, board.host, checks)
        assert (found.ok, found.found) == (True, "/dev/accel/accel0")


def test_quick_is_the_small_model_and_a_few_runs() -> None:
    made = quick(SmokeTestRequest())
    assert (made.model, made.runs, made.delegate) == ("npu-bsp-digits", 3, "teflon")
    asked = quick(SmokeTestRequest(model="m", delegate="cpu", runs=1, test="detect"))
    assert (asked.model, asked.runs, asked.delegate, asked.test) == ("m", 1, "cpu", "detect")
    assert quick(SmokeTestRequest(test="detect")).model != made.model


def test_whether_the_npu_is_on_is_read_from_the_running_tree(tmp_path: Path) -> None:
    def packed(status: str) -> str:
        return base64.b64encode(zlib.compress(tree(tmp_path, status))).decode()

    assert is_on(packed("okay"), npu_board()) is True
    assert is_on(packed("disabled"), npu_board()) is False
    assert is_on(None, npu_board()) is None
    assert is_on(packed("okay"), None) is None
    # The node of another NPU: this one's says nothing.
    assert is_on(packed("okay"), load_board("imx8mp-evk")) is None
