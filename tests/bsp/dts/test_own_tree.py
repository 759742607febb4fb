# SPDX-License-Identifier: MIT
"""A profile with a device tree of its own: board, boards and build-dts read it, and say the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bsp import describe
from bsp.base.errors import UserError
from bsp.board_record import all_boards, one_board
from bsp.catalog import board_file, load_board, npu_of, read_board
from bsp.dts.build import DtsResult, build_dts
from bsp.dts.inputs.own_tree import own_tree
from bsp.profile_check import check_profile
from bsp.qemu.base_dtb import base_dtb

from ...support.fake_boot import compile_dtb
from ...support.kernel_tree import make_kernel

pytestmark = [
    pytest.mark.usefixtures("own_profiles"),
    pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed"),
]

NODE = """soc@0 {{ #address-cells = <1>; #size-cells = <1>; ranges;
    intc {{ phandle = <9>; #interrupt-cells = <3>; }};
    bus@30000000 {{ gpc@303a0000 {{ pgc {{ power-domain@4 {{ }}; }}; }}; }};
    npu@38500000 {{ compatible = "vivante,gc"; clocks = <0 0 0>;
        clock-names = "core", "bus", "reg";
        reg = <0x38500000 0x200000>; interrupts = <0 13 4>; interrupt-parent = <9>; {more} }}; }};"""
POWER = "power-domains = <0>;"
VENDOR = 'vipsi@38500000 { compatible = "fsl,imx8-vipsi"; };'
TREES = {  # what is in the tree, what that is, and the level of Linux 6.12
    "on": (NODE.format(more=POWER), "works", "works"),
    "off": (NODE.format(more=f'{POWER} status = "disabled";'), "switched off", "works"),
    "vendors": (VENDOR, "vendor tree", "vendor tree"),
    "both": (f"{NODE.format(more=POWER)} {VENDOR}", "two owners", "two owners"),
    "bare": ("", "no node", "no node"),
    "weak": (NODE.format(more=""), "supply missing", "no supply"),
}


def profile(folder: Path, body: str, *, compatible: str = "acme,one", **lines: str) -> Path:
    """Write the profile ``acme`` and its tree; return the tree."""
    said = f'compatible = "{compatible}", "fsl,imx8mp"; model = "Acme One";'
    dtb = compile_dtb(f"/dts-v1/;\n/ {{ {said}\n{body}\n}};", folder / "acme.dtb")
    keys = {
        "format": "1",
        "name": '"acme"',
        "title": '"Acme One"',
        "soc": '"imx8mp"',
        "dtb": '"acme.dtb"',
        "compatible": '["acme,one", "fsl,imx8mp"]',
        "kernel": '"6.12"',
        **lines,
    }
    text = "\n".join(f"{key} = {value}" for key, value in keys.items() if value)
    (folder / "acme.toml").write_text(f"{text}\n")
    read_board.cache_clear()
    return dtb


@pytest.mark.parametrize("name", TREES)
def test_the_page_the_table_and_the_build_say_the_same(
    name: str, own_profiles: Path, tmp_path: Path
) -> None:
    body, state, level = TREES[name]
    dtb = profile(own_profiles, body)
    board = load_board("acme")
    document = one_board("acme")
    assert (document["dtb"], document["dtb_state"]) == (str(dtb), state)
    assert document["kernels"]["6.12"] == document["kernels"]["7.3"] == level
    text = " ".join(describe.board_text("acme").split())
    assert "none in the kernel, but acme.dtb beside the profile" in text
    assert "comes from QEMU" not in text
    assert max(len(line) for line in describe.boards_table([document]).splitlines()) <= 80
    npu = npu_of(board)
    assert npu

    def build(kernel: str | None, *, force: bool = False) -> DtsResult:
        return build_dts(
            board,
            kernel=kernel,
            base_dtb=base_dtb(board),
            target_dir=tmp_path / "out",
            force_enable=force,
        )

    for kernel in (None, "6.12"):
        if state == "works":
            assert build(kernel).changes == ()
            continue
        if state == "switched off":
            with pytest.raises(UserError, match="U-Boot probably did"):
                build(kernel)
            assert build(kernel, force=True).changes
            continue
        with pytest.raises(UserError) as caught:
            build(kernel)
        # Nothing that was done already: no kernel makes this tree another one.
        assert "--kernel" not in caught.value.hint
        assert str(dtb) in caught.value.hint or state == "two owners"
    if state in ("switched off", "works"):
        assert (document["dtb_problem"] is None) == (state == "works")
        assert ("asks before it switches it on" in text) == (state == "switched off")
        assert document["kernels"]["6.1"] == "no driver"
        assert "6.12 knows this NPU" in text
    else:
        own = own_tree(board, npu)
        assert own
        assert document["dtb_problem"] == own.why
        assert own.why.split(":")[0] in text
        assert " ".join(own.hint.split()).replace("-", "").replace(" ", "") in text.replace(
            "-", ""
        ).replace(" ", "")
        assert "works as it is" not in text
        assert "switches it on" not in text


def test_what_a_tree_says_counts_more_than_what_the_profile_expects(own_profiles: Path) -> None:
    profile(own_profiles, VENDOR)
    with (own_profiles / "acme.toml").open("a") as file:
        file.write('[expect]\n"6.12" = "works"\n')
    assert one_board("acme")["kernels"]["6.12"] == "vendor tree"


def test_a_tree_that_cannot_be_used_does_not_stop_the_list(own_profiles: Path) -> None:
    dtb = profile(own_profiles, "", compatible="somebody,else")
    assert "of another board" in (one_board("acme")["dtb_problem"] or "")
    dtb.write_bytes(b"no tree")
    row = one_board("acme")
    assert (row["dtb_state"], row["kernels"]["6.12"]) == ("no tree", "no tree")
    assert "not a device tree blob" in (row["dtb_problem"] or "")
    dtb.unlink()
    rows = all_boards()
    acme = next(row for row in rows if row["name"] == "acme")
    assert "cannot read" in (acme["dtb_problem"] or "")
    assert "no tree" in describe.boards_table(rows)
    assert "cannot read" in " ".join(describe.board_text("acme").split())


def test_a_tree_of_another_board_beside_a_profile_has_a_hint_that_can_be_followed(
    own_profiles: Path,
) -> None:
    profile(own_profiles, NODE.format(more=POWER), compatible="acme,two")
    found = next(each for each in check_profile("acme").missing if each.key == "dtb")
    assert "is of another board than acme" in found.why
    assert "put this board's tree in place of" in found.next
    assert "--board" not in found.next


def test_a_profile_without_any_tree_says_so(own_profiles: Path, tmp_path: Path) -> None:
    profile(own_profiles, "", dtb="")
    board = load_board("acme")
    assert "names neither dts nor dtb" in " ".join(describe.board_text("acme").split())
    with pytest.raises(UserError, match=r"neither a source in the kernel \(dts\) nor a file"):
        base_dtb(board)
    assert "comes from QEMU" in describe.board_text("virtual")
    assert board_file("acme").is_file()


def test_the_kernel_that_a_tree_is_to_run_with_may_be_a_source(
    own_profiles: Path, tmp_path: Path
) -> None:
    """It is looked into, as for a tree that is built from it."""
    profile(own_profiles, TREES["on"][0])
    board = load_board("acme")
    linux = make_kernel(tmp_path / "linux", driver=False)
    made = build_dts(
        board, kernel=f"path:{linux}", base_dtb=base_dtb(board), target_dir=tmp_path / "out"
    )
    assert not made.npu.supported
    assert "of this kernel will not work" in made.npu.why
    with pytest.raises(UserError, match=r"unknown kernel '6\.13'"):
        build_dts(board, kernel="6.13", base_dtb=base_dtb(board), target_dir=tmp_path / "out")
