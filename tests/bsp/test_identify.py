# SPDX-License-Identifier: MIT
"""Which board is this? One answer for every command, and none where the strings prove nothing."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.catalog import board_file, board_names, load_board, load_soc, names_no_board, read_board
from bsp.dts.build import build_dts
from bsp.dts.compiler.compile import compiled
from bsp.dts.inputs.identity import check_identity
from bsp.dts.tree import read_tree
from bsp.identify import Machine, find, identify, is_chip_makers, machine_of
from bsp.kernel.source import kernel_tree
from bsp.new_board import new_board
from bsp.profile import Board, BoardIdentity
from bsp.profile_check import check_profile
from bsp.profile_source import source_of_dtb
from tests.support import local_sshd
from tests.support.fake_boot import compile_dtb
from tests.support.kernel_tree import make_kernel
from userspace.npu.doctor import doctor
from userspace.npu.doctor.facts import Facts, parse_facts

pytestmark = pytest.mark.usefixtures("own_profiles")

EVK = ("fsl,imx8mp-evk", "fsl,imx8mp")
EVK_MODEL = "NXP i.MX8MPlus EVK board"
REFERENCE_BOARDS = [name for name in board_names() if load_board(name).identity.models]


def own(folder: Path, name: str, *, of: str = "vim3", **changes: str) -> Board:
    """A profile of the user's own: another one's text with a name of its own and changed lines."""
    lines = board_file(of).read_text().splitlines()
    for key, line in {"name": f'name = "{name}"', **changes}.items():
        at = next(at for at, each in enumerate(lines) if each.startswith(f"{key} ="))
        lines[at] = line
    (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
    return load_board(name)


def doctors_facts(compatible: tuple[str, ...], model: str = "") -> Facts:
    text = "\n".join(
        ["@@section compatible", *compatible, "@@section model", model, "@@section end"]
    )
    return parse_facts(text + "\n")


def doctors_answer(compatible: tuple[str, ...]) -> str | None:
    board = doctor.judge(doctors_facts(compatible), host="desk")["board"]
    return None if board is None else str(board)


# --- the rule


def test_the_most_specific_string_decides_and_then_who_wrote_the_profile(
    own_profiles: Path,
) -> None:
    assert identify(["khadas,vim3", "amlogic,a311d"], what="h").name == "vim3"
    own(own_profiles, "mine")
    assert identify(["khadas,vim3", "amlogic,a311d"], what="h").name == "mine"
    assert doctors_answer(("khadas,vim3", "amlogic,a311d")) == "mine"
    # A string before it is of another board, which is compatible with this one.
    match = find(Machine(("vendor,carrier", "khadas,vim3", "amlogic,a311d")))
    assert (match.board and match.board.name, match.place) == ("mine", 1)
    assert doctors_answer(("vendor,carrier", "khadas,vim3")) == "mine"
    # The user's own profile does not win over a more specific string.
    own(own_profiles, "my-virtual", of="virtual")
    machine = ("npu-bsp,virtual-a311d", "linux,dummy-virt")
    assert identify(machine, what="h").name == doctors_answer(machine) == "virtual-a311d"
    assert identify(machine[1:], what="h").name == "my-virtual"


def test_a_baseboard_that_keeps_another_ones_string() -> None:
    """Waveshare's CM4-IO-BASE-B, as Armbian's kernel describes it, would get the tree of Banana Pi's."""
    strings = ("bananapi,bpi-cm4io", "bananapi,bpi-cm4", "amlogic,a311d", "amlogic,g12b")
    own = Machine(strings, "BananaPi BPI-CM4IO Baseboard with BPI-CM4 Module")
    assert identify(own, what="h").name == "bananapi-cm4-cm4io"
    with pytest.raises(UserError, match="its model is 'Waveshare CM4-IO-BASE-B"):
        identify(Machine(strings, "Waveshare CM4-IO-BASE-B with BPI-CM4 Module"), what="h")


def test_two_profiles_of_equal_right_are_refused_with_both_named(own_profiles: Path) -> None:
    own(own_profiles, "mine")
    second = own(own_profiles, "other")
    machine = ("khadas,vim3", "amlogic,a311d")
    with pytest.raises(UserError, match="mine and other both claim") as caught:
        identify(machine, what="h")
    assert "--board mine or --board other" in caught.value.hint
    with pytest.raises(UserError, match="mine and other both claim"):
        doctor.judge(doctors_facts(machine), host="desk")
    # Who says which one it is gets that one; other boards are not in the way.
    assert identify(machine, what="h", chosen=second) == second
    assert doctor.judge(doctors_facts(machine), wanted=second, host="desk")["board"] == "other"
    assert identify(["khadas,vim3l", "amlogic,sm1"], what="h").name == "vim3l"


