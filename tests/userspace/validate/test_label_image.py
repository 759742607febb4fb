# SPDX-License-Identifier: MIT
"""The smoke test on this machine: real models, real delegates that are really broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.project import PROJECT
from tests.support.models.inputs import Model
from userspace.npu.model import tiny_model
from userspace.npu.validate import label_image, models
from userspace.npu.validate.judge.delegation import parse_log
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.machine import RUNNER, ThisMachine
from userspace.npu.validate.onboard import child, environment
from userspace.npu.validate.onboard.child import in_child
from userspace.npu.validate.onboard.delegation import count_tensors
from userspace.npu.validate.onboard.environment import load_runtime
from userspace.npu.validate.onboard.guard_bytes import GuardBytes
from userspace.npu.validate.smoke import smoke_test

pytestmark = pytest.mark.usefixtures("own_state")

QUICK: Any = {"model": tiny_model.NAME, "runs": 2, "budget_s": 1.0}
assets = pytest.mark.skipif(
    "NPU_BSP_ASSETS" not in os.environ, reason="needs the real models: set NPU_BSP_ASSETS"
)


def quick(**changes: Any) -> Any:
    return smoke_test("label_image", SmokeTestRequest(**{**QUICK, **changes}))


def test_the_small_model_on_this_machine() -> None:
    document = quick()
    assert document["verdict"] == "pass"
    rows = {result["delegate"]: result for result in document["results"]}
    assert list(rows) == ["cpu", "cpu-reference", "teflon", "opencl", "tim-vx"]
    for name in ("cpu", "cpu-reference"):
        assert rows[name]["status"] == "pass", rows[name]
        assert rows[name]["top"][0]["label"] == "seven"
        assert rows[name]["latency_ms"]["n"] == 2
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")
    assert document["model"]["name"] == tiny_model.NAME
    assert document["expected"]


@pytest.mark.slow
@assets
def test_mobilenet_gives_the_documented_answer() -> None:
    document = smoke_test(
        "label_image",
        SmokeTestRequest(
            model="mobilenet_v1_1.0_224_quant",
            image="grace_hopper.bmp",
            runs=3,
            budget_s=3,
            views=2,
        ),
    )
    assert document["verdict"] == "pass"
    reference = next(row for row in document["results"] if row["delegate"] == "cpu-reference")
    found = [(entry["index"], f"{entry['score']:.6g}") for entry in reference["top"]]
    assert found == [
        (653, "0.780392"), (907, "0.105882"), (458, "0.015686"), (466, "0.011765"), (835, "0.007843"),
    ]  # fmt: skip
    assert reference["top"][0]["label"] == "military uniform"


@pytest.mark.slow
@assets
@pytest.mark.parametrize("model", ["mobilenet_v1_0.25_128_quant", "mobilenet_v2_1.0_224_quant"])
def test_other_models_agree_with_the_reference(model: str) -> None:
    request = SmokeTestRequest(
        model=model, image="grace_hopper.bmp", delegate="cpu", runs=1, views=2
    )
    assert smoke_test("label_image", request)["verdict"] == "pass"


@assets
def test_truncated_model(tmp_path: Path) -> None:
    whole = models.find("mobilenet_v1_0.25_128_quant", "model").path.read_bytes()
    for length, said in (
        (3, "not a .tflite file"),
        (40, "cut short"),
        (len(whole) - 100_000, "cut short"),
    ):
        broken = tmp_path / f"{length}.tflite"
        broken.write_bytes(whole[:length])
        with pytest.raises(UserError, match=said):
            quick(model=str(broken), delegate="cpu")


def test_bad_inputs(tmp_path: Path) -> None:
    png = tmp_path / "picture.bmp"
    png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    text = tmp_path / "model.tflite"
    text.write_bytes(b"a text that is not a model at all")
    cases: list[tuple[Any, str]] = [
        ({"image": str(png)}, "expected a BMP image"),
        ({"image": str(tmp_path / "none.bmp")}, "there is no image file"),
        ({"model": str(text), "image": str(models.tiny_image().path)}, "not a .tflite file"),
        ({"model": str(tmp_path)}, "is a folder, not a .tflite file"),
        ({"delegate": "telfon"}, "did you mean 'teflon'"),
        ({"delegate": "/usr/lib/x.so:a"}, "is not key=value"),
        ({"runs": 0}, "--runs is 0"),
        ({"threads": -1}, "--threads is -1"),
        ({"threads": 0}, "--threads is 0"),
        ({"threads": 1 << 40}, "--threads is 1.09951e+12, it may be 1024 at most"),
        ({"budget_s": 0.0}, "--budget is 0"),
        ({"budget_s": float("nan")}, "--budget is nan"),
        ({"timeout_s": float("inf")}, "--timeout is inf"),
    ]
    for changes, said in cases:
        with pytest.raises(UserError) as caught:
            quick(**changes)
        assert said in caught.value.message
    with pytest.raises(UserError, match="did you mean 'label_image'"):
        label_image.check_name("label-image")


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("delegate") / "libbroken.so"
    run(["gcc", "-shared", "-fPIC", "-o", library, PROJECT / "tests/support/broken_delegate.c"])
    return library


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("segfault", "crashed with SIGSEGV"),
        ("abort", "crashed with SIGABRT"),
        ("refuse", "does not load: I will not"),
        ("hang", "did not end within 1.5 s"),
        ("killed", "was killed with SIGKILL"),
        ("fail", "the delegate could not prepare this model: vendor: cannot allocate 12 MiB"),
        ("full", "could not write all of its answer"),
        ("nothing", "took no operation: the model ran on the CPU"),
        ("wrong;value=-1", "top class is 6 six, cpu-reference says 7 seven"),
        ("wrong;value=0", "the output is all"),
    ],
)
def test_a_broken_delegate_is_a_row_that_fails_and_no_more(
    broken: Path, how: str, said: str
) -> None:
    document = quick(delegate=f"{broken}:how={how};other=1", timeout_s=1.5)
    reference, row = document["results"]
    assert reference["status"] == "pass"
    assert row["status"] == "fail"
    assert said in row["reason"]
    assert document["verdict"] == "fail"
    assert row["signal"] == {"segfault": 11, "abort": 6, "killed": 9}.get(how)


@pytest.mark.parametrize(
    ("every", "runs", "said"),
    [
        (3, 3, "of 1 of 3 later runs are"),
        (2, 3, "of 2 of 3"),
        (2, 1, "of all later runs"),
        (9, 3, ""),
    ],
)
def test_a_delegate_whose_outputs_change_from_run_to_run(
    broken: Path, every: int, runs: int, said: str, tmp_path: Path
) -> None:
    """A little off, in one run of several: no limit of the comparison sees it, nor does the last run."""
    net = Model()
    picture = net.image(1, 16, 16, 3)
    (tmp_path / "model.tflite").write_bytes(
        net.written([picture], [net.reshape(net.conv(picture), 1, 1024)])
    )
    request = SmokeTestRequest(
        model=str(tmp_path / "model.tflite"),
        runs=runs,
        views=0,
        delegate=f"{broken}:how=flicker;value={every}",
    )
    row = label_image.smoke_test(ThisMachine(), request, min_delegated_share=0.1)["results"][1]
    assert row["status"] == ("fail" if said else "pass"), row["reason"]
    assert said in row["reason"]
    assert ("the same input does not give the same outputs" in row["reason"]) == bool(said)


@pytest.mark.parametrize(
    ("place", "said"),
    [(0, "the delegate wrote into input 0"), (1, "into the model's own constants")],
)
def test_a_delegate_that_writes_where_it_must_not(
    broken: Path, place: int, said: str, tmp_path: Path
) -> None:
    """Its outputs are right: it takes all there is, so that nobody reads what it wrote over."""
    net = Model()
    picture = net.image(1, 16, 16, 3)
    (tmp_path / "model.tflite").write_bytes(net.written([picture], [net.reshape(picture, 1, 768)]))
    request = SmokeTestRequest(
        model=str(tmp_path / "model.tflite"),
        runs=1,
        views=0,
        delegate=f"cpu,{broken}:how=scribble;value={place}",
    )
    rows = label_image.smoke_test(ThisMachine(), request)["results"]
    assert [row["status"] for row in rows] == ["pass", "pass", "fail"]
    assert said in rows[2]["reason"]


def test_guard_bytes_ask_for_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """tflite-runtime 2.14 crashes on what it says of a sparse one (MediaPipe's face detectors)."""
    net = Model()
    picture = net.image(1, 15, 15, 3)
    content = net.written([picture], [net.conv(picture, 5)])
    interpreter = load_runtime()[0].Interpreter(model_content=content)
    interpreter.allocate_tensors()
    asked: list[int] = []
    read = interpreter.tensor

    def tensor(number: int) -> Any:
        asked.append(number)
        return read(number)

    monkeypatch.setattr(interpreter, "tensor", tensor)
    monkeypatch.setattr(interpreter, "get_tensor_details", None)
    guards = GuardBytes(interpreter, 0, count_tensors(content))
    interpreter.invoke()
    assert guards.overrun() == []
    constants = {number for number, each in enumerate(net.tensors) if each.data is not None}
    assert asked
    assert not constants & set(asked)


@pytest.mark.slow
@pytest.mark.parametrize("runs_late", [1, 0])
def test_a_delegate_that_hands_out_an_earlier_run(broken: Path, runs_late: int) -> None:
    """Or its first one: the picture itself is right in every run."""
    request = SmokeTestRequest(
        model=tiny_model.NAME, runs=2, delegate=f"{broken}:how=late;value={runs_late}"
    )
    row = label_image.smoke_test(ThisMachine(), request, min_delegated_share=0.1)["results"][1]
    assert row["outputs"][0]["different"] == 0
    assert row["status"] == "fail"
    assert "crops and flips" in row["reason"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "behind", "seen"),
    [(15, 1, True), (15, 0, False), (15, 14, True)],
)
def test_a_delegate_that_writes_behind_its_output(
    broken: Path, size: int, behind: int, seen: bool, tmp_path: Path
) -> None:
    """Its outputs are right, and nobody reads what lies there: in this run, on this machine."""
    net = Model()
    picture = net.image(1, size, size, 3)
    flat = net.reshape(picture, 1, size * size * 3)
    features = net.conv(picture)
    (tmp_path / "model.tflite").write_bytes(net.written([picture], [flat, features]))
    request = SmokeTestRequest(
        model=str(tmp_path / "model.tflite"),
        runs=1,
        views=0,
        delegate=f"{broken}:how=overrun;value={behind}",
    )
    row = label_image.smoke_test(ThisMachine(), request, min_delegated_share=0.1)["results"][1]
    assert row["status"] == ("fail" if seen else "pass"), row["reason"]
    assert ("wrote behind the end of its output 'reshaped'" in row["reason"]) == seen


