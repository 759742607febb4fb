# SPDX-License-Identifier: MIT
"""Verdicts on what a runner can find, one field away from a good result each."""

from __future__ import annotations

import base64
import re
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from userspace.npu.model.prediction import Prediction
from userspace.npu.report.report import text_of
from userspace.npu.validate.judge import verdict as judge
from userspace.npu.validate.judge.kernel_log import out_of_memory, troubles
from userspace.npu.validate.judge.values import lifeless, scores
from userspace.npu.validate.judge.verdict import Expected
from userspace.npu.validate.onboard.devices import LOST, kept

LABELS = ("background", "tench", "goldfish", "shark")
GOOD: list[float] = [1, 180, 60, 14]
LOG = """\
Teflon delegate: loaded etnaviv driver
teflon: compiling graph: 89 tensors 28 operations
teflon: compiled graph, took 500 ms
teflon: invoked graph, took 7 ms
"""
NPU = {"node": "/dev/dri/renderD128", "driver": "etnaviv", "error": None,
       "cores": [{"pipe": 0, "model": 0x8000, "npu": True}]}  # fmt: skip


def output(values: list[float], dtype: str = "uint8") -> Any:
    raw = np.array([values], dtype).tobytes()
    return {"dtype": dtype, "shape": [1, len(values)], "scale": 1 / 256, "zero_point": 0,
            "data": base64.b64encode(zlib.compress(raw)).decode()}  # fmt: skip


def row(delegate: str, values: list[float] | None = None, **changes: Any) -> Any:
    good: Any = {
        "delegate": delegate, "prepare_ms": 1.0, "first_ms": 9.0, "runs_ms": [3.0, 1.0, 2.0],
        "delegated_ops": 0, "log": "", "output": output(values or GOOD),
    }  # fmt: skip
    if "error" in changes:
        return {"delegate": delegate, "log": "", **changes}
    return good | changes


def teflon(values: list[float] | None = None, **changes: Any) -> Any:
    return row("teflon", values, **{"log": LOG, "delegated_ops": 28, **changes})


def judged(
    *rows: Any,
    devices: list[Any] | None = None,
    expected: Expected | None = None,
) -> Any:
    """Return the result of the last row, run beside a good reference."""
    facts: Any = {
        "results": [row("cpu-reference"), *rows],
        "total_ops": 31,
        "npu_devices": [NPU] if devices is None else devices,
    }
    return judge.judge(facts, LABELS, expected, min_delegated_share=0.5)[-1]


def test_a_good_row() -> None:
    result = judged(teflon())
    assert result["status"] == "pass"
    assert result["top"][0] == {"index": 1, "label": "tench", "score": round(180 / 255, 6)}
    assert result["latency_ms"] == {"median": 2.0, "p95": 3.0, "min": 1.0, "max": 3.0, "n": 3}
    assert (result["first_ms"], result["driver"], result["max_abs_diff"]) == (9.0, "etnaviv", 0.0)
    assert (result["delegated_ops"], result["total_ops"]) == (28, 31)


REFUSED = "MESA: error: etna_cmd_stream_flush:244: submit failed: -5 (Input/output error)\n"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (teflon([0, 0, 0, 0]), "the output is all zeros"),
        (teflon([255, 255, 255, 255]), "saturated: all 255"),
        (teflon([26, 26, 26, 26]), "the output is all 26"),
        (teflon([1, 60, 180, 14]), "top class is 2 goldfish, cpu-reference says 1 tench"),
        (teflon([1, 120, 60, 14]), "differs from cpu-reference by up to 0.235"),
        (teflon([1, 180]), "the output is 1x2 uint8, cpu-reference's is 1x4 uint8"),
        (teflon(log=""), "named no driver: the model ran on the CPU"),
        (teflon(log=LOG.split("teflon:")[0]), r"\(etnaviv\) took no operation"),
        (teflon(log=LOG.replace("28 op", "12 op")), "only 12 of 31 operations"),
        (teflon(delegated_ops=12), "only 12 of 31 operations"),
        (teflon(log=LOG.replace("invoked", "forgot")), "compiled 28 operations and ran none"),
        (teflon(log=LOG + REFUSED), "Mesa reports: etna_cmd_stream_flush:244: submit failed"),
        (row("/lib/x.so"), "took no operation: the model ran on the CPU"),
        (row("/lib/x.so", delegated_ops=3), "only 3 of 31"),
        (row("/lib/x.so", delegated_ops=None), "does not say what it took"),
        (row("cpu", [1, 60, 180, 14]), "top class is 2 goldfish"),
    ],
)  # fmt: skip
def test_a_bad_row_fails(bad: Any, said: str) -> None:
    result = judged(bad)
    assert result["status"] == "fail"
    assert re.search(said, result["reason"]), result["reason"]


