# SPDX-License-Identifier: MIT
"""The audit: a submission compared with its model; who is to blame for wrong sums."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.models.inputs import crash, one_conv
from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from tests.support.npu.jobs import NPUS, Convolution, bench_for
from userspace.npu.model import graph
from userspace.npu.model.tflite_file import NO_ACTIVATION, SAME, VALID, Tensor, conv, write_model
from virtual.gates import model_runner
from virtual.npu.blame import blame_of, blamed
from virtual.npu.faults import FaultError
from virtual.npu.finding import Blame, Finding
from virtual.npu.identity import load_identity
from virtual.npu.memory import Access, Buffer, Buffers, Bytes
from virtual.npu.operands import load, operands_for_picture, operands_of, save
from virtual.npu.shim.explain import explain
from virtual.npu.tflite.arithmetic import AddScales
from virtual.npu.tflite.operations import operations
from virtual.npu.vivante import tp
from virtual.npu.vivante.audit import jobs as audit
from virtual.npu.vivante.audit import tp as audit_tp
from virtual.npu.vivante.audit.add import Operands
from virtual.npu.vivante.audit.exact import descriptor_scale
from virtual.npu.vivante.audit.jobs import ModelAudit
from virtual.npu.vivante.coefficients import Coefficients
from virtual.npu.vivante.convolution import accumulate
from virtual.npu.write_tracker import Written


def job_and_model(
    folder: Path, generation: int, kernel: int, channels: int = 13
) -> tuple[Convolution, Path]:
    """A convolution as Mesa would submit it, and the model that it belongs to."""
    rng = np.random.default_rng(kernel)
    pad = kernel // 2
    weights = rng.integers(0, 256, (9, channels, kernel, kernel)).astype(np.uint8)
    biases = rng.integers(-3000, 3000, 9)
    height, width = 6, 8
    path = folder / "model.tflite"
    tensors = [
        Tensor("input", (1, height, width, channels), "uint8", 0.02, 77),
        Tensor("weights", (9, kernel, kernel, channels), "uint8", 0.004, 120,
               weights.transpose(0, 2, 3, 1)),
        Tensor("bias", (9,), "int32", 0.02 * 0.004, 0, biases),
        Tensor("output", (1, height, width, 9), "uint8", 0.3, 99),
    ]  # fmt: skip
    padding = SAME if kernel > 1 else VALID
    operator = conv((0, 1, 2), 3, stride=1, activation=NO_ACTIVATION, padding=padding)
    path.write_bytes(write_model(tensors, [operator], inputs=[0], outputs=[3], description="one"))
    scale = descriptor_scale(operations(path)[0].mesa_real, generation)
    mantissa_bits = 15 if generation == 7 else 23
    job = Convolution(
        generation,
        rng.integers(0, 256, (channels, height, width)).astype(np.uint8),
        weights,
        biases,
        in_zero_point=77,
        weight_zero_point=120,
        out_zero_point=99,
        pad=pad,
        mantissa=scale.multiplier - (1 << mantissa_bits),
        shift=scale.shift,
        kernels=2,
    )
    return job, path


def audited(job: Convolution, path: Path) -> list[Finding]:
    bench = bench_for(job)
    bench.engine.audit = ModelAudit(path, job.generation)
    bench.run()
    return bench.engine.findings


@pytest.mark.parametrize("generation", [7, 8])
def test_a_fault_in_hardware_mode_has_operation_and_blame(generation: int, tmp_path: Path) -> None:
    """The header of the coefficients says that they are longer than they are."""
    job, path = job_and_model(tmp_path, generation, 3)
    bench = bench_for(job)
    bench.engine.audit = ModelAudit(path, generation)
    bench.coefficients[:4] = 0xFF
    with pytest.raises(FaultError) as caught:
        bench.run()
    text = str(blamed(caught.value.finding))
    assert text.startswith("operation 0 (CONV_2D) NN job 0 at ")
    assert "[submission: " in text


@pytest.mark.parametrize(
    ("fault", "blame"),
    [
        ("NN job 1: depthwise channels: expected 3 (as the input), found 6", Blame.SUBMISSION),
        ("FE opcode: expected LOAD_STATE, found 31", Blame.NOT_UNDERSTOOD),
        ("the emulator failed: KeyError(3)", Blame.EMULATOR),
        ("zero points of a look-up job: expected 3, found 4", Blame.SUBMISSION),
        ("something that nobody has thought of", Blame.OPEN),
    ],
)
def test_who_is_to_blame_for_a_fault(fault: str, blame: Blame) -> None:
    assert blame_of(fault)[0] is blame
    assert bool(blame_of(fault)[1]) == (blame is not Blame.OPEN)


def adding(folder: Path) -> graph.Operation:
    net = Net(4, dtype="int8")
    first, second = net.conv(0, 8), net.conv(0, 8)
    path = folder / "add.tflite"
    path.write_bytes(net.model([net.add(first, second)]))
    return graph.read_file(path)[2]


def test_the_operands_of_an_add(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    one, two, other = (rng.integers(0, 256, (4, 4, 8)).astype(np.uint8) for _ in range(3))

    def planes(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.moveaxis(values, -1, 0)).reshape(4, 4, 8)

    def said(first: Any, second: Any, *, known: bool = True) -> str:
        operands = Operands({2: (one, two)} if known else {})
        image = np.stack([first, second]).reshape(16, 4, 4)
        found = list(operands.look(adding(tmp_path), image))
        assert list(operands.look(adding(tmp_path), image)) == []  # the first inference alone
        assert all(each.blame is Blame.SUBMISSION for each in found)
        return " ".join(str(each) for each in found)

    noisy = np.clip(one.astype(np.int64) + rng.integers(-4, 5, one.shape), 0, 255).astype(np.uint8)
    for right in ((one, two), (two, one), (noisy, two), (planes(one), planes(two))):
        assert said(*right) == ""
    assert "found the second and what is neither of the two" in said(two, other)
    assert "found the first and the first" in said(one, one)
    assert "one channel by channel and one in TFLite's order" in said(planes(one), two)
    assert said(other, other[::-1]) == ""  # what came before is wrong: nobody can tell
    empty = np.zeros_like(one)
    assert "bytes that are all 0 in the place of the second" in said(other, empty)
    assert "bytes that are all 0 in the place of the first" in said(empty, empty)
    assert "the first and what is neither of the two" in said(one, empty)
    assert "one of them, twice" in said(other, other, known=False)
    assert said(other, one, known=False) == ""


def test_what_a_models_adds_add(tmp_path: Path) -> None:
    """TFLite may write a sum over one of its inputs, and that must not be taken for the input."""
    net = Net(8, dtype="int8")
    first = net.conv(0, 8)
    second = net.conv(first, 8)
    model = net.model([net.conv(net.add(first, second), 4)])
    rng = np.random.default_rng(4)
    picture = rng.integers(-128, 128, (1, 8, 8, 3)).astype(np.int8)
    found = operands_of(model, [picture])
    assert list(found) == [2]
    for side, tensor in enumerate((first, second)):
        (expected,) = model_runner.reference(graph.with_outputs(model, [tensor]), [picture])
        assert np.array_equal(found[2][side], expected[0].view(np.uint8) ^ 0x80)
    assert operands_of(Net(8).model([0]), []) == {}
    save(tmp_path / "o.npz", found)
    again = load(tmp_path / "o.npz")
    assert [np.array_equal(*pair) for pair in zip(again[2], found[2], strict=True)] == [True, True]


def test_a_model_that_crashes_tflite_ends_a_process_of_its_own(tmp_path: Path) -> None:
    model, picture = tmp_path / "model.tflite", noise_picture(tmp_path / "noise.bmp")
    model.write_bytes(crash())
    known = operands_for_picture(model, picture)
    assert list(known) == ([] if platform.machine() == "x86_64" else [2])
    net = Net(8)
    model.write_bytes(net.model([net.add(net.conv(0, 8), net.conv(0, 8))]))
    assert list(operands_for_picture(model, picture)) == [2]


def test_a_split_at_an_end_of_the_graph_is_named() -> None:
    net = Net(8)
    parts = net.split(net.conv(0, 16), 2)
    model = net.model([net.conv(parts[0], 4), parts[1]])

    def row(problem: str, order: str = "") -> Any:
        outputs = [{"index": index, "problem": problem, "order": order} for index in (0, 1)]
        return {"outputs": outputs, "delegated_nodes": [0, 1, 2]}

    assert explain(row(""), model) == []
    (found,) = explain(row("wrong"), model)
    assert str(found).startswith(
        "operation 1 (SPLIT): order of a SPLIT's bytes: expected a job that"
    )
    assert "1 of its 2 parts into TFLite's order" in str(found)
    assert found.blame is Blame.SUBMISSION
    assert explain(row("wrong") | {"delegated_nodes": [0, 2]}, model) == []
    alone = Net(8)
    parts = alone.split(0, 3)
    model = alone.model([alone.conv(each, 4) for each in parts])
    (found,) = explain({"outputs": row("x")["outputs"], "delegated_nodes": [0, 1, 2, 3]}, model)
    assert "its input channel by channel" in str(found)
    inner = Net(8)
    parts = inner.split(inner.conv(0, 16), 2)
    model = inner.model([inner.conv(each, 4) for each in parts])
    assert explain({"outputs": row("x")["outputs"], "delegated_nodes": [0, 1, 2, 3]}, model) == []
    found, _ = explain(row("x", "channel by channel") | {"delegated_nodes": []}, model)
    assert str(found).startswith("operation 2 (CONV_2D): order of output 0")


def test_an_output_whose_order_is_explained_is_named_once() -> None:
    net = Net(8)
    shared = net.conv(0, 16)
    model = net.model([shared, net.conv(shared, 4)])
    outputs: Any = [{"index": 0, "problem": "wrong", "order": "channel by channel"}]
    (found,) = explain({"outputs": outputs, "delegated_nodes": [0, 1]}, model)
    assert str(found).startswith("operation 0 (CONV_2D): order of ")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_batch_is_named(batch: int) -> None:
    model = one_conv(batch, 8, 8, 3)

    def found(taken: list[int], problem: str) -> list[str]:
        outputs: Any = [{"index": 0, "problem": problem, "order": ""}]
        return list(map(str, explain({"outputs": outputs, "delegated_nodes": taken}, model)))

    assert found([0], "") == found([], "wrong") == []
    said = found([0], "wrong")
    assert len(said) == (batch > 1)
    if said:
        assert said[0].startswith("operation 0 (CONV_2D): jobs: expected some for each of the ")
        assert "[submission: " in said[0]


CASES = [(7, 1), (7, 3), (8, 1), (8, 3)]


@pytest.mark.parametrize(("generation", "kernel"), CASES)
def test_a_right_submission_has_no_finding(generation: int, kernel: int, tmp_path: Path) -> None:
    assert audited(*job_and_model(tmp_path, generation, kernel)) == []


@pytest.mark.parametrize(("generation", "kernel"), CASES)
@pytest.mark.parametrize(
    ("wrong", "field", "expected"),
    [
        ("bias", "bias", "in channel 4"),
        ("weight", "weights", "as in the model"),
        ("scale", "post_multiplier and post_shift of operation 0 (CONV_2D)", ">>"),
        ("zero point", "zero points of operation 0 (CONV_2D)", "output 99"),
        ("channels", "zero points and channels", "those of an operation"),
        ("in_image_x_size", "sum of channel", "after the model"),
    ],
)
def test_what_is_wrong_is_named(
    generation: int, kernel: int, wrong: str, field: str, expected: str, tmp_path: Path
) -> None:
    job, path = job_and_model(tmp_path, generation, kernel)
    change: Any = {}
    if wrong == "bias":
        change["biases"] = job.biases + 50 * (np.arange(9) == 4)
    elif wrong == "weight":
        change["weights"] = job.weights.copy()
        change["weights"][3, 2, 0, 0] ^= 1
    elif wrong == "scale":
        change["mantissa"] = job.mantissa ^ 1
    elif wrong == "zero point":
        change["out_zero_point"] = 98
    elif wrong == "channels":
        change["weights"], change["biases"] = job.weights[:8], job.biases[:8]
    else:
        if kernel == 1:
            pytest.skip("a 1x1 kernel sees no border")
        change["fields"] = {"in_image_border_const": 77, "in_image_y_offset": 6}
        field, expected = "in_image_y_offset", "-1"
    found = audited(replace(job, **change), path)
    assert any(each.field.startswith(field) and expected in each.expected for each in found), found
    blamed = Blame.NOT_UNDERSTOOD if wrong == "channels" else Blame.SUBMISSION
    assert {each.blame for each in found} == {blamed}
    if wrong not in ("scale", "zero point") and blamed is Blame.SUBMISSION:
        assert all(each.operation == "operation 0 (CONV_2D)" for each in found)
        assert "[submission: " in str(found[0])


@pytest.mark.parametrize(("channels", "found"), [(13, "others"), (12, "")])
def test_the_other_order_of_v7_coefficients(channels: int, found: str, tmp_path: Path) -> None:
    """With 13 channels, uncompressed, both orders read well: only the model tells them apart."""
    job, path = job_and_model(tmp_path, 7, 1, channels)
    run_bits = 0 if channels == 13 else 3
    seen = audited(replace(job, blocks_of_six=False, run_bits=run_bits), path)
    if found:
        assert any(each.field == "weights" and found in each.found for each in seen), seen
    else:
        assert [each.field for each in seen] == ["coefficient order"]
        assert seen[0].found == "planes interleaved"


def test_one_descriptor_with_two_orders(tmp_path: Path) -> None:
    job, path = job_and_model(tmp_path, 7, 1, 12)
    audit = ModelAudit(path, 7)
    fields = []
    for blocks in (True, False):
        bench = bench_for(replace(job, blocks_of_six=blocks))
        bench.engine.audit = audit
        bench.run()
        fields += [each.field for each in bench.engine.findings]
    assert "coefficient order under one descriptor" in fields


@pytest.mark.parametrize("generation", [7, 8])
def test_the_emulator_is_blamed_for_its_own_sums(
    generation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, path = job_and_model(tmp_path, generation, 3)
    monkeypatch.setattr(
        "virtual.npu.vivante.engine.accumulate", lambda *given: accumulate(*given) + 1
    )
    found = audited(job, path)
    assert found[0].blame is Blame.EMULATOR
    assert found[0].evidence
    assert load_identity(NPUS[generation]).nn_generation == generation


def space_to_depth(zero_point: int) -> tuple[tp.TpJob, Bytes, Bytes]:
    """A job that folds an image of 13 planes, 6 rows, 8 columns, one pixel of border around; its bytes."""
    rng = np.random.default_rng(5)
    source = rng.integers(0, 256, (13, 6, 8)).astype(np.uint8)
    job = tp.TpJob(
        address=0x1000,
        size=(13, 6, 8),
        slice_bytes=48,
        stride_bytes=8,
        window=(-1, -1, 8, 6),
        tile=(10, 8),
        out_address=0x2000,
        counts=(2, 5, 2, 4, 1, 1),
        increments=(20, 1, 40, 5, 0, 0, 80),
        in_zero_point=zero_point,
        out_zero_point=zero_point,
    )
    target = np.full(13 * 80, 0xA5, np.uint8)
    buffers = [
        Buffer(0x1000, Access.READ, source.reshape(-1)),
        Buffer(0x2000, Access.WRITE, target),
    ]
    tp.run(job, Buffers(buffers))
    return job, source, target


def test_a_job_that_moves_bytes(tmp_path: Path) -> None:
    """Right; with a border that is not the zero point of the model; and moved wrongly by the emulator."""
    _, path = job_and_model(tmp_path, 8, 3)
    audit = ModelAudit(path, 8)
    job, source, target = space_to_depth(77)
    assert list(audit.tp(job, source, target)) == []
    other = space_to_depth(76)
    (found,) = audit.tp(*other)
    assert (found.field, found.blame) == ("out_zp of a job with a border", Blame.SUBMISSION)
    assert (found.expected[:9], found.found) == ("77 or 99,", "76")
    (found,) = audit.tp(job, source, target ^ np.uint8(1))
    assert found.blame is Blame.EMULATOR
    assert "after the descriptor" in found.expected
    (found,) = audit.tp(job, source, target[:100])
    assert found.found == "nothing written"


def test_reads_past_what_jobs_have_written() -> None:
    written = Written()
    for address, size in ((0x1000, 100), (0x3000, 50), (0x1064, 28), (0x2000, 10), (0x1FF0, 64)):
        written.add(address, size)
    assert list(written.read(0x1000, 128, "")) == []  # two jobs, side by side
    assert list(written.read(0x1FF8, 56, "")) == []
    assert list(written.read(0x5000, 9, "")) == []  # nobody's: the CPU's
    (found,) = written.read(0x1010, 128, "2x8x8")
    assert found.expected.startswith("at most the 112 bytes at 0x1010")
    assert found.found == "128 bytes (2x8x8)"
    assert found.blame is Blame.SUBMISSION


def test_the_cpu_may_write_one_of_the_operands_of_an_add(tmp_path: Path) -> None:
    """They lie behind one another, and each is read whole: one from a job, one from the application."""
    _, path = job_and_model(tmp_path, 7, 3)
    audit = ModelAudit(path, 7)
    operation = replace(operations(path)[0], add=AddScales(0.5, 10, 0.5, 20, 1.0, 5))
    read: Any = SimpleNamespace(in_address=0x1000, in_plane=64, in_row=8, in_height=8, in_width=8)
    image = np.zeros((2, 8, 8), np.uint8)

    def found(*written: tuple[int, int], add: bool = True) -> list[str]:
        audit._written = Written()
        for each in written:
            audit._written.add(*each)
        audit._current = operation if add else None
        return [each.found for each in audit._unwritten(read, image)]

    assert found((0x1000, 64)) == found((0x1040, 64)) == found((0x1000, 128)) == []
    assert found((0x1000, 64), add=False) == ["128 bytes (2x8x8)"]
    assert found((0x1000, 60)) == found((0x1000, 100)) == ["64 bytes (1x8x8)"]


@pytest.mark.parametrize(("start", "found"), [(0, "0, 0"), (-1, "")])
def test_where_an_image_is_folded(start: int, found: str, tmp_path: Path) -> None:
    """A 3x3 convolution of stride 2 over 7x7 pixels is padded before the image; a job must do so."""
    tensors = [
        Tensor("input", (1, 7, 7, 2), "uint8", 0.02, 77),
        Tensor("weights", (1, 3, 3, 2), "uint8", 0.004, 120, np.zeros((1, 3, 3, 2), np.uint8)),
        Tensor("bias", (1,), "int32", 0.02 * 0.004, 0, np.zeros(1, np.int32)),
        Tensor("output", (1, 4, 4, 1), "uint8", 0.3, 99),
    ]
    operator = conv((0, 1, 2), 3, stride=2, activation=NO_ACTIVATION, padding=SAME)
    path = tmp_path / "model.tflite"
    path.write_bytes(write_model(tensors, [operator], inputs=[0], outputs=[3], description="one"))
    job = tp.TpJob(
        address=0x1000,
        size=(2, 7, 7),
        slice_bytes=49,
        stride_bytes=7,
        window=(start, start, start + 7, start + 7),
        tile=(8, 8),
        out_address=0x2000,
        counts=(2, 4, 2, 4, 1, 1),
        increments=(16, 1, 32, 4, 0, 0, 64),
        in_zero_point=77,
        out_zero_point=77,
    )
    source = np.arange(98, dtype=np.uint8).reshape(2, 7, 7)
    target = np.zeros(128, np.uint8)
    tp.run(
        job,
        Buffers(
            [
                Buffer(0x1000, Access.READ, source.reshape(-1)),
                Buffer(0x2000, Access.WRITE, target),
            ]
        ),
    )
    seen = list(ModelAudit(path, 8).tp(job, source, target))
    assert [each.found for each in seen] == ([found] if found else [])
    assert all(each.expected.startswith("-1, -1") for each in seen)


@pytest.mark.parametrize(
    ("columns", "start", "found"),
    [
        ((0, 8), (0, -1), ""),
        ((8, 12), (0, -1), ""),
        ((0, 12), (0, -1), ""),
        ((0, 7), (-1, 0), "-1, 0"),  # rows' padding and columns' swapped, first part
        ((7, 12), (0, 0), "0"),  # and a later one: of the columns nothing can be said
        ((0, 12), (0, 0), "0, 0"),
    ],
)
def test_where_parts_of_an_image_are_folded(
    columns: tuple[int, int], start: tuple[int, int], found: str, tmp_path: Path
) -> None:
    """A 3x3 convolution of stride 2 over 5x12 pixels is padded above, not at the left."""
    path = strided_model(tmp_path, (5, 12), kernel=3, target=(3, 6), padding=SAME)
    size = columns[1] - columns[0]
    job = tp.TpJob(
        address=0x1000 + columns[0],
        size=(2, 5, size),
        slice_bytes=60,
        stride_bytes=12,
        window=(start[0], start[1], start[0] + size + 1, start[1] + 7),
        tile=(size + 2, 8),
        out_address=0x2000,
        counts=(2, 4, 2, 4, 1, 1),
        increments=(28, 1, 56, 7, 0, 0, 112),
        in_zero_point=77,
        out_zero_point=77,
    )
    operators = graph.read_file(path)
    seen = list(audit_tp.folded_at(job, operators))
    assert [each.found for each in seen] == ([found] if found else [])
    assert all(each.expected.split(":")[0] in ("0, -1", "-1") for each in seen)
    assert list(audit_tp.folded_at(replace(job, increments=(1, 2, 3, 4, 0, 0, 0)), operators)) == []


def test_weights_at_other_places_are_the_same_weights() -> None:
    """A depthwise kernel that is folded and spread over all planes: no weight is another."""
    rng = np.random.default_rng(2)
    weights = rng.integers(-128, 128, (83, 1, 5, 5))
    spread = np.zeros((83, 332 * 9), np.float32)
    for row, kernel in zip(spread, weights.reshape(83, 25), strict=True):
        row[rng.permutation(row.size)[:25]] = kernel
    folded = Coefficients(
        spread.reshape(83, 332, 3, 3), None, np.zeros(83, np.int64), 1, 0, "some", "some"
    )
    assert list(audit._weights(folded, weights)) == []
    folded.weights[7].reshape(-1)[spread[7].argmax()] += 1
    (found,) = audit._weights(folded, weights)
    assert "others in 1 of 83 channels" in found.found


def test_rows_that_overlap() -> None:
    """An image of 20 rows of 12 pixels, read as 12 rows of 20 that are 12 bytes apart."""
    job, _, _ = space_to_depth(77)
    assert list(audit_tp.rows_apart(job)) == []
    assert list(audit_tp.rows_apart(replace(job, size=(13, 1, 8), stride_bytes=1))) == []
    (found,) = audit_tp.rows_apart(replace(job, size=(13, 12, 20), stride_bytes=12))
    assert (found.field, found.found) == ("in_image_stride", "12")
    assert found.blame is Blame.SUBMISSION


@pytest.mark.parametrize("generation", [7, 8])
@pytest.mark.parametrize("moved", ["folded", "as it is", "by the CPU"])
def test_a_folded_kernel_needs_a_folded_image(generation: int, moved: str, tmp_path: Path) -> None:
    """A 2x2 convolution of stride 2 over 2 planes becomes a 1x1 one over 8."""
    path = strided_model(tmp_path, (6, 8), kernel=2, target=(3, 4), padding=VALID)
    rng = np.random.default_rng(3)
    scale = descriptor_scale(operations(path)[0].mesa_real, generation)
    convolution = Convolution(
        generation,
        rng.integers(0, 256, (8, 3, 4)).astype(np.uint8),
        np.full((1, 8, 1, 1), 121, np.uint8),
        np.zeros(1, np.int64),
        in_zero_point=77,
        weight_zero_point=120,
        out_zero_point=99,
        mantissa=scale.multiplier - (1 << (15 if generation == 7 else 23)),
        shift=scale.shift,
    )
    bench = bench_for(convolution)
    audit = ModelAudit(path, generation)
    if moved != "by the CPU":
        job, image, target = space_to_depth(77)
        increments = job.increments if moved == "folded" else (1, 20, 0, 40, 0, 0, 80)
        list(audit.tp(replace(job, out_address=0x10000000, increments=increments), image, target))
    bench.engine.audit = audit
    bench.run()
    fields = [each.field for each in bench.engine.findings]
    assert ("in_image_address" in fields) == (moved == "as it is"), bench.engine.findings
    assert fields in ([], ["in_image_address"])


def strided_model(
    folder: Path, size: tuple[int, int], *, kernel: int, target: tuple[int, int], padding: int
) -> Path:
    """One convolution of stride 2 from 2 planes to 1; its weights are all 1."""
    weights = np.full((1, kernel, kernel, 2), 121, np.uint8)
    tensors = [
        Tensor("input", (1, *size, 2), "uint8", 0.02, 77),
        Tensor("weights", weights.shape, "uint8", 0.004, 120, weights),
        Tensor("bias", (1,), "int32", 0.02 * 0.004, 0, np.zeros(1, np.int32)),
        Tensor("output", (1, *target, 1), "uint8", 0.3, 99),
    ]
    operator = conv((0, 1, 2), 3, stride=2, activation=NO_ACTIVATION, padding=padding)
    path = folder / "model.tflite"
    path.write_bytes(write_model(tensors, [operator], inputs=[0], outputs=[3], description="one"))
    return path
