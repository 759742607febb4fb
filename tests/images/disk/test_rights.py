# SPDX-License-Identifier: MIT
"""What making a board's root takes besides packages: all that is missing at once, with one command."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages import host_apt
from images.disk.rootfs import rights

_TOOLS = {"mmdebstrap", "newuidmap", "qemu-aarch64-static", "update-binfmts"}
_LINE = ":qemu-aarch64:M::magic:mask:/usr/libexec/qemu-binfmt/aarch64-binfmt-P:OCPF\n"


class Host:
    """A machine by what it has: files below ``root``, programs, a user."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.tools, self.uid = root, set(_TOOLS), 1001
        self.binfmt, self.confs, self.systemd = root / "binfmt", root / "binfmt.d", root / "systemd"
        self.binfmt.mkdir()
        self.confs.mkdir()
        (self.binfmt / "register").touch()
        for name in ("subuid", "subgid"):
            (root / name).write_text("anna:100000:65536\n")
        patch.setattr(rights, "_BINFMT", self.binfmt)
        patch.setattr(rights, "_BINFMT_D", [self.confs])
        patch.setattr(rights, "_SYSTEMD", self.systemd)
        patch.setattr(rights, "_SUBIDS", (root / "subuid", root / "subgid"))
        patch.setattr(rights, "_NAMESPACE_SWITCHES", ((root / "clone", "clone=1"),))
        patch.setattr(rights, "_user_name", lambda: "ben")
        patch.setattr(rights, "find_tool", lambda name: name if name in self.tools else None)
        patch.setattr(host_apt, "is_there", lambda: "apt-get" in self.tools)
        patch.setattr(os, "uname", lambda: SimpleNamespace(machine="x86_64"))
        patch.setattr(os, "geteuid", lambda: self.uid)

    def runs_arm64(self, word: str = "enabled") -> None:
        (self.binfmt / "qemu-aarch64").write_text(f"{word}\ninterpreter x\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def commands(host: Host) -> list[str]:
    return [each.command for each in rights.gaps()]


def test_a_user_without_ids_gets_the_line_with_a_free_range(host: Host) -> None:
    host.runs_arm64()
    assert commands(host) == ["usermod --add-subuids 165536-231071 --add-subgids 165536-231071 ben"]
    (host.root / "subuid").write_text("anna:100000:65536\nben:165536:65536\n")
    assert commands(host) == ["usermod --add-subgids 165536-231071 ben"]
    (host.root / "subgid").write_text("1001:300000:65536\n")  # by number, as man subuid allows
    assert commands(host) == []
    (host.root / "subgid").write_text("ben:300000:1000\n")
    assert commands(host) == ["usermod --add-subgids 301000-366535 ben"]
    (host.root / "subuid").unlink()
    (host.root / "subgid").unlink()
    assert commands(host) == ["usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ben"]


def test_root_needs_no_ids(host: Host) -> None:
    host.runs_arm64()
    host.uid = 0
    host.tools.remove("newuidmap")
    assert commands(host) == []


@pytest.mark.parametrize(
    ("systemd", "conf", "mounted", "command"),
    [
        (True, True, True, "systemctl restart systemd-binfmt"),
        (False, True, True, "cat {conf} > {binfmt}/register"),
        (False, True, False, "mount -t binfmt_misc binfmt_misc {binfmt} && cat {conf} > {binfmt}/register"),
        (True, False, True, "update-binfmts --enable qemu-aarch64"),
        (False, False, False,
         "mount -t binfmt_misc binfmt_misc {binfmt} && update-binfmts --enable qemu-aarch64"),
    ],
)  # fmt: skip
def test_arm64_programs_are_registered_as_this_system_does(
    host: Host, systemd: bool, conf: bool, mounted: bool, command: str
) -> None:
    host.uid = 0
    file = host.confs / "qemu-aarch64.conf"
    if systemd:
        host.systemd.mkdir()
    if conf:
        file.write_text(_LINE)
    if not mounted:
        (host.binfmt / "register").unlink()
    assert commands(host) == [command.format(conf=file, binfmt=host.binfmt)]
    host.runs_arm64("disabled")
    assert len(commands(host)) == 1
    host.runs_arm64()
    assert commands(host) == []


def test_all_of_it_is_said_once_with_one_command(host: Host) -> None:
    host.tools -= {"newuidmap", "qemu-aarch64-static", "update-binfmts"}
    (host.root / "clone").write_text("0\n")
    with pytest.raises(
        UserError, match="uidmap, qemu-user-static, binfmt-support; ben has no"
    ) as why:
        rights.require_rights()
    assert why.value.hint == (
        "as root, once: apt-get install --yes --no-install-recommends uidmap qemu-user-static "
        "binfmt-support && usermod --add-subuids 165536-231071 --add-subgids 165536-231071 ben && "
        "sysctl -w clone=1"
    )


def test_root_registers_and_looks_whether_that_helped(host: Host) -> None:
    host.uid = 0
    file = host.confs / "qemu-aarch64.conf"
    file.write_text(_LINE)
    with pytest.raises(InfrastructureError, match="does not run arm64 programs after: cat"):
        rights.require_rights()  # nothing listens to this file
    assert (host.binfmt / "register").read_text() == _LINE


def test_this_machines_own_processor_needs_no_emulator(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    host.uid = 0
    host.tools = {"mmdebstrap"}
    assert commands(host) == []


def test_mmdebstrap_has_to_be_installed_only_where_apt_cannot_fetch_it(host: Host) -> None:
    host.runs_arm64()
    host.uid = 0
    host.tools.remove("mmdebstrap")
    assert len(commands(host)) == 1
    host.tools.add("apt-get")
    assert commands(host) == []
