# SPDX-License-Identifier: MIT
"""Kernels that we built from the distribution's source, on the virtual boards. Takes an hour."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.catalog import load_board
from bsp.kernel import compile as build
from bsp.kernel.select import built_kernel
from bsp.remote import ssh
from bsp.remote.inventory import resolve
from images.bundle.assemble import bundle_for
from images.deploy.deploy import deploy
from images.deploy.session import Target
from virtual.boards import boards as virtual_boards

pytestmark = [pytest.mark.full, pytest.mark.network]


def kernel_of(board: str) -> str:
    folder = build.build_kernel(build.prepare(build.KernelRequest(load_board(board), "6.12")))
    return f"build:{folder}"


def test_a_kernel_from_source_is_deployed_to_the_virtual_board(tmp_path: Path) -> None:
    board, name = load_board("virtual-a311d"), "kernel-a311d"
    kernel = kernel_of("virtual-a311d")
    release = built_kernel(kernel.removeprefix("build:")).release
    bundle = bundle_for(board, kernel=kernel, output=tmp_path / "bundle")
    virtual_boards.up("virtual-a311d", name=name)
    try:
        result = deploy(Target(resolve(name), timeout_s=300), bundle=bundle, board=board)
        assert result.outcome == "confirmed", result.problem
        with ssh.connect(resolve(name), timeout_s=60) as connection:
            assert connection.run(["uname", "-r"]).text.strip() == release
            assert "etnaviv" in connection.run(["cat", "/proc/modules"]).text
    finally:
        virtual_boards.down(name)


def test_a_kernel_from_source_boots_the_imx8mp_evk() -> None:
    name = "kernel-imx8mp"
    kernel = kernel_of("imx8mp-evk")
    virtual_boards.up("imx8mp-evk", name=name, kernel=kernel, timeout_s=600)
    try:
        with ssh.connect(resolve(name), timeout_s=60) as connection:
            assert connection.run(["uname", "-r"]).text.strip() == built_kernel(kernel[6:]).release
            assert "etnaviv" in connection.run(["cat", "/proc/modules"]).text
            found = connection.run(["ls", "/sys/bus/platform/drivers/etnaviv-gpu"]).text
            assert "38500000.npu" in found
    finally:
        virtual_boards.down(name)
