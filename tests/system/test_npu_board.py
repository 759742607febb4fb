# SPDX-License-Identifier: MIT
"""The whole stack on a virtual board with an NPU: bootloader, our device tree, etnaviv, Teflon.

The tests share one board and run in order, each from where the one before left it.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.deploy.deploy import rollback
from images.deploy.session import Target
from images.deploy.status import status
from tests.support.kernel_modules import ONBOARD
from tests.support.npu.vfio_client import wait_until
from userspace.npu.model.graph import read_model
from userspace.npu.profile.measured import Measured, calibration
from userspace.npu.report.report import text_of
from userspace.npu.validate import models
from virtual.gates import kernel as gate_kernel
from virtual.npu.traces.replay import replay

from .conftest import NpuBoard

NAME = "virtual-a311d"
TROUBLE = ONBOARD / "npu_trouble.py"


@pytest.fixture
def board(npu_board: NpuBoard) -> Host:
    return npu_board.host


def said(host: Host, *command: str) -> str:
    with ssh.connect(host, timeout_s=60) as connection:
        return connection.run(list(command), timeout_s=120).text


@pytest.mark.network
@pytest.mark.timeout(600)
def test_without_our_device_tree_there_is_no_npu(npu_board: NpuBoard) -> None:
    assert npu_board.status_at_birth == "disabled\0"
    assert "etnaviv" not in npu_board.dmesg_at_birth


@pytest.mark.network
@pytest.mark.timeout(600)
def test_deploy_switches_it_on(npu_board: NpuBoard) -> None:
    assert npu_board.result.outcome == "confirmed", npu_board.result
    log = said(npu_board.host, "dmesg")
    assert "model: GC8000, revision: 7120" in log
    assert "etnaviv has been instantiated on a NPU" in log
    assert "renderD128" in said(npu_board.host, "ls", "/dev/dri")


def smoke(host: Host) -> dict[str, Any]:
    from userspace.npu.validate.label_image import SmokeTestRequest
    from userspace.npu.validate.smoke import smoke_test

    request = SmokeTestRequest(delegate="teflon", runs=3, budget_s=5, views=0)
    document = smoke_test("label_image", request, host=host)
    row = next(row for row in document["results"] if row["delegate"] == "teflon")
    assert row["status"] == "pass", row["reason"]
    return dict(row)


def profiled(host: Host) -> Any:
    from userspace.npu.validate.label_image import SmokeTestRequest
    from userspace.npu.validate.smoke import smoke_test

    request = SmokeTestRequest(delegate="teflon", runs=7, budget_s=60, views=0, profile=True)
    return smoke_test("label_image", request, host=host)


@pytest.mark.network
@pytest.mark.timeout(600)
def test_teflon_passes_also_twice_at_once_and_after_a_suspend(board: Host) -> None:
    alone = smoke(board)
    assert alone["delegated_ops"] > 0
    # The driver suspends the NPU when it has nothing to do, and resumes it for the next job.
    status = "/sys/bus/platform/devices/10000000.npu/power/runtime_status"
    wait_until(lambda: said(board, "cat", status).strip() == "suspended", 60)
    with ThreadPoolExecutor(2) as pool:
        for row in pool.map(smoke, [board, board]):
            assert row["max_abs_diff"] == alone["max_abs_diff"]


@pytest.mark.network
@pytest.mark.timeout(900)
def test_the_profile_adds_up_to_the_measured_inference(board: Host) -> None:
    """To its own: an emulator's time without a profile hangs on what else this machine does."""
    inputs = models.choose(None, None)
    document = profiled(board)
    row = next(row for row in document["results"] if row["delegate"] == "teflon")
    assert row["status"] == "pass", row["reason"]
    profile = row["profile"]
    assert "error" not in profile, profile
    jobs = sum(each["ms"] for each in profile["operations"])
    parts = [profile["before_ms"], profile["between_ms"], profile["after_ms"]]
    assert jobs + sum(parts) == pytest.approx(profile["inference_ms"], rel=0.01)
    assert jobs > 0.9 * profile["inference_ms"]  # an emulated NPU is slow
    assert profile["overhead"] is not None
    assert profile["one_job_a_submit"]
    taken = {each["operations"][0] for each in profile["operations"]}
    assert taken == set(row["delegated_nodes"])
    assert "emulated: they say nothing" in text_of(document).replace("\n", " ")
    network = read_model(inputs.model.path.read_bytes())
    with pytest.raises(UserError, match="emulated board's times calibrate nothing"):
        calibration(Measured(document, row), network, "a311d")


@pytest.mark.network
@pytest.mark.timeout(600)
def test_trouble_is_reported_by_the_driver_and_recovered_from(board: Host) -> None:
    def trouble(kind: str) -> dict[str, Any]:
        with ssh.connect(board, timeout_s=60) as connection:
            script = TROUBLE.read_bytes()
            answer = connection.run(["python3", "-", kind], stdin=script, timeout_s=120)
        return dict(json.loads(answer.text))

    assert not trouble("nothing")["log"]
    fault = trouble("fault")
    log = "\n".join(fault["log"])
    assert "MMU fault status 0x00000001" in log
    assert "addr 0x7f000000" in log
    assert "recover hung GPU!" in log
    assert fault["dump_bytes"][0] > 4096  # a devcoredump
    assert not trouble("nothing")["log"]
    hang = trouble("hang")
    assert "recover hung GPU!" in "\n".join(hang["log"])
    assert hang["signalled"]  # by the recovery: the wait did not come to its end
    after = trouble("nothing")
    assert after["signalled"]
    assert not after["log"]


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_what_a_board_did_is_computed_again(own_state: Path, tmp_path: Path) -> None:
    from images.bundle.assemble import bundle_for
    from images.deploy.deploy import deploy
    from images.deploy.session import Target
    from virtual.boards import boards

    trace = tmp_path / "board.npu"
    boards.up(NAME, record=trace)
    try:
        host = inventory.resolve(NAME)
        deploy(Target(host), bundle=bundle_for(load_board(NAME)), board=None)
        smoke(host)
        assert not trace.exists()
    finally:
        boards.down(NAME)
    wait_until(trace.exists, 30)
    found = replay(trace)
    assert (found.differences, found.faults) == ([], 0)
    assert found.nn_jobs > 0


def test_the_gate_of_kernels_passes_on_it(npu_board: NpuBoard) -> None:
    """Its last run is behind a reload of the driver."""
    row = gate_kernel.examine("virtual-a311d", npu_board.host, 4)
    assert row["problems"] == []
    assert [run["status"] for run in row["runs"]] == ["pass"] * 3
    assert row["invokes"] >= 4


@pytest.mark.network
@pytest.mark.timeout(600)
def test_rollback_to_the_factory_generation_switches_it_off(npu_board: NpuBoard) -> None:
    # Without a power command: it is not needed.
    result = rollback(Target(replace(npu_board.host, power=())))
    assert result.outcome == "confirmed", result
    after = status(Target(npu_board.host))
    assert after["running"] == after["good"] == npu_board.factory
    assert after["previous"] == npu_board.bundle.generation
    assert not after["userspace"]
    assert said(npu_board.host, "cat", "/proc/device-tree/npu@10000000/status") == "disabled\0"
