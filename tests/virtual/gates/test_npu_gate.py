# SPDX-License-Identifier: MIT
"""The gates: generated models against plain TFLite, verdicts, and both gates in a reduced form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from userspace.npu.model.graph import read_model
from userspace.npu.validate.onboard.environment import RUNTIMES
from virtual.gates import kernel as gate_kernel
from virtual.gates import mesa, packages, sweep
from virtual.gates.build import build
from virtual.gates.cases import PADDED, Case
from virtual.gates.cases import sweep as cases
from virtual.gates.graphs import GRAPHS
from virtual.gates.model_runner import model_runner, reference
from virtual.gates.order import wrong_order
from virtual.gates.records import OutcomeRecord
from virtual.gates.witness import Witness, model_coefficients, unsigned
from virtual.npu.shim.server import ClientReport
from virtual.npu.taken import wrongly_taken
from virtual.npu.tflite import arithmetic
from virtual.npu.tflite.operations import operations
from virtual.npu.vivante.convolution import Geometry, accumulate

FULL = cases(quick=False)


def test_a_sweep_is_hundreds_of_different_models() -> None:
    quick = cases(quick=True)
    assert 100 <= len(quick) <= 130
    assert len(FULL) >= 300
    assert FULL[: len(quick)] == quick
    assert len({case.name for case in FULL}) == len(FULL)
    assert cases(quick=False) == FULL
    kinds = {case.kind for case in quick}
    for wanted in ("convolution 1x1 relu6", "convolution kxk stride 2", "depthwise kxk portrait"):
        assert wanted in kinds
    for wanted in ("add", "split", "pad", "fully-connected", "relu", "abs int8", "logistic"):
        assert wanted in kinds
    assert max(case.channels for case in FULL) > 250
    assert {case.dtype for case in FULL} == {"uint8", "int8", "float32"}


def test_a_sweep_has_what_real_models_have() -> None:
    quick = cases(quick=True)
    kinds = {case.kind for case in quick}
    for wanted in (
        "reshape of a convolution", "heads of a detector", "tensor for NPU and CPU", "sub of convolutions",
        "tensor read and handed out", "tensor of several readers", "convolution 7x7", "pad int8",
        "concatenation of convolutions above 10", "convolution kxk stride 3", "convolution in groups",
        "depthwise with a multiplier", "fully-connected of four dimensions", "add of float32",
        "fully-connected above 512 inputs", "fully-connected of float32", "concatenation int8",
    ):  # fmt: skip
        assert wanted in kinds
    assert {name.removesuffix(" int8") for name in GRAPHS} <= {case.operation for case in quick}


@pytest.mark.parametrize("operation", [*GRAPHS, "conv", "split", "pad", "fully-connected"])
def test_tflite_takes_each_graph_and_its_output_says_something(operation: str) -> None:
    for case in cases(quick=True):
        if case.operation == operation:
            built = build(case)
            assert build(case).model == built.model
            for output in reference(built.model, list(built.inputs)):
                assert output.std() > (0.5 if case.dtype == "float32" else 8), case.name


def moved(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A picture whose bytes stand channel by channel, in the shape that TFLite gives them."""
    return np.moveaxis(values, -1, 1).reshape(values.shape)


def test_outputs_that_stand_channel_by_channel() -> None:
    """Also behind a RESHAPE, whose source is the picture; other wrong values are not wrong order."""
    for operation, words in (
        ("handed-out", "the output has"),
        ("head", "operation 1 (RESHAPE) copies"),
    ):
        case = Case(operation, 6, 5, 8, 12)
        built = build(case)
        right = reference(built.model, list(built.inputs))[0]
        graph = read_model(built.model)
        picture = right.reshape(1, 6, 5, 12)
        found = moved(picture).reshape(right.shape)
        assert wrong_order(found, right, graph.outputs[0], graph.operations).startswith(words)
        assert not wrong_order(right, right, graph.outputs[0], graph.operations)
        assert not wrong_order(found + 1, right, graph.outputs[0], graph.operations)


