# SPDX-License-Identifier: MIT
"""A lab with a whole board in it: bootloader, kernel, an emulated NPU; everything through labgrid."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bsp.base.project import PROJECT
from bsp.remote import lab as labs
from bsp.remote.inventory import resolve
from images.deploy import trial

from ..support.lab_servers import Lab, PowerSwitch
from .conftest import NpuBoard

pytestmark = [pytest.mark.full, pytest.mark.network]

BOARD = "virtual-a311d"
NAME = f"lab:board={BOARD}"


@pytest.fixture
def lab(
    npu_board: NpuBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Lab, PowerSwitch]]:
    host = npu_board.host
    switch = PowerSwitch(lambda: subprocess.run(host.power, check=True))
    shelf: dict[str, object] = {
        "NetworkService": {"address": host.address, "port": host.port, "username": host.user},
        "NetworkPowerPort": {
            "model": "simplerest", "host": f"http://127.0.0.1:{switch.port}/{{value}}", "index": 1,
        },
    }  # fmt: skip
    servers = Lab(tmp_path / "lab", {"shelf-1": {"board": BOARD}}, {"shelf-1": shelf})
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Host {host.address}\n IdentityFile {host.identity_file}\n UserKnownHostsFile {host.known_hosts}\n"
        + (f" HostKeyAlias {host.host_key_alias}\n" if host.host_key_alias else "")
    )
    monkeypatch.setenv("LG_COORDINATOR", servers.address)
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(config))
    labs.lease.cache_clear()
    try:
        yield servers, switch
    finally:
        labs.lease.cache_clear()
        servers.close()
        switch.close()


def test_every_command_through_the_lab(lab: tuple[Lab, PowerSwitch]) -> None:
    servers, switch = lab

    def inv(*words: str) -> dict[str, Any]:
        command = ["./inv", *words, "--host", NAME, "--json"]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "released shelf-1" in done.stderr
        assert servers.holder("shelf-1") == "None"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    running = inv("status")["running"]
    back = inv("rollback", "--timeout", "400")
    assert (back["outcome"], back["from"]) == ("confirmed", running)
    again = inv("deploy", "--timeout", "400")
    assert (again["outcome"], again["to"]) == ("confirmed", running)
    assert inv("doctor")["first_broken"] is None
    rows = inv("smoke-test", "label_image", "--delegate", "cpu,teflon", "--runs", "3")["results"]
    assert [(row["delegate"], row["status"]) for row in rows] == [
        ("cpu", "pass"),
        ("cpu-reference", "pass"),
        ("teflon", "pass"),
    ]

    # The board's own switch, through labgrid's driver.
    host = resolve(NAME)
    before = trial.probe(host, timeout_s=60, root="")
    assert before is not None
    assert trial.reset_by_power(host)
    assert switch.switched == ["/0", "/1"]
    boot = trial.wait_for_boot(host, other_than=before.boot_id, timeout_s=400, root="")
    assert boot is not None
    assert boot.generation == running
    labs.lease(NAME).release()
