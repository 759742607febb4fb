# SPDX-License-Identifier: MIT
"""Distributions' own boot files that name a tree or an overlay of ours; and without it, as they were.

u-boot-menu is Debian's own program, in a root of its own.
"""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest

from bsp.base.packages.apt import Archive
from bsp.base.process import run
from bsp.boot_survey.problems import booted_entry
from bsp.dts.tree import read_tree
from images.deploy.onboard import persist
from images.deploy.onboard.board import KEPT_OF, Board
from images.deploy.onboard.files import read_text
from images.deploy.onboard.frames import RefusedError
from tests.support.fake_boot import compile_dtb, tree_source

KEY, NAME = b"user_overlays", b"npu-bsp"
# As armbian/build writes it, with what armbian-add-overlay adds.
ENV = b"verbosity=1\nbootlogo=false\nfdtfile=amlogic/meson-g12b-a311d-khadas-vim3.dtb\nrootfstype=ext4\n"


@pytest.mark.parametrize(
    ("before", "line"),
    [
        (ENV, b"user_overlays=npu-bsp"),
        (ENV + b"user_overlays=can i2c\n", b"user_overlays=can i2c npu-bsp"),
        (ENV + b"user_overlays=\n", b"user_overlays=npu-bsp"),
        (ENV + b"user_overlays=old\nuser_overlays=can\n", b"user_overlays=can npu-bsp"),
        (ENV[:-1], b"user_overlays=npu-bsp"),
    ],
)
def test_the_overlay_is_named_and_taken_out_again(before: bytes, line: bytes) -> None:
    named = persist.with_overlay(before, KEY, NAME)
    assert [each for each in named.split(b"\n") if each.startswith(b"user_overlays=")][-1] == line
    assert set(before.split(b"\n")) - set(named.split(b"\n")) <= {
        each for each in before.split(b"\n") if each.startswith(b"user_overlays=")
    }
    assert persist.with_overlay(named, KEY, NAME) == named
    kept = before if b"user_overlays=\n" not in before else ENV
    assert persist.without_overlay(named, KEY, NAME).rstrip(b"\n") == kept.rstrip(b"\n")


def test_what_somebody_added_since_stays() -> None:
    named = persist.with_overlay(ENV, KEY, NAME).replace(b"=npu-bsp\n", b"=npu-bsp can\n")
    assert persist.without_overlay(named, KEY, NAME) == ENV + b"user_overlays=can\n"


@pytest.fixture
def board(tmp_path: Path) -> Board:
    (tmp_path / "boot/overlay-user").mkdir(parents=True)
    (tmp_path / "boot/armbianEnv.txt").write_bytes(ENV)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mounts").write_text("/dev/mmcblk1p1 / ext4 rw 0 0\n")
    return Board(str(tmp_path), "/boot", exact=True)


def boot_files(board: Board) -> dict[str, bytes]:
    folder = Path(board.fat)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


