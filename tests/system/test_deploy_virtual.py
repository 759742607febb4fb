# SPDX-License-Identifier: MIT
"""Deployments to a virtual board: a real boot loader, real kernels that fall and hang, real resets.

The tests share the board with an NPU and run in order, each from where the one before left it: a boot under
emulation takes half a minute. The rollback is the last test of ``test_npu_board.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.kernel.packaged import prebuilt_kernel
from bsp.remote import ssh
from bsp.remote.inventory import Host
from images.bundle import sign
from images.bundle.manifest import Bundle, Parts, assemble
from images.deploy.deploy import deploy
from images.deploy.session import Target
from images.deploy.status import status
from images.disk.initrd import build_initrd

from .conftest import NpuBoard

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


def with_property(dtb: Path, target: Path, *words: str) -> Path:
    target.write_bytes(dtb.read_bytes())
    subprocess.run(["fdtput", *words[:1], str(target), *words[1:]], check=True)
    return target


@pytest.fixture
def board(npu_board: NpuBoard) -> Host:
    return npu_board.host


@pytest.fixture
def bundle(npu_board: NpuBoard) -> Bundle:
    return npu_board.bundle


def test_deploy_boots_and_confirms(npu_board: NpuBoard) -> None:
    result, bundle = npu_board.result, npu_board.bundle
    assert result.outcome == "confirmed", result
    assert result.running_dtb_matches
    assert result.plan
    assert result.plan.send
    # Kernel, initrd and modules are those of the factory: tree and userspace are new, and what lists them.
    sent = {bundle.manifest.files[index].path for index in result.plan.send.indexes}
    userspace = {path for path in sent if path.startswith("userspace/")}
    assert userspace
    assert sent - userspace == {"boot/board.dtb", "sbom.spdx.json"}
    with ssh.connect(npu_board.host) as connection:
        said = connection.run(["cat", "/proc/cmdline"]).text
        assert f"npu_bsp.generation={bundle.generation} npu_bsp.slot=trial oops=panic" in said
        assert connection.run(["cat", "/proc/sys/kernel/panic_on_oops"]).text == "0\n"
        assert connection.run(["ls", "/run/npu-bsp/current/userspace"]).text
        mounts = connection.run(
            ["findmnt", "-n", "-o", "SOURCE", f"/lib/modules/{bundle.manifest.kernel_release}"]
        )
        assert bundle.generation in mounts.text
        connection.run(["modprobe", "dummy"])
        assert "running" in connection.run(["systemctl", "is-system-running"], check=False).text


def test_deploying_the_same_again_sends_nothing(board: Host, bundle: Bundle) -> None:
    said = invoke("deploy", "--host", board.name, "--bundle", str(bundle.path), "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert document["outcome"] == "unchanged"
    assert document["bytes_sent"] == document["files_sent"] == document["bytes_on_wire"] == 0
    assert document["running_dtb_matches"] is True


def test_a_broken_device_tree_falls_and_is_rolled_back(
    board: Host, bundle: Bundle, tmp_path: Path
) -> None:
    """Without the PCI host there is no disk: no root, the kernel panics, and resets itself."""
    broken = with_property(
        bundle.path / "boot/board.dtb", tmp_path / "no-disk.dtb", "-r", "/pcie@10000000"
    )
    said = invoke(
        "deploy", "--host", board.name, "--dtb", str(broken), "--json", "--timeout", "240"
    )
    assert said.returncode == 5, said.stderr
    document = json.loads(said.stdout)
    assert document["outcome"] == "rolled-back"
    assert document["files_sent"] == 1
    assert "npu-bsp: trial generation" in console(board)
    found = status(Target(board))
    assert found["running"] == found["good"] == bundle.generation
    assert found["trial"] is None
    assert found["running_dtb_matches"]


@pytest.mark.full
def test_a_kernel_that_hangs_is_reset_by_power(board: Host, bundle: Bundle, tmp_path: Path) -> None:
    """An init that waits for ever: nothing panics, so only the power command helps."""
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\nwhile :; do sleep 1000; done\n")
    profile = load_board("virtual-a311d")
    kernel = prebuilt_kernel(profile.kernel)
    parts = Parts(
        board=profile,
        kernel=kernel,
        initrd=build_initrd(kernel, (), init=init, target=tmp_path / "initrd"),
        dtb=bundle.path / "boot/board.dtb",
        userspace=None,
        cmdline=bundle.manifest.cmdline,
    )
    hanging = assemble(parts, tmp_path / "hanging")
    sign.sign(hanging)  # the board would not take it otherwise
    result = deploy(Target(board, timeout_s=40), bundle=hanging, board=None)
    assert result.outcome == "rolled-back", result
    assert "did not answer within 40 s" in result.problem
    assert status(Target(board))["running"] == bundle.generation


# Fails the local file systems on trials only, which ends in emergency mode: no network, no SSH server.
EMERGENCY = """\
[Unit]
ConditionKernelCommandLine=npu_bsp.slot=trial
DefaultDependencies=no
Before=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/false
[Install]
RequiredBy=local-fs.target
"""


@pytest.mark.full
def test_a_trial_in_emergency_mode_goes_back_by_itself(
    board: Host, bundle: Bundle, tmp_path: Path
) -> None:
    """Without a power command: only the watcher on the board can help."""
    profile = load_board("virtual-a311d")
    kernel = prebuilt_kernel(profile.kernel)
    parts = Parts(
        board=profile,
        kernel=kernel,
        initrd=bundle.path / "boot/initrd",
        dtb=bundle.path / "boot/board.dtb",
        userspace=None,
        cmdline=f"{bundle.manifest.cmdline} npu_bsp.deadline=60",
    )
    unit = "/etc/systemd/system/emergency-test.service"
    with ssh.connect(board) as connection:
        connection.run(["tee", unit], stdin=EMERGENCY.encode())
        connection.run(["systemctl", "enable", "emergency-test.service"])
    before = status(Target(board))["running"]
    target = Target(replace(board, power=()), timeout_s=600)
    emergency = assemble(parts, tmp_path / "emergency")
    sign.sign(emergency)
    result = deploy(target, bundle=emergency, board=None)
    assert result.outcome == "rolled-back", result
    assert "emergency" in console(board).lower()
    assert status(Target(board))["running"] == before
    with ssh.connect(board) as connection:
        connection.run(["systemctl", "disable", "emergency-test.service"])
        connection.run(["rm", unit])


def invoke(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(
        program, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=350
    )


def console(host: Host) -> str:
    assert host.console_log
    return host.console_log.read_text(errors="replace")
