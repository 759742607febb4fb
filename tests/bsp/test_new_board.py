# SPDX-License-Identifier: MIT
"""new-board: profiles that are whole, found, and honest about what they lack."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp import profile_source as sources
from bsp.base.errors import UserError
from bsp.board_record import all_boards
from bsp.catalog import (
    BOARDS_DIR,
    board_file,
    board_names,
    load_board,
    read_board,
    user_boards_dir,
)
from bsp.dts.build import build_dts
from bsp.identify import identify
from bsp.new_board import new_board
from bsp.profile_check import check_profile
from bsp.profile_source import Source, source_of_dtb
from bsp.qemu.base_dtb import base_dtb

from ..support import local_sshd
from ..support.fake_boot import compile_dtb
from ..support.kernel_tree import make_kernel

pytestmark = pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")

NPU = """\
    soc@0 {{
        #address-cells = <1>; #size-cells = <1>; ranges;
        intc {{ phandle = <9>; #interrupt-cells = <3>; }};
        bus@30000000 {{ gpc@303a0000 {{ pgc {{ power-domain@4 {{ }}; }}; }}; }};
        npu@38500000 {{ compatible = "vivante,gc"; clocks = <0 0 0>;
            clock-names = "core", "bus", "reg";
            reg = <0x38500000 0x200000>; interrupts = <0 13 4>; interrupt-parent = <9>;
            {power} status = "disabled"; }};
    }};"""
VENDOR = 'soc@0 { vipsi@38500000 { compatible = "fsl,imx8-vipsi"; }; };'


def dtb_of(folder: Path, compatible: str, body: str = "", name: str = "it.dtb") -> Path:
    source = f'/dts-v1/;\n/ {{ model = "Acme \\"One\\""; compatible = {compatible};\n{body}\n}};'
    return compile_dtb(source, folder / name)


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's profiles, away from those of whoever runs the tests."""
    monkeypatch.setenv("NPU_BSP_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(tmp_path / "inventory.toml"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path / "state"))
    yield user_boards_dir()
    read_board.cache_clear()


@pytest.fixture
def kernel(tmp_path: Path) -> str:
    linux = make_kernel(tmp_path / "linux")
    (linux / "arch/arm64/boot/dts/freescale").mkdir()
    return f"path:{linux}"


def test_a_board_that_no_kernel_knows(tmp_path: Path, own_profiles: Path, kernel: str) -> None:
    body = NPU.format(power="power-domains = <0>;")
    dtb = dtb_of(tmp_path, '"acme,one", "fsl,imx8mp"', body)
    made = new_board("acme-one", source_of_dtb(dtb), kernel=kernel)
    assert made.file == own_profiles / "acme-one.toml"
    board = load_board("acme-one")
    assert "acme-one" in board_names()
    assert (board.soc, board.dts, board.title) == ("imx8mp", None, 'Acme "One"')
    assert board.compatible == ("acme,one", "fsl,imx8mp")
    # Its own device tree lies beside it, and is what it is built from.
    assert board.dtb == str(own_profiles / "acme-one.dtb")
    # An i.MX 8M Plus with its NPU off: a bootloader may know why, so that it is asked.
    assert any("U-Boot probably did" in note for note in made.notes)
    base, out = base_dtb(board), tmp_path / "out"
    with pytest.raises(UserError, match="has the NPU switched off"):
        build_dts(board, kernel=None, base_dtb=base, target_dir=out)
    built = build_dts(board, kernel=None, base_dtb=base, target_dir=out, force_enable=True)
    assert [(each.property, each.after) for each in built.changes] == [("status", "okay")]
    # What is missing is said, and goes away when it is filled in.
    assert [each.key for each in made.missing] == ["boot.fat_mount"]
    assert [each.key for each in check_profile("acme-one").missing] == ["boot.fat_mount"]
    lines = made.file.read_text().splitlines()
    made.file.write_text("\n".join(line for line in lines if "MISSING" not in line))
    assert check_profile("acme-one").missing == ()
    assert check_profile(str(made.file)).missing == ()


def test_a_tree_that_lies_where_the_profile_goes(tmp_path: Path, kernel: str) -> None:
    dtb = dtb_of(tmp_path, '"acme,one", "fsl,imx8mp"', name="acme-one.dtb")
    before = dtb.read_bytes()
    made = new_board("acme-one", source_of_dtb(dtb), kernel=kernel, output=str(tmp_path))
    assert made.board.dtb == str(dtb)
    assert dtb.read_bytes() == before
    other = dtb_of(tmp_path, '"acme,two", "fsl,imx8mp"')
    dtb.rename(tmp_path / "acme-two.dtb")
    with pytest.raises(UserError, match="exists already, and is another device tree"):
        new_board("acme-two", source_of_dtb(other), kernel=kernel, output=str(tmp_path))
    assert not (tmp_path / "acme-two.toml").exists()


def test_letters_that_files_have_to_escape(tmp_path: Path, own_profiles: Path, kernel: str) -> None:
    body = NPU.format(power="power-domains = <0>;").replace(
        "soc@0", 'model = "M\\x7f\\xc3\\xbc"; soc@0'
    )
    source = f'/dts-v1/;\n/ {{ compatible = "acme,\\"o\\\\ne", "fsl,imx8mp"; {body} }};'
    dtb = compile_dtb(source, tmp_path / "it.dtb")
    made = new_board("acme-one", source_of_dtb(dtb), kernel=kernel)
    board = load_board("acme-one")
    assert (board.title, board.compatible[0]) == ("M\x7fü", 'acme,"o\\ne')
    built = build_dts(
        board, kernel=None, base_dtb=dtb, target_dir=tmp_path / "out", force_enable=True
    )
    assert len(built.changes) == 1
    assert made.file.is_file()


def test_a_board_that_the_kernel_knows(
    tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(kernel.removeprefix("path:")) / "arch/arm64/boot/dts/amlogic"
    source = (folder / "meson-g12b-a311d-khadas-vim3.dts").read_text()
    (folder / "acme.dts").write_text(source.replace("khadas,vim3", "acme,two"))
    root = 'compatible = "acme,two", "amlogic,a311d", "amlogic,g12b";'
    overlay = f'/dts-v1/; /plugin/; / {{ {root} }}; &uart {{ status = "okay"; }};'
    (folder / "a-first.dts").write_text(overlay)
    (folder / "a-broken.dts").write_text('/dts-v1/; / { compatible = "acme,two"; broken };')
    (folder / "a-gone.dts").symlink_to("nowhere.dts")
    dtb = dtb_of(tmp_path, '"acme,two", "amlogic,a311d", "amlogic,g12b"')
    made = new_board("acme-two", source_of_dtb(dtb), kernel=kernel, output=str(tmp_path / "here"))
    assert made.board.dts == "acme"
    assert made.board.dtb is None
    assert made.board.expect == {"6.12": "enable"}
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["acme-two.toml"]
    assert load_board(str(tmp_path / "here/acme-two.toml")).dts == "acme"


def test_ones_own_profile_wins_over_a_shipped_one(own_profiles: Path) -> None:
    own_profiles.mkdir(parents=True)
    text = board_file("vim3").read_text().replace('name = "vim3"', 'name = "mine"')
    (own_profiles / "mine.toml").write_text(text)
    assert identify(["khadas,vim3"], what="h").name == "mine"
    assert not any(row["problem"] for row in all_boards())
    (own_profiles / "other.toml").write_text(text.replace('"mine"', '"other"'))
    problems = {row["name"]: row["problem"] for row in all_boards() if row["problem"]}
    assert sorted(problems) == ["mine", "other"]
    assert "mine and other both claim 'khadas,vim3'" in (problems["mine"] or "")


def test_ones_own_profile_of_a_shipped_name_is_said_to_be_passed_over(
    own_profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_profiles.mkdir(parents=True)
    own = own_profiles / "vim3.toml"
    own.write_text((BOARDS_DIR / "vim3.toml").read_text().replace("Khadas VIM3", "My VIM3"))
    assert load_board("radxa-zero2").name == "radxa-zero2"
    assert capsys.readouterr().err == ""
    assert load_board("vim3").title == "Khadas VIM3"
    assert f"{own} is not read" in capsys.readouterr().err
    assert load_board(str(own)).title == "My VIM3"


def test_like_another_board() -> None:
    made = new_board("my-vim", Source(""), like="vim3")
    assert {each.key for each in made.missing} == {"dts", "compatible"}
    assert load_board("my-vim").boot == load_board("vim3").boot


def test_a_vendors_tree_is_recognised(tmp_path: Path, kernel: str) -> None:
    dtb = dtb_of(tmp_path, '"acme,three", "fsl,imx8mp"', VENDOR)
    made = new_board("acme-three", source_of_dtb(dtb), kernel=kernel)
    assert "galcore" in made.notes[0]
    assert "dtb" in [each.key for each in made.missing]
    weak = dtb_of(tmp_path, '"acme,four", "fsl,imx8mp"', NPU.format(power=""), "weak.dtb")
    made = new_board("acme-four", source_of_dtb(weak), kernel=kernel)
    assert any("has no power-domains" in each.why for each in made.missing)


def test_a_tree_of_another_chip_is_not_like_the_board(
    tmp_path: Path, own_profiles: Path, kernel: str
) -> None:
    """Allwinner's kernels describe the NPU of the A733 as that of the T527, at another place."""
    npu = """#address-cells = <2>; #size-cells = <2>;
        npu@{0} {{ compatible = "allwinner,npu"; reg = <0 0x{0} 0 0x1000>; }};"""
    other = dtb_of(tmp_path, '"acme,a733", "arm,sun60iw2p1"', npu.format("3600000"))
    with pytest.raises(UserError, match="of another chip than Allwinner") as caught:
        new_board("acme", source_of_dtb(other), like="orangepi-4a", kernel=kernel)
    assert "/npu@3600000 (allwinner,npu), not at 7122000" in caught.value.message
    assert not own_profiles.exists()
    same = dtb_of(tmp_path, '"acme,t527", "arm,sun55iw3p1"', npu.format("7122000"))
    made = new_board("acme", source_of_dtb(same), kernel=kernel)
    assert made.board.soc == "a523"


def test_bad_input_leaves_nothing(tmp_path: Path, own_profiles: Path, kernel: str) -> None:
    good = dtb_of(tmp_path, '"acme,one", "fsl,imx8mp"')
    cut = tmp_path / "cut.dtb"
    cut.write_bytes(good.read_bytes()[:-30])
    (tmp_path / "text.dtb").write_text("a device tree, I promise")
    other = dtb_of(tmp_path, '"acme,five", "acme,chip"', name="other.dtb")
    s922x = dtb_of(tmp_path, '"acme,n2", "amlogic,s922x", "amlogic,g12b"', name="s922x.dtb")
    vim3 = dtb_of(tmp_path, '"khadas,vim3", "amlogic,a311d"', name="vim3.dtb")
    for name, file, like, why in (
        ("vim3", good, "", "there is a board vim3 already"),
        ("Acme One", good, "", "not a name for a board"),
        ("../acme", good, "", "not a name for a board"),
        ("acme", cut, "", "truncated"),
        ("acme", tmp_path / "text.dtb", "", "not a device tree blob"),
        ("acme", tmp_path / "none.dtb", "", "cannot read"),
        ("acme", other, "", "no SoC with an NPU"),
        ("acme", s922x, "", "no SoC with an NPU"),
        ("acme", vim3, "", "which has a profile: vim3"),
        ("acme", good, "vim3", "has the SoC imx8mp, the board vim3 has a311d"),
        ("acme", good, "vim33", "unknown board 'vim33'"),
    ):
        with pytest.raises(UserError, match=why):
            new_board(name, source_of_dtb(file), like=like, kernel=kernel)
    with pytest.raises(UserError, match="nothing to fill a profile in from"):
        new_board("acme", Source(""))
    with pytest.raises(UserError, match=r"expected acme\.toml"):
        new_board("acme", source_of_dtb(good), output=str(tmp_path / "x.toml"), kernel=kernel)
    assert not own_profiles.exists()
    assert new_board("acme", source_of_dtb(good), kernel=kernel, dry_run=True).dry_run
    assert not own_profiles.exists()
    new_board("acme", source_of_dtb(good), kernel=kernel)
    assert sorted(path.name for path in own_profiles.iterdir()) == ["acme.dtb", "acme.toml"]
    with pytest.raises(UserError, match="there is a board acme already"):
        new_board("acme", source_of_dtb(good), kernel=kernel)


def test_what_a_running_board_tells() -> None:
    mounts = (
        "/dev/mmcblk1p2 / ext4 rw 0 0\n/dev/mmcblk1p1 /boot/efi vfat rw 0 0\n"
        "/dev/sda1 /media/stick vfat rw 0 0\nproc /proc proc rw 0 0\n"
    )
    assert sources.parse_fat_mounts(mounts) == ("/boot/efi", "/media/stick")
    loaded = (
        "snd 1 0 - Live 0\next4 1 1 - Live 0\nmmc_block 1 1 - Live 0\nmeson_gx_mmc 1 0 - Live 0\n"
    )
    assert sources.parse_root_modules(mounts, loaded) == ("meson_gx_mmc", "mmc_block", "ext4")
    assert sources.parse_root_modules("", "") == ()


@pytest.mark.skipif(local_sshd.find_sshd() is None, reason="sshd is not installed (openssh-server)")
def test_from_a_running_board(tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    for name in ("proc", "sys/firmware"):
        (root / name).mkdir(parents=True)
    dtb = dtb_of(root, '"acme,six", "fsl,imx8mp"', NPU.format(power="power-domains = <0>;"))
    dtb.rename(root / "sys/firmware/fdt")
    (root / "proc/mounts").write_text("a / ext4 rw 0 0\nb /boot vfat rw 0 0\n")
    (root / "proc/modules").write_text("ext4 1 1 - Live 0\nsdhci_esdhc_imx 1 1 - Live 0\n")
    server = local_sshd.start(tmp_path / "ssh")
    try:
        monkeypatch.setattr("bsp.remote.inventory.resolve", lambda _: server.host)
        source = sources.source_of_host("it", root=str(root))
    finally:
        server.stop()
    made = new_board("acme-six", source, kernel=kernel)
    assert made.missing == ()
    assert made.board.boot
    assert made.board.boot.fat_mount == "/boot"
    assert made.board.boot.initrd_modules == ("sdhci_esdhc_imx", "ext4")