def test_of_a_long_log_the_beginning_is_kept() -> None:
    """There Mesa says which driver it has loaded: without it a row was said to have run on the CPU."""

    def work() -> dict[str, Any]:
        text = "Teflon delegate: loaded etnaviv driver\n" + "debugging\n" * 200_000 + "end\n"
        os.write(1, text.encode())
        return {}

    log = in_child(work, 20)["log"]
    assert len(log) < 1.1 * child.LOG_LIMIT_BYTES
    assert parse_log(log).driver == "etnaviv"
    assert log.endswith("end\n")
    assert child.CUT in log


@pytest.mark.slow
def test_a_delegate_that_no_signal_but_the_last_ends(
    broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.2)

    def work() -> dict[str, Any]:
        load_runtime()[0].load_delegate(str(broken), {"how": "deaf"})
        return {}

    began_s = time.monotonic()
    found = in_child(work, 1.5)
    assert found["error"]["stage"] == "time"
    assert "did not end within 1.5 s, and ignored the signal" in found["error"]["message"]
    assert "cannot be killed" not in found["error"]["message"]
    assert time.monotonic() - began_s < 20


def test_the_deadline_is_for_running_not_for_loading() -> None:
    with pytest.raises(UserError, match=r"did not end within 0\.001 s on TFLite's own") as caught:
        quick(delegate="cpu", timeout_s=0.001)
    assert "--timeout" in caught.value.hint


