# SPDX-License-Identifier: MIT
"""What a model's report says: figures, what is taken and why not, partitions, advice, known faults."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.base.output import json_text
from tests.support.models.inputs import one_conv
from tests.support.models.rule_cases import cases
from tests.support.models.small_nets import Net
from userspace.npu.model import tiny_detector
from userspace.npu.model.faults.known_faults import Fault
from userspace.npu.model.graph import Model, Operation, Tensor, read_model
from userspace.npu.model.partitions import partitions
from userspace.npu.model.prediction import Refusal
from userspace.npu.model.report import document as report_document
from userspace.npu.model.report import page
from userspace.npu.model.report import text as report_text
from userspace.npu.model.report.report import Facts, report
from userspace.npu.model.summary import macs
from userspace.npu.model.tflite_file import CUSTOM, Operator, conv, softmax, write_model
from userspace.npu.model.tflite_file import Tensor as FileTensor
from userspace.npu.validate import models
from virtual.gates.build import build
from virtual.gates.cases import RELU, RELU6, VALID, Case

assets = pytest.mark.skipif(
    "NPU_BSP_ASSETS" not in os.environ, reason="needs the real models: set NPU_BSP_ASSETS"
)


def facts_of(folder: Path, content: bytes, **flags: str) -> Facts:
    file = folder / "model.tflite"
    file.write_bytes(content)
    return report(file, **flags)


def of_case(folder: Path, case: Case, **flags: str) -> Facts:
    return facts_of(folder, build(case).model, **flags)


def answer(facts: Facts) -> str:
    return report_document.verdict(facts).answer


# --- figures -----------------------------------------------------------------------------------


@assets
@pytest.mark.parametrize(
    ("name", "millions", "taken", "total"),
    [
        ("mobilenet_v1_1.0_224_quant", 569, 28, 31),
        ("mobilenet_v1_0.25_128_quant", 14, 28, 31),
        ("mobilenet_v2_1.0_224_quant", 301, 63, 66),
    ],
)
def test_mobilenets_have_the_multiplications_of_their_papers(
    name: str, millions: int, taken: int, total: int
) -> None:
    facts = report(models.find(name, "model").path, mesa="25.0.7")
    found = report_document.document(facts)
    assert round(found["model"]["macs"] / 1e6) == millions
    assert found["verdict"]["answer"] == "fits"
    assert (found["drivers"][0]["taken"], found["drivers"][0]["operations"]) == (taken, total)
    assert found["known_faults"] == []
    # The average pool before the last convolution splits it in two.
    assert [len(each["operations"]) for each in found["partitions"]] == [taken - 1, 1]


def test_figures_of_small_operations(tmp_path: Path) -> None:
    plain = Case("conv", 8, 6, 4, 10, kernel=3)
    assert of_case(tmp_path, plain).macs == (8 * 6 * 10 * 3 * 3 * 4,)
    assert of_case(tmp_path, replace(plain, stride=2)).macs == (4 * 3 * 10 * 3 * 3 * 4,)
    depthwise = of_case(tmp_path, Case("depthwise", 8, 6, 5, 5, kernel=3))
    assert depthwise.macs == (8 * 6 * 5 * 9,)
    connected = of_case(tmp_path, Case("fully-connected", 1, 1, 64, 10))
    assert connected.macs == (640,)
    assert connected.parameters == (640 + 4 * 10,)
    assert of_case(tmp_path, Case("relu")).macs == (0,)


def test_inputs_and_outputs(tmp_path: Path) -> None:
    found = report_document.document(facts_of(tmp_path, models.tiny().path.read_bytes()))
    assert found["inputs"] == [
        {
            "name": "input",
            "shape": [1, 32, 32, 3],
            "type": "uint8",
            "scale": 1 / 128,
            "zero_point": 128,
        }
    ]
    assert [(each["shape"], each["zero_point"]) for each in found["outputs"]] == [([1, 10], 0)]
    assert found["model"]["numbers"] == "uint8"
    assert found["model"]["weights"] == "per tensor"
    assert found["estimate_ms"] is None
    assert found["runs"] == []


# --- taken, partitions -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(cases()))
def test_each_operation_that_is_not_taken_has_a_reason(name: str, tmp_path: Path) -> None:
    found = report_document.document(facts_of(tmp_path, cases()[name][0]))
    for row in found["operations"]:
        assert set(row["taken"]) == {
            "etnaviv 25.0.7", "etnaviv 26.1.6", "etnaviv 26.2.6", "rocket 26.2.6", "ethosu 26.1",
        }  # fmt: skip
        assert all(value is True or value for value in row["taken"].values())
    in_partitions = {
        (f"{each['driver']} {each['mesa']}", index)
        for each in found["partitions"]
        for index in each["operations"]
    }
    assert in_partitions == {
        (version, row["index"])
        for row in found["operations"]
        for version, taken in row["taken"].items()
        if taken is True
    }


def _tensor(name: str, size: int = 10) -> Tensor:
    return Tensor(name, (1, size), "uint8", (0.1,), (0,))


def _chain(
    links: Sequence[tuple[Sequence[int], int]], inputs: int, outputs: Sequence[int]
) -> Model:
    """A model of operations (tensors that go in, one that comes out); the first tensors are its inputs."""
    tensors = [_tensor(f"t{number}") for number in range(inputs + len(links))]
    operations = tuple(
        Operation(index, "ADD", 1, tuple(tensors[each] for each in sources), (tensors[sink],))
        for index, (sources, sink) in enumerate(links)
    )
    return Model(
        3, operations, tuple(tensors[:inputs]), tuple(tensors[each] for each in outputs), 1
    )


def test_one_that_is_not_taken_in_the_middle_makes_two_partitions() -> None:
    model = _chain([([0], 1), ([1], 2), ([2], 3)], 1, [3])
    found = partitions(model, {0, 2})
    assert [each.operations for each in found] == [(0,), (2,)]
    assert [(each.bytes_in, each.bytes_out) for each in found] == [(10, 10), (10, 10)]


def test_branches_that_wait_for_nothing_run_together() -> None:
    # 0 -> (1 on the CPU, 2 on the NPU); 2 does not wait for 1, 3 waits for both.
    model = _chain([([0], 1), ([1], 2), ([1], 3), ([2, 3], 4)], 1, [4])
    found = partitions(model, {0, 2, 3})
    assert [each.operations for each in found] == [(0, 2), (3,)]
    assert [tensor.name for tensor in found[0].outputs] == ["t1", "t3"]


def test_an_output_inside_a_partition_leaves_it() -> None:
    model = _chain([([0], 1), ([1], 2)], 1, [1, 2])
    (found,) = partitions(model, {0, 1})
    assert [tensor.name for tensor in found.outputs] == ["t1", "t2"]


def test_operations_in_a_circle_are_in_no_partition() -> None:
    model = _chain([([2], 1), ([1], 2)], 1, [2])
    assert partitions(model, {0, 1}) == []


# --- advice ------------------------------------------------------------------------------------


def _model(
    kind: str = "uint8", weights: str = "", *, options: tuple[tuple[str, int, float], ...] = ()
) -> bytes:
    scale = 0.1 if kind != "float32" else 0.0
    weights = weights or kind
    tensors = [
        FileTensor("in", (1, 8, 8, 4), kind, scale, 0),
        FileTensor(
            "w", (8, 3, 3, 4), weights, 0.1 * (weights != "float32"), 0, np.ones((8, 3, 3, 4))
        ),
        FileTensor("b", (8,), "int32", 0.01, 0, np.zeros(8)),
        FileTensor("out", (1, 8, 8, 8), kind, scale, 0),
    ]
    operator = conv((0, 1, 2), 3, stride=1)
    operator = replace(operator, options=operator.options + options, version=2)
    return write_model(tensors, [operator], inputs=[0], outputs=[3], description="x")


@pytest.mark.parametrize(
    ("kind", "weights", "numbers"),
    [("float32", "", "float"), ("float32", "int8", "dynamic range")],
)
def test_float_models_are_to_be_quantised(
    kind: str, weights: str, numbers: str, tmp_path: Path
) -> None:
    facts = facts_of(tmp_path, _model(kind, weights))
    assert (facts.numbers.kind, answer(facts)) == (numbers, "change it first")
    assert "representative_dataset" in facts.advice[0].how
    assert "quantise" in report_text.text(facts).splitlines()[0] + report_text.text(facts)


def test_dilation(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, _model(options=(("int32", 4, 2), ("int32", 5, 2))))
    assert "without dilation" in facts.by_operation[0]


def test_activation_beyond_six(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, cases()["conv relu6 beyond"][0])
    assert any("range end at 6" in each for each in facts.by_operation)


def _operators(*names: tuple[int, str]) -> bytes:
    tensors = [FileTensor(f"t{number}", (1, 4, 4), "uint8", 0.1, 0) for number in range(8)]
    operators = [
        Operator(code, (index, index), (index + 1,), 0, custom=custom)
        for index, (code, custom) in enumerate(names)
    ]
    return write_model(tensors, operators, inputs=[0], outputs=[len(names)], description="x")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([(126, ""), (25, ""), (126, "")], "other hardware"),
        ([(16, "")], "other hardware"),
        ([(CUSTOM, "edgetpu-custom-op")], "other hardware"),
        ([(CUSTOM, "FlexErf")], "change it first"),
        ([(CUSTOM, "my\x1b[31mop")], "change it first"),
        ([(209, "")], "change it first"),
    ],
)
def test_models_for_something_else(names: list[tuple[int, str]], said: str, tmp_path: Path) -> None:
    facts = facts_of(tmp_path, _operators(*names))
    assert answer(facts) == said
    text = report_text.text(facts)
    assert said in text.splitlines()[0]
    assert text.isprintable() or not any(each < " " and each != "\n" for each in text)


# --- known faults ------------------------------------------------------------------------------


CONV = Case("conv", 16, 24, 16, 16)
DEPTHWISE = Case("depthwise", 16, 16, 16, 16, kernel=3)


@pytest.mark.parametrize(
    ("case", "wrong"),
    [
        (CONV, ""),
        (replace(CONV, stride=2), ""),
        (replace(CONV, dtype="int8"), "a311d 25.0.7, a311d 26.1.6, a311d 26.2.6"),
        (replace(CONV, activation=RELU6, scales=(0.0005, 1.0)), "a311d 26.1.6, a311d 26.2.6"),
        (replace(CONV, activation=RELU), ""),
        (replace(CONV, kernel=3, height=20, width=12), "a311d 25.0.7, imx8mp 25.0.7"),
        (replace(CONV, kernel=3, height=1, width=7),
         "a311d 26.1.6, a311d 26.2.6, imx8mp 26.1.6, imx8mp 26.2.6"),
        (replace(CONV, kernel=2, stride=2, height=8, width=8, padding=VALID),
         "a311d 25.0.7, a311d 26.1.6, a311d 26.2.6"),
        (DEPTHWISE, ""),
        (replace(DEPTHWISE, stride=2), ""),
        (replace(DEPTHWISE, stride=2, height=17, width=17), "both"),
        (replace(DEPTHWISE, stride=2, height=5, width=5), ""),
        (replace(DEPTHWISE, channels=3, outputs=3), "imx8mp 25.0.7, imx8mp 26.1.6, imx8mp 26.2.6"),
        (Case("residual", 8, 8, 16, zero_points=(110, 90, 100)), "a311d 26.1.6, a311d 26.2.6"),
        (Case("add", 8, 8, 64, zero_points=(0, 255, 128)), "a311d 25.0.7, imx8mp 25.0.7"),
        (Case("split", 8, 8, 24), "both"),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)  # fmt: skip
def test_what_the_findings_say_is_wrong(case: Case, wrong: str, tmp_path: Path) -> None:
    facts = of_case(tmp_path, case)
    found = {(npu, version.mesa) for version in facts.versions for npu, _, _ in version.faults}
    if wrong == "both":
        wrong = ", ".join(
            f"{npu} {mesa}" for npu in facts.npus for mesa in ("25.0.7", "26.1.6", "26.2.6")
        )
    assert ", ".join(" ".join(each) for each in sorted(found)) == wrong


@pytest.mark.parametrize(("at_the_end", "channels"), [(True, 16), (False, 16), (True, 1)])
def test_what_the_npu_reads_and_hands_out(at_the_end: bool, channels: int, tmp_path: Path) -> None:
    net = Net(8)
    shared = net.conv(0, channels)
    last = net.conv(shared, 4)
    outputs = [last, shared] if at_the_end else [last]
    facts = facts_of(tmp_path, net.model(outputs), mesa="25.0.7")
    pages = [(index, fault.page) for _, index, fault in facts.versions[0].faults]
    assert pages == ([(0, "handed-out.md")] * 2 if at_the_end and channels > 1 else [])


def test_an_add_between_npu_and_cpu_is_known_to_come_out_wrong(tmp_path: Path) -> None:
    """Seen with uint8 on both NPUs, and with int8 on the i.MX 8M Plus."""
    net = Net(8)
    pooled = net.pool(0, 2)
    added = net.add(net.conv(0, 3, stride=2), pooled)
    facts = facts_of(tmp_path, net.model([added]), mesa="25.0.7")
    assert ["in two orders" in fault.what for _, _, fault in facts.versions[0].faults] == [True] * 2
    net = Net(8)
    added = net.add(net.conv(0, 8), net.conv(0, 8))
    facts = facts_of(tmp_path, net.model([added]), mesa="25.0.7")
    assert facts.versions[0].faults == ()


def test_a_batch_is_known_to_come_out_wrong(tmp_path: Path) -> None:
    for batch, count in ((1, 0), (2, 2)):
        facts = facts_of(tmp_path, one_conv(batch, 8, 8, 8), mesa="25.0.7")
        found = [fault.what for _, _, fault in facts.versions[0].faults]
        assert len(found) == count
        assert all("several entries in its batch" in each for each in found)


# --- flags -------------------------------------------------------------------------------------


def test_flags_narrow_it_down(tmp_path: Path) -> None:
    facts = of_case(tmp_path, CONV, npu="virtual:imx8mp", mesa="25.0.7-2, 24.2.8")
    assert list(facts.npus) == ["imx8mp"]
    assert [version.mesa for version in facts.versions] == ["25.0.7-2", "24.2.8"]
    assert "not known" in report_text.text(facts)  # nobody swept 24.2


@pytest.mark.parametrize(
    "flags", [{"npu": "stm32mp25"}, {"mesa": "25.2"}, {"mesa": "none"}, {"mesa": "26.3.0"}]
)
def test_what_there_are_no_rules_for(flags: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        of_case(tmp_path, CONV, **flags)
    assert "--" in caught.value.hint


# --- bad input ---------------------------------------------------------------------------------


def _reported(content: bytes, folder: Path) -> None:
    with contextlib.suppress(UserError):
        facts = facts_of(folder, content)
        text = report_text.text(facts)
        assert not any(each < " " and each != "\n" for each in text)
        assert max(map(len, text.splitlines())) <= 80
        page.page(facts, made="today")
        json.loads(json_text(report_document.document(facts)))


@pytest.fixture(scope="module")
def good() -> bytes:
    return build(Case("residual", 8, 8, 16)).model


@pytest.mark.slow
@given(data=st.data())
@settings(
    max_examples=300, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_hostile_model_ends_in_a_report_or_an_error(
    data: Any, good: bytes, tmp_path: Path
) -> None:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(8, len(content) - 5))
        content[place : place + 4] = data.draw(
            st.one_of(st.binary(min_size=4, max_size=4), st.sampled_from([b"\xff" * 4, b"\0" * 4]))
        )
    _reported(bytes(content[: data.draw(st.integers(8, len(content)))]), tmp_path)
    _reported(bytes(content), tmp_path)


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_ten_thousand_mutations(tmp_path: Path) -> None:
    """No hang, no other error than the user's, and memory that does not grow with what a file claims."""
    rng = np.random.default_rng(11)
    seeds = [
        build(Case("residual", 8, 8, 16)).model,
        tiny_detector.build(),
        *(m for m, _ in cases().values()),
    ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    for number in range(10_000):
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(int(rng.integers(1, 9))):
            place = int(rng.integers(8, len(content) - 4))
            kind = rng.integers(4)
            if kind == 0:
                content[place] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                content[place : place + 4] = rng.bytes(4)
            elif kind == 2:
                content[place : place + 4] = (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f")[
                    rng.integers(3)
                ]
            else:
                other = int(rng.integers(8, len(content) - 4))
                content[place : place + 4] = content[other : other + 4]
        if number % 10 == 0:
            content = content[: int(rng.integers(8, len(content)))]
        started = time.process_time()
        _reported(bytes(content), tmp_path)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


@pytest.mark.slow
def test_vectors_that_lie_over_one_another_are_refused() -> None:
    sources = list(range(2)) * 20_000
    tensors = [FileTensor(f"t{number}", (1, 4), "uint8", 0.1, 0) for number in range(3)]
    one = Operator(2, tuple(sources), (2,), 0)
    content = write_model(tensors, [one] * 60, inputs=[0], outputs=[2], description="x")
    assert len(read_model(content).operations) == 60
    shared = _shared_inputs(operators=2000)
    with pytest.raises(UserError, match="overlap"):
        read_model(shared)


def _shared_inputs(operators: int) -> bytes:
    """Make a small file whose many operators all have the same long vector of inputs."""
    from userspace.npu.model.tflite_file import _Writer

    writer = _Writer()
    builder = writer.builder
    tensor = writer.table([("offset", 0, writer.numbers([1], "int32")), ("int8", 1, 3)])
    inputs = writer.numbers([0] * 20_000, "int32")
    outputs = writer.numbers([0], "int32")
    made = [writer.table([("offset", 1, inputs), ("offset", 2, outputs)]) for _ in range(operators)]
    graph = writer.table([
        ("offset", 0, writer.offsets([tensor])), ("offset", 1, outputs), ("offset", 2, outputs),
        ("offset", 3, writer.offsets(made)),
    ])  # fmt: skip
    code = writer.table([("int8", 0, 2)])
    buffer = writer.table([])
    table = writer.table([
        ("uint32", 0, 3), ("offset", 1, writer.offsets([code])), ("offset", 2, writer.offsets([graph])),
        ("offset", 4, writer.offsets([buffer])),
    ])  # fmt: skip
    builder.Finish(table, file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_weights_without_a_shape_multiply_nothing() -> None:
    scalar = Tensor("w", (), "uint8", (0.1,), (0,), b"\1")
    model = _chain([([0], 1)], 1, [1])
    operation = replace(
        model.operations[0],
        kind="FULLY_CONNECTED",
        inputs=(*model.operations[0].inputs, scalar),
    )
    assert macs(operation) == 0


def test_a_long_name_or_shape_keeps_to_the_width(tmp_path: Path) -> None:
    name = "a\x1b]0;title\x07" + "b" * 100
    source = FileTensor(name, (100_000,) * 6, "uint8", 1e-38, 1 << 60)
    content = write_model(
        [source, FileTensor("out", (1, 4), "uint8", 0.1, 0)],
        [softmax(0, 1)], inputs=[0], outputs=[1], description="x",
    )  # fmt: skip
    _reported(content, tmp_path)
    facts_of(tmp_path, content)


def test_a_model_without_operations_and_one_of_another_schema(tmp_path: Path) -> None:
    tensors = [FileTensor("in", (1, 4), "uint8", 0.1, 0)]
    with pytest.raises(UserError, match="no operations"):
        facts_of(tmp_path, write_model(tensors, [], inputs=[0], outputs=[0], description="x"))
    content = write_model(
        [*tensors, FileTensor("out", (1, 4), "uint8", 0.1, 0)],
        [softmax(0, 1)], inputs=[0], outputs=[1], description="x",
    )  # fmt: skip
    root = int.from_bytes(content[:4], "little")
    table = root - int.from_bytes(content[root : root + 4], "little", signed=True)
    place = root + int.from_bytes(content[table + 4 : table + 6], "little")
    assert content[place] == 3
    with pytest.raises(UserError, match="schema version 4"):
        facts_of(tmp_path, content[:place] + b"\4" + content[place + 1 :])


# --- other drivers -----------------------------------------------------------------------------


def test_other_drivers_have_a_row_and_no_say_in_the_answer(tmp_path: Path) -> None:
    facts = of_case(tmp_path, Case("conv", 8, 8, 8, 8))
    document = report_document.document(facts)
    drivers = [(each["driver"], each["mesa"]) for each in document["drivers"]]
    assert ("rocket", "26.2.6") in drivers
    assert ("ethosu", "26.1") in drivers
    assert drivers[0] == ("etnaviv", "25.0.7")
    assert document["operations"][0]["taken"]["rocket 26.2.6"] is True
    assert "Mesa 2" in document["verdict"]["why"]
    assert {version.rules.driver for version, _ in facts.pairs} == {"etnaviv"}


def test_an_npu_with_another_driver(tmp_path: Path) -> None:
    facts = of_case(tmp_path, Case("conv", 8, 8, 8, 8), npu="rk3588")
    assert [version.name for version in facts.versions] == ["rocket 26.1.6", "rocket 26.2.6"]
    assert not facts.others
    text = report_text.text(facts)
    assert "not known" in text
    assert "rocket of Mesa 26.1.6; what comes out wrong there is not known" in " ".join(
        text.split()
    )
    ethos = report_text.text(of_case(tmp_path, Case("conv", 8, 8, 8, 8), npu="imx93"))
    assert "driver missing" in " ".join(ethos.split())


def test_an_npu_and_a_mesa_that_no_rule_covers(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rocket 26\.1 to before 26\.3"):
        of_case(tmp_path, Case("conv", 8, 8, 8, 8), npu="rk3588", mesa="25.0.7")
    with pytest.raises(UserError, match="did you mean 'a311d'"):
        of_case(tmp_path, Case("conv", 8, 8, 8, 8), npu="a3111d")


def test_what_hardly_goes_to_the_npu_is_to_be_changed_first(tmp_path: Path) -> None:
    """Its ADDs alone are taken, and come out wrong: that is not the first thing to say."""
    net = Net(16, dtype="int8")
    first, second = net.tanh(net.conv(0, 8)), net.tanh(net.conv(0, 8))
    content = net.model([net.add(first, second)])
    facts = facts_of(tmp_path, content)
    left = Refusal("per-tensor", "a test")
    alone = replace(facts.versions[0], refusals=(*[left] * 4, None))
    found = report_document.verdict(replace(facts, versions=(alone,)))
    assert found.answer == report_document.CHANGE


def test_a_tiny_operation_that_is_right_does_not_outweigh_wrong_ones(tmp_path: Path) -> None:
    """SSDLite MobileDet: one tiny convolution is wrong with 25.0.7, ten RESHAPEs are with 26.x."""
    net = Net(16)
    small = net.conv(net.conv(0, 8), 8)
    facts = facts_of(tmp_path, net.model([net.tanh(small), net.tanh(small)]))
    wrong = Fault("is wrong", "", ("imx8mp",), (), lambda *_: True, "none")
    few, many = (
        replace(each, refusals=(None,) * 4, faults=tuple(("imx8mp", place, wrong) for place in at))
        for each, at in zip(facts.versions, [(1,), (2, 3)], strict=False)
    )
    changed = replace(
        facts, macs=(1_000_000, 10, 0, 0), versions=(many, few), npus={"imx8mp": "etnaviv"}
    )
    assert report_document.best(changed)[0] is few