def test_a_profile_from_a_file_is_taken_where_the_user_names_it(tmp_path: Path) -> None:
    text = board_file("vim3").read_text().replace('name = "vim3"', 'name = "from-file"')
    (tmp_path / "from-file.toml").write_text(text)
    board = load_board(str(tmp_path / "from-file.toml"))
    assert identify(["khadas,vim3"], what="h", chosen=board) == board
    assert identify(["khadas,vim3"], what="h").name == "vim3"


# --- a chip's string


@pytest.mark.slow
@pytest.mark.parametrize(
    "compatible",
    [
        ("fsl,imx8mp",),
        ("amlogic,g12b",),
        ("amlogic, g12b",),
        ("amlogic,s922x", "amlogic,g12b"),
        ("rockchip,rk3588s", "rockchip,rk3588"),
        ("toradex,verdin-imx8mp", "fsl,imx8mp"),
        ("allwinner,a523", "arm,sun55iw3p1"),
        ("arm,sun55iw3p1",),
    ],
)
def test_the_name_of_a_chip_or_module_is_no_boards_name(
    compatible: tuple[str, ...], own_profiles: Path
) -> None:
    with pytest.raises(UserError, match="name of a chip or a module") as caught:
        identify(compatible, what="h")
    relative = re.search(r"new-board NAME --like (\S+) ", caught.value.hint)
    assert relative
    if relative[1] != "BOARD":
        of_chip = load_soc(load_board(relative[1]).soc).compatible
        assert set(compatible) & {*load_board(relative[1]).compatible, *of_chip}
    # Not even with a profile that says so.
    said = ", ".join(f'"{each}"' for each in compatible)
    board = own(own_profiles, "nameless", compatible=f"compatible = [{said}]")
    with pytest.raises(UserError, match="name of a chip or a module"):
        identify(compatible, what="h")
    assert doctors_answer(compatible) is None
    tree = read_tree(compile_dtb(source(compatible), own_profiles / "it.dtb").read_bytes(), "it")
    with pytest.raises(UserError, match="names no board"):
        check_identity(tree, board, "it")


def test_no_shipped_profile_has_the_name_of_a_chip() -> None:
    own = {load_board(name).compatible[0] for name in board_names()}
    assert not list(filter(names_no_board, own))
    behind = {each for name in board_names() for each in load_board(name).compatible[1:]}
    assert all(map(names_no_board, behind - own))
    chips = ["fsl,imx8mp", "amlogic,a311d", "rockchip,rk3588", "fsl,imx93", "amlogic, g12b"]
    assert all(map(names_no_board, chips))
    assert not names_no_board("acme,one")


def source(compatible: tuple[str, ...], body: str = "", model: str = "Acme One") -> str:
    said = ", ".join(f'"{each}"' for each in compatible)
    given = f'model = "{model}"; ' if model else ""
    return (
        f"/dts-v1/;\n/ {{ compatible = {said}; {given}#address-cells = <2>; "
        f"#size-cells = <2>;\n{body}\n}};"
    )


# --- a reference board's string


VENDORS_NODE = 'vipsi@38500000 { compatible = "fsl,imx8-vipsi"; reg = <0 0x38500000 0 0x20000>; };'


