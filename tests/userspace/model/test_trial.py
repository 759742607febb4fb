# SPDX-License-Identifier: MIT
"""What of a model is run, with which inputs, and what the report says of it; the place is this test's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from bsp.base.errors import InfrastructureError, UserError
from tests.support.models import inputs as m
from tests.support.models.rule_cases import cases
from userspace.npu.model.report import document as report_document
from userspace.npu.model.report import text as report_text
from userspace.npu.model.report.report import Facts, report
from userspace.npu.model.trial import trial
from userspace.npu.model.trial.given import input_values, sets_in
from userspace.npu.model.trial.run import (
    NOT_RUN,
    REFUSED,
    RIGHT,
    TFLITE_REFUSES,
    WRONG,
    OperationRun,
    OutputRun,
    Run,
    RunRequest,
    oddity_of,
)
from userspace.npu.model.trial.trial import ALWAYS, AUTO, NEVER, TrialRequest, with_runs
from userspace.npu.validate.onboard import bmp
from virtual.gates.build import build
from virtual.gates.cases import Case


@dataclass
class Place:
    """Keeps what it is asked for, and answers with what it was given."""

    answer: Run = field(default_factory=lambda: Run("", "", RIGHT))
    error: Exception | None = None
    asked: list[RunRequest] = field(default_factory=list)

    def npus(self) -> Sequence[str]:
        return ("a311d", "imx8mp")

    def run(self, request: RunRequest) -> Sequence[Run]:
        self.asked.append(request)
        if self.error:
            raise self.error
        return [replace(self.answer, npu=npu, mesa=request.mesa) for npu in request.npus]


def convolution(folder: Path, **flags: str) -> Facts:
    file = folder / "model.tflite"
    file.write_bytes(build(Case("conv", 8, 8, 3, 8)).model)
    return report(file, **flags)


def test_by_default_what_takes_little_time_is_run(tmp_path: Path) -> None:
    place = Place()
    facts = with_runs(convolution(tmp_path), TrialRequest(), place)
    assert {(run.mesa, run.npu) for run in facts.runs} == {
        (mesa, npu) for mesa in ("25.0.7", "26.1.6", "26.2.6") for npu in ("a311d", "imx8mp")
    }
    assert facts.given == ("generated data, seed 20",)
    document = report_document.document(facts)
    assert {run["status"] for run in document["runs"]} == {RIGHT}
    assert "Run on virtual NPUs" in report_text.text(facts)


def test_a_heavy_model_is_run_where_it_does_best_or_not_at_all(tmp_path: Path) -> None:
    facts = convolution(tmp_path)
    best = report_document.best(facts)
    some = with_runs(replace(facts, macs=(2_000_000_000,)), TrialRequest(), place := Place())
    assert [(run.mesa, run.npu) for run in some.runs][:1] == [(best[0].mesa, best[1])]
    assert 0 < len(some.runs) < 6
    assert "--run" in some.not_run
    none = with_runs(replace(facts, macs=(90_000_000_000,)), TrialRequest(), place)
    assert not none.runs
    assert "--run" in none.not_run
    assert none.not_run[1:] in " ".join(report_text.text(none).split())
    large = with_runs(replace(facts, size_bytes=500_000_000), TrialRequest(), place)
    assert "500000000 bytes" in large.not_run
    everything = replace(facts, macs=(90_000_000_000,))
    assert len(with_runs(everything, TrialRequest(ALWAYS), Place()).runs) == 6


def test_nothing_is_run_where_nobody_wants_it_or_nothing_is_taken(tmp_path: Path) -> None:
    place = Place()
    assert with_runs(convolution(tmp_path), TrialRequest(NEVER), place).not_run == ""
    (tmp_path / "model.tflite").write_bytes(cases()["softmax"][0])
    facts = with_runs(report(tmp_path / "model.tflite"), TrialRequest(), place)
    assert "takes any of it" in facts.not_run
    assert not place.asked


def test_what_patches_leave_to_the_cpu_is_what_the_run_says(tmp_path: Path) -> None:
    mesa = "25.0.7+npu-bsp.p25"
    facts = convolution(tmp_path, mesa=mesa)
    assert facts.versions[0].taken == (0,)
    assert "a run shows" in " ".join(report_text.text(facts).split())
    left = OperationRun(0, "CONV_2D", "cpu")
    found = with_runs(facts, TrialRequest(), Place(Run("", "", REFUSED, operations=(left,))))
    assert not found.versions[0].taken
    said = " ".join(report_text.text(found).split())
    assert "our patches leave it to the CPU" in said
    assert "a run shows" not in said


def test_packages_that_cannot_be_had_end_only_what_was_asked_for(tmp_path: Path) -> None:
    facts = convolution(tmp_path, mesa="26.2.6", npu="a311d")
    place = Place(error=InfrastructureError("no network"))
    (run,) = with_runs(facts, TrialRequest(AUTO), place).runs
    assert (run.status, run.why) == ("not run", "no network")
    with pytest.raises(InfrastructureError, match="no network"):
        with_runs(facts, TrialRequest(ALWAYS), place)


@dataclass
class Places(Place):
    """Answers by Mesa."""

    by_mesa: dict[str, Run] = field(default_factory=dict)

    def run(self, request: RunRequest) -> Sequence[Run]:
        found = super().run(request)
        known = self.by_mesa.get(request.mesa)
        return [replace(known, npu=each.npu, mesa=each.mesa) if known else each for each in found]


def test_the_mesa_to_take_is_said_where_others_come_out_wrong(tmp_path: Path) -> None:
    wrong = Run("", "", WRONG, different=1, values=2)
    facts = convolution(tmp_path, npu="a311d")
    place = Places(by_mesa={"26.1.6": wrong, "26.2.6": wrong})
    document = report_document.document(with_runs(facts, TrialRequest(), place))
    first = document["advice"][0]
    assert first["what"] == "on a311d it comes out wrong with Mesa 26.1.6 and 26.2.6"
    assert first["how"].startswith("take Mesa 25.0.7; or ./inv build-mesa")
    zeros = Run("", "", RIGHT, note="right only because new buffers hold zeros")
    place.by_mesa["25.0.7"] = zeros
    said = report_text.text(with_runs(facts, TrialRequest(), place))
    assert "take Mesa 25.0.7 (right only while" in " ".join(said.split())
    everywhere = with_runs(facts, TrialRequest(), Place(wrong))
    (last, *_) = report_document.document(everywhere)["advice"]
    assert last["how"].startswith("./inv build-mesa")
    assert not report_document.all_advice(with_runs(facts, TrialRequest(), Place()))


def test_what_tflite_itself_does_not_run_fits_nowhere(tmp_path: Path) -> None:
    place = Place(Run("", "", NOT_RUN, why=f"{TFLITE_REFUSES}: op 'CONV_2D' version 99"))
    found = with_runs(convolution(tmp_path), TrialRequest(), place)
    verdict = report_document.verdict(found)
    assert verdict.answer == report_document.CHANGE
    assert "version 99" in verdict.why


def test_a_wrong_run_names_its_first_wrong_operation(tmp_path: Path) -> None:
    facts = convolution(tmp_path, mesa="26.2.6", npu="a311d")
    wrong = Run(
        "", "", WRONG, why="the weights are others", different=5, values=512, first_wrong=0,
        nn_jobs=1, read_bytes=300, written_bytes=100, coefficient_bytes=200,
        operations=(OperationRun(0, "CONV_2D", WRONG, 5, 512, 17, 1, 300, 100, 200, 216),),
        outputs=(OutputRun("out", 512, 5, 17.0, 0.1, "all zero"),),
    )  # fmt: skip
    found = with_runs(facts, TrialRequest(), Place(wrong))
    words = " ".join(report_text.text(found).split())
    assert (
        "first wrong operation is 0 (CONV_2D): 5 of 512 values differ, by up to 17 steps" in words
    )
    assert "'out' is all zero" in words
    (run,) = report_document.document(found)["runs"]
    assert (run["jobs"], run["operations"][0]["bytes_share"]) == (1, 1.0)
    # What the run has shown counts before what the rules say.
    assert report_document.verdict(found).answer == report_document.WRONG


# --- inputs ------------------------------------------------------------------------------------


def test_an_array_is_given_in_the_models_order(tmp_path: Path) -> None:
    model = build(Case("add", 4, 4, 8)).model
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(first, np.full((1, 4, 4, 8), 7, np.uint8))
    np.save(second, np.full((4, 4, 8), 9, np.uint8))
    values, words = input_values(model, [first, second])
    assert [int(each.mean()) for each in values] == [7, 9]
    assert words == ("a.npy", "b.npy")
    values, words = input_values(model, [first])
    assert words == ("a.npy", "generated data, seed 21")
    empty, _ = input_values(m.one_conv(0, 16, 16, 3))
    assert empty[0].shape == (0, 16, 16, 3)
    with pytest.raises(UserError, match="has 2 inputs"):
        input_values(model, [first, second, first])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (np.zeros((1, 4, 4, 8), np.int8), "1x4x4x8 int8"),
        (np.zeros((1, 4, 8, 4), np.uint8), "1x4x8x4 uint8"),
        (np.array([{"a": 1}], dtype=object), "not an array of NumPy"),
        (b"\x93NUMPY garbage", "not an array of NumPy"),
        (b"", "not an array of NumPy"),
    ],
)
def test_an_array_that_does_not_fit(tmp_path: Path, content: object, why: str) -> None:
    file = tmp_path / "a.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=why):
        input_values(build(Case("add", 4, 4, 8)).model, [file])


def test_a_picture_goes_where_one_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "red.bmp"
    file.write_bytes(bmp.encode_bmp(np.broadcast_to(np.array([255, 0, 0], np.uint8), (9, 9, 3))))
    (value,), words = input_values(build(Case("conv", 8, 8, 3, 8)).model, (), file)
    assert words == ("red.bmp",)
    assert value[0, 3, 3].tolist() == [255, 0, 0]
    with pytest.raises(UserError, match="no input is left"):
        input_values(build(Case("conv", 8, 8, 5, 8)).model, (), file)
    with pytest.raises(UserError, match="cannot read"):
        input_values(build(Case("conv", 8, 8, 3, 8)).model, (), tmp_path / "none.bmp")


def test_a_folder_of_inputs(tmp_path: Path) -> None:
    one = build(Case("conv", 8, 8, 3, 8)).model
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "b.bmp").write_bytes(bmp.encode_bmp(np.zeros((9, 9, 3), np.uint8)))
    np.save(pictures / "a.npy", np.full((1, 8, 8, 3), 7, np.uint8))
    (pictures / "notes.txt").write_text("no input")
    assert [int(values[0].max()) for values in sets_in(one, pictures)] == [7, 0]
    two = build(Case("add", 4, 4, 8)).model
    folder = tmp_path / "sets" / "first"
    folder.mkdir(parents=True)
    for number in (1, 2):
        np.save(folder / f"{number}.npy", np.full((1, 4, 4, 8), number, np.uint8))
    assert [int(each.max()) for each in sets_in(two, tmp_path / "sets")[0]] == [1, 2]
    with pytest.raises(UserError, match="no folder"):
        sets_in(two, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has 0 pictures"):
        sets_in(one, tmp_path / "empty")


def test_what_is_odd_about_values() -> None:
    assert oddity_of(np.zeros(9, np.uint8)) == "all zero"
    assert oddity_of(np.full(9, 3, np.int8)) == "constant"
    assert oddity_of(np.array([0] * 500 + [255] * 499 + [7], np.uint8)) == "saturated"
    assert oddity_of(np.array([1.0, np.nan])) == "not finite"
    assert oddity_of(np.arange(9, dtype=np.uint8)) == ""
    assert oddity_of(np.array([0.5, 0.25], np.float32)) == ""


def test_a_broken_input_is_said_whatever_is_run(tmp_path: Path) -> None:
    heavy = replace(convolution(tmp_path), macs=(90_000_000_000,))
    with pytest.raises(UserError, match="cannot read"):
        with_runs(heavy, TrialRequest(AUTO, (tmp_path / "none.npy",)), Place())
    assert trial.BUDGET_S <= 60