@pytest.mark.parametrize(
    ("case", "taken", "said"),
    [
        (Case("branch", 6, 6, 8, 12), {0, 1}, "and operation 2 (MAX_POOL_2D) read: expected"),
        (Case("branch", 6, 6, 8, 12), {0}, ""),
        (Case("handed-out", 6, 6, 8, 12), {0, 1}, "and the model's output read"),
        (Case("readers", 6, 6, 8, 12), {0, 1, 2}, ""),
        (Case("head", 6, 6, 8, 12), {0, 1}, "operation 1 (RESHAPE): order of the output of operation 0"),
        (Case("head", 6, 6, 8, 12), {0}, ""),
        (Case("sum-relu", 6, 6, 8, 8, zero_points=(120, 128, 60)), {0, 1, 2}, "expected RELU"),
        (Case("sum-relu", 6, 6, 8, 8, zero_points=(120, 128, 0)), {0, 1, 2}, ""),
        (Case("residual", 6, 6, 8), {0, 1, 2}, ""),
        (Case("float-add", dtype="float32"), {0}, "tensors: expected bytes, found float32"),
        (Case("float-add", dtype="float32"), set(), ""),
    ],
)  # fmt: skip
def test_what_is_taken_and_wrong_though_no_job_is(case: Case, taken: set[int], said: str) -> None:
    found = wrongly_taken(read_model(build(case).model), taken)
    assert bool(found) == bool(said), found
    assert not found or said in str(found[0])


def test_right_values_beside_what_contradicts_the_model_are_not_good() -> None:
    """Exact mode rounds as the model has it: a wrong multiplier of a submission gave the right values."""
    built = build(Case("conv", 8, 8, 8, 8))
    values = np.zeros((1, 8, 8, 8), np.uint8)
    finding = "NN job 1: multiplier: expected 0.5, found 0.25 [submission: compared with the model]"
    answer = {"status": "ran", "partitions": 1, "nodes": []}
    for wrong, status in (([], sweep.GOOD), ([finding], sweep.WRONG)):
        report = ClientReport(findings=[finding], wrong=wrong)
        attempt = sweep._Witnessed(answer, [values], report, Witness([], 8, None), built.model)
        outcome = sweep.Outcome("imx8mp", "conv", "convolution", sweep.WRONG)
        sweep._judge(outcome, attempt, [values])
        assert outcome.status == status
    assert (outcome.blame, outcome.evidence) == ("submission", finding)
    nothing = values[:0]
    attempt = sweep._Witnessed(answer, [nothing], report, Witness([], 8, None), built.model)
    with pytest.raises(UserError, match="its outputs are empty"):
        sweep._judge(outcome, attempt, [nothing])


def test_real_numbers_are_compared_with_a_tolerance() -> None:
    right = np.array([1.0, -2.0, 300.0], np.float32)
    assert sweep._compare(right, right) == (0, 0)
    assert sweep._compare(right + np.float32(0.01), right) == (0, 0)
    assert sweep._compare(right + np.array([0, 0, 5], np.float32), right) == (1, 5)
    broken = np.array([np.nan, np.inf, 300.0], np.float32)
    assert sweep._compare(broken, right) == (2, 2**31 - 1)
    assert sweep._compare(right[:2], right) == (3, 2**31 - 1)
    assert sweep._compare(right, right.astype(np.float64)) == (3, 2**31 - 1)


def test_what_is_no_number_in_the_right_values_gives_nothing_away() -> None:
    """A logarithm of 0 made all wrong; one infinite value made all right."""
    right = np.array([np.nan, -np.inf, 1.0, 2.0], np.float32)
    assert sweep._compare(right, right) == (0, 0)
    for place, value in ((0, 0.0), (1, np.inf), (1, 0.0), (2, 5.0), (3, np.nan)):
        output = right.copy()
        output[place] = value
        assert sweep._compare(output, right)[0] == 1, (place, value)


def test_complex_numbers_differ_by_either_part() -> None:
    right = np.array([1 + 2j, 3 - 4j, np.nan], np.complex64)
    assert sweep._compare(right, right) == (0, 0)
    assert sweep._compare(right + np.array([0, 2j, 0], np.complex64), right) == (1, 2)
    assert sweep._compare(right.conj(), right)[0] == 2


def test_whole_numbers_of_any_size_are_compared() -> None:
    """Strings are compared by hashes of 64 bits."""
    right = np.array([2**63 - 1, -(2**63)], np.int64)
    assert sweep._compare(right, right) == (0, 0)
    assert sweep._compare(right - np.array([1, 0]), right) == (1, 1)
    assert sweep._compare(right[::-1], right) == (2, 2**31 - 1)


