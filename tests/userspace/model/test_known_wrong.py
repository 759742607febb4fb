# SPDX-License-Identifier: MIT
"""What is known of a model before it is run: verdicts by hash, and faults of its operations."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from tests.support.models.rocket_sums import GOOD, WRONG, sums
from tests.support.models.rule_cases import cases, crashing
from userspace.npu.model.faults import graph_conditions, known_wrong
from userspace.npu.model.faults.known_faults import Surroundings, faults_of
from userspace.npu.model.faults.known_wrong import KnownVerdict, npu_of_soc, verdicts, wrong_models
from userspace.npu.model.faults.operand_conditions import laid_out_in, operands_in, placed_in
from userspace.npu.model.graph import Model, Operation, Tensor
from userspace.npu.model.summary import reads_computed
from virtual.gates.build import build
from virtual.gates.cases import RELU, Case
from virtual.gates.model_runner import model_runner, reference
from virtual.gates.packages import find_delegate
from virtual.npu.engines import maker_for
from virtual.npu.identity import load_npu
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
@pytest.mark.parametrize("name", crashing())
def test_what_crashes_as_the_model_is_loaded_is_said(name: str, mesa: str) -> None:
    case = crashing()[name]
    found = known_wrong.known_wrong(case.model, "imx8mp", mesa)
    if mesa == "25.0.7" and not case.before_26:
        assert not found
    else:
        assert any(case.said in each and "the delegate crashes" in each for each in found), found


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    "mesa",
    ["25.0.7", *(pytest.param(mesa, marks=pytest.mark.full) for mesa in ("26.1.6", "26.2.6"))],
)
def test_the_real_delegates_crash_where_that_is_said(mesa: str) -> None:
    different = {}
    with model_runner(find_delegate(mesa), timeout_s=60, warm=False) as runner:
        for name, case in crashing().items():
            path = runner.file(case.model)
            assert runner.on_cpu(path, case.inputs).answer["status"] == "ran", name
            if case.always:
                answer = runner.attempt(path, case.inputs, "imx8mp").answer
                crashes = case.before_26 or mesa != "25.0.7"
                if answer["status"] != ("crashes" if crashes else "ran"):
                    different[name] = answer
    assert not different


@pytest.mark.parametrize("name", sums())
def test_what_rockchips_driver_makes_of_sums_is_said(name: str) -> None:
    case = sums()[name]
    found = known_wrong.known_wrong(case.model, "rk3588", "26.2.6")
    assert bool(found) == (case.status != GOOD), found
    assert not case.said or any(case.said in each for each in found)
    assert not any("build-mesa" in each for each in known_wrong.before_a_run(
        case.model, "rk3588", "26.2.6", use="go on"))  # our patches are for the other driver  # fmt: skip


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (Case("conv", 8, 8, 8, 8, activation=RELU, zero_points=(120, 128, 120)), "is left out"),
        (Case("conv", 8, 8, 8, 8, activation=RELU, zero_points=(120, 128, 0)), ""),
        (Case("conv", 8, 8, 8, 8, dtype="int8"), ""),
        (Case("float-add", dtype="float32"), "not bytes"),
    ],
)
def test_what_rockchips_driver_does_not_look_at_is_said(case: Case, said: str) -> None:
    found = known_wrong.known_wrong(build(case).model, "rk3588", "26.2.6")
    assert bool(found) == bool(said), found
    assert not said or any(said in each for each in found)


def test_sums_of_an_older_driver_of_rockchips_are_said() -> None:
    model = sums()["the last one first"].model
    (said,) = known_wrong.known_wrong(model, "rk3588", "26.1.6")
    assert "scales that the driver has of a few models" in said


@pytest.mark.parametrize("mesa", ["26.1.6", "26.2.6"])
@pytest.mark.parametrize("name", crashing())
def test_what_crashes_rockchips_driver_is_said(name: str, mesa: str) -> None:
    case = crashing()[name]
    found = known_wrong.known_wrong(case.model, "rk3588", mesa)
    assert any(case.said in each and "the delegate crashes" in each for each in found), found


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("mesa", ["26.1.6", pytest.param("26.2.6", marks=pytest.mark.full)])
def test_the_real_driver_of_rockchip_does_what_is_said(mesa: str) -> None:
    different = {}
    with model_runner(find_delegate(mesa), timeout_s=60, warm=False) as runner:
        for name, case in sums().items():
            path = runner.file(case.model)
            maker = maker_for(load_npu("rk3588"), exact_for=path)
            attempt = runner.attempt(path, case.inputs, "rk3588", maker=maker, poison=0xA5)
            status = attempt.answer["status"]
            if status == "ran":
                right = reference(case.model, case.inputs)
                same = map(np.array_equal, attempt.outputs, right)
                status = GOOD if all(same) else WRONG
            if status != case.status:
                different[name] = status
        for name, crash in crashing().items():
            if crash.always:
                path = runner.file(crash.model)
                # The emulator reads the model, too: what has no weights is nothing to compare with.
                maker = maker_for(load_npu("rk3588"), exact_for=path)
                answer = runner.attempt(path, crash.inputs, "rk3588", maker=maker).answer
                if answer["status"] != "crashes":
                    different[name] = answer["status"]
    assert not different


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


def test_a_pad_of_three_dimensions_is_taken_by_what_follows_it_in_the_file() -> None:
    for mesa in ("25.0.7", "26.2.6"):
        refused, taken = (
            known_wrong.known_wrong(cases()[name][0], "imx8mp", mesa)
            for name in ("pad of three dimensions", "pad of three dimensions, zeros behind")
        )
        assert refused == []
        assert any("pads fewer than four dimensions" in each for each in taken)


def test_a_verdict_wins_over_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(Case("head", 8, 8, 8, 12)).model
    digest = hashlib.sha256(model).hexdigest()
    kept = (
        KnownVerdict(digest, "a head", "imx8mp", ("26.1.6",)),
        KnownVerdict(digest, "a head", "imx8mp", ("25.0.7",), "operation 0 (CONV_2D)"),
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
    assert (npu_of_soc("qemu-virt-a311d"), npu_of_soc("rk3588")) == ("a311d", "rk3588")
    assert npu_of_soc("imx93") == ""


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


def test_a_shape_among_the_options_alone_is_looked_for_among_the_inputs() -> None:
    reshape = Operation(0, "RESHAPE", 1, (sized(1, 8, 8, 8),), (sized(1, 64, 8),))
    assert "the delegate crashes" in said_of(reshape, "26.2.6")
    pool = Operation(0, "MAX_POOL_2D", 1, (sized(1, 8, 8, 8),), (sized(1, 4, 4, 8),))
    assert not reads_computed(pool)


@pytest.mark.parametrize(
    ("operation", "mesa", "said"),
    [
        (("ADD", (1, 8, 8, 8), (1, 1, 1, 8)), "26.2.6", "not repeated"),
        (("ADD", (1, 8, 8, 8), (1, 8, 8, 8)), "26.2.6", ""),
        (("ADD", (1, 2, 4, 4, 8), (1, 2, 4, 4, 8)), "26.2.6", "last four"),
        (("ADD", (1, 1, 4, 4, 8), (1, 1, 4, 4, 8)), "26.2.6", ""),
        (("CONCATENATION", (1, 4, 8), (1, 4, 8)), "26.2.6", "channel by channel"),
        (("CONCATENATION", (1, 8), (1, 8)), "26.2.6", ""),
        (("CONCATENATION", (1, 8), (1, 8)), "25.0.7", "joins fewer"),
        (("CONCATENATION", (1, 4, 4, 8), (1, 4, 4, 8)), "25.0.7", ""),
    ],
)
def test_sizes_that_the_driver_does_not_look_at(
    operation: tuple[str, tuple[int, ...], tuple[int, ...]], mesa: str, said: str
) -> None:
    kind, *shapes = operation
    joined = (*shapes[0][:-1], shapes[0][-1] * (1 + (kind == "CONCATENATION")))
    found = said_of(
        Operation(0, kind, 1, tuple(sized(*shape) for shape in shapes), (sized(*joined),)), mesa
    )
    assert said in found
    assert bool(found) == bool(said)


def test_operands_that_have_one_place() -> None:
    one, two, three = (sized(1, 8, 8, 8) for _ in range(3))
    sinks = (sized(1, 8, 8, 8), sized(1, 8, 8, 8))
    first = Operation(0, "ADD", 1, (one, two), sinks[:1])
    second = Operation(1, "ADD", 1, (one, three), sinks[1:])
    where = Surroundings((), (), (), operands_in([first, second]))
    assert any("has as well" in each.what for each in faults_of(first, where, "imx8mp", "26.2.6"))
    alone = Surroundings((), (), (), operands_in([first]))
    assert not faults_of(first, alone, "imx8mp", "26.2.6")
    twice = Operation(0, "ADD", 1, (one, one), sinks[:1])
    assert "and itself" in said_of(twice, "26.2.6")
    found = wrongly_taken(Model(3, (first, second), (one, two, three), sinks, 1), {0, 1})
    assert "expected each with a place of its own" in str(found[0])


@pytest.mark.parametrize(
    ("made_by", "read_by", "others", "wrong"),
    [
        ("CONCATENATION", "CONCATENATION", 1, ("25.0.7", "26.1.6", "26.2.6")),
        ("SPLIT", "CONCATENATION", 1, ("25.0.7", "26.1.6", "26.2.6")),
        ("CONCATENATION", "ADD", 1, ("25.0.7",)),
        ("SPLIT", "ADD", 1, ("25.0.7", "26.1.6", "26.2.6")),
        ("SPLIT", "ADD", 0, ("25.0.7",)),
        ("CONV_2D", "ADD", 1, ()),
    ],
)
def test_a_tensor_that_is_a_part_of_another_has_its_place(
    made_by: str, read_by: str, others: int, wrong: tuple[str, ...]
) -> None:
    """Seen of small graphs with each Mesa on an i.MX 8M Plus: DenseNet and ShuffleNet have them."""
    parts = (sized(1, 8, 8, 8), sized(1, 8, 8, 8))
    maker = Operation(0, made_by, 1, (sized(1, 8, 8, 16),), parts)
    joined = (parts[0], sized(1, 8, 8, 8) if others else parts[1])
    reader = Operation(1, read_by, 1, joined, (sized(1, 8, 8, 8 * (1 + (read_by != "ADD"))),))
    where = Surroundings((), (), (), operands_in([reader]), placed_in([maker, reader]))
    found = tuple(
        mesa for mesa in ("25.0.7", "26.1.6", "26.2.6") if faults_of(reader, where, "imx8mp", mesa)
    )
    assert found == wrong


@pytest.mark.parametrize(
    ("from_cpu", "convolved", "mesa", "wrong"),
    [
        ((0,), False, "25.0.7", True),
        ((0,), True, "25.0.7", False),  # a convolution has it brought into its own order
        ((0, 1), False, "25.0.7", False),
        ((), False, "25.0.7", False),
        ((0,), False, "26.1.6", False),
    ],
)
def test_a_concatenation_of_what_comes_from_both_sides(
    from_cpu: tuple[int, ...], convolved: bool, mesa: str, wrong: bool
) -> None:
    parts = (sized(1, 8, 8, 8), sized(1, 8, 8, 8))
    join = Operation(0, "CONCATENATION", 1, parts, (sized(1, 8, 8, 16),))
    reader = Operation(1, "CONV_2D", 1, (parts[0], None, None), (sized(1, 8, 8, 8),))
    where = Surroundings(
        {id(parts[number]) for number in from_cpu}, (),
        laid_out=laid_out_in([join, reader] if convolved else [join]),
    )  # fmt: skip
    found = [fault.what for fault in faults_of(join, where, "imx8mp", mesa)]
    assert any("in two orders" in what for what in found) == wrong


@pytest.mark.parametrize(
    ("activation", "scale", "zero_point", "left_out"),
    [
        ("RELU", 0.1, 0, False),
        ("RELU", 0.1, 1, True),
        ("RELU6", 6 / 255, 0, False),
        ("RELU6", 0.1, 0, True),
        ("NONE", 0.1, 9, False),
    ],
)
def test_an_activation_that_its_bytes_have_anyhow_is_not_missed(
    activation: str, scale: float, zero_point: int, left_out: bool
) -> None:
    sink = Tensor("t", (1, 8, 8, 8), "uint8", (scale,), (zero_point,))
    tensors = (sized(1, 8, 8, 8), sized(1, 8, 8, 8))
    operation = Operation(0, "ADD", 1, tensors, (sink,), activation)
    assert ("activation" in said_of(operation, "26.2.6")) == left_out
    found = wrongly_taken(Model(3, (operation,), tensors, (sink,), 1), {0})
    assert bool(found) == left_out


@pytest.mark.parametrize(
    ("scale", "zero_point", "odd"),
    [(0.02, 255, 0), (0.02, 256, 1), (0.02, -1, 1), (-0.02, 0, 1), (math.inf, 0, 1), (math.nan, 0, 1)],
)  # fmt: skip
def test_quantisations_that_no_byte_has(scale: float, zero_point: int, odd: bool) -> None:
    source = Tensor("t", (1, 8, 8, 8), "uint8", (scale,), (zero_point,))
    weights = tuple(
        Tensor("w", shape, "uint8", (0.02,), (0,), b"1") for shape in ((8, 1, 1, 8), (8,))
    )
    operation = Operation(0, "CONV_2D", 1, (source, *weights), (sized(1, 8, 8, 8),))
    assert ("no positive number" in said_of(operation, "26.2.6")) == odd


@pytest.mark.parametrize(("zero_point", "wrong"), [(0, False), (20, True)])
def test_a_pad_keeps_scale_and_zero_point(zero_point: int, wrong: bool) -> None:
    sizes = Tensor("p", (4, 2), "int32", (), (), bytes(32))
    sink = Tensor("t", (1, 8, 8, 8), "uint8", (0.02,), (zero_point,))
    pad = Operation(0, "PAD", 1, (sized(1, 8, 8, 8), sizes), (sink,))
    for mesa in ("25.0.7", "26.1.6", "26.2.6"):
        assert ("moved by the difference" in said_of(pad, mesa)) == wrong


def test_a_convolution_of_a_constant_or_of_two_strides() -> None:
    constant = Tensor("t", (1, 8, 8, 8), "uint8", (0.02,), (0,), b"1")
    operation = Operation(
        0, "CONV_2D", 1, (constant,) * 3, (sized(1, 8, 4, 8),), "RELU_N1_TO_1", strides=(1, 2)
    )
    found = said_of(operation, "26.2.6")
    assert "works on a constant" in found
    assert "another stride" in found
    assert "ends at -1 and 1" in found


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
    ("kind", "kernel", "stride", "same", "said"),
    [
        ("CONV_2D", (1, 3), 1, False, "rows than of columns"),
        ("CONV_2D", (7, 1), 2, True, "rows than of columns"),
        ("DEPTHWISE_CONV_2D", (3, 5), 1, True, "rows than of columns"),
        ("CONV_2D", (3, 3), 1, True, ""),
        ("CONV_2D", (4, 4), 2, True, "even kernel before 26.2"),
        ("DEPTHWISE_CONV_2D", (4, 4), 2, True, "even kernel"),
        ("DEPTHWISE_CONV_2D", (7, 7), 2, True, "kernel of 7"),
        ("CONV_2D", (4, 4), 2, False, ""),
        ("CONV_2D", (4, 4), 1, True, ""),
        ("DEPTHWISE_CONV_2D", (7, 7), 1, True, "kernel of 7"),
        ("DEPTHWISE_CONV_2D", (7, 7), 1, False, ""),
        ("DEPTHWISE_CONV_2D", (5, 5), 1, True, ""),
    ],
)
@pytest.mark.parametrize("mesa", ["25.0.7", "26.1.6", "26.2.6"])
def test_kernels_that_are_taken_for_others(
    kind: str, kernel: tuple[int, int], stride: int, same: bool, said: str, mesa: str
) -> None:
    """Seen with each of 60 kernels on both NPUs: 1x3 and 3x1 are read as square ones."""
    first = 1 if kind == "DEPTHWISE_CONV_2D" else 8
    weights = Tensor("w", (first, *kernel, 8), "uint8", (0.02,), (0,), b"1")
    bias = Tensor("b", (8,), "int32", (0.02,), (0,), b"1")
    size = 16 // stride
    operation = Operation(
        0, kind, 1, (sized(1, 16, 16, 8), weights, bias), (sized(1, size, size, 8),),
        strides=(stride, stride), same=same,
    )  # fmt: skip
    found = said_of(operation, mesa)
    words, _, mended = said.partition(" before ")
    if mended and mesa.startswith(mended):
        words = ""
    assert words in found
    assert bool(found) == bool(words)


def test_a_depthwise_convolution_of_four_columns_has_no_border_on_one_npu() -> None:
    weights = Tensor("w", (1, 3, 3, 8), "uint8", (0.02,), (0,), b"1")
    tensors = (sized(1, 4, 4, 8), weights, Tensor("b", (8,), "int32", (0.02,), (0,), b"1"))
    operation = Operation(
        0, "DEPTHWISE_CONV_2D", 1, tensors, (sized(1, 2, 2, 8),), strides=(2, 2), same=True
    )
    for mesa in ("25.0.7", "26.1.6", "26.2.6"):
        assert "4 columns" in said_of(operation, mesa)
        assert not said_of(operation, mesa, "a311d")


def test_a_kernel_of_two_has_the_wrong_order_with_either_padding() -> None:
    weights = Tensor("w", (16, 2, 2, 8), "uint8", (0.02,), (0,), b"1")
    tensors = (sized(1, 16, 16, 8), weights, Tensor("b", (16,), "int32", (0.02,), (0,), b"1"))
    for same in (True, False):
        operation = Operation(
            0, "CONV_2D", 1, tensors, (sized(1, 8, 8, 16),), strides=(2, 2), same=same
        )
        assert "disagree" in said_of(operation, "26.1.6", "a311d")
        assert not said_of(operation, "26.1.6", "imx8mp")


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
