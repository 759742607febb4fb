# SPDX-License-Identifier: MIT
"""Completion in the shells themselves; a shell that is not installed is skipped by name."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bsp.base.project import PROJECT

_BASH = """
source <(./inv completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_npu_bsp
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str) -> list[str]:
    """What bash offers for the last of the words."""
    command = ["bash", "-c", _BASH, "bash", "./inv", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True).stdout.split()


def test_tasks_are_completed() -> None:
    assert {"build-dts", "build-kernel"} <= set(completed("build-"))
    assert "virtual.up" in completed("virtual.")


def test_flags_are_completed() -> None:
    assert {"--verify", "--verify-every"} == set(completed("deploy", "--verif"))


@pytest.mark.slow
def test_names_of_boards_and_npus_are_completed() -> None:
    assert {"vim3", "vim3l"} <= set(completed("build-dts", "--board", "vi"))
    assert set(completed("smoke-test", "label_image", "--npu", "virt")) == {
        "virtual:a311d", "virtual:imx8mp", "virtual:rk3588",
    }  # fmt: skip


def test_hosts_of_the_inventory_are_completed(
    own_hosts: None, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bsp.remote.inventory import inventory_file

    inventory_file().write_text('[hosts.bench-vim3]\naddress = "192.0.2.7"\n')
    assert completed("deploy", "--host", "bench-") == ["bench-vim3"]


def test_files_are_completed_where_a_file_is_wanted() -> None:
    assert completed("board", "pyproj") == ["pyproject.toml"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_are_well_formed(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = PROJECT / f"commands/completion/npu-bsp.{shell}"
    subprocess.run([shell, "-n", str(script)], check=True)


def test_an_unknown_shell_is_refused() -> None:
    asked = subprocess.run(
        ["./inv", "completion", "tcsh"], cwd=PROJECT, capture_output=True, text=True
    )
    assert asked.returncode == 2
    assert asked.stderr.startswith("error: nothing to complete for 'tcsh'")
