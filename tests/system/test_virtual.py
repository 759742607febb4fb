# SPDX-License-Identifier: MIT
"""Virtual boards that really boot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board
from bsp.dts.tree import read_tree
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from virtual.boards import boards, launch
from virtual.boards.boot_dts import boot_dts
from virtual.boards.instance import Instance, start_ticks
from virtual.boards.results import Down

EVK = "imx8mp-evk"


@pytest.mark.network
def test_the_virtual_board_comes_up_through_its_bootloader(virtual_board: Host) -> None:
    assert virtual_board.console_log is not None
    console = virtual_board.console_log.read_text(errors="replace")
    assert "U-Boot 20" in console
    assert "npu-bsp: good generation" in console
    with ssh.connect(virtual_board, timeout_s=30) as connection:

        def said(*argv: str) -> str:
            return connection.run(argv, timeout_s=60).text.strip()

        running = said("sh", "-c", "systemctl is-system-running --wait; systemctl --failed")
        assert running.splitlines()[0] == "running", running
        current = said("readlink", "/run/npu-bsp/current").rsplit("/", 1)[-1]
        assert f"npu_bsp.generation={current}" in said("cat", "/proc/cmdline")
        release = said("uname", "-r")
        assert current in said("findmnt", "-no", "SOURCE", f"/lib/modules/{release}")
        options = said("findmnt", "-no", "OPTIONS", "/boot/firmware").split(",")
        assert {"rw", "flush"} <= set(options)
        assert said("python3", "-c", "import ssl, ctypes; print('whole')") == "whole"
        assert said("id", "-un") == "root"
        # A package's script has left this in the board's root: they run there, not on the host.
        assert said("sh", "-c", "ls /var/lib/python/python3*_installed")


@pytest.mark.network
def test_up_again_says_that_it_is_up(virtual_board: Host) -> None:
    again = boards.up("virtual")
    assert (again.already_up, again.board.port) == (True, virtual_board.port)
    with pytest.raises(UserError, match="runs already, on port"):
        boards.up("virtual", port=launch.free_port())
    with pytest.raises(UserError, match="runs already, as a virtual"):
        boards.up(EVK, name="virtual")


@pytest.mark.network
def test_only_the_key_of_the_disk_is_let_in(virtual_board: Host, tmp_path: Path) -> None:
    key = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    words = boards.ssh_command("virtual", "true")
    right = subprocess.run(words, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert right.returncode == 0
    words[words.index("-i") + 1] = str(key)
    wrong = subprocess.run(
        words, timeout=60, check=False, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert wrong.returncode == 255
    assert b"Permission denied" in wrong.stderr


@pytest.mark.network
def test_ctrl_c_while_booting_leaves_nothing(own_state: Path, virtual_board: Host) -> None:
    # After virtual_board, which has made the disk: this one starts at once.
    code = "from virtual.boards import boards; boards.up('virtual', name='short')"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={**os.environ, "NPU_BSP_STATE": str(own_state)},
        stderr=subprocess.PIPE,
    ) as process:
        instance = Instance("short")
        deadline = time.monotonic() + 60
        while "Starting kernel" not in instance.last_console_lines():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.2)
        record = instance.record()
        assert record is not None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    assert start_ticks(record.pid) != record.started_ticks
    assert not instance.folder.exists()
    assert inventory.registered() == []


@pytest.mark.network
def test_the_soc_of_the_evk_runs_beside_it(virtual_board: Host) -> None:
    started = boards.up(EVK)
    try:
        assert started.board.port != virtual_board.port
        assert {board.name for board, _ in boards.listed().boards} >= {EVK, "virtual"}
        with ssh.connect(inventory.resolve(EVK), timeout_s=30) as connection:
            listing = connection.run(["ls", "/dev/dri"], timeout_s=60).text
            assert "renderD128" in listing
            dmesg = connection.run(["dmesg"], timeout_s=60).text
            assert "etnaviv etnaviv: bound 38500000.npu" in dmesg
            tree = connection.run(["cat", "/sys/firmware/fdt"], timeout_s=60).stdout
            assert read_tree(tree, "the running tree").compatible[0] == "fsl,imx8mp-evk"
    finally:
        ended = boards.down(EVK)
    assert ended == Down(EVK, was_running=True, clean=True)
    assert EVK not in {board.name for board, _ in boards.listed().boards}
    # The other one is still there.
    with ssh.connect(virtual_board, timeout_s=30) as connection:
        assert connection.run(["true"]).exit_code == 0


@pytest.mark.full  # the EVK above binds it, too, and the board below runs through boot-dts
@pytest.mark.network
def test_the_tree_that_was_built_binds_the_npu() -> None:
    result = boot_dts(load_board(EVK))
    document = result.document()
    assert document["problems"] == []
    assert (document["bound"], document["device"]) == (True, "38500000.npu")
    rates = {each["name"]: each["rate_hz"] for each in document["clocks"]}
    assert (rates["core"], rates["bus"]) == (800_000_000, 800_000_000)
    assert any("bound 38500000.npu" in line for line in document["dmesg"])
    json.dumps(document)


@pytest.mark.network
def test_a_disabled_npu_is_not_bound() -> None:
    result = boot_dts(load_board(EVK), npu_disabled=True)
    document = result.document()
    assert document["problems"] == []
    assert (document["promised"], document["bound"], document["device"]) == (False, False, None)
    assert not any("38500000.npu" in line for line in document["dmesg"])


@pytest.mark.network
def test_another_board_of_the_soc_boots_with_its_npu_at_the_rate_that_is_asked_for() -> None:
    board = load_board("imx8mp-venice-gw74xx")  # its console is another UART than the EVK's
    result = boot_dts(board, npu_rate_hz=500_000_000)
    assert result.problems == ()
    assert "Venice GW74xx" in result.report.model
    rates = {each.name: (each.asked_hz, each.rate_hz) for each in result.clocks}
    assert rates["core"] == rates["bus"] == (500_000_000, 500_000_000)