def test_a_delegate_that_computes_wrongly_took_what_it_says(broken: Path) -> None:
    row = quick(delegate=f"{broken}:how=wrong;value=-1")["results"][1]
    assert (row["delegated_ops"], row["total_ops"], row["partitions"]) == (4, 7, 2)
    assert [each["op"] for each in row["not_delegated"]] == [
        "AVERAGE_POOL_2D",
        "RESHAPE",
        "SOFTMAX",
    ]
    assert row["max_abs_diff"] > 0.1


@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, "verbose"), ("verbose", "verbose"), ("0", "0,verbose"), ("a,verbose", "a,verbose")],
)
def test_mesas_log_is_asked_for_whatever_else_is(
    asked: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TEFLON_DEBUG=0 a run on the NPU was said to be one on the CPU."""
    monkeypatch.delenv("TEFLON_DEBUG", raising=False)
    if asked is not None:
        monkeypatch.setenv("TEFLON_DEBUG", asked)
    environment.ask_for_log()
    assert os.environ["TEFLON_DEBUG"] == expected


def test_several_delegates_and_their_environment(broken: Path) -> None:
    """A library that takes nothing, beside one that has no vendor's driver; variables reach the runner."""
    variables = label_image.environment_of(["SMALLER_SOFTMAX=1", "RUSTICL_ENABLE=a,b"])
    document = quick(delegate=f"cpu,{broken}:how=nothing,tim-vx", environment=variables)
    rows = {row["delegate"].partition(":")[0]: row for row in document["results"]}
    assert list(rows) == ["cpu", "cpu-reference", "tim-vx", str(broken)]
    assert rows["cpu"]["ratio_to_cpu"] == 1
    assert rows[str(broken)]["environment"]["RUSTICL_ENABLE"] == "a,b"
    assert rows[str(broken)]["environment"]["SMALLER_SOFTMAX"] == "1"
    assert rows["tim-vx"]["status"] == "skip"
    assert rows["cpu"]["versions"]["runtime"] == document["runtime"]
    with pytest.raises(UserError, match="--env takes NAME=VALUE"):
        label_image.environment_of(["1=2"])


@pytest.mark.slow
def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "libtext.so").write_text("no library")
    row = quick(delegate=str(tmp_path / "libtext.so"))["results"][1]
    assert row["status"] == "fail"
    assert "does not load" in row["reason"]
    row = quick(delegate=str(tmp_path / "libnone.so"))["results"][1]
    assert row["status"] == "fail"
    assert "libnone.so is not there" in row["reason"]


