# SPDX-License-Identifier: MIT
"""Jobs for LAVA, judged by LAVA's own schema (Debian's package lava-common)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import UserError
from bsp.base.packages.apt import Archive
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.remote.lab import lava

SHA = "0" * 64


def request(board: str = "vim3", **changes: Any) -> lava.JobRequest:
    return lava.JobRequest(load_board(board), "registry.example/npu-bsp:1", **changes)


@pytest.mark.network
@pytest.mark.slow
def test_lava_takes_the_job(tmp_path: Path) -> None:
    packages = Archive("bookworm", "amd64").unpacked(
        ["lava-common", "python3-voluptuous", "python3-yaml"]
    )
    code = (
        "import sys, json, yaml; from lava_common.schemas import validate\n"
        "for name in sys.argv[1:]:\n"
        "    data = yaml.safe_load(open(name)); validate(data); print(json.dumps(data))\n"
    )

    def judge(*files: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *files],
            env={**os.environ, "PYTHONPATH": f"{packages}/usr/lib/python3/dist-packages"},
            capture_output=True,
            text=True,
        )

    asked = [
        request(),
        request("imx8mp-evk", bundle="http://lab.example/b/bundle.tar", bundle_sha256=SHA),
        request(device_type="mine", tags=("npu", "rack-2"), folder="/a b"),
    ]
    files = [tmp_path / f"{number}.yaml" for number in range(len(asked))]
    written = [lava.write(each, file)["job"] for each, file in zip(asked, files, strict=True)]
    done = judge(*files)
    assert done.returncode == 0, done.stderr
    # And the YAML means what was meant.
    assert [json.loads(line) for line in done.stdout.splitlines()] == written
    assert written[0]["device_type"] == "meson-g12b-a311d-khadas-vim3"
    # The schema does refuse.
    broken = tmp_path / "broken.yaml"
    broken.write_text(files[0].read_text().replace('method: "minimal"', 'method: "minimum"'))
    assert "unknown action type" in judge(broken).stderr


def test_the_steps_are_shell_and_each_command_is_one_of_ours(tmp_path: Path) -> None:
    from tasks import namespace

    steps = lava.job(request(bundle="http://lab.example/bundle.tar", bundle_sha256=SHA))["actions"][
        -1
    ]["test"]["definitions"][0]["repository"]["run"]["steps"]
    script = tmp_path / "steps.sh"
    script.write_text("\n".join(steps))
    subprocess.run(["sh", "-n", str(script)], check=True)
    called = [step.split("./inv ")[1].split()[0] for step in steps if "./inv " in step]
    assert called == ["deploy", "doctor", "smoke-test", "status"]
    assert set(called) <= set(namespace.task_names)
    assert "--accept-new-key" not in script.read_text()


def test_rows_become_results(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    rows = [
        {"delegate": "cpu", "status": "pass", "latency_ms": {"median": 12.5}},
        {"delegate": "/lib/x y.so", "status": "fail", "latency_ms": None},
        {"delegate": "tim-vx", "status": "skip"},
    ]
    result.write_text(json.dumps({"results": rows}))
    done = subprocess.run(
        [sys.executable, "-m", "bsp.remote.lab.lava", str(result)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "lava-test-case npu-cpu --result pass --measurement 12.5 --units ms",
        "lava-test-case 'npu-/lib/x y.so' --result fail",
        "lava-test-case npu-tim-vx --result skip",
    ]


def test_what_lava_would_not_take() -> None:
    for changes, match in (
        (
            {"bundle": "file:///b.tar", "bundle_sha256": SHA},
            "address that the dispatcher can fetch",
        ),
        ({"bundle": "http://a/b.tar"}, "belong together"),
        ({"bundle_sha256": SHA}, "belong together"),
    ):
        with pytest.raises(UserError, match=match):
            lava.job(request(**changes))
    with pytest.raises(UserError, match="no device tree in the kernel"):
        lava.job(request("virtual"))
    with pytest.raises(UserError, match="not a name of a container image"):
        lava.job(lava.JobRequest(load_board("vim3"), "Bad Image"))
