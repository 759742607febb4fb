# SPDX-License-Identifier: MIT
"""Trials on virtual boards that end without the host's hand: real kernels that hang, real resets.

Each test leaves the board running the generation that it found.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.kernel.packaged import prebuilt_kernel
from bsp.profile import Health
from bsp.qemu.base_dtb import base_dtb
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.assemble import bundle_for
from images.bundle.manifest import Bundle, Parts, assemble
from images.deploy.deploy import deploy
from images.deploy.session import Target
from images.deploy.status import status
from images.disk.initrd import ROOT_INIT, build_initrd
from virtual.boards import boards

pytestmark = [pytest.mark.full, pytest.mark.network, pytest.mark.timeout(1200)]

UNIT = "/etc/systemd/system/trial-test.service"

# Stops for ever on trials: the kernel panics, and is told not to reset itself after that.
HANG = """\
[Unit]
ConditionKernelCommandLine=npu_bsp.slot=trial
DefaultDependencies=no
After=systemd-udev-settle.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sleep 5; echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger'
[Install]
WantedBy=sysinit.target
"""


def small_bundle(folder: Path, *, more: str = "") -> Bundle:
    """The board's own kernel and device tree, with ``more`` on its command line; no userspace."""
    folder.mkdir(parents=True, exist_ok=True)
    board = load_board("virtual")
    assert board.boot
    kernel = prebuilt_kernel(board.kernel)
    parts = Parts(
        board=board,
        kernel=kernel,
        initrd=build_initrd(
            kernel, board.boot.initrd_modules, init=ROOT_INIT, target=folder / "initrd"
        ),
        dtb=base_dtb(board),
        userspace=None,
        cmdline=f"{board.boot.cmdline} {more}".strip(),
    )
    bundle = assemble(parts, folder / "bundle")
    sign.sign(bundle)
    return bundle


def with_option(bundle: Bundle, option: str, folder: Path) -> Bundle:
    """The same bundle with one more option on its command line."""
    shutil.copytree(bundle.path, folder, symlinks=True)
    manifest = msgspec.structs.replace(
        bundle.manifest, cmdline=f"{bundle.manifest.cmdline} {option}"
    )
    manifest = msgspec.structs.replace(manifest, generation=bundles.generation_of(manifest))
    (folder / "manifest.json").write_bytes(bundles.encode(manifest))
    made = bundles.load(folder)
    sign.sign(made)
    return made


def states(host: Host) -> bytes:
    """The three files that say what boots, as they are on the board's disk."""
    own = "/boot/firmware/npu-bsp"
    files = [f"{own}/{name}.env" for name in ("good", "good-copy", "trial")]
    with ssh.connect(host, timeout_s=60) as connection:
        return connection.run(["cat", *files], timeout_s=60).stdout


def console(host: Host) -> str:
    assert host.console_log
    return host.console_log.read_text(errors="replace")


def test_a_service_that_is_not_up_rolls_back_and_is_named(
    virtual_board: Host, tmp_path: Path
) -> None:
    before = status(Target(virtual_board))["running"]
    bundle = small_bundle(tmp_path, more="npu_bsp.test=health")
    host = replace(virtual_board, services=("ssh.service", "no-such-thing.service"))
    failed = deploy(Target(host, timeout_s=300), bundle=bundle, board=None)
    assert (failed.outcome, failed.exit_code) == ("rolled-back", 5), failed
    assert "service no-such-thing.service: inactive" in failed.problem
    assert "ssh.service" not in failed.problem
    assert status(Target(virtual_board))["running"] == before
    host = replace(virtual_board, services=("ssh.service",))
    done = deploy(Target(host, timeout_s=300), bundle=bundle, board=None)
    assert done.outcome == "confirmed", done
    assert [(each.ok, each.found) for each in done.health] == [(True, "active")]


def test_power_cycles_never_count_against_a_generation(virtual_board: Host) -> None:
    found = status(Target(virtual_board))
    before = states(virtual_board)
    for _ in range(4):  # more than any counter of attempts allows
        boards.reset(virtual_board.name)
        with ssh.wait_until_up(virtual_board, timeout_s=300):
            pass
        again = status(Target(virtual_board))
        assert (again["running"], again["slot"]) == (found["good"], "good")
        assert states(virtual_board) == before  # the boot script wrote nothing