def test_a_difference_is_tflites(tmp_path: Path) -> None:
    """SUB in exact mode: the sum with the second factor negated, as sub.cc has it."""
    built = build(Case("sub", 8, 8, 16, zero_points=(110, 90, 100)))
    (expected,) = reference(built.model, list(built.inputs))
    (tmp_path / "m.tflite").write_bytes(built.model)
    (operation,) = operations(tmp_path / "m.tflite")
    assert operation.add is not None
    found = arithmetic.add(built.inputs[0], built.inputs[1], operation.add, 0)
    assert np.array_equal(found, expected)


def tflite_by_hand(case: Case, model: Path) -> np.ndarray[Any, Any]:
    """A convolution computed with the engine's arithmetic from the model alone, no NPU in between."""
    built = build(case)
    image = np.moveaxis(unsigned(built.inputs[0])[0], -1, 0)
    _, height, width, _ = built.tensors[3].shape
    pads = [0, 0]
    if case.padding == PADDED:
        pads = [
            max((out - 1) * case.stride + case.kernel - size, 0) // 2
            for out, size in ((height, case.height), (width, case.width))
        ]
    model.write_bytes(built.model)
    (operation,) = operations(model)
    geometry = Geometry(height, width, case.stride, pads[0], pads[1], operation.in_zero_point)
    coefficients = model_coefficients(built)
    accumulators = accumulate(np.ascontiguousarray(image), coefficients, geometry)
    low = 0 if case.activation == "none" else operation.out_zero_point
    found = arithmetic.requantised(accumulators, operation.real, operation.out_zero_point, low)
    return np.moveaxis(found, 0, -1)[None]


@pytest.mark.parametrize("operation", ["conv", "depthwise"])
def test_arithmetic_is_tflites(operation: str, tmp_path: Path) -> None:
    """Every shape, stride, padding and quantisation of the sweep: no value differs."""
    chosen = [case for case in FULL if case.operation == operation]
    assert len(chosen) > 50
    for case in chosen[::3]:
        built = build(case)
        (expected,) = reference(built.model, list(built.inputs))
        found = tflite_by_hand(case, tmp_path / "m.tflite")
        assert np.array_equal(found, unsigned(expected)), case.name


def test_look_up_tables_are_tflites(tmp_path: Path) -> None:
    chosen = [case for case in FULL if case.operation in ("relu", "abs", "logistic")]
    assert len(chosen) >= 7
    for case in chosen:
        built = build(case)
        (expected,) = reference(built.model, list(built.inputs))
        (tmp_path / "m.tflite").write_bytes(built.model)
        (operation,) = operations(tmp_path / "m.tflite")
        assert operation.table is not None
        found = operation.table[unsigned(built.inputs[0])]
        assert np.array_equal(found, unsigned(expected)), case.name


@pytest.mark.parametrize("both", ["first", "second", "its own"])
def test_the_operands_of_an_add(both: str) -> None:
    """Each of the graph's inputs once; the same one twice is a submission's error."""
    built = build(Case("add", 8, 8, 16, zero_points=(110, 90, 100), dtype="int8"))
    first, second = (unsigned(pixels)[0] for pixels in built.inputs)
    halves = {"first": (first, first), "second": (second, second), "its own": (first, second)}
    witness = Witness([], 8, built)
    witness._operands(built, np.stack(halves[both]))
    said = "both operands of the ADD's job are the same pixels"
    assert [text.startswith(said) for text in witness.contradictions] == [True] * (
        both != "its own"
    )


# --- verdicts


def outcome(name: str, status: str, *, npu: str = "a311d", kind: str = "add") -> OutcomeRecord:
    blame = "" if status in ("good", "refused") else "submission"
    return sweep.Outcome(npu, name, kind, status, blame=blame, evidence=blame).document()


