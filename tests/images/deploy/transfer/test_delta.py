# SPDX-License-Identifier: MIT
"""Patches in place of whole files: what is chosen, and what arrives, whatever is wrong with the base."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from images.bundle import manifest as bundles
from images.bundle.manifest import Entry
from images.deploy.boot import slots
from images.deploy.deploy import deploy
from images.deploy.onboard.frames import RefusedError
from images.deploy.onboard.patches import Patches
from images.deploy.transfer import contents, delta
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle

# --- patches -------------------------------------------------------------------------------------------


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_a_patch_makes_the_content_and_no_more(shared: bytes, one: bytes, other: bytes) -> None:
    base, content = shared + one, other + shared
    patch = Patches().make(base, content)
    assert Patches().apply(base, patch, len(content)).tobytes() == content
    if content:
        with pytest.raises(RefusedError):
            Patches().apply(base, patch, len(content) - 1)
    with pytest.raises(RefusedError):
        Patches().apply(base, patch, len(content) + 1)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_what_is_no_patch_is_refused(rubbish: bytes) -> None:
    with pytest.raises(RefusedError):
        Patches().apply(b"base" * 100, rubbish, 1000)


# --- the choice ----------------------------------------------------------------------------------------

RATES = st.floats(1e4, 1e10)


@given(RATES, RATES, RATES, st.integers(1, 1 << 28), st.floats(0, 1), st.floats(0.05, 1))
def test_the_cheaper_one_is_chosen(
    link: float, host: float, board: float, size: int, patched: float, squeezed: float
) -> None:
    costs = delta.Costs(link, host, board)
    patch_s = costs.patch_s(size, patched * size, made=True)
    whole_s = costs.whole_s(squeezed * size)
    assume(abs(patch_s - whole_s) > 1e-9)
    # A faster link speaks for the whole file, a faster board for the patch.
    faster = delta.Costs(link * 2, host, board)
    if patch_s > whole_s and patched < squeezed:
        assert faster.patch_s(size, patched * size, made=True) > faster.whole_s(squeezed * size)
    quicker = delta.Costs(link, host, board * 2)
    if patch_s < whole_s:
        assert quicker.patch_s(size, patched * size, made=True) < quicker.whole_s(squeezed * size)


def test_a_gigabit_is_not_worth_a_patch_and_a_slow_link_is() -> None:
    kernel, squeezed, patch = 37_600_000, 14_200_000, 5_900_000  # Debian 6.12.94 to 6.12.107
    for link, worth in ((12e6, True), (1e6, True), (110e6, False), (1e9, False)):
        costs = delta.Costs(link, 130e6, 500e6)
        assert (costs.patch_s(kernel, patch, made=False) < costs.whole_s(squeezed)) == worth


# --- boards --------------------------------------------------------------------------------------------

KERNEL_BYTES = 3 << 20


def changed(content: bytes) -> bytes:
    """As a rebuilt kernel: some bytes are new, and from there on all stands elsewhere."""
    return content[:100_000] + os.urandom(500) + content[100_000:-7000] + os.urandom(6000)


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory: pytest.TempPathFactory) -> tuple[bundles.Bundle, bundles.Bundle]:
    folder = tmp_path_factory.mktemp("kernels")
    kernel, module = random.Random(1).randbytes(KERNEL_BYTES), os.urandom(90_000)
    one = make_bundle(folder / "old", kernel=kernel, modules={"kernel/a.ko": module})
    other = make_bundle(
        folder / "new", kernel=changed(kernel), modules={"kernel/a.ko": changed(module)[:90_001]}
    )
    return one, other


def slow(board: FakeBoard, bytes_per_s: float = 1e6) -> None:
    """As after a transfer over a slow link."""
    delta.remember_rate(board.host, bytes_per_s)


def arrived(board: FakeBoard, bundle: bundles.Bundle) -> bool:
    store = board.root / slots.STORE / bundle.generation
    for entry in bundle.manifest.files:
        if entry.link is None:
            there = (
                board.fat / slots.fat_path(entry.sha256).lstrip("/")
                if slots.on_fat(entry)
                else store / entry.path
            )
            if there.read_bytes() != bundle.file(entry).read_bytes():
                return False
    return True


def kernel_on(board: FakeBoard, bundle: bundles.Bundle) -> Path:
    sha256 = bundle.manifest.entry("boot/kernel").sha256
    return board.fat / slots.fat_path(sha256).lstrip("/")


with_board = [pytest.mark.usefixtures("own_cache"), *BOARD_MARKS]


def on_board(test: object) -> object:
    for mark in with_board:
        test = mark(test)
    return test


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))


Bundles = tuple[bundles.Bundle, bundles.Bundle]


@pytest.mark.slow
@on_board
def test_a_rebuilt_kernel_travels_as_a_patch(board: FakeBoard, old_and_new: Bundles) -> None:
    old, new = old_and_new
    first = deploy(board.target(), bundle=old, board=None)
    assert first.outcome == "confirmed", first.problem
    assert first.sent.patched_files == 0
    slow(board)
    second = deploy(board.target(), bundle=new, board=None)
    assert second.outcome == "confirmed", second.problem
    assert arrived(board, new)
    document = json.loads(json.dumps(second.document()))
    assert document["files_patched"] == 2  # the kernel and the module
    assert document["bytes_sent"] > KERNEL_BYTES
    assert document["bytes_on_wire"] < 60_000
    # On a link that is fast nothing is gained.
    slow(board, 1e9)
    back = deploy(board.target(), bundle=old, board=None)
    assert back.outcome == "unchanged" or back.sent.patched_files == 0


@pytest.mark.slow
@on_board
@pytest.mark.parametrize("what", ["on the board", "on the host", "not kept"])
def test_a_damaged_base_means_the_whole_file(
    board: FakeBoard, old_and_new: Bundles, what: str, tmp_path: Path
) -> None:
    old, new = old_and_new
    assert deploy(board.target(), bundle=old, board=None).outcome == "confirmed"
    slow(board)
    if what == "on the board":  # as large as before: one look does not tell
        kernel = kernel_on(board, old)
        kernel.write_bytes(b"\0" * 4096 + kernel.read_bytes()[4096:-4096] + b"\1" * 4096)
    elif what == "on the host":
        sha256 = old.manifest.entry("boot/kernel").sha256
        kept = tmp_path / "cache/deployed" / sha256[:2] / sha256
        content = kept.read_bytes()
        kept.unlink()  # a link into the bundle
        kept.write_bytes(content[:-1] + b"?")
    else:
        (tmp_path / "cache/deployed").rename(tmp_path / "cache/gone")
    result = deploy(board.target(), bundle=new, board=None)
    assert result.outcome == "confirmed", result.problem
    assert arrived(board, new)
    assert result.sent.wire_bytes > KERNEL_BYTES - 1000
    expected = {"on the board": 2, "on the host": 1, "not kept": 0}
    assert result.sent.patched_files == expected[what]


@on_board
def test_what_is_kept_is_bounded(
    tmp_path: Path, old_and_new: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_KEPT_GENERATIONS", 2)
    old, new = old_and_new
    third = make_bundle(tmp_path / "third", kernel=os.urandom(20_000))
    kernel = Entry("boot/kernel", old.manifest.entry("boot/kernel").sha256)
    for number, bundle in enumerate((old, new)):
        contents.keep(bundle)
        mark = tmp_path / f"cache/deployed/{bundle.generation}.list"
        os.utime(mark, (number, number))
    assert contents.read(kernel.sha256) == old.file(kernel).read_bytes()
    contents.keep(third)
    assert contents.read(kernel.sha256) is None
    assert contents.is_here(new.manifest.entry("boot/kernel").sha256)
    assert len(list((tmp_path / "cache/deployed").glob("*.list"))) == 2
