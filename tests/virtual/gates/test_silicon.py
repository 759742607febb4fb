# SPDX-License-Identifier: MIT
"""The comparison of virtual NPUs with Mesa's lists of results from boards, on inputs made here."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from userspace.npu.model.graph import read_graph
from userspace.npu.model.tflite_file import Operator, Tensor, conv, write_model
from virtual.gates import packages
from virtual.gates.model_runner import Attempt, tflite_runtime
from virtual.gates.silicon import explain, gate, report, synthetic
from virtual.gates.silicon.gate import (
    TFLITE_DISTRIBUTION,
    SiliconRequest,
    compare_with_silicon,
)
from virtual.gates.silicon.lists import FAIL, PASS, UNJUDGED, read_lists
from virtual.gates.silicon.run import Outcome, judge, run_tests
from virtual.gates.silicon.sequences import CRandom, Twister
from virtual.gates.silicon.source import fetch_source, unpack_source
from virtual.gates.silicon.suites import GROUPS, SiliconTest, all_tests, choose_quick
from virtual.gates.silicon.synthetic import Synthetic, Templates, grid
from virtual.npu.shim.server import ClientReport
from virtual.npu.vivante import huffman, nn, requant, zero_runs
from virtual.npu.vivante.coefficients import Coefficients

PROGRAM = """
#include <cstdio>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>
#ifdef WITH_XTENSOR
#include <xtensor/xarray.hpp>
#include <xtensor/xrandom.hpp>
#endif
static float between(float low, float high) {
    return (high - low) * ((float)rand() / (float)RAND_MAX) + low;
}
int main() {
    srand(4);
#ifdef WITH_XTENSOR
    xt::random::seed(4);
    xt::xarray<int32_t> words = xt::random::randint<int32_t>({1000}, -20000, 20000);
    std::vector<size_t> shape = {50, 3, 3, 7};
    xt::xarray<uint8_t> bytes = xt::random::randint<uint8_t>(shape, 0, 255);
    xt::xarray<float> floats = xt::random::rand<float>(shape);
#else
    std::mt19937 engine(4);
    std::vector<int32_t> words(1000);
    std::vector<uint8_t> bytes(3150);
    std::vector<float> floats(3150);
    std::uniform_int_distribution<int32_t> far(-20000, 19999);
    std::uniform_int_distribution<unsigned char> near(0, 254);
    std::uniform_real_distribution<float> parts(0, 1);
    for (auto &value : words) value = far(engine);
    for (auto &value : bytes) value = near(engine);
    for (auto &value : floats) value = parts(engine);
#endif
    for (auto value : words) printf("%d\\n", value);
    for (auto value : bytes) printf("%d\\n", value);
    for (auto value : floats) printf("%.9g\\n", value);
    for (int i = 0; i < 500; i++) printf("%d\\n", rand());
    for (int i = 0; i < 500; i++) printf("%.9g\\n", between(0.0078125, 0.4386410117149353));
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["", "-DWITH_XTENSOR"])
def test_numbers_are_those_of_a_compiled_program(tmp_path: Path, flag: str) -> None:
    """xtensor (Debian's libxtensor-dev) where it is installed; libstdc++ and glibc in any case."""
    if not shutil.which("g++"):
        pytest.skip("no g++")
    source, program = tmp_path / "numbers.cpp", tmp_path / "numbers"
    source.write_text(PROGRAM)
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        *([flag] if flag else []),
        str(source),
        "-o",
        str(program),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if flag and "xtensor/xarray.hpp" in made.stderr:
        pytest.skip("libxtensor-dev is not installed")
    assert made.returncode == 0, made.stderr
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
    twister, numbers = Twister(4), CRandom(4)
    assert twister.integers(1000, -20000, 20000).tolist() == [int(line) for line in lines[:1000]]
    shape = (50, 3, 3, 7)
    assert twister.bytes(shape).ravel().tolist() == [int(line) for line in lines[1000:4150]]
    floats = [np.float32(line) for line in lines[4150:7300]]
    assert twister.floats(shape).ravel().tolist() == floats
    assert [numbers.number() for _ in range(500)] == [int(line) for line in lines[7300:7800]]
    # This machine's compiler rounds twice, arm64's once: the last bit may differ.
    scales = np.array([numbers.fraction(0.0078125, 0.4386410117149353) for _ in range(500)])
    assert np.allclose(scales, np.array(lines[7800:], np.float32), rtol=2e-7, atol=0)


