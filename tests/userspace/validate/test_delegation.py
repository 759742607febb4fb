# SPDX-License-Identifier: MIT
"""The parser, on logs of the real libteflon.so 25.0.7 (driven by the virtual NPU) and on later formats."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace.npu.validate.judge.delegation import parse_log
from userspace.npu.validate.label_image import _predictions
from userspace.npu.validate.records import RunnerDocument
from virtual.gates.build import build
from virtual.gates.cases import Case

DATA = Path(__file__).parent / "data"

# As Mesa 26's tfl_device.c prints it: "%3d %7s v%-2d %-11s in:", then " %d(%s)"...
LATER = """\
Teflon delegate: loaded rocket driver
idx    type ver support     inputs
================================================================================================
  0    CONV v1  supported   in: 88(u8) 8(u8) 6(i32) out: 7(u8) ReLU6
  1  DWCONV v1  supported   in: 7(u8) 35(u8) 34(i32) out: 33(u8) ReLU6
  2 unknown v1  unsupported in: 33(u8) out: 30(u8)
  3 SOFTMAX v1  unsupported in: 30(u8) out: 87(u8)

teflon: compiling graph: 89 tensors 2 operations
idx scale     zp has_data size
=======================================
teflon: compiled graph, took 12 ms
teflon: invoked graph, took 3 ms
"""


@pytest.mark.parametrize(
    ("mesa", "predicted"), [("25.0.7-2", 1), ("25.0.7+npu-bsp0.2.0.p25", None)]
)
def test_what_patches_refuse_is_not_predicted(mesa: str, predicted: int | None) -> None:
    row = {"delegate": "teflon", "mesa": mesa, "log": "Teflon delegate: loaded etnaviv driver\n"}
    facts = cast("RunnerDocument", {"results": [row]})
    found = _predictions(facts, build(Case("conv", 8, 8, 3, 8)).model).get("teflon")
    assert (len(found.taken) if found else None) == predicted


def test_a_log_of_mobilenet() -> None:
    found = parse_log((DATA / "teflon-25.0.7-mobilenet_v1_0.25_128.log").read_text())
    assert found.driver == "etnaviv"
    assert found.graphs == (27, 1)
    assert found.operations == 28
    assert len(found.compiled_ms) == 2
    assert found.invocations == 6
    assert not found.no_device
    assert found.errors == ()


def test_a_log_of_the_small_model() -> None:
    found = parse_log((DATA / "teflon-25.0.7-digits.log").read_text())
    assert (found.driver, found.graphs, found.invocations) == ("etnaviv", (3, 1), 6)


def test_a_log_with_a_job_that_the_kernel_refused() -> None:
    found = parse_log((DATA / "teflon-25.0.7-refused.log").read_text())
    assert found.errors == ("etna_cmd_stream_flush:244: submit failed: -5 (Input/output error)",)
    assert found.invocations == 6


def test_no_device() -> None:
    found = parse_log(
        "Couldn't open kernel device\ntflite_plugin_destroy_delegate: NULL delegate!\n"
    )
    assert found.no_device
    assert found.driver is None
    assert found.operations == 0


def test_later_logs_say_what_was_refused() -> None:
    found = parse_log(LATER)
    assert (found.driver, found.operations, found.invocations) == ("rocket", 2, 1)
    assert found.unsupported == (("SOFTMAX", 1), ("unknown", 1))


def test_a_graph_that_was_not_compiled_to_the_end_does_not_count() -> None:
    crashed = LATER[: LATER.index("teflon: compiled")]
    assert parse_log(crashed).graphs == (2,)
    assert parse_log(crashed).operations == 0


def test_carriage_returns_do_not_matter() -> None:
    assert parse_log(LATER.replace("\n", "\r\n")) == parse_log(LATER)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    assert parse_log(text).invocations >= 0