CONTENT = base64.b64encode(b"what is kept").decode()
# As grub-mkconfig writes it, from 41_custom.
GRUB_CFG = b"""menuentry 'Debian GNU/Linux' {
\tlinux /boot/vmlinuz root=/dev/vda2
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""
GRUB_LINE = b"if [ -f $prefix/npu-bsp.dtb ]; then devicetree $prefix/npu-bsp.dtb; fi "


@pytest.mark.parametrize(
    ("way", "files", "place", "text", "line"),
    [
        (
            "armbian",
            {"armbianEnv.txt": ENV},
            "overlay-user/npu-bsp.dtbo",
            "armbianEnv.txt",
            b"user_overlays=npu-bsp",
        ),
        (
            "armbian",
            {"armbianEnv.txt": ENV + b"user_overlays=\n"},
            "overlay-user/npu-bsp.dtbo",
            "armbianEnv.txt",
            b"user_overlays=npu-bsp",
        ),
        (
            "toradex",
            {"overlays.txt": b"fdt_overlays=verdin-imx8mp_hdmi_overlay.dtbo\n"},
            "overlays/npu-bsp.dtbo",
            "overlays.txt",
            b"fdt_overlays=verdin-imx8mp_hdmi_overlay.dtbo npu-bsp.dtbo",
        ),
        (
            "dietpi",
            {"dietpiEnv.txt": ENV},
            "overlay-user/npu-bsp.dtbo",
            "dietpiEnv.txt",
            b"user_overlays=npu-bsp",
        ),
        (
            "toradex",
            {"overlays.txt": b"fdt_overlays=\n"},
            "overlays/npu-bsp.dtbo",
            "overlays.txt",
            b"fdt_overlays=npu-bsp.dtbo",
        ),
        ("grub", {"grub/grub.cfg": GRUB_CFG}, "grub/npu-bsp.dtb", "grub/custom.cfg", GRUB_LINE),
        (
            "grub",
            {"grub/grub.cfg": GRUB_CFG, "grub/custom.cfg": b"set timeout=3"},
            "grub/npu-bsp.dtb",
            "grub/custom.cfg",
            GRUB_LINE,
        ),
    ],
)
def test_it_is_named_and_every_file_comes_back(
    board: Board, way: str, files: dict[str, bytes], place: str, text: str, line: bytes
) -> None:
    for name, content in files.items():
        path = Path(board.fat, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    before = boot_files(board)
    release = Path(board.at("proc/sys/kernel/osrelease"))
    release.parent.mkdir(parents=True)
    release.write_text("6.12.1\n")
    persist.persist(board, {"way": way, "content": CONTENT})
    assert persist.kept_by(board) == way
    assert read_text(board.at(KEPT_OF)) == ("6.12.1" if way == "grub" else "")
    changed = boot_files(board)
    assert changed[place] == b"what is kept"
    assert [each for each in changed[text].split(b"\n") if each.startswith(line)]
    assert set(before.get(text, b"").split(b"\n")) - {b""} <= {
        *changed[text].split(b"\n"),
        *(each for each in before.get(text, b"").split(b"\n") if b"_overlays=" in each),
    }
    assert set(changed) == {*before, place, text}
    with pytest.raises(RefusedError, match=f"kept by {way} already"):
        persist.persist(board, {"way": "u-boot-menu", "content": CONTENT})
    persist.persist(board, {"way": way, "content": CONTENT})  # once more
    assert boot_files(board) == changed

    persist.unpersist(board, {})
    assert boot_files(board) == before
    assert persist.kept_by(board) == ""
    assert not Path(board.at(KEPT_OF)).exists()


def test_what_was_changed_since_stays(board: Board) -> None:
    persist.persist(board, {"way": "armbian", "content": CONTENT})
    env = Path(board.fat, "armbianEnv.txt")
    env.write_bytes(env.read_bytes().replace(b"verbosity=1", b"verbosity=7"))
    persist.unpersist(board, {})
    assert env.read_bytes() == ENV.replace(b"verbosity=1", b"verbosity=7")


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("armbian", r"armbianEnv\.txt"),
        ("toradex", r"overlays\.txt"),
        ("grub", r"does not source custom\.cfg"),
    ],
)
def test_a_board_without_such_files_is_left_as_it_is(board: Board, way: str, says: str) -> None:
    Path(board.fat, "armbianEnv.txt").unlink()
    before = boot_files(board)
    with pytest.raises(RefusedError, match=says):
        persist.persist(board, {"way": way, "content": CONTENT})
    assert boot_files(board) == before
    assert persist.kept_by(board) == ""


def install(board: Board, package: str, program: str) -> Path:
    """Have a package of Debian's in the board's folder, whose program runs with that as its root."""
    root = Path(board.root)
    scripts = Archive("trixie", "arm64").unpacked([package])
    shutil.copytree(scripts, root, dirs_exist_ok=True, symlinks=True)
    suite = Archive("trixie", run(["dpkg", "--print-architecture"]).text.strip())
    (root / "bin").mkdir(exist_ok=True)
    shutil.copy(suite.unpacked(["busybox-static"]) / "usr/bin/busybox", root / "bin/busybox")
    for name in run([root / "bin/busybox", "--list"]).text.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    # linux-base's, which lists what is in /boot.
    versions = root / "bin/linux-version"
    versions.write_text(
        '#!/bin/sh\nfolder=; [ "$2" = --paths ] && folder=/boot/vmlinuz-\n'
        "[ $1 = list ] && echo ${folder}6.12.1-arm64 || cat\n"
    )
    versions.chmod(0o755)
    (root / "boot/vmlinuz-6.12.1-arm64").touch()
    (root / "usr/lib/linux-image-6.12.1-arm64").mkdir(parents=True)
    (root / "etc/fstab").write_text("/dev/mmcblk1p1 / ext4 defaults 0 1\n")
    for name in ("dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "dev/null").touch()
    at = root / program
    at.rename(root / "usr/sbin/real")
    at.write_text(f'#!/bin/sh\nexec unshare -r chroot {root} /usr/sbin/real "$@"\n')
    at.chmod(0o755)
    return at


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_debians_u_boot_menu_names_the_tree_for_each_kernel(board: Board) -> None:
    program = install(board, "u-boot-menu", "usr/sbin/u-boot-update")
    run([program])
    before = boot_files(board)
    assert b"fdtdir /usr/lib/linux-image-6.12.1-arm64/" in before["extlinux/extlinux.conf"]

    persist.persist(board, {"way": "u-boot-menu", "content": CONTENT})
    changed = boot_files(board)
    assert changed["npu-bsp.dtb"] == b"what is kept"
    assert b"\tfdt /boot/npu-bsp.dtb\n" in changed["extlinux/extlinux.conf"]
    run([program])  # as an update of the kernel does
    assert boot_files(board) == changed

    # An adopted board falls back on a configuration that names the tree.
    folder = Path(board.fat, "extlinux")
    (folder / "extlinux.conf").rename(folder / "before-npu-bsp.conf")
    with pytest.raises(RefusedError, match="falls back on what names this tree"):
        persist.unpersist(board, {})
    (folder / "before-npu-bsp.conf").rename(folder / "extlinux.conf")
    assert boot_files(board) == changed

    persist.unpersist(board, {})
    assert boot_files(board) == before


# Beside the NPU: a node that is referred to, so that applied twice it is another tree.
USERS = """/dts-v1/;
/plugin/;
/ {
    fragment@0 { target-path = "/"; __overlay__ {
        clock: clock { compatible = "fixed-clock"; #clock-cells = <0>; clock-frequency = <1>; };
        can { compatible = "test,can"; clocks = <&clock>; };
    }; };
};
"""
OURS = '/dts-v1/; /plugin/; &{/npu@1000} { status = "okay"; };'


def merged(base: Path, overlays: list[Path], target: Path) -> Path:
    run(["fdtoverlay", "-i", base, "-o", target, *overlays])
    return target


def booted(board: Board, target: Path) -> Path:
    """What U-Boot makes of the default label of extlinux.conf: its tree, then its overlays in order."""
    text = Path(board.fat, "extlinux/extlinux.conf").read_text()
    words = [line.split() for line in booted_entry(text).split("\n")]
    named = {line[0]: [Path(board.at(name)) for name in line[1:]] for line in words if line}
    assert len(named["fdt"]) == 1
    return merged(named["fdt"][0], named["fdtoverlays"], target)


@pytest.mark.parametrize(
    ("way", "text", "key", "folder", "suffix"),
    [
        ("armbian", "armbianEnv.txt", "user_overlays", "overlay-user", ".dtbo"),
        ("toradex", "overlays.txt", "fdt_overlays", "overlays", ""),
    ],
)
def test_an_overlay_is_kept_beside_the_users_and_no_tree_gets_one_twice(
    board: Board, tmp_path: Path, way: str, text: str, key: str, folder: str, suffix: str
) -> None:
    boot = Path(board.fat)
    (boot / folder).mkdir(exist_ok=True)
    users = compile_dtb(USERS, boot / folder / "can.dtbo")
    ours = compile_dtb(OURS, tmp_path / "ours.dtbo")
    base = compile_dtb(tree_source(extra='status = "disabled";'), tmp_path / "base.dtb")
    (boot / text).write_text(f"{key}={'can' if suffix else 'can.dtbo'}\n")
    tried = merged(merged(base, [users], tmp_path / "runs.dtb"), [ours], tmp_path / "tried.dtb")

    content = base64.b64encode(ours.read_bytes()).decode()
    persist.persist(board, {"way": way, "content": content, "overlay": True})
    names = (boot / text).read_text().partition(f"{key}=")[2].split()
    overlays = [boot / folder / f"{name}{suffix}" for name in names]
    kept = merged(base, overlays, tmp_path / "kept.dtb")
    assert read_tree(kept.read_bytes(), "kept") == read_tree(tried.read_bytes(), "tried")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
@pytest.mark.parametrize("named", ["", "can.dtbo", "can.dtbo absent.dtbo"])
def test_with_overlays_of_the_users_the_kept_tree_is_the_one_that_was_tried(
    board: Board, tmp_path: Path, named: str
) -> None:
    program, root = install(board, "u-boot-menu", "usr/sbin/u-boot-update"), Path(board.root)
    settings = f'U_BOOT_FDT="board.dtb"\nU_BOOT_FDT_OVERLAYS="{named}"\n'
    (root / "etc/default/u-boot").write_text(settings)
    own = root / "usr/lib/linux-image-6.12.1-arm64/board.dtb"
    compile_dtb(tree_source(extra='status = "disabled";'), own)
    (root / "boot/dtbo").mkdir()
    users = compile_dtb(USERS, root / "boot/dtbo/can.dtbo")
    run([program])
    before = boot_files(board)
    runs = booted(board, tmp_path / "runs.dtb")
    ours = compile_dtb(OURS, tmp_path / "ours.dtbo")
    tried = merged(runs, [ours], tmp_path / "tried.dtb")
    twice = merged(tried, [users], tmp_path / "twice.dtb")
    assert read_tree(twice.read_bytes(), "twice") != read_tree(tried.read_bytes(), "tried")

    whole = base64.b64encode(tried.read_bytes()).decode()
    with pytest.raises(RefusedError, match="a second time"):
        persist.persist(board, {"way": "u-boot-menu", "content": whole})
    assert boot_files(board) == before

    content = base64.b64encode(ours.read_bytes()).decode()
    persist.persist(board, {"way": "u-boot-menu", "content": content, "overlay": True})
    kept = booted(board, tmp_path / "kept.dtb")
    assert read_tree(kept.read_bytes(), "kept") == read_tree(tried.read_bytes(), "tried")
    changed = boot_files(board)
    run([program])  # as an update of the kernel does
    assert boot_files(board) == changed
    persist.unpersist(board, {})
    assert boot_files(board) == before
    assert not (root / "etc/u-boot-menu/conf.d/zz-npu-bsp.conf").exists()
    assert not list((root / "var/lib/npu-bsp").glob("kept-*"))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_what_u_boot_menu_would_not_keep_is_refused_and_nothing_stays(board: Board) -> None:
    program, root = install(board, "u-boot-menu", "usr/sbin/u-boot-update"), Path(board.root)
    run([program])
    conf, as_written = Path(board.fat, "extlinux/extlinux.conf"), boot_files(board)
    request = {"way": "u-boot-menu", "content": CONTENT}

    conf.write_bytes(as_written["extlinux/extlinux.conf"] + b"# by hand\n")
    by_hand = boot_files(board)
    with pytest.raises(RefusedError, match="changed by hand"):
        persist.persist(board, request)
    assert boot_files(board) == by_hand
    conf.write_bytes(as_written["extlinux/extlinux.conf"])

    with pytest.raises(RefusedError, match="not in one folder"):
        persist.persist(board, {**request, "overlay": True})
    assert boot_files(board) == as_written

    (root / "etc/default/u-boot").write_text('U_BOOT_UPDATE="false"\n')
    with pytest.raises(RefusedError, match=r"U_BOOT_UPDATE"):
        persist.persist(board, request)
    assert boot_files(board) == as_written
    assert persist.kept_by(board) == ""

    program.unlink()
    with pytest.raises(RefusedError, match="cannot be run"):
        persist.persist(board, request)
    assert boot_files(board) == as_written


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_debians_flash_kernel_takes_the_tree_for_each_kernel(board: Board) -> None:
    program = install(board, "flash-kernel", "usr/sbin/flash-kernel")
    root = Path(board.root)
    (root / "etc/flash-kernel/machine").write_text("A test board\n")
    (root / "etc/flash-kernel/db").write_text(
        "Machine: A test board\nKernel-Flavors: any\nMethod: generic\nDTB-Id: maker/board.dtb\n"
    )
    packaged = root / "usr/lib/linux-image-6.12.1-arm64/maker/board.dtb"
    packaged.parent.mkdir()
    packaged.write_bytes(b"the kernel's own")
    with pytest.raises(RefusedError, match="no device tree at /boot/dtb"):
        persist.persist(board, {"way": "flash-kernel", "content": CONTENT})
    run([program])
    tree = root / "boot/dtb"  # what its boot script loads
    assert tree.read_bytes() == b"the kernel's own"

    for _ in range(2):
        persist.persist(board, {"way": "flash-kernel", "content": CONTENT})
        assert tree.read_bytes() == b"what is kept"
    (root / "boot/vmlinuz-6.13.0-arm64").touch()
    versions = root / "bin/linux-version"
    versions.write_text(versions.read_text().replace("6.12.1", "6.13.0"))
    run([program, "6.13.0-arm64"])  # as an update of the kernel does
    assert tree.resolve() == root / "boot/dtbs/6.13.0-arm64/maker/board.dtb"
    assert tree.read_bytes() == b"what is kept"
    shutil.copytree(packaged.parents[1], root / "usr/lib/linux-image-6.13.0-arm64")
    persist.unpersist(board, {})
    assert tree.read_bytes() == b"the kernel's own"
    assert not (root / "etc/flash-kernel/dtbs/npu-bsp").exists()

    (root / "etc/flash-kernel/dtbs/board.dtb").write_bytes(b"the administrator's")
    with pytest.raises(RefusedError, match=r"has a board\.dtb already"):
        persist.persist(board, {"way": "flash-kernel", "content": CONTENT})
    assert persist.kept_by(board) == ""