def test_the_engine_is_the_standards() -> None:
    """ISO C++, [rand.predef]: the 10000th number of a std::mt19937 with its own seed."""
    assert int(Twister(5489).words(10_000)[-1]) == 4123659995


def test_no_number_beyond_its_bounds_and_streams_continue() -> None:
    whole = Twister(9).integers(20_000, -20000, 20000)
    parts = Twister(9)
    pieces = [parts.integers(size, -20000, 20000) for size in (1, 0, 9_999, 10_000)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert whole.min() >= -20000
    assert whole.max() < 20000
    assert Twister(1).bytes((3, 40, 1000)).max() == 254


@pytest.mark.parametrize("seed", [0, 1, 4, 99, 2**31 - 1])
def test_rand_is_the_c_librarys(seed: int) -> None:
    library = ctypes.CDLL("libc.so.6")
    library.srand(ctypes.c_uint(seed))
    numbers = CRandom(seed)
    assert [numbers.number() for _ in range(100)] == [library.rand() for _ in range(100)]


def made_lists(folder: Path, **files: str) -> Any:
    for kind, text in files.items():
        (folder / f"etnaviv-new-{kind}.txt").write_text(text)
    return read_lists(folder, "etnaviv-new")


def test_lists_as_deqp_runner_reads_them(tmp_path: Path) -> None:
    lists = made_lists(
        tmp_path,
        fails="A.Op/1,Fail\n\n# why\nA.Op/2,Crash\nB.Op/x,y,Fail\n",
        skips="# slow\nWhole.Op/*\nA.Op/3\n",
        flakes="A.Op/[45]$\n",
    )
    wanted = {
        "A.Op/1": FAIL,
        "A.Op/2": FAIL,
        "B.Op/x,y": FAIL,
        "A.Op/3": UNJUDGED,
        "A.Op/4": UNJUDGED,
        "A.Op/6": PASS,
        "Whole.Op/7": UNJUDGED,
    }
    assert {name: lists.verdict(name) for name in wanted} == wanted


def test_a_skip_wins_over_a_failure_and_lists_may_be_missing(tmp_path: Path) -> None:
    assert made_lists(tmp_path, fails="").verdict("A.Op/1") == PASS
    lists = made_lists(tmp_path, fails="A.Op/1,Fail\n", skips="A.Op/1\n")
    assert lists.verdict("A.Op/1") == UNJUDGED


@pytest.mark.parametrize("line", ["A.Op/1", "A.Op/1,Pass", "A.Op/1 Fail", ",nothing"])
def test_a_line_that_is_not_understood_is_an_error(tmp_path: Path, line: str) -> None:
    with pytest.raises(UserError, match="expected a test's name"):
        made_lists(tmp_path, fails=f"B.Op/1,Fail\n{line}\n")
    with pytest.raises(UserError, match=r"no list etnaviv-other-fails\.txt"):
        read_lists(tmp_path, "etnaviv-other")
    with pytest.raises(UserError, match="not a regular expression"):
        made_lists(tmp_path, fails="", flakes="A.Op/(\n")


def test_the_grid_is_test_teflons() -> None:
    tests = grid()
    assert len({test.name for test in tests}) == len(tests)
    count = {suite: sum(test.suite == suite for test in tests) for suite in synthetic.SUITES}
    # 2 paddings x 2 strides x 6 outputs x 5 inputs x 14 pairs of kernel and size that fit, and so on.
    assert count == {
        "Conv2D": 1680,
        "DepthwiseConv2D": 180,
        "Add": 1680,
        "AddQuant": 100,
        "FullyConnected": 24,
    }
    names = {test.name for test in tests}
    assert (
        "DepthwiseConv2D.Op/input_size_112_weight_size_5_channels_256_stride_2_padding_same_1_is_signed_0"
        in names
    )
    assert "AddQuant.Op/99" in names
    assert all(test.kernel <= test.size for test in tests)


def templates(folder: Path) -> Templates:
    """Models like Mesa's templates, with scales and zero points of our own."""

    def tensor(
        name: str, shape: tuple[int, ...], scale: float, zero_point: int, **more: Any
    ) -> Tensor:
        return Tensor(name, shape, more.pop("dtype", "uint8"), scale, zero_point, **more)

    def coefficients(name: str, shape: tuple[int, ...], zero_point: int) -> list[Tensor]:
        weights = np.zeros(shape, np.uint8)
        bias = np.zeros(shape[0], np.int32)
        return [
            tensor(f"{name}/w", shape, 0.02, zero_point, data=weights),
            tensor(f"{name}/b", bias.shape, 0.0004, 0, data=bias, dtype="int32"),
        ]

    image = tensor("image", (1, 4, 4, 2), 0.02, 3)
    first, second = (tensor(name, (1, 4, 4, 6), 0.3, 99) for name in ("first", "second"))
    made = {
        "conv2d": ([image, *coefficients("c", (6, 1, 1, 2), 130), first], [conv([0, 1, 2], 3, stride=1)]),
        "add": (
            [image, *coefficients("c", (6, 1, 1, 2), 114), first,
             *coefficients("d", (6, 1, 1, 2), 117), second, tensor("sum", (1, 4, 4, 6), 0.36, 134)],
            [conv([0, 1, 2], 3, stride=1), conv([0, 4, 5], 6, stride=1),
             Operator(0, (6, 3), (7,), 11, (("int8", 0, 0),))],
        ),
        "fully_connected": (
            [tensor("in", (1, 8), 0.004, 128), *coefficients("c", (5, 8), 128),
             tensor("out", (1, 5), 0.02, 0)],
            [Operator(9, (0, 1, 2), (3,), 8)],
        ),
    }  # fmt: skip
    for name, (tensors, operators) in made.items():
        model = write_model(
            tensors, operators, inputs=[0], outputs=[len(tensors) - 1], description=name
        )
        (folder / f"{name}.tflite").write_bytes(model)
    return Templates(folder)


@pytest.mark.parametrize(
    "test",
    [
        Synthetic("Conv2D", "c", 8, 3, 5, 7, stride=2, same=True),
        Synthetic("Conv2D", "c", 5, 5, 1, 3),
        Synthetic("DepthwiseConv2D", "d", 8, 5, 6, 6, stride=2, same=False),
        Synthetic("Add", "a", 5, 3, 2, 4, same=True),
        Synthetic("AddQuant", "q", 6, 1, 1, 1, seed=17),
        Synthetic("FullyConnected", "f", 23, 1, 23, 9),
    ],
    ids=lambda test: f"{test.suite}-{test.size}",
)
def test_a_synthetic_model_runs_and_has_the_shapes_of_its_test(
    tmp_path: Path, test: Synthetic
) -> None:
    model, twister = templates(tmp_path).build(test)
    interpreter = tflite_runtime().Interpreter(model_content=model)
    interpreter.allocate_tensors()
    source, sink = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    interpreter.set_tensor(source["index"], twister.bytes(tuple(source["shape"])))
    interpreter.invoke()
    if test.suite == "FullyConnected":
        assert sink["shape"].tolist() == [1, 9]
    else:
        assert sink["shape"].tolist() == [1, test.out_size, test.out_size, test.outputs]


def test_numbers_are_drawn_in_the_tests_order(tmp_path: Path) -> None:
    """Biases before weights, the first convolution before the second, scales from rand()."""
    test = Synthetic("Add", "a", 5, 3, 2, 4, same=True)
    model, rest = templates(tmp_path).build(test)
    first, second, addition = read_graph(model)
    twister, numbers = Twister(4), CRandom(4)
    for operation in (first, second):
        weights, bias = operation.inputs[1], operation.inputs[2]
        assert weights is not None
        assert bias is not None
        assert bias.data == twister.integers(4, -20000, 20000).astype("<i4").tobytes()
        assert weights.data == twister.bytes((4, 3, 3, 2)).tobytes()
    assert twister.words(1) == rest.words(1)
    for operand in addition.inputs:
        assert operand is not None
        assert operand.scales[0] == pytest.approx(float(numbers.fraction(0.0078125, 0.438641012)))
        assert operand.zero_points[0] == numbers.number() % 255
    assert [each.name for each in addition.inputs if each] == ["second", "first"]


def test_judged_as_the_tests_do() -> None:
    test = SiliconTest("A.Op/1", "conv", 2, Path("a"), 1)
    right = [np.array([0, 10, 255], np.uint8)]

    def verdict(values: Any, status: str = "ran") -> Outcome:
        return judge(test, "a311d", Attempt({"status": status}, values, ClientReport()), right)

    assert verdict([np.array([2, 8, 253], np.uint8)]).verdict == PASS
    far = verdict([np.array([3, 10, 0], np.uint8)])
    assert (far.verdict, far.largest, far.beyond, far.values) == (FAIL, 255, 2, 3)
    assert verdict([], "crashes").verdict == FAIL
    assert verdict([], "hangs").verdict == FAIL
    floats = [np.array([0.5, 1], np.float32)]
    nothing = Attempt({"status": "ran"}, [np.array([0.5, np.nan], np.float32)], ClientReport())
    assert judge(test, "a311d", nothing, floats).verdict == FAIL


def test_agreement_is_counted_by_group(tmp_path: Path) -> None:
    lists = made_lists(tmp_path, fails="A.Op/2,Fail\nA.Op/3,Fail\n", skips="A.Op/4\n")
    tests = [SiliconTest(f"A.Op/{number}", "conv", 2, Path("a"), 1) for number in range(5)]
    verdicts = (PASS, FAIL, FAIL, PASS, PASS)
    outcomes = {
        ("a311d", test.name): Outcome("a311d", test.name, verdict)
        for test, verdict in zip(tests, verdicts, strict=True)
    }
    rows = report.agreement(
        tests, outcomes, {"a311d": lists}, by=lambda test: test.group, key="group"
    )
    wanted = {"npu": "virtual:a311d", "group": "conv", "agree": 2, "disagree": 2, "unjudged": 1}
    assert rows == [wanted]


def test_a_list_that_contradicts_itself_is_not_believed(tmp_path: Path) -> None:
    name = (
        "Conv2D.Op/input_size_8_weight_size_{}_input_channels_1_output_channels_1_stride_1"
        "_padding_same_{}_is_signed_0"
    )
    tests = {test.name: test for test in grid()}
    lists = made_lists(tmp_path, fails=f"{name.format(1, 0)},Fail\n{name.format(3, 0)},Fail\n")
    found = {
        (kernel, same): explain.explain(
            SiliconTest(name.format(kernel, same), "conv", 2, tests[name.format(kernel, same)], 1),
            "a311d",
            lists,
            "25.0.7",
        )
        for kernel in (1, 3)
        for same in (0, 1)
    }
    assert "contradicts itself" in found[1, 0]
    assert "contradicts itself" in found[1, 1]
    assert found[3, 0] == found[3, 1] == ""


def test_known_exceptions_name_tests_that_exist_and_versions(tmp_path: Path) -> None:
    lists = made_lists(tmp_path, fails="")
    names = {test.name for test in grid()} | {
        f"MobileDetParam.Op/mobiledet{n:03}" for n in range(124)
    }
    names |= {f"YoloXParam.Op/yolox{n:03}" for n in range(128)}
    for npu, test, version in explain._known():
        assert test in names
        subject = SiliconTest(test, "add", 2, Path("a"), 1)
        assert explain.explain(subject, npu, lists, version)
        assert not explain.explain(subject, npu, lists, "99.1")


def test_quick_has_every_group_and_what_fails() -> None:
    tests = [SiliconTest(test.name, "add", 2, test, test.macs) for test in grid()]
    tests += [SiliconTest("MobileNetV1.Whole", "whole", 8, Path("a"), 1)]
    failing = frozenset(test.name for test in tests if "size_5_weight_size_5" in test.name)
    chosen = {test.name for test in choose_quick(tests, failing)}
    assert "MobileNetV1.Whole" in chosen
    assert len(chosen) < len(tests) / 5
    assert len(chosen & failing) >= len(failing) / 3
    assert {name.partition(".")[0] for name in chosen} >= set(synthetic.SUITES)
    assert GROUPS[-1] == "whole"


def test_a_source_without_such_tests_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mesa-9/src/etnaviv/ci").mkdir(parents=True)
    (tmp_path / "mesa-9/src/etnaviv/ci/etnaviv-new-fails.txt").write_text("")
    tarball = tmp_path / "mesa_9.orig.tar.xz"
    with tarfile.open(tarball, "w:xz") as archive:
        archive.add(tmp_path / "mesa-9", "mesa-9")
    with pytest.raises(UserError, match="has no Teflon tests"):
        unpack_source(tarball, "9", "trixie")


def test_arguments_that_exclude_each_other(tmp_path: Path) -> None:
    file = tmp_path / "a.deb"
    file.touch()
    with pytest.raises(UserError, match="exclude each other"):
        compare_with_silicon(SiliconRequest(package=str(file), suite="trixie"))
    with pytest.raises(UserError, match="there is no file"):
        compare_with_silicon(SiliconRequest(package=str(tmp_path / "b.deb")))
    with pytest.raises(UserError, match="no virtual NPU"):
        compare_with_silicon(SiliconRequest(npu="virtual:a311e"))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.full)])
