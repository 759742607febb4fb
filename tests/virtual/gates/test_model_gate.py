# SPDX-License-Identifier: MIT
"""A model's verdict: the first wrong operation, and the Mesa that is right."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest

from bsp.base.errors import UserError
from tests.support.models.inputs import crash, with_operator
from userspace.npu.model.graph import read_model
from userspace.npu.model.prefix import prefix, sources
from virtual.gates.build import build
from virtual.gates.cases import Case
from virtual.gates.model_gate import ModelGateRequest, first_wrong, gate_models, renumbered
from virtual.gates.model_runner import reference

HEADS = build(Case("heads", 10, 10, 16, 12))
"""Operations: 0 body; 1 head, 2 RESHAPE; 3 stride 2, 4 head, 5 RESHAPE; 6 CONCATENATION."""


def test_a_prefix_has_what_an_operation_needs_and_computes_the_same() -> None:
    assert sources(HEADS.model)[5] == (0, 3, 4, 5)
    assert sources(HEADS.model)[6] == tuple(range(7))
    whole = read_model(HEADS.model)
    for index, needed in enumerate(sources(HEADS.model)):
        part = prefix(HEADS.model, index)
        graph = read_model(part)
        assert [each.kind for each in graph.operations] == [
            whole.operations[number].kind for number in needed
        ]
        assert graph.outputs == graph.operations[-1].outputs
        (found,) = reference(part, list(HEADS.inputs))
        assert found.shape == whole.operations[index].outputs[0].shape  # type: ignore[union-attr]
    assert np.array_equal(found, reference(HEADS.model, list(HEADS.inputs))[0])


def test_a_prefix_of_what_is_no_model_is_an_error() -> None:
    with pytest.raises(UserError, match="no operation 7"):
        prefix(HEADS.model, 7)
    with pytest.raises(UserError, match="broken"):
        sources(HEADS.model[:40])


@pytest.mark.parametrize("bad", [{0}, {3}, {5}, {2, 5}, {6}, {0, 6}, set()])
def test_the_first_wrong_operation_is_found_in_few_runs(bad: set[int]) -> None:
    needs = sources(HEADS.model)
    found, runs = first_wrong(needs, lambda index: bool(bad & set(needs[index])))
    assert runs <= 5
    if not bad:
        assert found is None
        return
    assert found in bad
    assert not bad & (set(needs[found]) - {found})


def test_a_chain_is_bisected() -> None:
    needs = [tuple(range(index + 1)) for index in range(1000)]
    for wrong in (0, 1, 499, 998, 999):
        found, runs = first_wrong(needs, lambda index, wrong=wrong: index >= wrong)  # type: ignore[misc]
        assert found == wrong
        assert runs <= 12


def test_what_is_said_of_a_prefix_names_the_models_operations() -> None:
    said = "operation 3 (RESHAPE): behind operation 2 (CONV_2D)"
    assert renumbered(said, (0, 3, 4, 5)) == "operation 5 (RESHAPE): behind operation 4 (CONV_2D)"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
def test_a_models_verdict_with_a_real_delegate(tmp_path: Path) -> None:
    """An ADD whose RELU is left out, behind convolutions; and a model of which only the whole is wrong."""
    wrong, branch, odd = (tmp_path / f"{name}.tflite" for name in ("wrong", "branch", "odd"))
    case = Case("sum-relu", 6, 6, 8, 8, zero_points=(120, 128, 60))
    wrong.write_bytes(build(case).model)
    branch.write_bytes(build(Case("branch", 6, 6, 8, 12)).model)
    odd.write_bytes(with_operator(250))
    # One that ends TFLite's process ended the whole command.
    ending = tmp_path / "ending.tflite"
    ending.write_bytes(crash() if platform.machine() == "x86_64" else with_operator(250))
    files = (str(odd), str(wrong), str(branch), str(ending))
    result = gate_models(ModelGateRequest(files, "trixie", "virtual:imx8mp", quick=True))
    document = result.document()
    assert (document["verdict"], result.exit_code) == ("not good", 4)
    refused, bad, shared, ended = (each["runs"][0] for each in document["models"])
    assert "TFLite itself does not run ending.tflite" in ended["evidence"]
    # One model that TFLite refuses does not cost the others their verdicts; alone it is an error.
    assert refused["verdict"] == "not run"
    assert "TFLite itself does not run odd.tflite" in refused["evidence"]
    with pytest.raises(UserError, match="TFLite itself does not run"):
        gate_models(ModelGateRequest((str(odd),), "trixie", "virtual:imx8mp", quick=True))
    assert (bad["verdict"], bad["blame"]) == ("wrong", "submission")
    assert bad["first_wrong"]
    assert (bad["first_wrong"]["index"], bad["first_wrong"]["operation"]) == (2, "ADD")
    assert "expected RELU" in bad["evidence"]
    assert (shared["verdict"], shared["first_wrong"]) == ("wrong", None)
    assert "operation 1 (CONV_2D) and operation 2 (MAX_POOL_2D)" in shared["evidence"]
    assert "branch.tflite" in result.text()
