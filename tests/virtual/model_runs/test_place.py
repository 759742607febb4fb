# SPDX-License-Identifier: MIT
"""Models run by the real delegate on virtual NPUs: right and wrong by operation, jobs and bytes."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bsp.base.project import PROJECT
from tests.support.models.inputs import crash, names_and_places, variable
from userspace.npu.model.estimate import calibration_of
from userspace.npu.model.graph import output_numbers, read_model, with_outputs
from userspace.npu.model.trial.given import input_values
from userspace.npu.model.trial.run import (
    CLOSE,
    MOVED,
    NOT_COMPARED,
    NOT_RUN,
    RIGHT,
    WRONG,
    OutputRun,
    Run,
    RunRequest,
)
from userspace.npu.validate import models
from virtual.gates.build import build
from virtual.gates.cases import RELU, Case
from virtual.gates.model_runner import Attempt, ModelRunner
from virtual.model_runs import place
from virtual.model_runs.ledger import Entry, Ledger
from virtual.model_runs.outcome import agreement_of, operations_of, output_of, taken_nodes
from virtual.model_runs.place import VirtualNpus
from virtual.model_runs.references import References, references
from virtual.npu.shim.server import ClientReport


def test_each_operations_values_are_kept_before_an_add_overwrites_them() -> None:
    made = build(Case("residual", 6, 6, 8, zero_points=(110, 90, 100)))
    model = read_model(made.model)
    right = references(made.model, model, made.inputs)
    assert set(right.by_operation) == {each.index for each in model.operations}
    last = model.operations[-1]
    assert np.array_equal(right.by_operation[last.index], right.outputs[0])


@pytest.mark.parametrize(
    ("finding", "status"),
    [
        (
            "NN job 0: zero points: expected 0, found 128 [submission: they are not the model's]",
            WRONG,
        ),
        ("NN job 0: zero points: expected those of an operation [not understood]", CLOSE),
    ],
)
def test_values_that_are_near_by_luck_are_not_close(
    finding: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A wake word's one probability was "close", whatever was submitted."""

    class Client:
        def attempt(self, *_: object, **__: object) -> Attempt:
            return Attempt({"status": "ran"}, [], ClientReport())

    made = build(Case("conv", 8, 8, 3, 8))
    model = read_model(made.model)
    path = tmp_path / "model.tflite"
    path.write_bytes(made.model)
    request = RunRequest(made.model, made.inputs, "25.0.7", ("imx8mp",))
    one: Any = place._OneNpu(
        cast(ModelRunner, Client()), path, model, request, "imx8mp", References([], {})
    )
    operations = operations_of(model, Ledger({}), {0})
    predicted = Run("imx8mp", "25.0.7", WRONG, values=1, outputs=(OutputRun("y", 1, 1, 1.0),),
                    operations=operations)  # fmt: skip
    monkeypatch.setattr(one, "_judged", lambda *_: predicted)
    exact = Run("imx8mp", "25.0.7", WRONG, findings=(finding,), operations=operations)
    assert one._as_silicon(exact).status == status


def test_a_handle_of_a_variable_is_no_value() -> None:
    """Of a wake-word model "TFLite itself does not run it" was said: its handles were kept, too."""
    content = variable()
    model = read_model(content)
    right = references(content, model, [np.ones((1, 16, 16, 3), np.uint8)])
    assert set(right.by_operation) == {0, 3}
    assert np.array_equal(right.outputs[0], right.by_operation[0])