def test_a_host_that_is_killed_during_the_trial_leaves_a_board_that_goes_back(
    virtual_board: Host, tmp_path: Path
) -> None:
    """SIGKILL while the board boots the trial: npu-bsp-trial.service alone has to bring it back."""
    before = status(Target(virtual_board))
    bundle = small_bundle(tmp_path, more="npu_bsp.deadline=30")
    trial = f"npu-bsp: trial generation {bundle.generation}"
    program = [
        sys.executable, "-m", "invoke", "deploy", "--host", virtual_board.name, "--bundle",
        str(bundle.path),
    ]  # fmt: skip
    with subprocess.Popen(program, cwd=PROJECT, start_new_session=True) as deployment:
        deadline = time.monotonic() + 300
        while trial not in console(virtual_board) and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(deployment.pid, signal.SIGKILL)
    assert deployment.returncode == -signal.SIGKILL  # it was waiting for the board
    assert trial in console(virtual_board)
    # The trial comes up, nobody confirms it, and the board resets itself.
    good = f"npu-bsp: good generation {before['good']}"
    resets = console(virtual_board).count(good)
    while console(virtual_board).count(good) == resets and time.monotonic() < deadline + 300:
        time.sleep(1)
    with ssh.wait_until_up(virtual_board, timeout_s=300):
        pass
    after = status(Target(virtual_board))
    assert (after["running"], after["slot"], after["trial"]) == (before["good"], "good", None)


@pytest.fixture
def own_npu_board(boards_state: Path) -> Iterator[Host]:
    """A board with an emulated NPU, as it is made: switched off."""
    boards.up("virtual-a311d", name="npu-trial")
    try:
        yield inventory.resolve("npu-trial")
    finally:
        boards.down("npu-trial")


def test_an_npu_has_to_work_before_its_trial_is_confirmed(
    own_npu_board: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Render node and quick smoke test; then the same generation with the driver kept out."""
    board = load_board("virtual-a311d")
    asked = msgspec.structs.replace(board, health=Health(smoke_test=True))
    monkeypatch.setattr("images.deploy.confirm.profile_named", lambda _: asked)
    bundle = bundle_for(board)
    done = deploy(Target(own_npu_board, timeout_s=300), bundle=bundle, board=None)
    assert done.outcome == "confirmed", done
    found = {each.name: each.found for each in done.health if each.ok}
    node = "/dev/dri/renderD128 (by-path/platform-etnaviv-render)"
    assert found["render node of etnaviv"] == node
    assert "teflon" in found["smoke-test --quick"]

    without = with_option(bundle, "module_blacklist=etnaviv", tmp_path / "without")
    failed = deploy(Target(own_npu_board, timeout_s=300), bundle=without, board=None)
    assert (failed.outcome, failed.exit_code) == ("rolled-back", 5), failed
    assert "not healthy: render node of etnaviv: no device node at all" in failed.problem
    assert status(Target(own_npu_board))["running"] == bundle.generation


@pytest.fixture
def watched_board(boards_state: Path) -> Iterator[Host]:
    """A board with a hardware watchdog, and without a power command."""
    boards.up("virtual", name="watched", watchdog=True)
    try:
        yield replace(inventory.resolve("watched"), power=())
    finally:
        boards.down("watched")


def test_a_kernel_that_hangs_is_reset_by_the_watchdog(watched_board: Host, tmp_path: Path) -> None:
    """A trial whose kernel stops, and a good generation whose kernel does: both come back by themselves."""
    host = watched_board
    before = status(Target(host))
    with ssh.connect(host, timeout_s=60) as connection:
        watchdog = connection.run(
            ["sh", "-c", "cd /sys/class/watchdog/watchdog0 && cat identity state timeout"]
        )
        assert watchdog.text.split("\n")[1:3] == ["active", "60"], watchdog.text
        connection.run(["tee", UNIT], stdin=HANG.encode())
        connection.run(["systemctl", "enable", "trial-test.service"])
    bundle = small_bundle(tmp_path, more="npu_bsp.test=watchdog")
    result = deploy(Target(host, timeout_s=300, recovery_s=300), bundle=bundle, board=None)
    assert (result.outcome, result.exit_code) == ("rolled-back", 5), result
    assert "Kernel panic - not syncing: sysrq triggered crash" in console(host)
    assert "Rebooting in" not in console(host)  # the kernel did not reset itself
    after = status(Target(host))
    assert (after["running"], after["slot"]) == (before["running"], "good")

    boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
    with ssh.connect(host, timeout_s=60) as connection:
        first = connection.run(boot_id).text
        connection.run(["sh", "-c", "echo 0 >/proc/sys/kernel/panic"])
        connection.start(["sh", "-c", "echo c >/proc/sysrq-trigger"])
        time.sleep(2)
    with ssh.wait_until_up(host, timeout_s=400) as connection:
        assert connection.run(boot_id).text != first
    assert status(Target(host))["running"] == before["running"]