def memory(mib: int) -> str:
    return (
        f'memory@40000000 {{ device_type = "memory"; reg = <0 0x40000000 {mib >> 12} '
        f"{(mib << 20) & 0xFFFFFFFF:#x}>; }};"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "model", "doubts"),
    [
        ("", EVK_MODEL, ()),
        (memory(6144), EVK_MODEL, ()),
        (memory(6112), EVK_MODEL, ()),  # without what the secure world keeps
        ("", "nxp  i.MX8MPlus EVK  Board", ()),
        ("", "Example carrier", ("'Example carrier'",)),
        ("", "", ("it has no model, not 'NXP i.MX8MPlus EVK board'",)),
        (memory(2048), EVK_MODEL, ("2048 MiB",)),
        (memory(8192), EVK_MODEL, ("8192 MiB",)),
        (VENDORS_NODE, EVK_MODEL, ("/vipsi@38500000",)),
        (VENDORS_NODE + memory(1024), "Example", ("'Example'", "1024 MiB", "/vipsi@38500000")),
    ],
)
def test_the_name_of_a_reference_board_is_believed_where_nothing_contradicts_it(
    tmp_path: Path, body: str, model: str, doubts: tuple[str, ...]
) -> None:
    dtb = compile_dtb(source(EVK, body, model), tmp_path / "it.dtb")
    machine = machine_of(read_tree(dtb.read_bytes(), "it"))
    match = find(machine)
    assert match.board
    assert match.board.name == "imx8mp-evk"
    # A string between the board's and the chip's is another maker's.
    more = (machine.compatible[0], "vendor,carrier", *machine.compatible[1:])
    more_doubts = find(replace(machine, compatible=more)).doubts
    assert "its compatible has 'vendor,carrier', too" in more_doubts
    assert len(match.doubts) == len(doubts)
    for found, expected in zip(match.doubts, doubts, strict=True):
        assert expected in found
    if not doubts:
        assert identify(machine, what="h") == match.board
        return
    with pytest.raises(UserError, match="which trees of other boards often keep") as caught:
        identify(machine, what="h")
    assert all(each in caught.value.message for each in doubts)
    assert "new-board NAME --like imx8mp-evk" in caught.value.hint
    assert "--board imx8mp-evk" in caught.value.hint
    assert identify(machine, what="h", chosen=match.board) == match.board


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE_BOARDS)
def test_every_reference_board_is_told_apart_by_its_model(name: str) -> None:
    board = load_board(name)
    own_machine = Machine(board.compatible, board.identity.models[0])
    assert identify(own_machine, what="h") == board
    with pytest.raises(UserError, match="'A carrier of ours'"):
        identify(replace(own_machine, model="A carrier of ours"), what="h")


def test_every_shipped_board_with_a_string_of_the_chips_maker_is_told_apart() -> None:
    of_makers = [b for b in map(load_board, board_names()) if is_chip_makers(b.compatible)]
    assert {board.name for board in of_makers} <= set(REFERENCE_BOARDS)
    assert all(board.identity.models for board in of_makers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compatible", "model"),
    [
        (("rockchip,rk3588-evb1-lp4-v10", "rockchip,rk3588"), "Rockchip RK3588 EVB1 LP4 V10 Board"),
        (("rockchip,rk3588s-evb1-v10", "rockchip,rk3588s"), "RK3588S EVB1"),
        (("amlogic,g12b-ref", "amlogic,a311d", "amlogic,g12b"), "Amlogic reference"),
        (("fsl,imx8mp-ddr4-evk", "fsl,imx8mp"), "NXP i.MX8MPlus DDR4 EVK board"),
        (("st,stm32mp257f-ev1", "st,stm32mp257"), "STMicroelectronics STM32MP257F-EV1"),
    ],
)
def test_a_new_boards_profile_with_a_reference_boards_string_knows_its_model(
    tmp_path: Path, own_profiles: Path, compatible: tuple[str, ...], model: str
) -> None:
    own_profiles.mkdir(parents=True, exist_ok=True)
    dtb = compile_dtb(source(compatible, "", model), tmp_path / "ref.dtb")
    made = new_board("my-ref", source_of_dtb(dtb), kernel=f"path:{make_kernel(tmp_path / 'linux')}")
    assert made.board.identity.models == (model,)
    assert any("only a machine whose model is" in note for note in made.notes)
    assert identify(Machine(compatible, model), what="h").name == "my-ref"
    with pytest.raises(UserError, match="its model is 'Somebody else'"):
        identify(Machine(compatible, "Somebody else"), what="h")
    # Written by hand without that, it is named.
    text = made.file.read_text()
    made.file.write_text(text[: text.index("[identity]")] + text[text.index("[boot]") :])
    read_board.cache_clear()
    assert "identity" in {each.key for each in check_profile("my-ref").missing}


def test_a_copy_of_a_reference_boards_profile_is_as_careful(own_profiles: Path) -> None:
    lines = board_file("imx8mp-evk").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("[identity]", "models", "memory_mib"))]
    text = "\n".join(kept).replace('name = "imx8mp-evk"', 'name = "my-evk"')
    (own_profiles / "my-evk.toml").write_text(text)
    assert load_board("my-evk").identity == BoardIdentity()
    assert identify(Machine(EVK, EVK_MODEL), what="h").name == "my-evk"
    with pytest.raises(UserError, match="'Another'"):
        identify(Machine(EVK, "Another"), what="h")


def test_the_doctor_examines_such_a_board_by_its_chip_and_says_so() -> None:
    document = doctor.judge(doctors_facts(EVK, "Example carrier"), host="desk")
    assert document["board"] is None
    first = document["checks"][0]
    assert (first["name"], first["status"]) == ("compatible", "unknown")
    assert "its model is 'Example carrier'" in first["found"]
    assert "new-board" in first["next"]
    wanted = load_board("imx8mp-evk")
    document = doctor.judge(doctors_facts(EVK, "Example carrier"), wanted=wanted, host="desk")
    assert document["board"] == "imx8mp-evk"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("kernel", ["6.12", "7.3"])
