# SPDX-License-Identifier: MIT
"""Another interpreter for the tests, and arm64 programs on an arm64 machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bsp.base.cache import cache_dir
from bsp.base.errors import UserError
from bsp.base.packages.optional_env import _move_scripts, find_python
from virtual.npu.shim import host


def script(path: Path, answer: str, code: int = 0) -> None:
    path.write_text(f"#!/bin/sh\necho {answer}\nexit {code}\n")
    path.chmod(0o755)


def test_an_interpreter_is_found_by_version_name_or_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    script(tmp_path / "python3.13", "True")
    for wanted in ("3.13", "python3.13", str(tmp_path / "python3.13")):
        assert find_python(wanted) == str(tmp_path / "python3.13")
    assert find_python(sys.executable) == sys.executable


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        ("3.14", "sudo apt-get install python3.14 python3.14-venv"),
        ("3.12", "sudo apt-get install python3.12"),  # there, but does not run
        ("/no/python", "--python 3.13, or --python FILE"),
        ("3.10", "--python 3.13"),
    ],
)
def test_what_is_no_interpreter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, hint: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    script(tmp_path / "python3.12", "'command not found'", 127)
    script(tmp_path / "python3.10", "False")
    with pytest.raises(UserError) as caught:
        find_python(wanted)
    assert caught.value.hint.startswith(hint)


def test_an_arm64_machine_runs_arm64_python_without_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = tmp_path / "usr/lib/aarch64-linux-gnu"
    libraries.mkdir(parents=True)
    (libraries / "ld-linux-aarch64.so.1").touch()
    (tmp_path / "usr/bin").mkdir()
    (tmp_path / "usr/bin/python3").touch()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    monkeypatch.setattr(host, "qemu_user", lambda: pytest.fail("no emulator is needed"))
    words = [str(word) for word in host.arm64_python(tmp_path, {"LD_PRELOAD": "shim.so"})]
    # The preloaded library is for Python, not for the programs of this machine that start it.
    assert words.index("env") < words.index("LD_PRELOAD=shim.so")
    assert f"PYTHONHOME={tmp_path}/usr" in words
    # What it compiles is kept, whatever this process was told: not beside the sources, whose folders are
    # named by their content.
    assert "PYTHONDONTWRITEBYTECODE=" in words
    assert f"PYTHONPYCACHEPREFIX={cache_dir()}/bytecode" in words
    assert words[-4:] == [
        f"{libraries}/ld-linux-aarch64.so.1", "--library-path", str(libraries),
        f"{tmp_path}/usr/bin/python3",
    ]  # fmt: skip
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(host, "qemu_user", lambda: Path("qemu"))
    assert "qemu" in map(str, host.arm64_python(tmp_path, {}))


def test_scripts_of_an_environment_name_its_last_place(tmp_path: Path) -> None:
    made, final = tmp_path / "made", tmp_path / "final"
    (made / "bin").mkdir(parents=True)
    script(made / "bin/other", "x")
    (made / "bin/tool").write_text(f"#!{made}/bin/python\nimport tool\n")
    (made / "bin/python").symlink_to(sys.executable)
    _move_scripts(made, final)
    assert (made / "bin/tool").read_text() == f"#!{final}/bin/python\nimport tool\n"
    assert (made / "bin/other").read_text().startswith("#!/bin/sh\n")