def test_the_virtual_npus_agree_with_silicon(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick form: each disagreement with the lists of Mesa 25.0.7 is the list's own fault."""

    def choose(tests: Sequence[SiliconTest], failing: frozenset[str]) -> list[SiliconTest]:
        chosen = choose_quick(tests, failing)
        groups = [[test for test in chosen if test.group == group] for group in GROUPS]
        return [test for group in groups for test in group[::every]]

    monkeypatch.setattr(gate, "choose_quick", choose)
    document = compare_with_silicon(SiliconRequest(suite="trixie", quick=True)).document()
    unexplained = [each for each in document["disagreements"] if not each["why"]]
    assert unexplained == []
    assert document["unexplained"] == 0
    rows = document["agreement"]
    assert {row["npu"] for row in rows} == {"virtual:a311d", "virtual:imx8mp"}
    for npu in ("virtual:a311d", "virtual:imx8mp"):
        agree = {row["group"]: row["agree"] for row in rows if row["npu"] == npu}
        assert set(agree) == set(GROUPS)
        assert agree["conv"] > 100 / every
        assert agree["add"] > 100 / every
        assert agree["models"] > 60 / every


def order_of_v7(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(zero_runs, "tap_order", lambda height, width: np.arange(height * width))


def order_of_v8(patch: pytest.MonkeyPatch) -> None:
    decode = huffman.decode

    def turned(*arguments: Any) -> Coefficients:
        found = decode(*arguments)
        return replace(found, weights=np.ascontiguousarray(found.weights[:, :, :, ::-1]))

    patch.setattr(huffman, "decode", turned)


def rounding(patch: pytest.MonkeyPatch) -> None:
    """Down, in place of to the nearest."""

    def down(sums: Any, scale: requant.Scale, zero_point: int, low: int) -> Any:
        shifted = (sums * scale.multiplier >> scale.shift) + zero_point
        return np.clip(shifted, low, 255).astype(np.uint8)

    patch.setattr(requant, "hardware", down)


def border(patch: pytest.MonkeyPatch) -> None:
    """Pixels outside of the image are 0, not its zero point."""
    parse = nn.parse

    def bordered(*arguments: Any) -> nn.NnJob:
        job = parse(*arguments)
        return replace(job, geometry=replace(job.geometry, border=0))

    patch.setattr(nn, "parse", bordered)


CONVOLUTIONS = (
    "Conv2D.Op/input_size_8_weight_size_5_input_channels_1_output_channels_32_stride_1_padding_same_0_is_signed_0",
    "Conv2D.Op/input_size_8_weight_size_3_input_channels_128_output_channels_160_stride_1_padding_same_1_is_signed_0",
    "DepthwiseConv2D.Op/input_size_8_weight_size_5_channels_1_stride_1_padding_same_0_is_signed_0",
)
WHOLE = ("MobileNetV1.Whole",)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("mutate", "names", "caught"),
    [
        (None, CONVOLUTIONS + WHOLE, {}),
        (order_of_v7, CONVOLUTIONS, {"a311d": {"Conv2D", "DepthwiseConv2D"}}),
        (order_of_v8, CONVOLUTIONS, {"imx8mp": {"Conv2D", "DepthwiseConv2D"}}),
        (border, CONVOLUTIONS, {"a311d": {"Conv2D"}, "imx8mp": {"Conv2D"}}),
        (rounding, WHOLE, {"a311d": {"MobileNetV1"}, "imx8mp": {"MobileNetV1"}}),
    ],
)
def test_a_mutated_emulator_disagrees_with_silicon(
    mutate: Any,
    names: tuple[str, ...],
    caught: dict[str, set[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Order, rounding and border are each held by tests that a board has run; unchanged, all agree."""
    delegate = packages.find_delegate(
        packages.SUITE_OF_DRIVER["etnaviv"], distribution=TFLITE_DISTRIBUTION
    )
    source = fetch_source(delegate)
    lists = {
        "a311d": read_lists(source.lists, "etnaviv-vipnano"),
        "imx8mp": read_lists(source.lists, "etnaviv-vipnano-si-plus"),
    }
    tests = all_tests(source)
    pairs = [(test, tuple(lists)) for test in tests if test.name in names]
    quick = choose_quick(tests, frozenset().union(*(each.fails for each in lists.values())))
    assert set(names) <= {test.name for test in quick}  # --quick notices it
    assert len(pairs) == len(names)
    outcomes: list[Outcome] = []
    if mutate:
        mutate(monkeypatch)
    run_tests(pairs, delegate, source, lists=lists, workers=1, timeout_s=180, done=outcomes.append)
    assert len(outcomes) == 2 * len(names)
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.verdict != lists[outcome.npu].verdict(outcome.test):
            found.setdefault(outcome.npu, set()).add(outcome.test.partition(".")[0])
    assert found == caught
