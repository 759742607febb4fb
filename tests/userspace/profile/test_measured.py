# SPDX-License-Identifier: MIT
"""What a board measured: in a model's report, and as a calibration."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.remote.inventory import inventory_file
from tests.support.models.small_nets import Net
from userspace.npu.model.estimate import Calibration
from userspace.npu.model.report import document, page, report, text
from userspace.npu.model.report.report import Facts
from userspace.npu.profile import measured as on_board
from userspace.npu.profile.measured import Measured
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.onboard.bmp import encode_bmp, open_bmp

OPERATION = {"share": 0.5, "submits": 1, "nn_jobs": 1, "tp_jobs": 1}


def found(**changes: Any) -> Measured:
    row: Any = {
        "delegate": "teflon",
        "status": "pass",
        "reason": "",
        "latency_ms": {"median": 7.1234, "p95": 8.0, "min": 7.0, "max": 8.0, "n": 50},
        "first_ms": 16500.0,
        "delegated_nodes": [0, 1],
        "profile": {
            "inference_ms": 7.5, "npu_ms": 6.0, "before_ms": 0.5, "between_ms": 0.5, "after_ms": 0.5,
            "overhead": 0.05, "runs": 50, "driver": "etnaviv", "one_job_a_submit": True,
            "nn_jobs": 2, "tp_jobs": 2, "on_cpu": [2],
            "operations": [
                OPERATION | {"operations": [0], "name": "CONV_2D", "ms": 4.0},
                OPERATION | {"operations": [1], "name": "CONV_2D", "ms": 2.0},
            ],
        },
    }  # fmt: skip
    whole: Any = {
        "host": "desk<1>",
        "board": "khadas-vim3",
        "model": {"name": "model.tflite"},
        "emulated": changes.pop("emulated", False),
        "conditions": {"mesa": "25.0.7-2", "kernel": "6.12.0", "npu_clocks_hz": {"core": 800e6}},
        "results": [],
    }
    return Measured(whole, row | changes)


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    net = Net(16)
    model = tmp_path / "model.tflite"
    model.write_bytes(net.model([net.tanh(net.conv(net.conv(0, 8), 8))]))
    return report.report(model)


def test_a_report_has_it(facts: Facts) -> None:
    facts = replace(facts, measured=found())
    said = " ".join(text.text(facts).split())
    assert "Measured on desk<1>, khadas-vim3, Mesa 25.0.7-2: pass, 7.123 ms an inference" in said
    assert "emulated" not in said
    assert document.document(facts)["measured"]["profile"]["operations"][0]["ms"] == 4.0
    shown = page.page(facts, made="now")
    assert "Measured on a board" in shown
    assert "desk&lt;1&gt;" in shown
    assert "4.000 ms · 50.0%" in shown


def test_emulated_times_are_called_so(facts: Facts) -> None:
    facts = replace(facts, measured=found(emulated=True))
    assert "times are emulated: they say nothing about a board" in " ".join(
        text.text(facts).split()
    )
    assert "times are emulated" in page.page(facts, made="now")


def test_a_calibration_is_what_the_estimate_reads(facts: Facts, tmp_path: Path) -> None:
    content = on_board.calibration(found(), facts.model, "a311d")
    on_board.write_calibration(content, tmp_path / "mine.json")
    read = msgspec.json.decode((tmp_path / "mine.json").read_bytes(), type=Calibration)
    assert read == content
    (point,) = read.points
    assert (point.model, point.jobs, point.ms) == ("model", 4, (7.123,))
    assert point.macs == facts.macs[0] + facts.macs[1] > 0
    assert [each.ms for each in point.operations] == [4.0, 2.0]
    assert "Mesa 25.0.7-2, Linux 6.12.0, core 800 MHz" in point.source


@pytest.mark.parametrize(
    ("changes", "npu", "said"),
    [
        ({"emulated": True}, "a311d", "emulated board's times calibrate nothing"),
        ({"status": "fail", "reason": "zeros"}, "a311d", "did not pass, .* calibrate nothing: zeros"),
        ({"profile": {"error": "no library"}}, "a311d", "no library"),
        ({}, "", "which NPU the host has is not known"),
    ],
)  # fmt: skip
def test_what_calibrates_nothing(facts: Facts, changes: Any, npu: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        on_board.calibration(found(**changes), facts.model, npu)


def test_a_calibration_without_a_host_is_refused(facts: Facts) -> None:
    command = [
        sys.executable,
        "-m",
        "invoke",
        "model-report",
        str(facts.path),
        "--calibration",
        "x.json",
    ]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"--calibration writes times that were measured on a board" in done.stderr


def test_a_bmp_goes_as_it_is_and_the_row_is_teflons(tmp_path: Path) -> None:
    picture = tmp_path / "a.bmp"
    picture.write_bytes(encode_bmp(np.zeros((4, 4, 3), np.uint8)))
    asked: list[SmokeTestRequest] = []

    def smoke_test(request: SmokeTestRequest) -> Any:
        asked.append(request)
        assert open_bmp(Path(request.image or "")).width == 4
        return {
            "results": [{"delegate": "cpu-reference"}, {"delegate": "teflon", "status": "skip"}]
        }

    ran = on_board.measured(tmp_path / "m.tflite", picture, None, smoke_test)
    assert ran.row["status"] == "skip"
    assert (asked[0].image, asked[0].profile) == (str(picture), True)


def test_an_emulated_board_is_refused_before_anything_runs(facts: Facts, own_hosts: None) -> None:
    inventory_file().write_text(
        '[hosts.desk]\naddress = "127.0.0.1"\nport = 9\nboard = "virtual-a311d"\n'
    )
    command = [sys.executable, "-m", "invoke", "model-report", str(facts.path), "--host", "desk",
               "--calibration", "x.json"]  # fmt: skip
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"an emulated board's times calibrate nothing" in done.stderr