def test_every_shipped_board_is_recognised_by_its_own_tree(kernel: str) -> None:
    linux = kernel_tree(kernel)
    for name in board_names():
        board = load_board(name)
        if board.dts is None or board.expect.get(kernel) == "no board":
            continue
        dtb = compiled(linux, load_soc(board.soc).dts_directory or ".", board.dts)
        assert identify(machine_of(read_tree(dtb.read_bytes(), name)), what=name).name == name


# --- a way on: a profile with a string of its own


@pytest.mark.skipif(shutil.which("dtc") is None, reason="dtc is not installed")
@pytest.mark.parametrize("compatible", [EVK, ("fsl,imx8mp",)])
def test_a_board_without_a_name_gets_one(
    compatible: tuple[str, ...], tmp_path: Path, own_profiles: Path
) -> None:
    node = (
        "soc@0 { #address-cells = <1>; #size-cells = <1>; ranges; intc { phandle = <9>; "
        "#interrupt-cells = <3>; }; bus@30000000 { gpc@303a0000 { pgc { "
        'power-domain@4 { }; }; }; }; npu@38500000 { compatible = "vivante,gc"; clocks = <0 0 0>; '
        "reg = <0x38500000 0x200000>; interrupts = <0 13 4>; interrupt-parent = <9>; "
        'clock-names = "core", "bus", "reg"; power-domains = <0>; status = "disabled"; }; };'
    )
    dtb = compile_dtb(source(compatible, node, "Example carrier"), tmp_path / "it.dtb")
    with pytest.raises(UserError, match=r"it\.dtb") as caught:
        new_board("my-carrier", source_of_dtb(dtb))
    assert "new-board NAME --like" in caught.value.hint
    assert list(own_profiles.iterdir()) == []
    made = new_board("my-carrier", source_of_dtb(dtb), like="imx8mp-evk")
    assert made.board.compatible == ("unknown,my-carrier", *compatible)
    assert "compatible" in [each.key for each in made.missing]
    board = load_board("my-carrier")
    # It is found again by what its maker's tree says, and nothing else is taken for it.
    tree = read_tree(dtb.read_bytes(), "it")
    assert identify(machine_of(tree), what="h") == board
    with pytest.raises(UserError):
        identify(Machine(compatible, "Example carrier 2"), what="h")
    with pytest.raises(UserError, match="which has a profile: my-carrier"):
        new_board("again", source_of_dtb(dtb), like="imx8mp-evk")
    # What is built for it has its own name, and still has it when built upon once more.
    built = build_dts(
        board,
        kernel=None,
        base_dtb=dtb,
        target_dir=tmp_path / "out",
        keep_overlay=True,
        force_enable=True,
    )
    assert [(each.path, each.property) for each in built.changes] == [
        ("/", "compatible"),
        ("/soc@0/npu@38500000", "status"),
    ]
    assert built.document()["changes"][0]["after"] == ("unknown,my-carrier", *compatible)
    assert f'"unknown,my-carrier", "{compatible[0]}"' in built.text()
    tree = read_tree(built.dtb.read_bytes(), "built")
    assert tuple(tree.compatible) == board.compatible
    assert identify(machine_of(tree), what="h") == board
    again = build_dts(board, kernel=None, base_dtb=built.dtb, target_dir=tmp_path / "again")
    assert again.changes == ()


def test_new_board_over_ssh_asks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_hosts: None
) -> None:
    if local_sshd.find_sshd() is None:
        pytest.skip("sshd is not installed (openssh-server)")
    from bsp import profile_source as sources

    root = tmp_path / "root"
    for name in ("proc", "sys/firmware"):
        (root / name).mkdir(parents=True)
    compile_dtb(source(EVK, VENDORS_NODE, EVK_MODEL), root / "sys/firmware/fdt")
    (root / "proc/mounts").write_text("b /boot vfat rw 0 0\n")
    (root / "proc/modules").write_text("")
    server = local_sshd.start(tmp_path / "ssh")
    try:
        monkeypatch.setattr("bsp.remote.inventory.resolve", lambda _: server.host)
        tells = sources.source_of_host("it", root=str(root))
    finally:
        server.stop()
    with pytest.raises(UserError, match="/vipsi@38500000 is for the vendor's NPU driver galcore"):
        new_board("mine", tells)
    made = new_board("mine", tells, like="imx8mp-evk")
    assert made.board.compatible[0] == "unknown,mine"
    assert made.board.identity.runs_as == "fsl,imx8mp-evk"
