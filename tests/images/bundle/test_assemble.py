# SPDX-License-Identifier: MIT
"""What a bundle cannot be made of: said before anything is fetched or built."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board
from images.bundle.assemble import bundle_for
from images.deploy.command import Content, Settings, deploy_to
from tests.support.fake_boot import compile_dtb, tree_source

BOARD = load_board("virtual")


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
def test_a_dtb_of_another_board(tmp_path: Path) -> None:
    other = compile_dtb(tree_source("khadas,vim3"), tmp_path / "vim3.dtb")
    with pytest.raises(
        UserError, match="expected root compatible 'linux,dummy-virt', found 'khadas,vim3'"
    ):
        bundle_for(BOARD, dtb=other)
    other.write_bytes(other.read_bytes()[:60])
    with pytest.raises(UserError, match="truncated"):
        bundle_for(BOARD, dtb=other)
    with pytest.raises(UserError, match="cannot read"):
        bundle_for(BOARD, dtb=tmp_path / "none.dtb")


def test_other_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes the distribution's kernel by its series"):
        bundle_for(BOARD, kernel="path:/usr/src/linux")
    with pytest.raises(UserError, match="exists already"):
        bundle_for(BOARD, output=tmp_path)
    with pytest.raises(UserError, match="there is no signing key"):
        bundle_for(BOARD, kernel="path:/usr/src/linux", key=tmp_path / "none")
    with pytest.raises(UserError, match=r"has no \[boot\]"):
        bundle_for(msgspec.structs.replace(BOARD, boot=None))


def test_flags_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--bundle brings its own kernel"):
        deploy_to("root@127.0.0.1", Content(bundle=str(tmp_path), kernel="6.12"))
    with pytest.raises(UserError, match="there is no file"):
        deploy_to("root@127.0.0.1", Content(dtb=str(tmp_path / "none")))
    with pytest.raises(UserError, match="expected seconds above 0"):
        deploy_to("root@127.0.0.1", settings=Settings(timeout_s=0))
