# SPDX-License-Identifier: MIT
"""Which way a board boots that is being adopted: real FAT partitions, each file of a step there or not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from images.deploy.boot import slots, state
from images.deploy.onboard.script_image import script_image
from virtual.crash.boot import BootPartition, Choice
from virtual.crash.disk_state import Partition
from virtual.crash.ext4_boot import Ext4Boot
from virtual.crash.old_way import EXTLINUX, KEPT, SCRIPT, old_way_of
from virtual.crash.subject import recorded
from virtual.crash.variants import additions

pytestmark = pytest.mark.skipif(
    shutil.which("mformat") is None, reason="mformat is not installed (mtools)"
)

SIZE_BYTES = 24 << 20  # FAT16, as 256 MiB are
GENERATION = "0" * 11 + "1"
CONF = {
    EXTLINUX: b"label Linux\n kernel /vmlinuz\n" * 20,
    "vmlinuz": b"kernel" * 2000,
    "initrd": b"i" * 5000,
}
SCRIPTED = {SCRIPT: script_image("booti ${kernel_addr_r}\n"), "Image.gz": b"kernel" * 2000}
NAMED = {"Image": b"kernel" * 2000, "virtual.dtb": b"tree" * 100}


Chooser = Callable[[Path, dict[str, bytes], dict[str, bytes]], Choice]


@pytest.fixture(params=["fat", "ext4"])
def choice(request: pytest.FixtureRequest) -> Chooser:
    """Which way boots: by a folder to work in, the files of the factory disk, the files that are there."""
    return on_fat if request.param == "fat" else on_ext4


def written(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def on_fat(folder: Path, factory: dict[str, bytes], files: dict[str, bytes]) -> Choice:
    tree, image = written(folder / "tree", files), folder / "fat.img"
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    run(["mformat", "-i", image, "-T", str(SIZE_BYTES // 512), "::"])
    run(["mcopy", "-s", "-i", image, *sorted(tree.iterdir()), "::"])
    return BootPartition(Partition(image, 0, SIZE_BYTES), old_way_of(factory)).choice()


def on_ext4(folder: Path, factory: dict[str, bytes], files: dict[str, bytes]) -> Choice:
    written(folder / "tree/boot", files)
    image = folder / "root.img"
    size = f"{SIZE_BYTES >> 10}k"
    run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", folder / "tree", image, size])
    return Ext4Boot(Partition(image, 0, SIZE_BYTES), old_way_of(factory)).choice()


def ours() -> dict[str, bytes]:
    """The boot partition's part of a board that is ours, with one good generation."""
    contents = {what: f"{what} of ours".encode() * 500 for what in ("kernel", "initrd", "dtb")}
    paths = {
        what: slots.fat_path(hashlib.sha256(data).hexdigest()) for what, data in contents.items()
    }
    good = state.render_good(state.Good(GENERATION))
    args = state.render_args(
        "console=x", kernel=paths["kernel"], initrd=paths["initrd"], dtb=paths["dtb"]
    )
    return {
        SCRIPT: slots.boot_script("virtual-a311d"),
        "npu-bsp/good.env": good,
        "npu-bsp/good-copy.env": good,
        "npu-bsp/trial.env": state.SPENT,
        f"npu-bsp/{GENERATION}/args.env": args,
        **{path.lstrip("/"): contents[what] for what, path in paths.items()},
    }


def renamed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {KEPT.get(path, path): content for path, content in files.items()}


@pytest.mark.parametrize("factory", [CONF, SCRIPTED, NAMED], ids=["extlinux", "script", "by-name"])
def test_the_old_way_until_there_is_a_generation(
    factory: dict[str, bytes], tmp_path: Path, choice: Chooser
) -> None:
    only_script = {SCRIPT: slots.boot_script("virtual-a311d")}
    steps = {
        "as it came": (factory, "old"),
        "our script, nothing good yet": ({**renamed(factory), **only_script}, "old"),
        "ours": ({**renamed(factory), **ours()}, "good"),
        "given back": ({**ours(), **factory}, "old"),
    }
    if factory is NAMED:
        del steps["given back"]  # its script has to go
    for name, (files, slot) in steps.items():
        (tmp_path / name).mkdir()
        found = choice(tmp_path / name, factory, files)
        assert (found.slot, found.problem) == (slot, ""), name


def test_extlinux_wins_over_our_script(tmp_path: Path, choice: Chooser) -> None:
    assert choice(tmp_path, CONF, {**ours(), **CONF}).slot == "old"


@pytest.mark.parametrize("factory", [CONF, SCRIPTED], ids=["extlinux", "script"])
def test_renamed_before_our_script_is_there(
    factory: dict[str, bytes], tmp_path: Path, choice: Chooser
) -> None:
    for number, script in enumerate((None, slots.boot_script("virtual-a311d")[:700])):
        (tmp_path / str(number)).mkdir()
        files = {**renamed(factory), **({SCRIPT: script} if script else {})}
        assert "neither" in choice(tmp_path / str(number), factory, files).problem


def test_without_a_script_image_is_loaded_by_name(tmp_path: Path, choice: Chooser) -> None:
    torn = slots.boot_script("virtual-a311d")[:700]
    assert choice(tmp_path, NAMED, {**NAMED, SCRIPT: torn}) == Choice("old", "", "")


def test_a_file_of_the_old_way_that_changed_is_named(tmp_path: Path, choice: Chooser) -> None:
    found = choice(tmp_path, CONF, {**CONF, "vmlinuz": b"other" * 2000})
    assert found.problem == "/vmlinuz is not what it was"


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be judged") as raised:
        recorded("grub-efi")
    assert "extlinux-fat" in raised.value.hint
    with pytest.raises(UserError, match="no layout 'armbien'"):
        recorded("armbien")
    with pytest.raises(UserError, match="a board of ours needs none"):
        additions("rename-first")
    assert additions("rename-first", "toradex")
