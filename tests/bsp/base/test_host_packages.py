# SPDX-License-Identifier: MIT
"""Packages that a task installs when it needs them: as root, with sudo, or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.packages import host_packages

_APT = """#!/bin/sh
echo "apt-get $*" >> {log}
"""
_SUDO = """#!/bin/sh
[ "$1" = -n ] && shift
case $1 in true) exit {asks} ;; esac
echo "sudo" >> {log}
exec "$@"
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, which is all that PATH has; the log of what apt was asked for is beside it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env"):
        (tools / name).symlink_to(shutil.which(name) or name)
    script(tools / "apt-get", _APT, log=tmp_path / "log")
    monkeypatch.setenv("PATH", str(tools))
    return tools


def script(path: Path, text: str, **values: object) -> None:
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    path.write_text(text)
    path.chmod(0o755)


def log(machine: Path) -> list[str]:
    file = machine.parent / "log"
    return file.read_text().splitlines() if file.exists() else []


def user(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: number)


INSTALL = "apt-get install --yes --no-install-recommends rauc squashfs-tools"


def test_nothing_to_install_asks_nobody(machine: Path) -> None:
    host_packages.install_packages([])
    assert log(machine) == []


def test_root_installs(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user(monkeypatch, 0)
    host_packages.install_packages(["rauc", "squashfs-tools"])
    assert log(machine) == ["apt-get update --quiet", INSTALL]


def test_sudo_without_a_password_is_used(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user(monkeypatch, 1000)
    script(machine / "sudo", _SUDO, log=machine.parent / "log", asks=0)
    host_packages.install_packages(["rauc", "squashfs-tools"])
    assert log(machine) == ["sudo", "apt-get update --quiet", "sudo", INSTALL]


@pytest.mark.parametrize("sudo", ["none", "asks"])
def test_who_cannot_is_told_what_root_types(
    machine: Path, monkeypatch: pytest.MonkeyPatch, sudo: str
) -> None:
    user(monkeypatch, 1000)
    monkeypatch.setattr(host_packages, "can_ask", lambda: False)
    if sudo == "asks":
        script(machine / "sudo", _SUDO, log=machine.parent / "log", asks=1)
    with pytest.raises(UserError, match="rauc, squashfs-tools") as caught:
        host_packages.install_packages(["rauc", "squashfs-tools"])
    assert caught.value.hint == f"as root: {INSTALL}"
    assert log(machine) == []


@pytest.mark.parametrize("agreed", [True, False])
def test_at_a_terminal_it_asks_first(
    machine: Path, monkeypatch: pytest.MonkeyPatch, agreed: bool
) -> None:
    user(monkeypatch, 1000)
    script(machine / "sudo", _SUDO, log=machine.parent / "log", asks=1)
    asked: list[str] = []
    monkeypatch.setattr(host_packages, "can_ask", lambda: True)

    def answer(question: str) -> bool:
        asked.append(question)
        return agreed

    monkeypatch.setattr(host_packages, "confirm", answer)
    if agreed:
        host_packages.install_packages(["rauc", "squashfs-tools"])
    else:
        with pytest.raises(UserError):
            host_packages.install_packages(["rauc", "squashfs-tools"])
    assert asked == ["Install rauc, squashfs-tools with sudo apt-get?"]
    assert log(machine) == (["sudo", INSTALL] if agreed else [])


def test_fedora_gets_its_own_names(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user(monkeypatch, 0)
    monkeypatch.setattr(host_packages, "is_dnf_system", lambda: True)
    script(machine / "dnf", _APT.replace("apt-get", "dnf"), log=machine.parent / "log")
    host_packages.install_packages(["libc6-dev", "xz-utils"])
    assert log(machine) == ["dnf install --assumeyes glibc-devel xz"]
    with pytest.raises(
        UserError, match="Fedora has no package like Debian's libc6-dev-arm64-cross"
    ):
        host_packages.install_packages(["libc6-dev-arm64-cross"])


def test_headers_are_looked_for_by_the_compiler(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not host_packages.has_header("stdlib.h")  # there is no compiler
    monkeypatch.undo()
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    assert host_packages.has_header("stdlib.h")
    assert not host_packages.has_header("no/such/header.h")
