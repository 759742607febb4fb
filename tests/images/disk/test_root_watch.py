# SPDX-License-Identifier: MIT
"""How far the making of a root is, by dpkg's own records."""

from __future__ import annotations

import threading
from pathlib import Path

from images.disk.rootfs.watch import configured, watched


def entry(name: str, state: str) -> str:
    return f"Package: {name}\nStatus: install ok {state}\nPriority: required\nVersion: 1\n"


def test_what_changed_since_the_last_summary_counts(tmp_path: Path) -> None:
    assert configured(tmp_path) == 0
    (tmp_path / "status").write_text(
        "\n".join([entry("a", "installed"), entry("b", "unpacked"), entry("c", "half-configured")])
    )
    assert configured(tmp_path) == 1
    updates = tmp_path / "updates"
    updates.mkdir()
    (updates / "0000").write_text(entry("b", "half-configured"))
    (updates / "0001").write_text(entry("b", "installed"))
    (updates / "0002").write_text(entry("a", "triggers-pending"))
    (updates / "tmp.i").write_text(entry("c", "installed"))  # not yet under its name
    assert configured(tmp_path) == 1
    (updates / "0003").write_text(entry("a", "installed"))
    assert configured(tmp_path) == 2


def test_it_is_said_while_it_goes_on(tmp_path: Path) -> None:
    records = tmp_path / "mmdebstrap.x/var/lib/dpkg"
    records.mkdir(parents=True)
    (records / "status").write_text("")
    said: list[str] = []
    both = threading.Event()

    def note(text: str) -> None:
        said.append(text)
        if text == "1 of 3 packages":
            both.set()
        else:
            (records / "status").write_text(entry("a", "installed"))

    with watched(tmp_path, 3, note):
        assert both.wait(30)
    assert said[0] == "unpacking 3 packages"
