# SPDX-License-Identifier: MIT
"""Deployments to the virtual board: a real boot loader, real kernels that fall and hang, real resets.

The tests share one board and run in order, each from where the one before left it: a boot under emulation
takes half a minute.
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
from images.bundle.assemble import bundle_for
from images.bundle.manifest import Bundle, Parts, assemble
from images.deploy.deploy import deploy, rollback
from images.deploy.session import Target
from images.deploy.status import status
from images.disk.initrd import build_initrd

pytestmark = [pytest.mark.network, pytest.mark.timeout(400)]


def with_property(dtb: Path, target: Path, *words: str) -> Path:
    target.write_bytes(dtb.read_bytes())
    subprocess.run(["fdtput", *words[:1], str(target), *words[1:]], check=True)
    return target


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundle_for(load_board("virtual"))


@pytest.fixture(scope="module")
def factory(virtual_board: Host) -> str:
    """The generation that the board was made with."""
    return str(status(Target(virtual_board))["running"])


def test_deploy_boots_and_confirms(virtual_board: Host, factory: str, bundle: Bundle) -> None:
    result = deploy(Target(virtual_board), bundle=bundle, board=None)
    assert result.outcome == "confirmed", result
    assert result.running_dtb_matches
    assert result.plan
    assert result.plan.send
    # Kernel, initrd, DTB and modules are those of the factory: the userspace is new, and what lists it.
    sent = {bundle.manifest.files[index].path.split("/")[0] for index in result.plan.send.indexes}
    assert sent == {"userspace", "sbom.spdx.json"}
    with ssh.connect(virtual_board) as connection:
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


def test_deploying_the_same_again_sends_nothing(virtual_board: Host, bundle: Bundle) -> None:
    said = invoke("deploy", "--host", virtual_board.name, "--bundle", str(bundle.path), "--json")
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert document["outcome"] == "unchanged"
    assert document["bytes_sent"] == document["files_sent"] == document["bytes_on_wire"] == 0
    assert document["running_dtb_matches"] is True


def test_a_broken_device_tree_falls_and_is_rolled_back(
    virtual_board: Host, bundle: Bundle, tmp_path: Path
) -> None:
    """Without the PCI host there is no disk: no root, the kernel panics, and resets itself."""
    broken = with_property(
        bundle.path / "boot/board.dtb", tmp_path / "no-disk.dtb", "-r", "/pcie@10000000"
    )
    said = invoke(
        "deploy", "--host", virtual_board.name, "--dtb", str(broken), "--json", "--timeout", "240"
    )
    assert said.returncode == 5, said.stderr
    document = json.loads(said.stdout)
    assert document["outcome"] == "rolled-back"
    assert document["files_sent"] == 1
    assert "npu-bsp: trial generation" in console(virtual_board)
    found = status(Target(virtual_board))
    assert found["running"] == found["good"] == bundle.generation
    assert found["trial"] is None
    assert found["running_dtb_matches"]


def test_a_kernel_that_hangs_is_reset_by_power(
    virtual_board: Host, bundle: Bundle, tmp_path: Path
) -> None:
    """An init that waits for ever: nothing panics, so only the power command helps."""
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\nwhile :; do sleep 1000; done\n")
    board = load_board("virtual")
    kernel = prebuilt_kernel(board.kernel)
    parts = Parts(
        board=board,
        kernel=kernel,
        initrd=build_initrd(kernel, (), init=init, target=tmp_path / "initrd"),
        dtb=bundle.path / "boot/board.dtb",
        userspace=None,
        cmdline=bundle.manifest.cmdline,
    )
    hanging = assemble(parts, tmp_path / "hanging")
    sign.sign(hanging)  # the board would not take it otherwise
    result = deploy(Target(virtual_board, timeout_s=40), bundle=hanging, board=None)
    assert result.outcome == "rolled-back", result
    assert "did not answer within 40 s" in result.problem
    assert status(Target(virtual_board))["running"] == bundle.generation


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
    virtual_board: Host, bundle: Bundle, tmp_path: Path
) -> None:
    """Without a power command: only the watcher on the board can help."""
    board = load_board("virtual")
    kernel = prebuilt_kernel(board.kernel)
    parts = Parts(
        board=board,
        kernel=kernel,
        initrd=bundle.path / "boot/initrd",
        dtb=bundle.path / "boot/board.dtb",
        userspace=None,
        cmdline=f"{bundle.manifest.cmdline} npu_bsp.deadline=60",
    )
    unit = "/etc/systemd/system/emergency-test.service"
    with ssh.connect(virtual_board) as connection:
        connection.run(["tee", unit], stdin=EMERGENCY.encode())
        connection.run(["systemctl", "enable", "emergency-test.service"])
    before = status(Target(virtual_board))["running"]
    target = Target(replace(virtual_board, power=()), timeout_s=600)
    emergency = assemble(parts, tmp_path / "emergency")
    sign.sign(emergency)
    result = deploy(target, bundle=emergency, board=None)
    assert result.outcome == "rolled-back", result
    assert "emergency" in console(virtual_board).lower()
    assert status(Target(virtual_board))["running"] == before
    with ssh.connect(virtual_board) as connection:
        connection.run(["systemctl", "disable", "emergency-test.service"])
        connection.run(["rm", unit])


def test_rollback_to_the_factory_generation(
    virtual_board: Host, factory: str, bundle: Bundle
) -> None:
    # Without a power command now: it is not needed.
    result = rollback(Target(replace(virtual_board, power=())))
    assert result.outcome == "confirmed", result
    found = status(Target(virtual_board))
    assert found["running"] == found["good"] == factory
    assert found["previous"] == bundle.generation
    assert not found["userspace"]


def invoke(*words: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "invoke", *words]
    return subprocess.run(
        program, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=350
    )


def console(host: Host) -> str:
    assert host.console_log
    return host.console_log.read_text(errors="replace")
