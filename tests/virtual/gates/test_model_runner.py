# SPDX-License-Identifier: MIT
"""The client that runs models, here on this machine's own CPU: how runs end that come to nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.project import PROJECT
from tests.support.models.inputs import names_and_places, one_conv, with_operator
from userspace.npu.validate.onboard.environment import RUNTIMES
from virtual.gates import client, model_runner, sweep
from virtual.gates.model_runner import ModelRunner, reference, tflite_runtime
from virtual.gates.witness import Witness
from virtual.npu.portable import outputs_apart

PICTURE = np.zeros((1, 16, 16, 3), np.uint8)


@contextmanager
def started(folder: Path, how: str, timeout_s: float = 60.0) -> Iterator[ModelRunner]:
    """A client with a delegate that is broken in that way."""
    library = folder / "libbroken.so"
    source = PROJECT / "tests/support/broken_delegate.c"
    run(["gcc", "-shared", "-fPIC", f'-DHOW="{how}"', "-o", library, source])
    site = Path(tflite_runtime().__file__).parents[1]
    command = [sys.executable, client.__file__, str(site), str(library), *RUNTIMES]
    with (
        (folder / "log").open("w+b") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        made = ModelRunner(process, folder, timeout_s)
        try:
            made.start(warm=False)
            yield made
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("full", "crashes", "could not write all of its answer"),
        ("killed", "crashes", "SIGKILL"),
        ("segfault", "crashes", "SIGSEGV"),
        ("nothing", "ran", ""),
    ],
)
def test_what_a_run_left_of_its_outputs_is_not_read(
    how: str, status: str, said: str, tmp_path: Path
) -> None:
    """One that dies while it writes them leaves an empty file."""
    with started(tmp_path, how) as runner:
        path = runner.file(one_conv(1, 16, 16, 3))
        answer, outputs = runner._run(path, [PICTURE], "BUILTIN_REF", {}, here=False)
        again = runner.on_cpu(path, [PICTURE])  # the client itself goes on
    assert (answer["status"], len(outputs)) == (status, int(status == "ran"))
    assert said in answer.get("message", "")
    assert again.answer["status"] == "ran"
    assert again.outputs[0].shape == (1, 16, 16, 4)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0.1, 1e9])
def test_outputs_of_any_type_are_read(limit: float, tmp_path: Path) -> None:
    """Names, and nothing at all: "TFLite itself does not run it" was said of both."""
    model = names_and_places(limit)
    with started(tmp_path, "nothing") as runner:
        attempt = runner.on_cpu(runner.file(model), [PICTURE])
    assert attempt.answer["status"] == "ran", attempt.answer
    for right in (reference(model, [PICTURE]), outputs_apart(model, [PICTURE])):
        assert [str(each.dtype) for each in right] == ["uint8", "int64", "int64"]
        for output, expected in zip(attempt.outputs, right, strict=True):
            assert np.array_equal(output, expected)


@pytest.mark.parametrize(
    ("code", "how", "status", "said"),
    [
        (0, "segfault", "crashes", "SIGSEGV"),
        (250, "nothing", "error", "TFLite itself does not run it"),
        (250, "segfault", "error", "TFLite itself does not run it"),
    ],
)
def test_a_delegate_is_not_blamed_for_what_fails_without_it(
    code: int, how: str, status: str, said: str, tmp_path: Path
) -> None:
    """The runtime here need not be the one that the right values come from."""
    with started(tmp_path, how) as runner:
        path = runner.file(with_operator(code) if code else one_conv(1, 16, 16, 3))
        attempt = runner.attempt(path, [PICTURE], "imx8mp")
    assert attempt.answer["status"] == status
    assert said in attempt.answer["message"]
    if code:
        outcome = sweep.Outcome("imx8mp", "odd", "model", sweep.WRONG)
        witnessed = sweep._Witnessed(attempt.answer, [], attempt.report, Witness([], 8, None), b"")
        with pytest.raises(UserError, match="odd: TFLite itself does not run it"):
            sweep._judge(outcome, witnessed, [])


@pytest.mark.slow
def test_a_delegate_that_ignores_its_deadline_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "_MORE_S", 60.0)
    with started(tmp_path, "deaf", timeout_s=1.0) as runner:
        path = runner.file(one_conv(1, 16, 16, 3))
        answer, _ = runner._run(path, [PICTURE], "BUILTIN_REF", {}, here=False)
    assert (answer["status"], answer["message"]) == ("hangs", "did not end within 1 s")


def test_a_client_that_is_gone_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("Killed by nobody\n")
    with subprocess.Popen(
        ["sh", "-c", "exit 3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.wait()
        gone = ModelRunner(process, tmp_path, 5.0)
        path = gone.file(one_conv(1, 16, 16, 3))
        for _ in range(2):
            with pytest.raises(
                InfrastructureError, match=r"ended \(exit code 3\) .*: Killed by nobody"
            ):
                gone.on_cpu(path, [PICTURE])
