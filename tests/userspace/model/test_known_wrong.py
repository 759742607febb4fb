# SPDX-License-Identifier: MIT
"""What is known of a model before it is run: verdicts by hash, and faults of its operations."""

from __future__ import annotations

import hashlib

import pytest

from tests.support.models.rule_cases import crashing
from userspace.npu.model.faults import graph_conditions, known_wrong
from userspace.npu.model.faults.known_faults import Surroundings, faults_of
from userspace.npu.model.faults.known_wrong import Verdict, npu_of_soc, verdicts, wrong_models
from userspace.npu.model.graph import Model, Operation, Tensor
from virtual.gates.build import build
from virtual.gates.cases import Case
from virtual.npu.taken import wrongly_taken

RELU_SUM = Case("sum-relu", 8, 8, 8, 8, zero_points=(120, 128, 60))


@pytest.mark.parametrize(
    ("case", "npu", "mesa", "said"),
    [
        (Case("head", 8, 8, 8, 12), "imx8mp", "26.1.6-1", "operation 1 (RESHAPE) is a RESHAPE of"),
        (Case("head", 8, 8, 8, 12), "imx8mp", "25.0.7-2", ""),
        (Case("flat", 8, 8, 8, 12), "a311d", "26.2.6", "RESHAPE"),
        (Case("branch", 8, 8, 8, 12), "a311d", "25.0.7", "hands out as well"),
        (Case("readers", 8, 8, 8, 12), "a311d", "25.0.7", ""),
        (RELU_SUM, "imx8mp", "25.0.7", "activation"),
        (Case("connected-relu", 1, 1, 384, 40, zero_points=(0, 128, 90)), "imx8mp", "26.1.6", "activation"),
        (Case("connected-without-bias", 1, 1, 384, 40), "imx8mp", "25.0.7", "has no bias"),
        (Case("fully-connected", 1, 1, 64, 10), "a311d", "25.0.7", "fit one plane"),
        (Case("fully-connected", 1, 1, 64, 10), "imx8mp", "25.0.7", ""),
        (Case("fully-connected", 1, 1, 384, 40), "a311d", "25.0.7", ""),
        (Case("fully-connected", 1, 1, 15, 8), "a311d", "25.0.7", ""),
        (Case("fully-connected", 1, 1, 1279, 8), "a311d", "26.1.6", "divides"),
        (Case("joined", 8, 8, 3, 4, parts=10), "imx8mp", "25.0.7", ""),
        (Case("joined", 8, 8, 3, 4, parts=11), "imx8mp", "25.0.7", "more than ten"),
        (Case("difference", 8, 8, 8, 8), "imx8mp", "26.1.6", "stays channel by channel"),
        (Case("sub", 8, 8, 8), "imx8mp", "26.1.6", ""),
        (Case("sub", 8, 8, 8), "a311d", "26.1.6", "those of an ADD"),
        (Case("sub", 8, 8, 8), "a311d", "23.1.0", ""),
        (Case("sub", 8, 8, 8), "rk3588", "26.1.6", ""),
        (Case("head", 8, 8, 8, 12), "imx8mp", "26.1.6+npu-bsp0.2.0.p9", ""),
    ],
)  # fmt: skip
def test_faults_are_said_before_the_run(case: Case, npu: str, mesa: str, said: str) -> None:
    found = known_wrong.known_wrong(build(case).model, npu, mesa)
    assert bool(found) == bool(said), found
    assert not said or any(said in each for each in found)


@pytest.mark.parametrize("mesa", ["25.0.7", "26.1.6", "26.2.6"])
@pytest.mark.parametrize(
    ("name", "said"), [("pad computed", "computes"), ("depthwise without bias", "has no bias")]
)
def test_what_crashes_as_the_model_is_loaded_is_said(name: str, said: str, mesa: str) -> None:
    (found,) = known_wrong.known_wrong(crashing()[name], "imx8mp", mesa)
    assert said in found
    assert "the delegate crashes" in found


def test_before_a_run_the_way_out_is_said_or_what_was_mended() -> None:
    model = build(Case("head", 8, 8, 8, 12)).model
    *known, last = known_wrong.before_a_run(model, "imx8mp", "26.1.6-1", use="go on")
    assert known
    assert all(each.startswith("known to come out wrong on this NPU") for each in known)
    assert last.endswith("./inv build-mesa, then go on")
    mended = "26.1.6 + 9 patches of npu-bsp 0.2.0"
    said = known_wrong.before_a_run(model, "imx8mp", mended, use="go on")
    old = "known to come out wrong on this NPU with this Mesa"
    assert len(said) == len(known)
    for was, now in zip(
        known, said, strict=True
    ):  # without the way out, which nobody needs any more
        assert was.endswith(")")
        assert was.startswith(now.replace("mended in this Mesa", old) + " (")
    assert known_wrong.before_a_run(model, "imx8mp", "25.0.7-2", use="go on") == []


def test_a_verdict_wins_over_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Case("head", 8, 8, 8, 12)).model
    digest = hashlib.sha256(model).hexdigest()
    kept = (
        Verdict(digest, "a head", "imx8mp", ("26.1.6",)),
        Verdict(digest, "a head", "imx8mp", ("25.0.7",), "operation 0 (CONV_2D)"),
    )
    monkeypatch.setattr(known_wrong, "verdicts", lambda: kept)
    assert known_wrong.known_wrong(model, "imx8mp", "26.1.6-1") == []
    (said,) = known_wrong.known_wrong(model, "imx8mp", "25.0.7-2")
    assert said == "a head goes wrong at operation 0 (CONV_2D); right with Mesa 26.1.6"
    (said,) = known_wrong.before_a_run(
        model, "imx8mp", "25.0.7 + 25 patches of npu-bsp 0.2.0", use=""
    )
    assert said == "mended in this Mesa: a head goes wrong at operation 0 (CONV_2D)"


