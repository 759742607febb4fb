# SPDX-License-Identifier: MIT
"""The virtual NPU beside a virtual board: what is said to QEMU and to Linux, and its process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsp.catalog import board_names, load_board, npu_of
from bsp.dts.tree import read_tree
from bsp.qemu import npu
from bsp.qemu.base_dtb import base_dtb
from bsp.qemu.machine import Machine, arguments
from tests.support.npu.vfio_client import wait_until
from virtual.boards import npu_process
from virtual.npu.identity import load_identity

NAME = "virtual-a311d"
WITH_NPU = [name for name in board_names() if (qemu := load_board(name).qemu) and qemu.npu]

# --- what is said to QEMU and to Linux


@pytest.mark.parametrize("name", WITH_NPU)
def test_profile_and_identity_agree(name: str) -> None:
    board = load_board(name)
    assert board.qemu is not None
    assert board.qemu.npu is not None
    described = npu_of(board)
    assert described is not None
    real = load_identity(board.qemu.npu)
    expected = described.identity
    assert expected is not None
    assert (expected.model, expected.revision) == (real.model, real.revision)
    assert (expected.product_id, expected.customer_id) == (real.product_id, real.customer_id)
    assert (expected.eco_id, expected.nn_cores) == (real.eco_id, real.nn_cores)


@pytest.mark.parametrize("name", WITH_NPU)
def test_qemu_shares_its_memory_and_has_the_device(name: str) -> None:
    board = load_board(name)
    words = arguments(Machine(board, Path("u-boot.bin"), Path("d.qcow2"), ssh_port=2222))
    assert words[1].endswith(",memory-backend=ram")
    assert "share=on" in words[words.index("-object") + 1]
    device = json.loads(words[words.index("-device") + 1])
    assert device == {
        "driver": "vfio-user-pci",
        "addr": "8",
        "socket": {"type": "unix", "path": npu.SOCKET},
    }


def test_a_board_without_npu_is_as_before(tmp_path: Path) -> None:
    board = load_board("virtual")
    words = arguments(Machine(board, Path("u-boot.bin"), Path("d.qcow2"), ssh_port=2222))
    assert not any("memory-backend" in word or "vfio" in word for word in words)
    assert npu.node_source(board) is None
    npu_process.start(board, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.network
@pytest.mark.parametrize("name", WITH_NPU)
def test_the_board_is_born_with_its_npu_switched_off(name: str) -> None:
    board = load_board(name)
    described = npu_of(board)
    assert described is not None
    tree = read_tree(base_dtb(board).read_bytes(), name)
    assert tuple(tree.compatible) == board.compatible
    assert tree.status(described.node) == "disabled"
    assert tree.cells(described.node, "reg") == [0, 0x10000000, 0, 0x40000]
    assert tree.cells(described.node, "interrupts") == [0, 3, 4]
    assert tree.strings(described.node, "clock-names") == ["core", "bus"]


def test_a_server_that_nobody_needs_is_dismissed(tmp_path: Path) -> None:
    npu_process.start(load_board(NAME), tmp_path)
    assert (tmp_path / npu.SOCKET).exists()
    npu_process.dismiss(tmp_path)
    wait_until(lambda: "client gone" in (tmp_path / npu_process.LOG).read_text(), 10)
    assert not (tmp_path / npu.SOCKET).exists()
    npu_process.dismiss(tmp_path)