def test_the_worst_case_decides_a_kind() -> None:
    found = mesa.kinds_of(
        [
            outcome("a", "good"),
            outcome("b", "wrong"),
            outcome("c", "good", kind="pad"),
            outcome("d", "refused", kind="relu"),
            outcome("e", "wrong", kind="split"),
            outcome("f", "crashes", kind="split"),
            outcome("a", "good", npu="imx8mp"),
        ]
    )
    verdicts = {(kind["npu"], kind["kind"]): kind["verdict"] for kind in found}
    assert verdicts == {
        ("virtual:a311d", "add"): "wrong",
        ("virtual:a311d", "pad"): "good",
        ("virtual:a311d", "relu"): "refused",
        ("virtual:a311d", "split"): "crashes",
        ("virtual:imx8mp", "add"): "good",
    }
    add = found[0]
    assert (add["good"], add["wrong"], add["examples"]) == (1, 1, ["b"])


def test_what_changed_between_two_versions() -> None:
    before = [outcome("a", "good"), outcome("b", "wrong"), outcome("c", "refused")]
    before += [outcome("d", "crashes"), outcome("e", "good"), outcome("f", "good")]
    after = [outcome("a", "wrong"), outcome("b", "good"), outcome("c", "good")]
    after += [outcome("d", "wrong"), outcome("e", "refused"), outcome("f", "good")]
    changes = {change["name"]: change["change"] for change in mesa.changes_of(before, after)}
    assert changes == {
        "a": "worse",
        "b": "better",
        "c": "newly delegated",
        "d": "better",
        "e": "no longer delegated",
    }


@pytest.mark.slow
def test_gate_and_runner_take_the_same_runtime(tmp_path: Path) -> None:
    """Where both are installed, the gate's right answer and the smoke test's reference must be one."""
    for name in RUNTIMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "interpreter.py").touch()
    code = (
        "from userspace.npu.validate.onboard.environment import load_runtime\n"
        "from virtual.gates.model_runner import tflite_runtime\n"
        "print(load_runtime()[0].__name__, tflite_runtime().__name__)\n"
    )

    def taken(*without: str) -> list[str]:
        for name in without:
            (tmp_path / name / "interpreter.py").write_text("raise ImportError('broken')")
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{PROJECT}"}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        return done.stdout.decode().split()

    first, second = (f"{name}.interpreter" for name in RUNTIMES)
    assert taken() == [first, first]
    assert taken(RUNTIMES[0]) == [second, second]
    assert taken(*RUNTIMES) == []


def test_what_is_no_package_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "x.deb"
    broken.write_bytes(b"no package")
    with pytest.raises(UserError, match="not a Debian package"):
        packages.find_delegate(str(broken))
    with pytest.raises(UserError, match="there is no file"):
        packages.find_delegate(str(tmp_path / "none.deb"))
    with pytest.raises(UserError, match="is not a suite"):
        packages.find_delegate("Not A Suite")
    with pytest.raises(UserError, match="one of --package, --suite and --mesa"):
        mesa.gate(mesa.GateRequest())
    with pytest.raises(UserError, match="one of --package, --suite and --mesa"):
        mesa.gate(mesa.GateRequest(package=str(broken), suite="sid"))
    with pytest.raises(UserError, match="did you mean"):
        mesa.gate(mesa.GateRequest(suite="trixie", npu="virtual:a311"))


ARM64_CC = ("aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-w")


def library(path: Path, body: str, *more: str) -> Path:
    """A delegate for arm64 that does nothing, with the version of a Mesa in it."""
    source = path.with_suffix(".c")
    version = 'const char made_version[] = "\\0" "25.0.7-2\\0";'
    source.write_text(f"{version}\nint tflite_plugin_create_delegate(void) {{ {body} }}\n")
    subprocess.run([*ARM64_CC, "-o", path, source, *more], check=True)
    return path


def test_a_library_that_is_no_delegate_is_refused(tmp_path: Path) -> None:
    plain = library(tmp_path / "a.so", "return 0;")
    (tmp_path / "none.so").write_bytes(plain.read_bytes().replace(b"25.0.7-2", b"no versi"))
    with pytest.raises(UserError, match="carries no version of Mesa"):
        packages.find_delegate(str(tmp_path / "none.so"))
    (tmp_path / "amd64.so").write_bytes(Path("/bin/true").read_bytes())
    with pytest.raises(UserError, match="not a library for arm64"):
        packages.find_delegate(str(tmp_path / "amd64.so"))


