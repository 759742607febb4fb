# SPDX-License-Identifier: MIT
"""``smoke-test --profile`` with Mesa's own drivers, on virtual NPUs behind the shim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from userspace.npu.report.html import page
from userspace.npu.report.report import text_of
from userspace.npu.validate.label_image import SmokeTestRequest, choose, smoke_test
from virtual.gates.packages import find_delegate
from virtual.npu.shim import host

pytestmark = [
    pytest.mark.usefixtures("own_state"),
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
RUNS = 4


def network() -> bytes:
    """Two partitions; moves before, within and behind them."""
    net = Net(32)
    first = net.conv(0, 8, stride=2, zero_point=110)
    second = net.add(net.conv(first, 8, kernel=1), first)
    pooled = net.tanh(net.depthwise(second))
    return net.model([net.conv(pooled, 16, kernel=1)])


@pytest.mark.parametrize(
    ("npu", "mesa"), [("a311d", ""), ("imx8mp", ""), ("a311d", "26.2.6"), ("rk3588", "26.2.6")]
)
def test_each_job_is_given_to_the_operation_that_it_computes(
    npu: str, mesa: str, tmp_path: Path
) -> None:
    model, picture = tmp_path / "model.tflite", tmp_path / "noise.bmp"
    model.write_bytes(network())
    noise_picture(picture)
    request = SmokeTestRequest(
        delegate="teflon", model=str(model), image=str(picture), runs=RUNS, views=0, profile=True
    )
    inputs = choose(request)
    delegate = find_delegate(mesa) if mesa else None
    system = host.System(delegate.root, delegate.version) if delegate else None
    with host.virtual_host(npu, audit_for=model, mesa=system) as there:
        document: Any = smoke_test(there.machine, request, host=f"virtual:{npu}", inputs=inputs)
    row = document["results"][-1]
    assert row["versions"]["mesa"].startswith(mesa or "25.0.7")
    profile = row["profile"]
    assert "error" not in profile, profile
    assert profile["one_job_a_submit"]
    # What the emulator says: the second client is the profile's; its first inference is not in it.
    plain, profiled = there.emulator.report
    units = ("NN", "CNA")
    jobs = [each for each in profiled["job_list"] if each["unit"] in units]
    jobs = jobs[-len(jobs) * RUNS // (RUNS + 1) :][: len(jobs) // (RUNS + 1)]
    told: dict[int, int] = {}
    for job in jobs:
        named = re.match(r"operation (\d+) ", job["operation"])
        assert named, job
        told[int(named[1])] = told.get(int(named[1]), 0) + 1
    found = {each["operations"][0]: each["nn_jobs"] for each in profile["operations"]}
    assert found == told
    assert profile["nn_jobs"] == len(jobs)
    moves = profiled["tp_jobs"] // (RUNS + 1)
    assert sum(each["tp_jobs"] for each in profile["operations"]) == profile["tp_jobs"] == moves
    assert plain["submits"] < profiled["submits"] or npu == "rk3588"
    parts = [each["ms"] for each in profile["operations"]]
    parts += [profile["before_ms"], profile["between_ms"], profile["after_ms"]]
    assert sum(parts) == pytest.approx(profile["inference_ms"], rel=0.01)
    document["emulated"] = True
    assert "emulated: they say nothing" in text_of(document).replace("\n", " ")
    shown = page(document, None, {}, None, doctor_note="", picture=None, made="now")
    assert 'class="bars"' in shown
