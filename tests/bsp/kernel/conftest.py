# SPDX-License-Identifier: MIT
"""What tests of kernel builds share."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.kernel.config import fragments
from tests.support.tiny_linux import FRAGMENT, make_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel tree of ten files, built with one fragment; cache and compiler are the test's."""
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CROSS_COMPILE", "")
    (tmp_path / "fragments").mkdir()
    (tmp_path / "fragments/base.config").write_text(FRAGMENT)
    monkeypatch.setattr(fragments, "FOLDER", tmp_path / "fragments")
    return make_tree(tmp_path / "linux")