@pytest.mark.slow
@pytest.mark.network
def test_a_library_that_does_not_load_says_why(tmp_path: Path) -> None:
    def refused(said: str, body: str, *more: str) -> None:
        delegate = packages.find_delegate(str(library(tmp_path / "libteflon.so", body, *more)))
        assert (delegate.upstream, delegate.patches) == ("25.0.7", 0)
        with pytest.raises(UserError, match=said), model_runner(delegate, warm=False):
            pass

    refused("undefined symbol: nowhere", "extern int nowhere(void); return nowhere();")
    other = str(library(tmp_path / "musl.so", "return 0;", "-Wl,-soname,libc.musl-aarch64.so.1"))
    refused(r"libc\.musl-aarch64\.so\.1: cannot open", "return 0;", "-Wl,--no-as-needed", other)


def test_complaints_of_a_kernel() -> None:
    log = """\
[    0.0] Kernel command line: console=ttyAMA0 root=LABEL=npu-root oops=panic
[    3.1] etnaviv-gpu 10000000.npu: model: GC8000, revision: 7120
[    3.2] [drm] Initialized etnaviv 1.4.0 for etnaviv on minor 0
[   40.0] etnaviv-gpu 10000000.npu: recover hung GPU!
[   41.0] etnaviv-gpu 10000000.npu: MMU fault status 0x00000001
[   42.0] WARNING: CPU: 0 PID: 77 at drivers/gpu/drm/etnaviv/etnaviv_sched.c:1
[   43.0] random: crng init done
"""
    found = gate_kernel.complaints(log)
    assert [line.split("]")[0] for line in found] == ["[   40.0", "[   41.0", "[   42.0"]
    with pytest.raises(UserError, match="not a virtual board with an NPU"):
        gate_kernel.plan("", "vim3", 10)
    with pytest.raises(UserError, match="at least 1"):
        gate_kernel.plan("", "all", 0)


# --- Mesa's own delegate, a real kernel


def ran(chosen: list[Case], npu: str) -> dict[str, sweep.Outcome]:
    delegate = packages.from_suite("trixie")
    found = {}
    with sweep.runner(delegate) as runner:
        for case in chosen:
            built = build(case)
            expected = reference(built.model, list(built.inputs))
            found[case.name] = runner.run(built, npu, expected)
    return found


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_a_small_sweep(npu: str) -> None:
    """One process takes them all, also after a crash; what is wrong has a reason."""
    good = [
        Case("conv", 9, 12, 7, 9, kernel=3, source="photo"),
        Case("conv", 8, 8, 12, 8, activation="relu6", zero_points=(120, 128, 0)),
        Case("depthwise", 8, 8, 8, 8, kernel=3, stride=2),
        Case("residual", 6, 6, 8, zero_points=(110, 90, 100)),
        Case("fully-connected", 1, 1, 384, 40),
        Case("pad", 8, 8, 8),
    ]
    wrong = Case("depthwise", 17, 17, 8, 8, kernel=3, stride=2)
    three = Case("depthwise", 8, 8, 3, 3, kernel=3)
    refused = Case("relu", 8, 8, 8)
    found = ran([three, wrong, refused, *good], npu)
    for case in good:
        assert found[case.name].status == "good", found[case.name]
        assert found[case.name].hardware_error <= 1
    assert found[refused.name].status == "refused"
    bad = found[wrong.name]
    assert (bad.status, bad.blame) == ("wrong", "submission")
    assert "in_image_y_offset asks for 0 pixels of border" in bad.evidence
    assert found[three.name].status == ("crashes" if npu == "imx8mp" else "good")


@pytest.mark.full
@pytest.mark.network
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_hundreds_of_models_exactly(npu: str) -> None:
    """Whatever Mesa hands to the NPU rightly comes out as TFLite's; nothing is not understood.

    What the gate found before with the same sources and package is not computed again.
    """
    document = mesa.gate(mesa.GateRequest(suite="trixie", npu=f"virtual:{npu}"))
    cases = document["cases"]
    assert {case.name for case in FULL} < {found["name"] for found in cases}
    assert sum(found["status"] == "good" for found in cases) > len(FULL) / 3
    for found in cases:
        assert found["blame"] in ("", "submission"), found
        assert found["status"] != "good" or found["hardware_error"] <= 1, found