def test_a_model_that_ends_the_runtime_ends_nothing_else() -> None:
    made = build(Case("conv", 8, 8, 3, 8))
    model = read_model(made.model)
    with pytest.raises(ValueError, match=r"."):
        references(made.model, model, [np.zeros((1, 3, 3, 3), np.uint8)])
    shape = np.array([1, 8, 8, 8], "<i4").tobytes()
    huge = made.model.replace(shape, np.array([1, 1 << 20, 1 << 20, 8], "<i4").tobytes())
    assert huge != made.model
    with pytest.raises(ValueError, match=r"."):
        references(huge, read_model(huge), [np.zeros((1, 3, 3, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"."):
        references(made.model, model, made.inputs, timeout_s=0.01)
    if platform.machine() == "x86_64":
        with pytest.raises(ValueError, match="crashes with SIGFPE"):
            references(crash(), read_model(crash()), [np.ones((1, 16, 16, 3), np.uint8)])


def test_agreement_over_a_set_of_inputs() -> None:
    right = np.array([[1, 9, 9, 2]], np.uint8)
    near = np.array([[1, 8, 9, 2]], np.uint8)
    found = agreement_of("scores", [(right, right), (near, right)])
    assert (found.sets, found.values, found.different, found.largest) == (2, 8, 1, 1.0)
    assert (found.top, found.ties, found.mean) == (1, 2, 0.125)
    picture = np.zeros((1, 2, 2, 3), np.float32)
    assert agreement_of("map", [(picture, picture)]).top is None


def test_what_is_no_real_number_differs_by_what_it_is() -> None:
    """Of complex ones the imaginary parts did not count; two that are no numbers differed over a set."""
    right = np.array([1 + 2j, np.nan], np.complex64)
    same = output_of("spectrum", right, right, ())
    assert (same.different, same.largest) == (0, 0.0)
    other = output_of("spectrum", right.conj(), right, ())
    assert (other.different, other.largest) == (1, 4.0)
    assert output_of("spectrum", np.zeros(2, np.complex64), right, ()).different == 2
    assert agreement_of("spectrum", [(right, right)]).different == 0
    assert agreement_of("spectrum", [(right.conj(), right)]).different == 1


def test_a_client_that_ended_took_nothing() -> None:
    assert taken_nodes({"status": "crashes"}, 3) == set()


def test_a_jobs_values_are_compared_in_either_order() -> None:
    right = np.random.default_rng(1).integers(0, 200, (1, 2, 3, 4)).astype(np.uint8)
    for way in (right, np.moveaxis(right, -1, 1)):
        entry = Entry()
        entry.compare(np.ascontiguousarray(way), right)
        assert (entry.different, entry.values) == (0, 24)
    entry = Entry()
    entry.compare(np.ascontiguousarray(np.moveaxis(right, -1, 1)) + np.uint8(3), right)
    assert (entry.different, entry.largest) == (24, 3)


@pytest.mark.slow
@pytest.mark.network
def test_a_residual_block_on_both_npus() -> None:
    made = build(Case("residual", 6, 6, 8, zero_points=(110, 90, 100)))
    sets = (made.inputs, tuple(255 - each for each in made.inputs))
    request = RunRequest(made.model, made.inputs, "25.0.7", ("a311d", "imx8mp"), sets=sets)
    first, second = VirtualNpus().run(request)
    assert (second.npu, second.status, second.different) == ("imx8mp", RIGHT, 0)
    assert {each.status for each in second.operations} <= {RIGHT, MOVED}
    total = sum(each.read_bytes + each.written_bytes for each in second.operations)
    assert 0 < total <= second.moved_bytes
    assert second.coefficient_bytes == sum(each.coefficient_bytes for each in second.operations)
    assert second.jobs == second.nn_jobs + second.tp_jobs >= len(second.operations)
    assert [each.sets for each in second.agreement] == [2]
    assert max(each.largest for each in second.agreement) <= 1
    # The ADD's bias is computed from bytes behind its weights: docs/findings/add-bias.md.
    assert first.status == RIGHT
    assert "zeros" in first.note


@pytest.mark.slow
@pytest.mark.network
def test_the_command_runs_a_model_and_says_what_is_wrong(tmp_path: Path) -> None:
    """The finding pointwise-relu6 on an A311D with 26.x, through ./inv's own door."""
    file = tmp_path / "model.tflite"
    file.write_bytes(build(Case("conv", 8, 8, 8, 8, dtype="int8")).model)
    command = [sys.executable, "-m", "invoke", "model-report", str(file), "--npu", "a311d"]
    command += ["--mesa", "25.0.7", "--run", "--json"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (run,) = document["runs"]
    assert (run["status"], run["first_wrong"]) == (WRONG, 0)
    assert run["operations"][0]["jobs"] >= 1
    assert document["verdict"]["answer"] == "comes out wrong"


@pytest.mark.full
@pytest.mark.network
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_jobs_and_bytes_are_those_of_the_calibration(npu: str) -> None:
    known = calibration_of(npu)
    assert known
    for name in ("mobilenet_v1_1.0_224_quant", "mobilenet_v2_1.0_224_quant"):
        model = models.find(name, "model").path.read_bytes()
        values, _ = input_values(model)
        (run,) = VirtualNpus().run(RunRequest(model, values, "25.0.7", (npu,)))
        (point,) = (each for each in known.points if each.model == name)
        assert (run.status, run.jobs, run.macs, run.moved_bytes) == (
            RIGHT, point.jobs, point.macs, point.bytes,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.network
def test_a_rockchip_npu_runs_a_convolution() -> None:
    made = build(Case("conv", 8, 8, 16, 16, kernel=3))
    (run,) = VirtualNpus().run(RunRequest(made.model, made.inputs, "26.1.6", ("rk3588",)))
    assert (run.status, run.different, run.operations[0].status) == (RIGHT, 0, NOT_COMPARED)
    assert run.jobs == 1
    # 64 pixels of 16 channels in and out, 3x3 weights, biases of 4 bytes.
    assert (run.coefficient_bytes, run.written_bytes) == (3 * 3 * 16 * 16, 1024)
    assert run.read_bytes == 1024 + run.coefficient_bytes + 4 * 16


@pytest.mark.slow
@pytest.mark.network
def test_what_exact_mode_does_for_the_driver_is_no_merit_of_its() -> None:
    """It applies the model's activation; the report said "right", beside a finding that says wrong."""
    made = build(Case("conv", 8, 8, 8, 8, activation=RELU, zero_points=(120, 128, 120)))
    (run,) = VirtualNpus().run(RunRequest(made.model, made.inputs, "26.2.6", ("rk3588",)))
    assert (run.status, run.different) == (WRONG, 0)
    assert "expected outputs of 120 to 255 (activation)" in run.why


@pytest.mark.slow
@pytest.mark.network
def test_outputs_without_values_are_neither_right_nor_wrong() -> None:
    model = names_and_places(1e9)
    model = with_outputs(model, output_numbers(model)[0][2:])  # the places, of which there are none
    inputs, _ = input_values(model)
    (run,) = VirtualNpus().run(RunRequest(model, inputs, "25.0.7", ("imx8mp",)))
    assert run.status == NOT_RUN, run


@pytest.mark.slow
@pytest.mark.network
def test_what_is_missing_between_jobs_and_the_cpu_is_said() -> None:
    made = build(Case("split", 8, 8, 16))
    (run,) = VirtualNpus().run(RunRequest(made.model, made.inputs, "25.0.7", ("imx8mp",)))
    assert run.status == WRONG
    assert "SPLIT" in run.why
