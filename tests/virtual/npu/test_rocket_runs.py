# SPDX-License-Identifier: MIT
"""Mesa's own delegate on the virtual RK3588: run, recorded, shown and computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bsp.base.errors import UserError
from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.smoke import smoke_test
from virtual.npu.rocket import arithmetic
from virtual.npu.rocket.weights import Weights
from virtual.npu.shim.place import VirtualNpu
from virtual.npu.traces.replay import replay
from virtual.npu.traces.show import show
from virtual.npu.traces.trace_text import replayed_text, shown_text

pytestmark = [
    pytest.mark.usefixtures("own_state"),
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


def run(model: Path, **flags: Any) -> Any:
    picture = noise_picture(model.with_name("noise.bmp"))
    request = SmokeTestRequest(
        delegate="teflon", image=str(picture), views=0, runs=2, model=str(model)
    )
    return smoke_test("label_image", request, place=VirtualNpu("virtual:rk3588", **flags))


def teflon(document: Any) -> Any:
    row: Any = next(each for each in document["results"] if each["delegate"] == "teflon")
    return row


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace in exact mode of a small model, beside it (``model.tflite``)."""
    folder = tmp_path_factory.mktemp("rocket")
    net = Net(16)
    model = folder / "model.tflite"
    model.write_bytes(net.model([net.conv(0, 16)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPU_BSP_STATE", str(folder / "state"))
        document = run(model, exact=True, strict=True, record=folder / "trace.npu")
    row = teflon(document)
    assert row["status"] == "pass", row["reason"]
    assert (row["driver"], row["delegated_ops"], row["max_abs_diff"]) == ("rocket", 1, 0)
    assert document["npu"]["jobs"]
    assert not document["npu"]["findings"]
    return folder / "trace.npu"


def test_a_trace_is_shown(recorded: Path) -> None:
    shown = show(recorded)
    task = shown.submissions[0].jobs[0]
    assert (task.unit, task.kind, task.problem) == ("CNA", "conv", "")
    assert task.what.startswith("3x3/1 ")
    assert task.fields["ORIG_CHANNEL"] == 15
    assert "tasks" in shown_text(shown)


def test_a_trace_is_computed_again(recorded: Path) -> None:
    with pytest.raises(UserError, match="needs the model that was run"):
        replay(recorded)
    replayed = replay(recorded, model=recorded.with_name("model.tflite"))
    assert not replayed.differences
    assert replayed.bytes_compared
    assert "equal" in replayed_text(replayed)


def test_a_changed_emulator_computes_a_trace_otherwise(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(task: Any, image: NDArray[np.int16], weights: Weights) -> Any:
        return accumulate(task, np.roll(image, 1, axis=2), weights)

    accumulate = arithmetic.accumulate
    monkeypatch.setattr(arithmetic, "accumulate", shifted)
    replayed = replay(recorded, model=recorded.with_name("model.tflite"))
    assert replayed.differences
    assert "DIFFERS" in replayed_text(replayed)


def test_what_a_board_computes_wrong_fails_with_the_register(tmp_path: Path) -> None:
    net = Net(16)
    model = tmp_path / "model.tflite"
    model.write_bytes(net.model([net.conv(net.conv(0, 48), 16)]))
    row = teflon(run(model))
    assert row["status"] == "fail"
    assert "DATA_ENTRIES" in row["reason"]


def test_a_mesa_without_the_driver_is_no_pass(tmp_path: Path) -> None:
    net = Net(16)
    model = tmp_path / "model.tflite"
    model.write_bytes(net.model([net.conv(0, 16)]))
    row = teflon(run(model, mesa="trixie"))
    assert row["status"] != "pass"
