# SPDX-License-Identifier: MIT
"""Disk images: the same bytes each time, read back with the file systems' own tools; what is refused."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import images.disk.image
from bsp.base.errors import UserError
from bsp.catalog import load_board
from images.bundle import sign
from images.bundle.manifest import Bundle
from images.deploy.boot import state
from images.disk import bmap
from images.disk.bootloader import FIRST_PARTITION_BYTES
from images.disk.image import (
    Image,
    ImageRequest,
    build_image,
    read_description,
)
from images.disk.rootfs import Rootfs
from tests.support.disk_tools import PATH, run_tool
from tests.support.fake_board import make_bundle

from .test_disk import _tiny_root

_TOOLS = ("sfdisk", "debugfs", "e2fsck", "mcopy", "mkimage", "ssh-keygen")
_MISSING = [tool for tool in _TOOLS if shutil.which(tool, path=PATH) is None]

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)}"),
]


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageRequest]:
    """A tiny root, a small bundle and two keys."""
    folder = tmp_path_factory.mktemp("inputs")
    tar = _tiny_root(folder / "root.tar")
    bundle = make_bundle(folder / "bundle")
    for name in ("user", "host"):
        run_tool(
            "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", folder / name
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images.disk.image, "root_tar", lambda *_: Rootfs(tar, "tiny"))
        patch.setenv("NPU_BSP_CONFIG", str(folder / "config"))
        sign.sign(bundle)
        yield ImageRequest(
            board=load_board("virtual"),
            bundle=bundle.path,
            hostname="desk-board",
            ssh_key=folder / "user.pub",
            host_key=folder / "host",
            size="1100M",
            output=folder / "first" / "a.img",
        )


@pytest.fixture(scope="module")
def image(request_: ImageRequest) -> Image:
    return build_image(request_)


def _debug(image: Path, request: str) -> str:
    root = read_description(image)
    assert root
    return run_tool("debugfs", "-R", request, f"{image}?offset={root.partitions[1]['start_bytes']}")


def test_an_image_holds_what_was_asked_for(
    image: Image, request_: ImageRequest, tmp_path: Path
) -> None:
    path = image.path
    status = path.stat()
    assert status.st_size == 1100 << 20
    assert status.st_blocks * 512 < 100 << 20, "the image is not sparse"
    at = f"{path}@@{FIRST_PARTITION_BYTES}"
    run_tool("mcopy", "-i", at, "-s", "::npu-bsp", "::boot.scr", tmp_path)
    generation = image.description.generation
    args = state.parse_args((tmp_path / f"npu-bsp/{generation}/args.env").read_bytes())
    assert args
    found = re.search(r"root=UUID=(\S+)", args["npu_args"])
    assert found
    run_tool(
        "e2fsck", "-f", "-n", f"{path}?offset={image.description.partitions[1]['start_bytes']}"
    )
    assert found[1] in _debug(path, "show_super_stats -h")
    assert f"UUID={found[1]}  /  ext4" in _debug(path, "cat /etc/fstab")
    assert _debug(path, "cat /etc/hostname") == "desk-board\n"
    assert request_.ssh_key
    assert request_.host_key
    assert _debug(path, "cat /root/.ssh/authorized_keys") == request_.ssh_key.read_text()
    assert _debug(path, "cat /etc/ssh/ssh_host_ed25519_key") == request_.host_key.read_text()
    assert image.description.host_key
    assert image.description.host_key in _debug(path, "cat /etc/ssh/ssh_host_ed25519_key.pub")
    for private in ("/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/authorized_keys"):
        assert re.search(r"Mode:\s+0600", _debug(path, f"stat {private}"))
    assert re.search(r"Mode:\s+0700", _debug(path, "stat /root/.ssh"))
    assert _debug(path, "cat /etc/npu-bsp/allowed-signers") == sign.trust_root()
    assert "PasswordAuthentication no" in _debug(path, "cat /etc/ssh/sshd_config.d/npu-bsp.conf")
    assert "manifest.json" in _debug(path, f"ls /var/lib/npu-bsp/generations/{generation}")
    # As the virtual boards' disks: files of a generation carry its time, and others' owners are kept.
    module = f"/var/lib/npu-bsp/generations/{generation}/modules/6.12.1-test/modules.dep"
    assert re.search(r"mtime: 0x386d4380\b", _debug(path, f"stat {module}"))
    assert re.search(r"User:\s+107", _debug(path, "stat /var/lib/other"))


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes(
    image: Image, request_: ImageRequest, tmp_path: Path
) -> None:
    time.sleep(1.1)  # times on the disk count in seconds
    old = os.umask(0o077)
    try:
        again = build_image(replace(request_, output=tmp_path / "b.img"))
    finally:
        os.umask(old)
    assert again.description.sha256 == image.description.sha256
    other = build_image(replace(request_, hostname="another", output=tmp_path / "c.img"))
    assert other.description.sha256 != image.description.sha256
    assert other.description.cmdline != image.description.cmdline


@pytest.mark.slow
def test_an_image_that_is_there_is_kept_only_if_every_block_is_as_it_was_made(
    image: Image, request_: ImageRequest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "k.img"
    for source in (image.path, *image.path.parent.glob("a.img.*")):
        run_tool("cp", "--sparse=always", source, tmp_path / source.name.replace("a.img", "k.img"))
    request = replace(request_, output=output)
    inode = output.stat().st_ino
    kept = build_image(request)
    assert kept.kept
    assert kept.description == image.description
    assert output.stat().st_ino == inode
    root_bytes = image.description.partitions[1]["start_bytes"]
    in_a_file = bmap.read(bmap.map_file(output)).ranges[-1].last * bmap.BLOCK_BYTES
    in_a_hole = output.stat().st_size - 64 * bmap.BLOCK_BYTES
    assert root_bytes < in_a_file
    for offset in (in_a_file, in_a_hole):
        with output.open("r+b") as file:
            file.seek(offset)
            file.write(b"damage")
        again = build_image(request)
        assert not again.kept
        assert "was changed since it was built" in capfd.readouterr().err
        assert again.description == image.description
        run_tool("cmp", image.path, output)
    bmap.map_file(output).unlink()
    assert not build_image(request).kept
    assert not build_image(replace(request, hostname="another")).kept


def test_the_block_map_holds_all_that_is_not_zero_and_the_journal(image: Image) -> None:
    found = bmap.read(bmap.map_file(image.path))
    assert found.mapped_bytes == image.description.mapped_bytes
    mapped = {n for each in found.ranges for n in range(each.first, each.last + 1)}
    with image.path.open("rb") as file:
        for first, last in ((each.first, each.last) for each in bmap.stored(image.path).ranges):
            for block in range(first, last + 1):
                file.seek(block * bmap.BLOCK_BYTES)
                if any(file.read(bmap.BLOCK_BYTES)):
                    assert block in mapped
    assert found.mapped_bytes > 16 << 20  # zeros of the journal


@pytest.mark.slow
def test_the_mapped_blocks_make_a_whole_disk_of_one_that_is_full_of_old_data(
    request_: ImageRequest, tmp_path: Path
) -> None:
    """What is left out may hold anything, also below files that have zeros in them."""
    zeros = b"A" * 5000 + bytes(3 << 20) + b"Z" * 5000
    bundle = make_bundle(tmp_path / "zeros", kernel=zeros, userspace={"lib/zeros": zeros})
    sign.sign(bundle)
    made = build_image(replace(request_, bundle=bundle.path, output=tmp_path / "a.img"))
    found = bmap.read(bmap.map_file(made.path))
    flashed = tmp_path / "flashed.img"
    with made.path.open("rb") as source, flashed.open("wb") as target:
        for _ in range(made.description.size_bytes >> 20):
            target.write(b"\xaa" * (1 << 20))
        for start, end in map(found.span, found.ranges):
            source.seek(start)
            target.seek(start)
            target.write(source.read(end - start))
    assert run_tool("sfdisk", "--dump", flashed).splitlines()[1:] == [
        line.replace(str(made.path), str(flashed))
        for line in run_tool("sfdisk", "--dump", made.path).splitlines()[1:]
    ]
    root = made.description.partitions[1]["start_bytes"]
    run_tool("e2fsck", "-f", "-n", f"{flashed}?offset={root}")
    for image_file in (made.path, flashed):
        files = tmp_path / f"files-of-{image_file.name}"
        (files / "fat").mkdir(parents=True)
        at = f"{image_file}@@{FIRST_PARTITION_BYTES}"
        run_tool("mcopy", "-i", at, "-s", "-Q", "::*", files / "fat")
        run_tool("debugfs", "-R", f"rdump / {files}", f"{image_file}?offset={root}")
    run_tool(
        "diff",
        "-r",
        "--no-dereference",
        tmp_path / "files-of-a.img",
        tmp_path / "files-of-flashed.img",
    )
    assert len([*(tmp_path / "files-of-flashed.img").rglob("*")]) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vim3", "imx8mp-evk"])
def test_the_bootloader_lies_where_the_soc_wants_it(
    name: str, request_: ImageRequest, tmp_path: Path
) -> None:
    board = load_board(name)
    bundle: Bundle = make_bundle(
        tmp_path / "bundle", compatible=board.compatible[0], board=board, cmdline=None
    )
    sign.sign(bundle)
    loader = tmp_path / "loader.bin"
    content = os.urandom(300_000)
    loader.write_bytes(content)
    made = build_image(
        replace(
            request_, board=board, bundle=bundle.path, bootloader=loader, output=tmp_path / "a.img"
        )
    )
    with made.path.open("rb") as file:
        head = file.read(2 << 20)
    if name == "vim3":  # shared with the MBR: its code area, and all from sector 1 on
        assert head[:440] == content[:440]
        assert head[512:300_000] == content[512:]
        assert made.description.table == "dos"
    else:
        assert head[32768 : 32768 + 300_000] == content
        assert made.description.table == "gpt"
    table = run_tool("sfdisk", "--dump", made.path)
    assert f"start=       {FIRST_PARTITION_BYTES // 512}" in table
    assert "bootable" in table or "LegacyBIOSBootable" in table
    assert "console=tty" in made.description.cmdline
    without = build_image(
        replace(request_, board=board, bundle=bundle.path, output=tmp_path / "b.img"), dry_run=True
    )
    assert not (tmp_path / "b.img").exists()
    assert not without.description.bootloader["included"]
    assert without.description.bootloader["needs"]


def test_what_cannot_be_built_is_refused(request_: ImageRequest, tmp_path: Path) -> None:
    assert request_.ssh_key
    loader = tmp_path / "loader.bin"
    loader.write_bytes(bytes(17 << 20))
    cut = tmp_path / "cut.pub"
    cut.write_text(request_.ssh_key.read_text()[:60] + "\n")
    for changes, problem in (
        ({"ssh_key": cut}, "expected public SSH keys, one per line, found 'ssh-"),
        ({"ssh_key": request_.ssh_key.with_suffix("")}, "private key"),
        ({"ssh_key": tmp_path / "none.pub"}, "cannot read the SSH key"),
        ({"host_key": request_.ssh_key}, "is a public key; the board gets the private one"),
        ({"host_key": loader}, r"not a private SSH key without a passphrase: [^\[]"),
        ({"size": "99999999T"}, "2 TiB at most"),
        ({"packages": ("nano", "a;b")}, "'a;b' is not a name of a Debian package"),
        ({"hostname": "-x"}, "is not a host name"),
        ({"size": "big"}, "is not a size"),
        ({"size": "512M"}, "at least"),
        ({"distribution": "sid"}, "there are no images of"),
        ({"bootloader": loader}, "no place for a bootloader"),
        ({"board": load_board("imx8mp-evk"), "bootloader": loader}, "does not fit"),
        ({"board": load_board("vim3")}, "is a bundle for virtual"),
        ({"output": tmp_path}, "is a folder"),
        ({"force_enable": True}, "--bundle has its own already"),
    ):
        with pytest.raises(UserError, match=problem):
            build_image(replace(request_, **changes), dry_run=True)
    assert request_.bundle
    damaged = tmp_path / "bundle"
    shutil.copytree(request_.bundle, damaged, symlinks=True)
    dtb = damaged / "boot/board.dtb"
    dtb.write_bytes(dtb.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="not as the manifest says"):
        build_image(replace(request_, bundle=damaged), dry_run=True)
    (damaged / sign.SIGNATURE).unlink()
    with pytest.raises(UserError, match="not signed"):
        build_image(replace(request_, bundle=damaged), dry_run=True)