def test_another_delegate_passes_by_the_runtimes_count() -> None:
    assert judged(row("/lib/x.so:device_id=0", delegated_ops=30))["status"] == "pass"


def error(stage: str, message: str = "it broke", log: str = "", **more: Any) -> Any:
    return row("teflon", error={"stage": stage, "message": message}, log=log, **more)


NO_DEVICE_LOG = "Couldn't open kernel device\n"
OPENCL_LOG = """\
npu-bsp opencl: device rusticl | llvmpipe (LLVM 19.1.7, 128 bits) | 25.0.7-2
npu-bsp opencl: 1 platforms, 1 devices
"""
MUTE = NPU | {"cores": []}
GPU = NPU | {"cores": [{"pipe": 0, "model": 0x7000, "npu": False}]}


@pytest.mark.parametrize(
    ("failed", "devices", "status", "said"),
    [
        (error("delegate", log=NO_DEVICE_LOG), [], "skip", "no NPU device"),
        (error("library"), [], "skip", "no NPU device"),
        (error("library"), [NPU], "skip", "it broke"),
        (error("delegate", log=NO_DEVICE_LOG), [MUTE], "skip",
         "found no core behind /dev/dri/renderD128 (etnaviv)"),
        (error("device"), [MUTE | {"unsafe": "crashed with SIGSEGV"}], "fail",
         "opening /dev/dri/renderD128 (etnaviv) crashed with SIGSEGV"),
        (error("delegate", log=NO_DEVICE_LOG), [GPU], "skip", "only GC7000"),
        (error("delegate", log=NO_DEVICE_LOG), [MUTE | {"error": "Permission denied"}], "fail",
         "the user must be in the group render"),
        (error("delegate", log=NO_DEVICE_LOG), [NPU], "fail", "finds no device, although"),
        (error("delegate", "libdrm.so.2: cannot open", "AttributeError: x\n"), [], "fail",
         "does not load: libdrm.so.2: cannot open"),
        (error("crash", "crashed with SIGSEGV", LOG), [NPU], "fail",
         "crashed with SIGSEGV (driver etnaviv, after it compiled 1 of 1 graphs)"),
        (error("time", "did not end within 3 s"), [NPU], "fail", "did not end within 3 s"),
    ],
)  # fmt: skip
def test_rows_that_did_not_run(failed: Any, devices: list[Any], status: str, said: str) -> None:
    result = judged(failed, devices=devices)
    assert result["status"] == status
    assert said in result["reason"]
    assert result["top"] == []
    assert result["latency_ms"] is None


@pytest.mark.parametrize("devices", [[], [MUTE], [GPU], [NPU]])
@pytest.mark.parametrize("stage", ["crash", "time", "model", "run"])
@pytest.mark.parametrize("name", ["teflon", "teflon:a=b", "opencl", "tim-vx", "/lib/x.so", "cpu"])
def test_what_has_begun_to_run_is_never_skipped(name: str, stage: str, devices: list[Any]) -> None:
    """Behind the shim no device is listed: that excuses nothing that happened."""
    for log in (LOG, NO_DEVICE_LOG, OPENCL_LOG, ""):
        failed = error(stage, "it went wrong", log) | {"delegate": name}
        result = judged(failed, devices=devices)
        assert result["status"] == "fail"
        assert "it went wrong" in result["reason"]


def test_a_row_that_is_absent_where_an_npu_must_be_fails_and_says_why() -> None:
    for name in ("teflon", "teflon:a=b"):
        facts: Any = {
            "results": [
                row("cpu-reference"),
                error("delegate", log=NO_DEVICE_LOG) | {"delegate": name},
            ],
            "total_ops": 31,
            "npu_devices": [],
        }
        results = judge.judge(
            facts, LABELS, None, min_delegated_share=0.5, npu_expected="virtual:x is there"
        )
        assert results[-1]["status"] == "fail"
        assert results[-1]["reason"] == "no NPU device; but virtual:x is there"
        assert judge.verdict(results) == "fail"


HUNG = "etnaviv-gpu ff100000.npu: recover hung GPU!"
FAULT = "etnaviv-gpu ff100000.npu: MMU fault status 0x00000002"


def test_a_hang_that_mesa_did_not_report_fails_the_row_and_is_quoted() -> None:
    quiet = ["usb 1-1: new device", "etnaviv-gpu ff100000.npu: model: GC8000, revision: 7120"]
    assert judged(teflon(kernel_log=quiet))["status"] == "pass"
    assert judged(teflon(kernel_log=quiet))["kernel_log"] == []
    assert judged(teflon(kernel_log=None))["kernel_log"] is None
    result = judged(teflon(kernel_log=[*quiet, HUNG, FAULT, HUNG]))
    assert result["status"] == "fail"
    assert result["reason"] == f"the kernel reports: {HUNG}; {FAULT}"


