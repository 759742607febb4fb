# SPDX-License-Identifier: MIT
"""What the real libteflon.so takes of models of one operation, beside what the rules say, by driver.

Etnaviv decides on the shim's device (``test_prediction.py`` has that); rocket on a stub that can run
nothing: the log says what was decided before anything is compiled.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bsp.base.process import run
from tests.support.models.rule_cases import cases
from userspace.npu.model.graph import read_graph
from userspace.npu.model.prediction import predict, rules_for
from virtual.gates.model_runner import model_runner
from virtual.gates.packages import find_delegate

STUB = Path(__file__).parents[2] / "support/models/accel_stub.c"
# " 12  DWCONV v3  supported   in: ..."
_DECISION = re.compile(r"^ *\d+ +\S+ +v\d+ +(supported|unsupported) +in:", re.MULTILINE)

# What libteflon.so 26.1.6 and 26.2.6 were seen to take with rocket.
TAKEN_BY_ROCKET = {"add", "conv", "conv int8", "conv relu", "conv relu6", "conv tanh", "depthwise"}


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub, compiled for arm64."""
    target = tmp_path_factory.mktemp("stub") / "accel_stub.so"
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"]
    run(["aarch64-linux-gnu-gcc", *flags, "-o", target, STUB])
    return target


def taken(driver: str, mesa: str) -> set[str]:
    rules = rules_for(driver, mesa)
    assert rules
    found = {
        name for name, (model, _) in cases().items() if predict(read_graph(model), rules).taken
    }
    assert found < set(cases())
    return found


@pytest.mark.parametrize("mesa", ["26.1.6", "26.2.6"])
def test_the_rules_say_what_rocket_was_seen_to_take(mesa: str) -> None:
    assert taken("rocket", mesa) == TAKEN_BY_ROCKET


def test_ethosu_takes_more_than_rocket() -> None:
    assert taken("ethosu", "26.2.6") >= (TAKEN_BY_ROCKET | {"max pool", "pad three", "reshape"})


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("mesa", ["26.1.6", pytest.param("26.2.6", marks=pytest.mark.full)])
def test_the_real_rocket_takes_what_the_rules_say(mesa: str, stub: Path) -> None:
    delegate = find_delegate(mesa)
    rules = rules_for("rocket", mesa)
    assert rules
    different = {}
    environment = {"TEFLON_DEBUG": "verbose", "ACCEL_STUB_DRIVER": "rocket"}
    with model_runner(delegate, timeout_s=60, warm=False, preload=stub) as runner:
        for name, (model, inputs) in cases().items():
            log = runner.log_of(model, inputs, environment)
            decided = _DECISION.findall(log)
            assert len(decided) == 1, f"{name}: {log[-500:]}"
            if (decided[0] == "supported") != bool(predict(read_graph(model), rules).taken):
                different[name] = decided[0]
    assert not different


@pytest.mark.full
@pytest.mark.network
@pytest.mark.parametrize("mesa", ["26.1.6", "26.2.6"])
def test_debians_library_has_no_ethosu(mesa: str, stub: Path) -> None:
    """What the rules warn of; should it be there one day, its decisions have to be compared."""
    environment = {
        "TEFLON_DEBUG": "verbose", "ACCEL_STUB_DRIVER": "ethosu", "ACCEL_STUB_ID": "0x10000000",
    }  # fmt: skip
    model, inputs = cases()["conv"]
    with model_runner(find_delegate(mesa), timeout_s=60, warm=False, preload=stub) as runner:
        log = runner.log_of(model, inputs, environment)
    assert "ethosu: driver missing" in log
    rules = rules_for("ethosu", mesa)
    assert rules
    assert "driver missing" in rules.warning
