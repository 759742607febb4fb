# SPDX-License-Identifier: MIT
"""Which way a board boots that is being adopted: real FAT partitions, each file of a step there or not."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.process import run
from images.deploy.boot import slots, state
from images.deploy.onboard.script_image import script_image, script_text
from virtual.crash.boot import BootPartition, Choice
from virtual.crash.disk_state import Partition
from virtual.crash.ext4_boot import Ext4Boot
from virtual.crash.old_way import EXTLINUX, KEPT, SCRIPT, old_way_of
from virtual.crash.root import Root
from virtual.crash.subject import recorded
from virtual.crash.variants import variant_named

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
BY_EFI = {"EFI/BOOT/BOOTAA64.EFI": b"GRUB" * 2000, "EFI/debian/grub.cfg": b"configfile\n"}


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


@pytest.mark.parametrize("factory", [NAMED, BY_EFI], ids=["image", "efi"])
def test_without_a_script_what_has_a_name_of_its_own_is_started(
    factory: dict[str, bytes], tmp_path: Path, choice: Chooser
) -> None:
    torn = slots.boot_script("virtual-a311d")[:700]
    assert choice(tmp_path, factory, {**factory, SCRIPT: torn}) == Choice("old", "", "")


def test_an_empty_file_of_the_old_way_is_one(tmp_path: Path) -> None:
    factory = {**SCRIPTED, ".next": b""}
    assert on_ext4(tmp_path, factory, factory) == Choice("old", "", "")


def test_a_file_of_the_old_way_that_changed_is_named(tmp_path: Path, choice: Chooser) -> None:
    found = choice(tmp_path, CONF, {**CONF, "vmlinuz": b"other" * 2000})
    assert found.problem == "/vmlinuz is not what it was"


def test_the_trial_of_an_adoption_has_the_old_way_behind_it(
    tmp_path: Path, choice: Chooser
) -> None:
    files = ours()
    for name in ("good.env", "good-copy.env"):
        del files[f"npu-bsp/{name}"]
    files["npu-bsp/trial.env"] = state.render_trial(GENERATION)
    if choice is on_fat:
        found = choice(tmp_path, SCRIPTED, {**renamed(SCRIPTED), **files})
        assert (found.slot, found.generation, found.after_trial) == ("trial", GENERATION, "")
    lost = {**renamed(SCRIPTED), **files, "Image.gz": b"other" * 2000}
    found = choice(tmp_path, SCRIPTED, lost)
    assert (found.slot, found.problem) == ("old", "/Image.gz is not what it was")


START_BYTES = 1 << 20


@dataclass
class OnExt4:
    """A board that is ours, whose U-Boot reads ext4: a trial in the sector that it names."""

    image: Path
    blocks: tuple[int, ...]

    @classmethod
    def made(cls, folder: Path, script: bytes) -> OnExt4:
        # Of nothing but zeros mke2fs would make a hole.
        files = {"npu-bsp/trial.env": b"t" * 512, "of-somebody-else": b"x" * 512}
        written(folder / "tree/boot", {**ours(), SCRIPT: script, **files})
        image = folder / "root.img"
        size = f"{SIZE_BYTES >> 10}k"
        run(["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", folder / "tree", image, size])
        paths = ("/boot/npu-bsp/trial.env", "/boot/of-somebody-else")
        found = [run(["debugfs", "-R", f"blocks {path}", image]).text for path in paths]
        return cls(image, tuple(int(each) for each in found))

    def put(self, block: int, content: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(block * 4096)
            file.write(content)

    def choice(self) -> Choice:
        return Ext4Boot(Partition(self.image, START_BYTES, SIZE_BYTES), old_way_of(CONF)).choice()


def trial_at(block: int) -> bytes:
    text = script_text(state.render_trial(GENERATION))
    sector = (START_BYTES + block * 4096) // 512
    return script_image(f"{text}setenv npu_sector {sector:x}\n").ljust(512, b"\0")


def test_a_trial_on_ext4_is_one_only_in_the_sector_that_it_names(tmp_path: Path) -> None:
    board = OnExt4.made(tmp_path, slots.boot_script("virtual-a311d"))
    trial, other = board.blocks
    board.put(trial, trial_at(trial))
    assert board.choice() == Choice("trial", GENERATION, "", GENERATION)
    board.put(trial, trial_at(trial)[:70].ljust(512, b"\0"))  # torn
    assert board.choice() == Choice("good", GENERATION, "")
    board.put(trial, trial_at(other))  # moved: the sector is somebody else's
    assert board.choice() == Choice("good", GENERATION, "")
    board.put(other, trial_at(other))  # and has the very same content: a copy
    assert board.choice() == Choice("good", GENERATION, "")


def test_without_the_comparison_somebody_elses_sector_is_overwritten(tmp_path: Path) -> None:
    script = script_text(slots.boot_script("virtual-a311d")) or ""
    asked = "if cmp.b ${npu_buffer} ${npu_at_dtb} 200; then"
    board = OnExt4.made(tmp_path, script_image(script.replace(asked, "if true; then")))
    trial, other = board.blocks
    board.put(trial, trial_at(trial))
    assert board.choice() == Choice("trial", GENERATION, "", GENERATION)
    board.put(trial, trial_at(other))
    assert board.choice() == Choice("good", GENERATION, "", overwrites=other)
    root = Root(Partition(board.image, START_BYTES, SIZE_BYTES))
    assert root.uses(other)
    assert not root.uses(SIZE_BYTES // 4096 - 1)


def test_what_cannot_be_recorded_is_refused() -> None:
    with pytest.raises(UserError, match="starts EFI programs before") as raised:
        recorded("grub-efi")
    assert "--uboot like:khadas-vim3" in raised.value.hint
    with pytest.raises(UserError, match="no layout 'armbien'"):
        recorded("armbien")
    with pytest.raises(UserError, match="a board of ours needs none"):
        variant_named("rename-first")
    assert variant_named("rename-first", "toradex").additions
    with pytest.raises(UserError, match="it does so on FAT"):
        variant_named("no-comparison", "toradex")
    assert variant_named("no-comparison", "armbian").additions