def test_a_hang_before_much_else_in_the_kernels_log_is_kept() -> None:
    """The last 200 lines alone were kept: on a board that logs much, the row passed."""
    chatter = [f"[UFW BLOCK] IN=eth0 OUT= MAC={number}" for number in range(3000)]
    long = [*chatter[:10], HUNG, *chatter, FAULT]
    assert kept(long) == [HUNG, FAULT]
    assert judged(teflon(kernel_log=kept(long)))["status"] == "fail"
    assert kept(chatter[:200]) == chatter[:200]
    storm = kept([f"{HUNG} {number}" for number in range(3000)])
    assert (len(storm), storm[0], storm[-1]) == (200, f"{HUNG} 0", LOST)
    lost = judged(teflon(kernel_log=["usb 1-1: new device", LOST]))
    assert lost["status"] == "pass"
    assert "not all of the kernel's log could be read" in lost["reason"]


@pytest.mark.parametrize(
    "line",
    [
        HUNG,
        FAULT,
        "rocket fdab0000.npu: NPU job timed out",
        "Internal error: Oops: 0000000096000004 [#1] SMP",
        "BUG: kernel NULL pointer dereference",
        "Unable to handle kernel paging request",
        "Kernel panic - not syncing",
        "kernel BUG at mm/slub.c:1",
        "watchdog: BUG: soft lockup",
        "cma: cma_alloc: reserved: alloc failed, req-size: 4096 pages, ret: -12",
        "etnaviv-gpu 38500000.npu: command stream validation failed",
        "galcore: [galcore]: GPU[0] hang, automatic recovery.",
        "etnaviv-gpu ff100000.npu: AXI bus error",
        "panfrost fde60000.gpu: reset",
        "Out of memory: Killed process 412 (python3)",
    ],
)
def test_what_is_kept_of_a_long_log_has_what_is_judged(line: str) -> None:
    assert troubles([line]) or out_of_memory([line])
    assert line in kept([*["usb 1-1: new device"] * 500, line, *["eth0: link is up"] * 500])


def test_a_process_that_the_kernel_ended_for_its_memory() -> None:
    line = "Out of memory: Killed process 412 (python3) total-vm:1048576kB"
    result = judged(error("crash", "was killed with SIGKILL", signal=9, kernel_log=[line]))
    assert (result["status"], result["signal"]) == ("fail", 9)
    assert f"out of memory; the kernel says: {line}" in result["reason"]


def test_fewer_operations_than_predicted_fail_with_what_was_refused() -> None:
    prediction = Prediction(tuple(range(28)), ((29, "RESHAPE", "the driver has none"),), "a file")
    facts: Any = {
        "results": [row("cpu-reference"), teflon(delegated_ops=20, log=LOG.replace("28 op", "20 op"))],
        "total_ops": 31, "npu_devices": [NPU],
    }  # fmt: skip
    result = judge.judge(
        facts, LABELS, None, min_delegated_share=0.5, predictions={"teflon": prediction}
    )[-1]
    assert result["predicted_ops"] == 28
    assert "only 20 operations were delegated, 28 were predicted (a file)" in result["reason"]
    facts["results"][-1] = teflon(
        delegated_ops=12, log=LOG.replace("28 op", "12 op"), on_cpu=[{"index": 29, "op": "RESHAPE"}]
    )
    result = judge.judge(
        facts, LABELS, None, min_delegated_share=0.5, predictions={"teflon": prediction}
    )[-1]
    assert "refused: RESHAPE at 29 (the driver has none)" in result["reason"]


def test_ratios_to_the_cpu_and_to_what_was_published() -> None:
    facts: Any = {
        "results": [row("cpu", runs_ms=[10.0]), row("cpu-reference"), teflon()],
        "total_ops": 31, "npu_devices": [NPU],
    }  # fmt: skip
    figures = [judge.Figure("teflon", 4.0, "a page"), judge.Figure("tim-vx", 1.0, "a page")]
    results = judge.judge(facts, LABELS, None, min_delegated_share=0.5, published=figures)
    assert [result["ratio_to_cpu"] for result in results] == [1.0, 0.2, 0.2]
    assert results[2]["published"] == [{"median_ms": 4.0, "source": "a page", "ratio": 0.5}]
    assert results[0]["published"] == []


