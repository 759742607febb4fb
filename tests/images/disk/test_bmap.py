# SPDX-License-Identifier: MIT
"""Block maps: what is stored, written and read back; damage is found."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.errors import UserError
from images.disk import bmap
from images.disk.bmap import BLOCK_BYTES, Map, Range

_SHA = hashlib.sha256(b"").hexdigest()


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 600)), max_size=12), st.integers(0, 4095)
)
@settings(max_examples=30, deadline=None)
def test_a_map_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[tuple[int, int]], over: int
) -> None:
    ranges, at = [], 0
    for gap, count in gaps:
        ranges.append(Range(at + gap, at + gap + count - 1, _SHA))
        at += gap + count
    made = Map((at + 1) * BLOCK_BYTES + over, tuple(ranges))
    target = tmp_path_factory.mktemp("bmap") / "a.bmap"
    bmap.write(target, made)
    assert bmap.read(target) == made


def test_holes_are_left_out_and_zeros_that_were_written_are_not(tmp_path: Path) -> None:
    image = tmp_path / "a.img"
    with image.open("wb") as file:
        file.write(b"x" * BLOCK_BYTES)
        file.seek(64 * BLOCK_BYTES)
        file.write(bytes(2 * BLOCK_BYTES))
        file.truncate(256 * BLOCK_BYTES + 100)
    found = bmap.stored(image)
    covered = {n for each in found.ranges for n in range(each.first, each.last + 1)}
    assert {0, 64, 65} <= covered
    assert len(covered) < 200
    more = bmap.with_blocks(found, 250, 256)
    assert more.ranges[-1] == Range(250, 256)
    hashed = bmap.hashed(image, more)
    assert hashed.ranges[0].sha256 is not None
    # The last block is a part of one.
    assert hashed.mapped_bytes == sum(each.blocks for each in more.ranges) * BLOCK_BYTES - 3996
    last = hashed.ranges[-1]
    start, end = hashed.span(last)
    assert last.sha256 == hashlib.sha256(bytes(end - start)).hexdigest()


def test_a_file_system_that_makes_holes_of_zeros_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bmap.keeps_zeros(tmp_path)
    monkeypatch.setattr(bmap, "_extents", lambda *_: iter(()))
    assert not bmap.keeps_zeros(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_map_with_ranges_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """A range that is left out would be left out on the device too."""
    target = tmp_path / "a.bmap"
    bmap.write(target, Map(8 * BLOCK_BYTES, (Range(0, 1, _SHA), Range(4, 5, _SHA))))
    text = target.read_text()
    own = text.partition("<BmapFileChecksum> ")[2][:64]
    text = text.replace(f'chksum="{_SHA}"> 4-5', "sha1='00'> 4-5").replace(own, "0" * 64)
    digest = hashlib.sha256(text.encode()).hexdigest()
    target.write_text(text.replace("0" * 64, digest, 1))
    with pytest.raises(UserError, match=r"ranges of 2 blocks .* says that 4 blocks are mapped"):
        bmap.read(target)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("<ImageSize> 1", "<ImageSize> 2"), "damaged"),
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "", "not a block map"),
        (lambda text: text.replace("sha256 <", "md5 <"), "md5"),
    ],
)
def test_a_damaged_map_is_refused(tmp_path: Path, change: object, problem: str) -> None:
    target = tmp_path / "a.bmap"
    bmap.write(target, Map(4 * BLOCK_BYTES, (Range(0, 1, _SHA),)))
    target.write_text(change(target.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=problem):
        bmap.read(target)
