# SPDX-License-Identifier: MIT
"""Initial RAM disks: the order of modules, and what is in them, byte for byte."""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.kernel.module_name import module_name
from bsp.kernel.packaged import PrebuiltKernel
from images.disk.initrd import PROBE_INIT, ROOT_INIT, build_initrd, load_order

DEP = """\
kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/fs/jbd2/jbd2.ko.xz:
kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz
kernel/drivers/nvmem/nvmem-imx-ocotp.ko.xz:
kernel/drivers/mmc/host/sdhci.ko.xz:
kernel/drivers/mmc/host/sdhci-pltfm.ko.xz: kernel/drivers/mmc/host/sdhci.ko.xz
kernel/drivers/mmc/host/sdhci-esdhc-imx.ko.xz: kernel/drivers/mmc/host/sdhci-pltfm.ko.xz \
kernel/drivers/mmc/host/sdhci.ko.xz
"""


def make_kernel(folder: Path) -> PrebuiltKernel:
    """A kernel of a few bytes, laid out as the distribution's."""
    modules = folder / "lib/modules/6.12.0-test"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(DEP)
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    for line in DEP.splitlines():
        file = modules / line.partition(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(f"module {file.name}".encode()))
    image = folder / "vmlinuz"
    image.write_bytes(b"kernel")
    return PrebuiltKernel(
        series="6.12",
        release=modules.name,
        image=image,
        modules=modules,
        dtbs=folder,
        config=folder / "config",
        package="linux-image-test",
        version="1",
    )


@pytest.fixture
def kernel(tmp_path: Path) -> PrebuiltKernel:
    return make_kernel(tmp_path)


def test_dependencies_come_first_and_once(kernel: PrebuiltKernel) -> None:
    order = [
        module_name(path)
        for path in load_order(kernel.modules, ["ext4", "sdhci-esdhc-imx", "jbd2"])
    ]
    assert order == ["jbd2", "mbcache", "crc16", "ext4", "sdhci", "sdhci_pltfm", "sdhci_esdhc_imx"]


def test_built_in_modules_are_left_out_and_dashes_are_underscores(kernel: PrebuiltKernel) -> None:
    assert load_order(kernel.modules, ["virtio-pci"]) == []
    assert load_order(kernel.modules, ["nvmem_imx_ocotp"]) == load_order(
        kernel.modules, ["nvmem-imx-ocotp"]
    )


def test_an_optional_module_is_taken_where_there_is_one(kernel: PrebuiltKernel) -> None:
    assert load_order(kernel.modules, ["crc32c_generic?", "crc16?"]) == ["kernel/lib/crc16.ko.xz"]


def test_an_unknown_module_is_refused_with_the_nearest(kernel: PrebuiltKernel) -> None:
    with pytest.raises(UserError, match=r"no module 'ext3'; did you mean 'ext4'"):
        load_order(kernel.modules, ["ext3"])


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=8), st.data())
def test_order_respects_every_dependency(
    tmp_path_factory: pytest.TempPathFactory, direct: list[set[int]], data: st.DataObject
) -> None:
    # Module n depends on some before it; modules.dep lists all that it needs, last loaded first.
    needs: list[list[int]] = []
    for number, some in enumerate(direct):
        closure: list[int] = []
        for other in sorted(each for each in some if each < number):
            for each in [*reversed(needs[other]), other]:
                if each not in closure:
                    closure.append(each)
        needs.append(closure[::-1])
    folder = tmp_path_factory.mktemp("modules")
    lines = [
        f"k/m{number}.ko: {' '.join(f'k/m{each}.ko' for each in needed)}".rstrip()
        for number, needed in enumerate(needs)
    ]
    (folder / "modules.dep").write_text("\n".join(lines) + "\n")
    (folder / "modules.builtin").write_text("")
    wanted = data.draw(st.lists(st.sampled_from(range(len(needs)))))
    order = [
        int(module_name(path)[1:])
        for path in load_order(folder, [f"m{number}" for number in wanted])
    ]
    assert len(order) == len(set(order))
    assert set(wanted) <= set(order)
    for position, number in enumerate(order):
        assert set(needs[number]) <= set(order[:position])


@pytest.mark.network
@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_contents_are_right_and_reproducible(kernel: PrebuiltKernel, tmp_path: Path) -> None:
    one = build_initrd(kernel, ["ext4", "virtio_pci"], init=ROOT_INIT, target=tmp_path / "one")
    before = os.umask(0o077)
    try:
        two = build_initrd(kernel, ["ext4", "virtio_pci"], init=ROOT_INIT, target=tmp_path / "two")
    finally:
        os.umask(before)
    assert one.read_bytes() == two.read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    with one.open("rb") as file:
        subprocess.run(["cpio", "-i", "--quiet"], cwd=out, stdin=file, check=True)
    assert (out / "init").read_bytes() == ROOT_INIT.read_bytes()
    assert (out / "init").stat().st_mode & 0o111
    assert (out / "bin/sh").is_symlink()
    assert (out / "bin/busybox").read_bytes()[:4] == b"\x7fELF"
    names = sorted(path.name for path in (out / "modules").iterdir())
    assert names == ["000-jbd2.ko", "001-mbcache.ko", "002-crc16.ko", "003-ext4.ko"]
    assert (out / "modules/003-ext4.ko").read_bytes() == b"module ext4.ko.xz"


@pytest.mark.parametrize("script", [ROOT_INIT, PROBE_INIT], ids=lambda path: path.name)
def test_scripts_are_valid_shell(script: Path) -> None:
    subprocess.run(["sh", "-n", script], check=True)