def test_asking_for_the_npu_alone_does_not_pass_without_one() -> None:
    document = quick(delegate="teflon")
    assert document["verdict"] == "skip"
    assert [row["implied"] for row in document["results"]] == [True, False]


def test_a_python_without_a_runtime_is_an_error_with_its_reason(tmp_path: Path) -> None:
    """numpy is there, the runtime is not."""
    machine = ThisMachine(
        python=[sys.executable, "-c", "import sys; print('no json'); sys.exit(3)"]
    )
    with pytest.raises(InfrastructureError, match="exit code 3 and no result"):
        label_image.smoke_test(machine, SmokeTestRequest(**QUICK))


@pytest.mark.slow
def test_the_runner_can_be_used_by_hand(tmp_path: Path) -> None:
    image = tmp_path / "seven.bmp"
    image.write_bytes(tiny_model.sample_bmp())
    model = str(models.tiny().path)
    command = [sys.executable, str(RUNNER), "--model", model, "--image", str(image)]
    done = subprocess.run([*command, "--delegate", "cpu"], capture_output=True, check=True)
    assert json.loads(done.stdout)["total_ops"] == 7
    failed = subprocess.run(
        [*command[:-1], "/none", "--delegate", "cpu"], capture_output=True, check=False
    )
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"]["stage"] == "files"


@pytest.mark.slow
def test_the_task_and_its_exit_codes() -> None:
    def inv(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "invoke", "smoke-test", *arguments]
        return subprocess.run(command, cwd=PROJECT, capture_output=True, check=False)

    passed = inv("label_image", "--model", tiny_model.NAME, "--runs", "1", "--json")
    assert passed.returncode == 0
    assert json.loads(passed.stdout)["verdict"] == "pass"
    skipped = inv("label_image", "--model", tiny_model.NAME, "--runs", "1", "--delegate", "teflon")
    assert skipped.returncode == 4
    assert b"no NPU device" in skipped.stdout
    none = inv("label_image", "--model", tiny_model.NAME, "--threads", "0")
    assert none.returncode == 2
    assert b"--threads is 0, it has to be more than 0" in none.stderr
    word = inv("label_image", "--model", tiny_model.NAME, "--threads", "all")
    assert word.returncode == 2
    assert b"--threads takes a whole number, found 'all'" in word.stderr
    unknown = inv("lable_image")
    assert unknown.returncode == 2
    assert b"did you mean 'label_image'" in unknown.stderr


def test_a_delegate_that_ends_the_process_itself() -> None:
    """Of a library that calls exit() the number is said that it gave, not the kernel's status word."""
    found = in_child(lambda: os._exit(1), 10)
    assert found["error"]["message"].startswith("ended its process (exit code 1)")


def test_the_runner_ends_with_the_connection_that_started_it(tmp_path: Path) -> None:
    """sshd ends when its connection is cut; what it ran would go on computing for nobody."""
    began = tmp_path / "began"
    code = (
        "import os, pathlib, sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import child\n"
        "def row():\n"
        "    pathlib.Path(sys.argv[2]).write_text(f'{os.getppid()} {os.getpid()} ')\n"
        "    time.sleep(60)\n"
        "child.in_child(row, 60)\n"
    )
    sshd = subprocess.Popen(
        [
            "sh",
            "-c",
            '"$@" & wait',
            "sh",
            sys.executable,
            "-c",
            code,
            str(RUNNER.parent),
            str(began),
        ]
    )
    wait_until(lambda: began.exists() and began.read_text().endswith(" "))
    pids = [int(word) for word in began.read_text().split()]
    assert all(map(alive, pids))
    sshd.kill()
    sshd.wait()
    wait_until(lambda: not any(map(alive, pids)))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
