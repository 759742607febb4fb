# SPDX-License-Identifier: MIT
"""The program in docs/programs.md, compiled and run with the real library on a virtual NPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bsp.base.process import run
from bsp.base.project import PROJECT
from virtual.gates.packages import find_delegate
from virtual.npu import shim
from virtual.npu.shim.host import CPU, qemu_user
from virtual.npu.shim.session import emulator


@pytest.mark.slow
@pytest.mark.network
def test_the_program_in_the_documentation_finds_the_npu(tmp_path: Path) -> None:
    page = (PROJECT / "docs/programs.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```c\n(.*?)```", page, re.DOTALL)
    (tmp_path / "check.c").write_text(source)
    program = tmp_path / "check"
    run(["aarch64-linux-gnu-gcc", "-Wall", "-Werror", tmp_path / "check.c", "-o", program, "-ldl"])
    delegate = find_delegate("25.0.7")
    command: list[str | Path] = [qemu_user(), "-cpu", CPU, "-L", delegate.root]
    command += ["-E", f"LD_LIBRARY_PATH={delegate.root}/usr/lib/aarch64-linux-gnu"]
    library = delegate.root / delegate.library[1:]
    without = run([*command, program, library], check=False, timeout_s=120)
    assert (without.exit_code, without.text.strip()) == (1, "found no NPU, or may not open it")
    with emulator("a311d") as npu:
        given = {**npu.environment, "LD_PRELOAD": str(shim.build("aarch64"))}
        words = [word for key, value in given.items() for word in ("-E", f"{key}={value}")]
        found = run([*command, *words, program, library], check=False, timeout_s=120)
    assert (found.exit_code, found.text.strip()) == (0, "found an NPU")
    nothing = run([*command, program, "/none/libteflon.so"], check=False, timeout_s=120)
    assert nothing.exit_code == 1
    assert "not loaded" in nothing.text
