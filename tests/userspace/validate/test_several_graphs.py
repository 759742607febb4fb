# SPDX-License-Identifier: MIT
"""Models whose file has more than one graph: what runs of them, and what a virtual NPU cannot judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.base.errors import UserError
from tests.support.models import graphs
from tests.userspace.validate.test_model_inputs import picture as picture  # the fixture
from tests.userspace.validate.test_model_inputs import run_model
from userspace.npu.model.graph import read_model
from userspace.npu.model.report.advice import whole_model
from userspace.npu.model.summary import numbers
from userspace.npu.validate.label_image import SmokeTestRequest
from virtual.npu.shim.place import virtual_npu
from virtual.npu.taken import not_in_the_main_graph

pytestmark = pytest.mark.usefixtures("own_state")


def test_the_graphs_of_a_file_are_told_apart() -> None:
    model = read_model(graphs.loop())
    assert (model.graphs, [each.kind for each in model.operations]) == (3, ["CONV_2D", "WHILE"])
    assert [each.kind for each in model.inner] == ["LESS", "ADD", "CONV_2D"]
    assert [each.index for each in model.calls] == [1]
    both = read_model(graphs.two_signatures())
    assert (both.signatures, both.calls, len(both.inner)) == (("train",), (), 1)


@pytest.mark.slow
def test_a_loop_runs_on_the_cpu(picture: Path) -> None:
    document = run_model(graphs.loop(), picture)
    assert (document["verdict"], document["note"]) == ("pass", "")


@pytest.mark.slow
def test_a_loop_that_never_ends_is_the_models_matter(picture: Path) -> None:
    """Before, each row was waited for, and a healthy machine failed."""
    with pytest.raises(
        UserError, match=r"did not end within 2 s on TFLite's own portable"
    ) as caught:
        run_model(graphs.loop(step=0), picture, timeout_s=2)
    assert "a loop in it may never end" in caught.value.hint


@pytest.mark.slow
def test_of_several_signatures_it_is_said_which_is_not_run(picture: Path) -> None:
    document = run_model(graphs.two_signatures(), picture)
    assert document["verdict"] == "pass"
    assert document["note"] == "only the model's main graph is run, not its train"


def test_jobs_of_an_inner_graph_are_not_taken_for_wrong_ones(picture: Path) -> None:
    """Seen: a right convolution in the body of a loop was blamed on Mesa, and failed the row."""
    path = picture.with_name("loop.tflite")
    path.write_bytes(graphs.loop())
    place = virtual_npu("virtual:a311d", exact=False, strict=False, record=None, mesa="")
    assert place
    request = SmokeTestRequest(model=str(path), image=str(picture), delegate="teflon")
    with pytest.raises(UserError, match=r"operation 1 \(WHILE\) runs another graph .* CONV_2D"):
        place.smoke_test(request)
    # Nothing of these would come to the NPU.
    assert not not_in_the_main_graph(read_model(graphs.loop(dtype="float32")))
    assert not not_in_the_main_graph(read_model(graphs.two_signatures()))


def test_the_report_says_what_it_does_not_look_into() -> None:
    def said(content: bytes) -> str:
        model = read_model(content)
        return " ".join(each.what for each in whole_model(model, numbers(model)))

    assert "it has 3 graphs; only the main one" in said(graphs.loop())
    assert "only the main graph is looked into, not its train" in said(graphs.two_signatures())
