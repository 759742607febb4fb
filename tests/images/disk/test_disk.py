# SPDX-License-Identifier: MIT
"""Disks: partitions, file systems, owners and keys, read back with the file systems' own tools."""

from __future__ import annotations

import io
import json
import shutil
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import images.disk
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel
from images.deploy.boot import state
from images.disk import FAT_START_BYTES, ROOT_START_BYTES, SIZE_BYTES, Disk, build_disk
from images.disk.rootfs import Rootfs
from images.disk.tree import Tree
from tests.support.disk_tools import PATH, run_tool

from .test_initrd import make_kernel

_TOOLS = ("sfdisk", "mke2fs", "debugfs", "e2fsck", "mcopy", "mkimage", "ssh-keygen", "cpio")
_MISSING = [tool for tool in _TOOLS if shutil.which(tool, path=PATH) is None]

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]


def _tiny_root(target: Path) -> Path:
    """A root file system of three files, one of them another user's."""
    with tarfile.open(target, "w") as tar:
        for name, uid, mode, content in (
            ("./etc/passwd", 0, 0o644, b"root:x:0:0::/root:/bin/sh\n"),
            ("./var/lib/other", 107, 0o640, b"other\n"),
            ("./usr/bin/tool", 0, 0o4755, b"#!/bin/sh\n"),
        ):
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode = len(content), uid, uid, mode
            tar.addfile(info, io.BytesIO(content))
    return target


@dataclass(frozen=True)
class Inputs:
    kernel: PrebuiltKernel
    dtb: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    """A tiny root, kernel and device tree, and an own place for disks (packages stay in the usual one)."""
    folder = tmp_path_factory.mktemp("inputs")
    tar = _tiny_root(folder / "root.tar")
    (folder / "board.dtb").write_bytes(b"device tree")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.disk, "cache_dir", lambda: folder)
        patch.setattr(images.disk, "root_tar", lambda _: Rootfs(tar, "tiny"))
        patch.setattr(images.disk, "boot_settings", lambda _: ("root=LABEL=npu-root", ("ext4",)))
        yield Inputs(make_kernel(folder), folder / "board.dtb")


@pytest.fixture(scope="module")
def disk(inputs: Inputs) -> Disk:
    return build_disk(load_board("virtual"), inputs.kernel, inputs.dtb)


def test_a_disk_is_what_a_board_boots_from(disk: Disk, tmp_path: Path) -> None:
    table = json.loads(run_tool("sfdisk", "--json", disk.image))["partitiontable"]
    boot, root = table["partitions"]
    assert (table["label"], boot["start"] * 512) == ("gpt", FAT_START_BYTES)
    assert boot["attrs"] == "LegacyBIOSBootable"
    assert root["start"] * 512 == ROOT_START_BYTES
    status = disk.image.stat()
    assert status.st_size == SIZE_BYTES
    assert status.st_blocks * 512 < 200 << 20, "the image is not sparse"

    at = f"{disk.image}@@{FAT_START_BYTES}"
    assert "NPU-BOOT" in run_tool("mdir", "-i", at, "::")
    run_tool("mcopy", "-i", at, "-s", "::npu-bsp", "::boot.scr", tmp_path)
    good = state.parse_good((tmp_path / "npu-bsp/good.env").read_bytes())
    assert good
    generation = good.good
    assert f"npu_bsp.generation={generation}" in disk.cmdline
    assert (disk.boot / "board.dtb").read_bytes() == b"device tree"

    ext4 = f"{disk.image}?offset={ROOT_START_BYTES}"
    run_tool("e2fsck", "-f", "-n", ext4)

    def debug(request: str) -> str:
        return run_tool("debugfs", "-R", request, ext4)

    assert "npu-root" in debug("show_super_stats -h")

    def owner_and_mode(path: str) -> tuple[int, int]:
        words = debug(f"stat {path}").split()
        return int(words[words.index("User:") + 1]), int(words[words.index("Mode:") + 1], 8)

    assert owner_and_mode("/var/lib/other") == (107, 0o640)
    assert owner_and_mode("/usr/bin/tool") == (0, 0o4755)
    assert owner_and_mode("/etc/ssh/ssh_host_ed25519_key") == (0, 0o600)
    assert owner_and_mode("/root/.ssh/authorized_keys") == (0, 0o600)
    assert "LABEL=NPU-BOOT  /boot/firmware" in debug("cat /etc/fstab")
    assert 'Fast link dest: "/dev/null"' in debug("stat /etc/systemd/system/fstrim.timer")
    assert "modules.dep" in debug(
        f"ls /var/lib/npu-bsp/generations/{generation}/modules/6.12.0-test"
    )
    public = disk.identity_file.with_suffix(".pub").read_text()
    assert debug("cat /root/.ssh/authorized_keys") == public
    assert disk.host_key in debug("cat /etc/ssh/ssh_host_ed25519_key.pub")


def test_a_stream_is_the_tar_with_files_laid_over_it(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    with tarfile.open(tar, "w") as made:
        for name, content in (
            ("./etc/passwd", b"root\n"), ("./etc/machine-id", b"1\n"), ("./etc/shadow", b"*\n"),
            ("./var/log/apt.log", b"now\n"), ("./usr/bin/tool", b"tool\n" * 100_000),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_800_000_000 + len(content)
            made.addfile(info, io.BytesIO(content))
    over = tmp_path / "over"
    (over / "etc").mkdir(parents=True)
    (over / "etc/passwd").write_bytes(b"another\n")
    streams = []
    for _ in range(2):  # the second takes what the first kept
        with (tmp_path / "stream").open("wb") as sink:
            Tree(tar, over).write_tar(sink)
        streams.append((tmp_path / "stream").read_bytes())
    assert streams[0] == streams[1]
    with tarfile.open(fileobj=io.BytesIO(streams[0])) as found:
        files = [member.name for member in found if member.isreg()]
        assert files == ["./etc/shadow", "./usr/bin/tool", "./etc/passwd"]
        assert found.extractfile("./etc/passwd").read() == b"another\n"  # type: ignore[union-attr]
        assert found.extractfile("./usr/bin/tool").read() == b"tool\n" * 100_000  # type: ignore[union-attr]
        assert found.getmember("./sys").isdir()


def test_the_private_key_is_private_and_the_image_read_only(disk: Disk) -> None:
    assert stat.S_IMODE(disk.identity_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(disk.image.stat().st_mode) == 0o444


def test_the_same_inputs_give_the_same_disk(disk: Disk, inputs: Inputs) -> None:
    assert build_disk(load_board("virtual"), inputs.kernel, inputs.dtb) == disk


def test_another_device_tree_makes_another_disk(disk: Disk, inputs: Inputs, tmp_path: Path) -> None:
    other = tmp_path / "other.dtb"
    other.write_bytes(b"another device tree")
    made = build_disk(load_board("virtual"), inputs.kernel, other)
    assert made.image != disk.image
    assert made.host_key != disk.host_key