def test_opencl_rows() -> None:
    good = judged(row("opencl", delegated_ops=31, partitions=1, log=OPENCL_LOG), devices=[])
    assert (good["status"], good["driver"]) == ("pass", "llvmpipe (LLVM 19.1.7, 128 bits)")
    assert good["versions"]["mesa"] == "25.0.7-2"
    for log, said in [
        ("npu-bsp opencl: 1 platforms, 0 devices\n", "no OpenCL device: 1 OpenCL platforms"),
        ("npu-bsp opencl: libOpenCL.so cannot be loaded\n", "no OpenCL device: libOpenCL.so"),
    ]:
        failed = row("opencl", error={"stage": "delegate", "message": "x"}, log=log)
        result = judged({**failed, "log": log}, devices=[])
        assert result["status"] == "skip"
        assert said in result["reason"]
    # There, and no library: nothing is absent.
    broken = "libOpenCL.so does not load: /usr/lib/libOpenCL.so: invalid ELF header"
    log = "npu-bsp opencl: libOpenCL.so cannot be loaded\n"
    failed = row("opencl", error={"stage": "delegate", "message": broken}, log=log)
    result = judged({**failed, "log": log}, devices=[])
    assert (result["status"], result["reason"]) == ("fail", broken)


def test_a_board_that_has_an_npu_fails_where_none_is_found() -> None:
    facts: Any = {
        "results": [row("cpu-reference"), error("delegate", log=NO_DEVICE_LOG)],
        "total_ops": 31,
        "npu_devices": [MUTE],
    }
    for expected, status in (("this board has one", "fail"), ("", "skip")):
        result = judge.judge(facts, LABELS, None, min_delegated_share=0.5, npu_expected=expected)[
            -1
        ]
        assert result["status"] == status
    assert judged(error("library"), devices=[NPU])["status"] == "skip"


def test_without_a_reference_nothing_passes() -> None:
    crashed = row("cpu-reference", error={"stage": "crash", "message": "x"})
    facts: Any = {"results": [row("cpu"), crashed], "total_ops": 31, "npu_devices": []}
    results = judge.judge(facts, LABELS, None, min_delegated_share=0.5)
    assert [result["status"] for result in results] == ["fail", "fail"]
    assert "no result of cpu-reference" in results[0]["reason"]


def test_the_answer_on_file() -> None:
    right = Expected(((1, 0.70), (2, 0.24)), tolerance=0.02)
    assert judged(row("cpu"), expected=right)["status"] == "pass"
    for wrong, said in [
        (Expected(((2, 0.7),)), "expected 2 goldfish"),
        (Expected(((1, 0.9),), tolerance=0.02), "has score 0.705882, expected 0.9"),
        (Expected(((7, 0.9),)), "the model has 4 classes"),
    ]:
        result = judged(row("cpu"), expected=wrong)
        assert result["status"] == "fail"
        assert said in result["reason"]


def test_int8_and_float_scores() -> None:
    assert scores(output([-128, 127], "int8")).tolist() == [0.0, 255 / 256]
    assert scores(output([0.25, 0.75], "float32")).tolist() == [0.25, 0.75]
    assert "not finite" in lifeless(output([float("nan"), 1.0], "float32"))


def test_ties_put_the_higher_index_first_as_label_image_does() -> None:
    top = judge.top_classes(np.array([0.1, 0.4, 0.4, 0.0]), LABELS)
    assert [entry["index"] for entry in top] == [2, 1, 0]


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("pass", False), ("pass", False), ("skip", False)], "pass"),
        ([("pass", False), ("fail", False)], "fail"),
        ([("pass", True), ("skip", False)], "skip"),  # --delegate teflon, and there is none
        ([("pass", True), ("skip", False), ("pass", False)], "pass"),
        ([("skip", False), ("skip", False)], "skip"),
        ([], "skip"),
        ([("fail", True), ("pass", False)], "fail"),
    ],
)
def test_verdict(rows: list[tuple[str, bool]], wanted: str) -> None:
    assert judge.verdict([{"status": s, "implied": i} for s, i in rows]) == wanted


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=200))
def test_latency_is_ordered(runs_ms: list[float]) -> None:
    found = judge.latency(runs_ms)
    assert found["min"] <= found["median"] <= found["max"]
    assert found["min"] <= found["p95"] <= found["max"]
    assert found["n"] == len(runs_ms)


def test_the_report_fits_80_columns() -> None:
    results = [judged(teflon()), judged(error("crash"), devices=[MUTE]),
               judged(row("/usr/lib/aarch64-linux-gnu/libvx_delegate.so:device_id=0"))]  # fmt: skip
    document: Any = {
        "test": "label_image", "host": "this machine", "runtime": "tflite-runtime 2.14.0",
        "machine": {"machine": "x86_64", "threads": 2}, "model": {"name": "m"},
        "image": {"name": "i"}, "note": "a note that is " + "long " * 20, "expected": None,
        "results": results, "verdict": "fail",
    }  # fmt: skip
    text = text_of(document)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "28/31 etnaviv" in text
