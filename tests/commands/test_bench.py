# SPDX-License-Identifier: MIT
"""Measurements on a board: one that cannot be measured is an error in words, not a fault of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import doctor
from bsp.base.errors import UserError
from tests.support.local_sshd import find_sshd, start

pytestmark = pytest.mark.skipif(find_sshd() is None, reason="needs sshd (openssh-server)")


def test_a_board_that_is_not_healthy_is_not_measured(tmp_path: Path) -> None:
    server = start(tmp_path)
    try:
        with pytest.raises(UserError, match="is not healthy") as caught:
            doctor._visit(server.host)  # this machine has no NPU
        assert caught.value.hint.startswith(f"./inv doctor --host {server.host.name}")
    finally:
        server.stop()