def test_the_kept_verdicts_are_whole() -> None:
    kept = [(each.sha256, each.npu, mesa) for each in verdicts() for mesa in each.mesa]
    assert len(set(kept)) == len(kept)
    assert all(npu_of_soc(each.npu) == each.npu and len(each.sha256) == 64 for each in verdicts())
    assert "MobileNet V2 1.0 224" in wrong_models("a311d", "26.1.6-1~bpo13+1")
    assert "MobileNet V2 1.0 224" not in wrong_models("a311d", "25.0.7-2+deb13u1")
    assert wrong_models("a311d", "26.1.6+npu-bsp0.2.0.p3") == []
    assert (npu_of_soc("qemu-virt-a311d"), npu_of_soc("rk3588")) == ("a311d", "")


def test_reshapes_and_scales_that_one_job_cannot_have() -> None:
    def tensor(*shape: int, scales: tuple[float, ...] = (0.02,)) -> Tensor:
        return Tensor("t", shape, "int8", scales, (0,) * len(scales))

    around = Surroundings((), ())
    reshape = Operation(0, "RESHAPE", 1, (tensor(1, 8, 8, 8), None), (tensor(1, 2, 4, 8, 8),))
    flat = Operation(0, "RESHAPE", 1, (tensor(1, 512), None), (tensor(1, 8, 64),))
    assert graph_conditions.reshape_of_many_dimensions(reshape, around)
    assert not graph_conditions.reshape_of_many_dimensions(flat, around)
    for scales, wrong in (((0.1, 0.2), True), ((0.1, 0.1), False), ((0.1,), False)):
        weights = tensor(2, 64, scales=scales)
        layer = Operation(0, "FULLY_CONNECTED", 1, (tensor(1, 64), weights, None), (tensor(1, 2),))
        assert graph_conditions.connected_per_axis(layer, around) == wrong


def sized(*shape: int, dtype: str = "uint8", scale: float = 0.02) -> Tensor:
    return Tensor("t", shape, dtype, (scale,), (0,))


def said_of(operation: Operation, mesa: str, npu: str = "imx8mp") -> str:
    """What is known of an operation between CPU and CPU."""
    ids = [id(each) for each in (*operation.inputs, *operation.outputs)]
    around = Surroundings(ids[: len(operation.inputs)], ids[len(operation.inputs) :])
    return "; ".join(fault.what for fault in faults_of(operation, around, npu, mesa))


def joined(rows: int, columns: int, *, scale: float = 0.02) -> Operation:
    parts = (sized(1, rows, columns, 8), sized(1, rows, columns, 8, scale=scale))
    return Operation(0, "CONCATENATION", 1, parts, (sized(1, rows, columns, 16),))


@pytest.mark.parametrize(
    ("rows", "columns", "wrong"), [(1, 17, 1), (17, 1, 1), (1, 1, 0), (2, 9, 0)]
)
def test_a_side_of_one_pixel_leaves_the_order_also_of_a_concatenation(
    rows: int, columns: int, wrong: bool
) -> None:
    assert ("height or width 1" in said_of(joined(rows, columns), "26.1.6")) == wrong
    assert said_of(joined(rows, columns), "25.0.7") == ""


def test_a_concatenation_of_other_scales_is_known() -> None:
    assert "keep their own" in said_of(joined(4, 4, scale=0.03), "25.0.7")
    assert said_of(joined(4, 4), "25.0.7") == ""


def test_an_operation_on_indices_is_known() -> None:
    """Mesa's CI names these of MoveNet as failing on an i.MX 8M Plus."""
    tensors = (sized(1, 17, dtype="int32"), None), (sized(17, dtype="int32"),)
    assert "not bytes" in said_of(Operation(0, "RESHAPE", 1, *tensors), "26.2.6")
    axis, parts = sized(1, dtype="int32"), (sized(1, 8, 8, 8), sized(1, 8, 8, 8))
    split = Operation(0, "SPLIT", 1, (axis, sized(1, 8, 8, 16)), parts)
    assert "not bytes" not in said_of(split, "26.2.6")


def test_weights_of_four_bits_are_taken_for_bytes() -> None:
    def conv(dtype: str) -> Operation:
        weights = Tensor("w", (8, 3, 3, 3), dtype, (0.1,), (0,))
        return Operation(0, "CONV_2D", 7, (sized(1, 8, 8, 3), weights, None), (sized(1, 8, 8, 8),))

    assert "not bytes" in said_of(conv("int4"), "26.2.6")
    assert "not bytes" not in said_of(conv("int8"), "26.2.6")
    model = Model(3, (conv("int4"),), (), (), 1)
    assert "expected bytes, found int4" in str(wrongly_taken(model, {0})[0])


@pytest.mark.parametrize(
    ("stride", "mesa", "wrong"), [(1, "26.2.6", 1), (2, "26.2.6", 0), (2, "26.1.6", 1)]
)
def test_kernels_of_seven_with_stride_2_are_right_since_26_2(
    stride: int, mesa: str, wrong: bool
) -> None:
    size = 40 // stride
    operation = Operation(
        0, "CONV_2D", 1, (sized(1, 40, 40, 3), sized(16, 7, 7, 3), None), (sized(1, size, size, 16),),
        strides=(stride, stride), same=True,
    )  # fmt: skip
    assert ("kernel of 7" in said_of(operation, mesa)) == wrong
