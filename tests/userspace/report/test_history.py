# SPDX-License-Identifier: MIT
"""The history file, and the verdict on synthetic series whose answer is known."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from bsp.base.errors import UserError
from userspace.npu.report import history, regression
from userspace.npu.validate import smoke
from userspace.npu.validate.conditions import parse_conditions
from userspace.npu.validate.records import Conditions

pytestmark = pytest.mark.usefixtures("own_state")


def entry(median_ms: float, **conditions: Any) -> Any:
    document: Any = {
        "host": "desk", "board": "vim3", "test": "label_image", "verdict": "pass",
        "model": {"name": "m", "sha256": "a" * 64}, "image": {"name": "i", "sha256": "b" * 64},
        "runtime": "r", "machine": {"threads": 2},
        "results": [
            {"delegate": "teflon", "status": "pass", "latency_ms": {"median": median_ms, "n": 5}},
            {"delegate": "cpu", "status": "skip", "latency_ms": None},
        ],
    }  # fmt: skip
    return history.entry_of(document, cast(Conditions, conditions))


def medians(past: history.History) -> list[float]:
    times = [each["results"][0]["latency_ms"] for each in past.entries]
    return [each["median"] for each in times if each]


def test_what_is_appended_is_read_back() -> None:
    for median_ms in (5.0, 6.0):
        path = history.append("desk", entry(median_ms, load=0.5))
    found = history.read("desk")
    assert medians(found) == [5.0, 6.0]
    assert found.entries[0]["conditions"] == {"load": 0.5}
    assert found.torn == 0
    assert path == history.file_of("desk")
    assert history.known_hosts() == ["desk"]


def test_the_time_of_each_operation_is_kept() -> None:
    profile = {
        "inference_ms": 7.5,
        "operations": [{"operations": [0], "name": "CONV_2D", "ms": 4.0}],
    }
    whole = entry(7.0)
    whole["results"][0]["profile"] = profile
    document: Any = whole | {
        "model": {"name": "m", "sha256": "a" * 64}, "image": {"name": "i", "sha256": "b" * 64},
        "machine": {"threads": 2},
    }  # fmt: skip
    history.append("desk", history.entry_of(document, {}))
    assert history.read("desk").entries[0]["results"][0]["profile"] == profile


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_torn_line_costs_itself_alone(cut: int) -> None:
    path = history.append("desk", entry(5.0))
    history.append("desk", entry(6.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(history.read("desk").entries) == (2 if cut == 1 else 1)
    history.append("desk", entry(7.0))
    found = history.read("desk")
    assert medians(found)[-1] == 7.0
    assert (len(found.entries), found.torn) == ((3, 0) if cut == 1 else (2, 1))


def test_lines_of_another_kind_are_left_out() -> None:
    path = history.append("desk", entry(5.0))
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n[1]\n{"format":1}\n{"format":99,"results":[]}\n\n')
    assert (len(history.read("desk").entries), history.read("desk").torn) == (1, 4)


def test_runs_at_the_same_time_do_not_mix() -> None:
    def write() -> None:
        for _ in range(20):
            history.append("desk", entry(5.0))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = history.read("desk")
    assert (len(found.entries), found.torn) == (80, 0)


def test_names_of_hosts_stay_apart_and_in_the_folder() -> None:
    names = ["a/b", "a%2fb", "../x", "root@10.0.0.1:22", "a b"]
    files = {history.file_of(name) for name in names}
    assert len(files) == len(names)
    assert {file.parent for file in files} == {history.folder()}


def test_no_history_names_what_there_is() -> None:
    history.append("desk", entry(5.0))
    with pytest.raises(UserError, match="did you mean 'desk'") as caught:
        history.need("dsk")
    assert "smoke-test label_image --host dsk" in caught.value.hint


def test_a_history_that_cannot_be_written_costs_no_result(
    own_state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history.append("desk", entry(5.0))
    folder = history.folder()
    history.file_of("desk").unlink()
    folder.rmdir()
    folder.write_text("in the way")
    document: Any = {
        "host": "desk", "board": None, "test": "label_image", "verdict": "pass", "runtime": "r",
        "model": {"name": "m", "sha256": ""}, "image": {"name": "i", "sha256": ""}, "machine": {},
        "results": [],
    }  # fmt: skip
    assert smoke._remembered(document, {})["verdict"] == "pass"
    assert "not in the history" in capsys.readouterr().err


# --- the verdict


def noise(kind: str, spread: float, count: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, spread, count)
    if kind == "outliers":  # one run in twenty was disturbed
        values += (rng.random(count) < 0.05) * np.abs(rng.normal(0, 8 * spread, count))
    return np.asarray(50 * np.exp(values))


@pytest.mark.parametrize(
    ("kind", "spread"), [("even", 0.002), ("even", 0.01), ("even", 0.03), ("outliers", 0.01)]
)
def test_false_alarms_are_rarer_than_one_in_a_hundred(kind: str, spread: float) -> None:
    alarms = runs = 0
    for seed in range(25):
        values = noise(kind, spread, 75, seed).tolist()
        for end in range(12, 75):
            runs += 1
            alarms += regression.judge_series(values[:end]).word in ("slower", "faster")
    assert runs > 1500
    assert alarms / runs < 0.01


@pytest.mark.parametrize("spread", [0.002, 0.01, 0.02])
@pytest.mark.parametrize(("factor", "word"), [(1.10, "slower"), (1 / 1.10, "faster")])
def test_a_step_of_a_tenth_is_found_within_three_runs(
    spread: float, factor: float, word: str
) -> None:
    found = 0
    for seed in range(100):
        values = noise("even", spread, 33, 1000 + seed)
        values[30:] *= factor
        words = [regression.judge_series(values[: 31 + after].tolist()).word for after in range(3)]
        found += word in words
    assert found >= 98


def test_one_disturbed_run_is_a_note() -> None:
    verdict = regression.judge_series([*noise("even", 0.01, 20, 1).tolist(), 80.0])
    assert verdict.word == "steady"
    assert "run it again" in verdict.text()


def test_a_step_in_the_past_does_not_hide_the_next() -> None:
    values = noise("even", 0.01, 43, 2)
    values[20:] *= 1.5
    values[40:] *= 1.12
    verdict = regression.judge_series(values.tolist())
    assert verdict.word == "slower"
    assert verdict.change == pytest.approx(0.12, abs=0.03)
    assert re_text(verdict.text()) == "slower than the last ten by N %, beyond their spread"


def re_text(text: str) -> str:
    import re

    return re.sub(r"\d+%", "N %", text.partition(" (")[0])


def test_few_runs_have_no_verdict() -> None:
    assert regression.judge_series([5.0] * 5).word == "too few"
    assert regression.judge_series([]).word == "too few"
    assert regression.judge_series([5.0] * 6).word == "steady"


def test_the_document_says_what_else_changed() -> None:
    for number in range(12):
        build = "new" if number > 9 else "old"
        history.append(
            "desk", entry(8.0 if number > 9 else 5.0 + number % 2 / 50, generation=build, load=0.1)
        )
    history.append("desk", entry(8.0, generation="newer", load=3.0))
    found = regression.document(history.need("desk"))
    assert found["verdict"] == "slower"
    (series,) = found["series"]
    assert (series["delegate"], series["runs"], series["latest_ms"]) == ("teflon", 13, 8.0)
    assert series["changed"] == ["generation old -> newer", "load 3, at most 0.1 before"]
    text = regression.text(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "slower" in text


def test_conditions() -> None:
    text = (
        "kernel=6.12.1\nload=0.42\ncmdline=quiet npu_bsp.generation=0123456789ab ro\n"
        "governor=performance\ncpu_khz=2208000\ncpu_khz=1800000\ngovernor=performance\n"
        "millicelsius=41000\nmillicelsius=45500\nnpu=ff100000.npu\nmesa=25.0.7-2\n"
        "clk=nna_core  1 1 0 800000000 0 0 50000 Y ff100000.npu core\n"
        "clk=other  1 1 0 100000000 0 0 50000 Y x.mmc core\n"
        "clk=          ff100000.npu bus\n"
    )
    assert parse_conditions(text) == {
        "kernel": "6.12.1",
        "mesa": "25.0.7-2",
        "load": 0.42,
        "generation": "0123456789ab",
        "governor": "performance",
        "cpu_mhz": 2208,
        "temperature_c": 45.5,
        "npu_clocks_hz": {"core": 800000000, "bus": 100000000},
    }
