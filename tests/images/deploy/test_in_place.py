# SPDX-License-Identifier: MIT
"""Building on what a board runs, and putting a device tree alone on trial; boards made of folders."""

from __future__ import annotations

import gzip
import lzma
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.running import encode, without_boot
from bsp.dts.tree import Tree, read_tree
from bsp.identify import identify, soc_of
from bsp.profile import Board, Boot, Npu
from bsp.remote import facts as board_facts
from bsp.remote.facts import KernelFacts
from bsp.remote.in_place import build_in_place
from bsp.remote.ssh import connect
from images.bundle import manifest as bundles
from images.bundle import sign
from images.deploy import in_place
from images.deploy.deploy import deploy
from images.deploy.deployment import Deployment
from images.deploy.session import Target
from tests.support import local_sshd
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.fake_boot import compile_dtb, tree_source

pytestmark = BOARD_MARKS

RELEASE = "6.12.1-test"
SOURCE = """/dts-v1/;
/memreserve/ 0x1000 0x100;
/memreserve/ 0x48000000 0x5000;
/ {
    compatible = "npu-bsp,virtual-a311d", "linux,dummy-virt";
    #address-cells = <2>; #size-cells = <2>;
    chosen { bootargs = "root=/dev/sda"; linux,initrd-start = <0 0x48000000>; stdout-path = "/uart";
        linux,initrd-end = <0 0x48005000>; kaslr-seed = <1 2>; };
    clock { phandle = <1>; #clock-cells = <0>; }; intc { phandle = <2>; #interrupt-cells = <3>; };
    npu@10000000 { compatible = "vivante,gc"; reg = <0 0x10000000 0 0x40000>; interrupts = <0 3 4>;
        interrupt-parent = <2>; clocks = <1>, <1>; clock-names = "core", "bus"; status = "disabled"; };
};"""


def a311d() -> Npu:
    npu = npu_of(load_board("virtual-a311d"))
    assert npu is not None
    return npu


def module_with(npu: Npu) -> bytes:
    assert npu.identity
    each = npu.identity
    return b"rest" + struct.pack(
        "<5I", each.model, each.revision, each.product_id, each.customer_id, each.eco_id
    )


# --- the running tree as a base


def test_what_one_boot_put_in_is_taken_out(tmp_path: Path) -> None:
    blob = compile_dtb(SOURCE, tmp_path / "running.dtb").read_bytes()
    clean = without_boot(blob, "it")
    before, after = read_tree(blob, "it"), read_tree(clean, "it")
    assert dict(after.nodes["/chosen"]) == {"stdout-path": b"/uart\0"}
    assert {path: node for path, node in after.nodes.items() if path != "/chosen"} == {
        path: node for path, node in before.nodes.items() if path != "/chosen"
    }
    assert without_boot(clean, "it") == clean
    text = subprocess.run(
        ["dtc", "-q", "-I", "dtb", "-O", "dts"], input=clean, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    assert [line for line in text.splitlines() if "memreserve" in line] == [
        "/memreserve/\t0x0000000000001000 0x0000000000000100;"  # the RAM disk's is gone
    ]


def test_a_tree_that_is_encoded_reads_back(tmp_path: Path) -> None:
    tree = Tree({"/": {"a": b"12345"}, "/x": {}, "/x/y": {"a": b""}, "/xy": {"bb": b"1"}})
    blob = encode(tree, [(1 << 33, 5)])
    assert read_tree(blob, "it") == tree
    (tmp_path / "it.dtb").write_bytes(blob)
    said = subprocess.run(["fdtget", "-p", str(tmp_path / "it.dtb"), "/x/y"], capture_output=True)
    assert said.stdout == b"a\n"


# --- facts


def test_the_driver_is_found_where_it_is() -> None:
    npu = a311d()
    alias = b"lib/modules/6/modules.alias:alias of:N*T*Cvivante,gc etnaviv\n"
    config = {"DRM_ETNAVIV": "m"}
    state = board_facts.driver_state
    assert state(alias, npu, index_there=True, config=None) == "module"
    builtin = b"modules.builtin.modinfo:\0etnaviv.alias=of:N*T*Cvivante,gcC*\0"
    assert state(builtin, npu, index_there=True, config=None) == "builtin"
    other = b"modules.alias:alias of:N*T*Cvivante,gcx etnaviv\n"
    assert state(other, npu, index_there=True, config=None) == "absent"
    assert state(b"", npu, index_there=False, config={"DRM_ETNAVIV": "y"}) == "builtin"
    assert state(b"", npu, index_there=False, config={"DRM_ETNAVIV": "n"}) == "absent"
    assert state(b"", npu, index_there=False, config=None) == "unknown"
    assert state(b"", npu, index_there=False, config=config) == "unknown"


def test_configuration_says_what_is_not_set() -> None:
    text = "CONFIG_DRM_ETNAVIV=m\n# CONFIG_RESET_MESON is not set\nCONFIG_DRM_ETNAVIV_THERMAL=y\n"
    found = board_facts.parse_config(text, ("DRM_ETNAVIV", "RESET_MESON"))
    assert found == {"DRM_ETNAVIV": "m", "RESET_MESON": "n"}


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress])
def test_the_list_of_npus_is_looked_at(pack: object) -> None:
    npu = a311d()
    assert callable(pack)
    assert board_facts.has_identity(board_facts.unpack_module(pack(module_with(npu))), npu)
    assert not board_facts.has_identity(board_facts.unpack_module(pack(b"another")), npu)
    assert not board_facts.has_identity(board_facts.unpack_module(b"\xfd7zXZ broken"), npu)


def test_an_entry_for_any_product_counts() -> None:
    npu = a311d()
    assert npu.identity
    each = npu.identity
    for numbers, found in (
        ((each.model, each.revision, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF), True),
        ((each.model, each.revision, each.product_id, 0xFFFFFFFF, each.eco_id), True),
        ((each.model, 0xFFFFFFFF, each.product_id, each.customer_id, each.eco_id), False),
        ((each.model, each.revision, each.product_id + 1, each.customer_id, each.eco_id), False),
    ):
        module = b"before" + struct.pack("<5I", *numbers) + b"behind"
        assert board_facts.has_identity(module, npu) is found


def test_an_npu_that_no_released_kernel_knows() -> None:
    npu = npu_of(load_board("orangepi-4a"))
    assert npu is not None
    own = KernelFacts("7.3.1-mine", None, "module", True).verdict(npu, host="h")
    assert own[0]
    hidden = KernelFacts("7.3.1-mine", None, "builtin", None).verdict(npu, host="h")
    assert not hidden[0]
    assert "its own list of NPUs cannot be seen" in hidden[1]
    unknown = msgspec.structs.replace(npu, identity=None)
    told = KernelFacts("7.3.1-mine", None, "module", None).verdict(unknown, host="h")
    assert not told[0]
    assert "so it cannot be told" in told[1]


@pytest.mark.parametrize(
    ("facts", "works", "says"),
    [
        (
            KernelFacts("6.12.1-x", {"DRM_ETNAVIV": "n"}, "absent", None),
            False,
            "CONFIG_DRM_ETNAVIV",
        ),
        (KernelFacts("6.12.1-x", None, "module", True), True, "knows this NPU"),
        (KernelFacts("6.6.0-x", None, "module", False), False, "does not know this NPU"),
        (KernelFacts("6.12.1-x", None, "builtin", None), True, "new enough"),
        (KernelFacts("6.1.1-x", None, "builtin", None), False, "lacks"),
        (KernelFacts("", None, "unknown", None), False, "lacks"),
    ],
)
def test_verdict(facts: KernelFacts, works: bool, says: str) -> None:
    found, why = facts.verdict(a311d(), host="h")
    assert found is works
    assert says in why


def test_boards_are_recognised_by_their_most_specific_string() -> None:
    assert identify(["npu-bsp,virtual-a311d", "linux,dummy-virt"], what="h").name == "virtual-a311d"
    assert identify(["somebody,else", "khadas,vim3"], what="h").name == "vim3"
    with pytest.raises(UserError, match=r"which no profile is for; its SoC imx8mp is known"):
        identify(["acme,board", "fsl,imx8mp"], what="h")
    with pytest.raises(UserError, match=r"which no profile is for$"):
        identify(["acme,board"], what="h")
    assert soc_of(["acme,board"]) is None


# --- over SSH


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[local_sshd.LocalSshd, Path]]:
    """A server, and the root folder of a board that runs with its NPU switched off."""
    root = tmp_path / "root"
    modules = root / "lib/modules" / RELEASE
    driver = modules / "kernel/etnaviv.ko.xz"
    driver.parent.mkdir(parents=True)
    driver.write_bytes(lzma.compress(module_with(a311d())))
    (modules / "modules.alias").write_text("alias of:N*T*Cvivante,gc etnaviv\n")
    for name in ("proc/sys/kernel", "sys/firmware", "boot"):
        (root / name).mkdir(parents=True)
    (root / "proc/sys/kernel/osrelease").write_text(f"{RELEASE}\n")
    (root / f"boot/config-{RELEASE}").write_text("CONFIG_DRM_ETNAVIV=m\n")
    compile_dtb(SOURCE, root / "sys/firmware/fdt")
    server = local_sshd.start(tmp_path / "ssh")
    try:
        yield server, root
    finally:
        server.stop()


def test_the_running_tree_gets_what_it_lacks(
    running: tuple[local_sshd.LocalSshd, Path], tmp_path: Path
) -> None:
    server, root = running
    with connect(server.host) as connection:
        made = build_in_place(connection, target_dir=tmp_path / "out", root=str(root))
    assert made.board.name == "virtual-a311d"
    assert [(each.property, each.after) for each in made.built.changes] == [("status", "okay")]
    assert made.built.npu.supported
    document = made.document()
    assert document["kernel"] == RELEASE
    assert document["kernel_facts"] == {
        "release": RELEASE,
        "config": {"DRM_ETNAVIV": "m"},
        "driver": "module",
        "knows_npu": True,
    }
    tree = read_tree(made.built.dtb.read_bytes(), "built")
    assert tree.status("/npu@10000000") == "okay"
    assert "bootargs" not in tree.nodes["/chosen"]

    # A board that nobody has a profile for, and a tree that only root may read.
    other = SOURCE.replace("npu-bsp,virtual-a311d", "acme,one").replace("linux,dummy-virt", "x")
    compile_dtb(other, root / "sys/firmware/fdt")
    with (
        connect(server.host) as connection,
        pytest.raises(UserError, match="acme,one, x, which no profile is for"),
    ):
        build_in_place(connection, root=str(root))
    vendor = other.replace("clock {", 'galcore { compatible = "amlogic, galcore"; }; clock {')
    compile_dtb(vendor, root / "sys/firmware/fdt")
    with (
        connect(server.host) as connection,
        pytest.raises(
            UserError, match=r"runs a vendor's kernel: its node /galcore is for .* galcore"
        ),
    ):
        build_in_place(connection, root=str(root))
    (root / "sys/firmware/fdt").unlink()
    with connect(server.host) as connection, pytest.raises(UserError, match="cannot read"):
        build_in_place(connection, root=str(root))


def test_a_dtb_alone_goes_on_trial(
    board: FakeBoard, factory: bundles.Bundle, tmp_path: Path
) -> None:
    dtb = compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")
    planned = in_place.deploy_dtb(board.target(), board=None, dtb=dtb, dry_run=True)
    assert planned.outcome == "planned"
    result = in_place.deploy_dtb(board.target(), board=None, dtb=dtb)
    assert result.outcome == "confirmed", result.problem
    assert result.sent.sent_files == 1
    assert result.running_dtb_matches
    assert board.running() == result.to != factory.generation
    again = in_place.deploy_dtb(board.target(), board=None, dtb=dtb)
    assert again.outcome == "unchanged"


@pytest.mark.slow
def test_a_dtb_that_hangs_is_rolled_back(
    board: FakeBoard, factory: bundles.Bundle, tmp_path: Path
) -> None:
    board.behave("hang")
    dtb = compile_dtb(tree_source(extra='status = "okay";'), tmp_path / "new.dtb")
    result = in_place.deploy_dtb(board.target(timeout_s=2), board=None, dtb=dtb)
    assert result.outcome == "rolled-back", result
    assert board.running() == factory.generation


SOC = """}; intc { phandle = <2>; #interrupt-cells = <3>; };
    soc@0 { #address-cells = <1>; #size-cells = <1>; ranges = <0 0 0 0x3e000000>;
    npu@38500000 { compatible = "vivante,gc"; reg = <0x38500000 0x200000>; interrupts = <0 13 4>;
        interrupt-parent = <2>; clocks = <0 0 0>; clock-names = "core", "bus", "reg";
        power-domains = <0>; %s };"""


def imx8mp_profile() -> Board:
    """The EVK's profile, for the board that is a folder."""
    return msgspec.structs.replace(
        load_board("imx8mp-evk"),
        compatible=("linux,dummy-virt",),
        boot=Boot(fat_mount="/boot/firmware"),
    )


@pytest.mark.slow
def test_what_a_bootloader_switched_off_is_not_sent_switched_on(tmp_path: Path) -> None:
    """An i.MX 8M Plus whose bootloader has switched the NPU off; a bundle, and a DTB alone, have it on."""
    profile = imx8mp_profile()
    factory = make_bundle(tmp_path / "factory", dtb_extra=SOC % "", board=profile)
    update = make_bundle(
        tmp_path / "update", dtb_extra=SOC % "test,new;", board=profile, kernel=b"another"
    )
    for bundle in (factory, update):
        sign.sign(bundle)
    off = compile_dtb(tree_source(extra=SOC % 'status = "disabled";'), tmp_path / "off.dtb")
    on = compile_dtb(tree_source(extra=SOC % "test,on;"), tmp_path / "on.dtb")
    board = FakeBoard(tmp_path / "board", factory)
    try:
        target = replace(board.target(), host=replace(board.host, board=None), check_health=False)
        fdt = board.root / "sys/firmware/fdt"
        fdt.write_bytes(off.read_bytes())
        before = board.snapshot()
        ways: list[Callable[[Target], Deployment]] = [
            lambda target: deploy(target, bundle=update, board=profile),
            lambda target: deploy(target, bundle=update, board=profile, dry_run=True),
            lambda target: in_place.deploy_dtb(target, board=profile, dtb=on),
        ]
        for send in ways:
            with pytest.raises(UserError) as caught:
                send(target)
            assert (
                "the running device tree of fake has the NPU switched off" in caught.value.message
            )
            assert "U-Boot probably did" in caught.value.message
            assert "--force-enable" in (caught.value.hint or "")
        assert board.snapshot() == before
        # A tree that leaves it off may be sent; and what is on may be replaced.
        result = in_place.deploy_dtb(target, board=profile, dtb=off)
        assert result.outcome == "confirmed", result.problem
        # Now the generation that runs was itself sent with the NPU off: nobody else did that.
        assert deploy(target, bundle=update, board=profile).outcome == "confirmed"
        fdt.write_bytes(off.read_bytes())
        forced = replace(target, force_enable=True)
        assert deploy(forced, bundle=factory, board=profile).outcome == "confirmed"
    finally:
        board.close()


def test_a_tree_with_two_owners_of_the_npu_is_not_sent(tmp_path: Path) -> None:
    """In a bundle of whatever origin, alone, or as the one that runs there: both nodes are named."""
    profile = imx8mp_profile()
    vipsi = SOC.rpartition("};")[0] + (
        '}; vipsi@38500000 { compatible = "fsl,imx8-vipsi"; reg = <0x38500000 0x20000>; };'
    )
    factory = make_bundle(tmp_path / "factory", dtb_extra=SOC % "", board=profile)
    update = make_bundle(
        tmp_path / "update", dtb_extra=vipsi % "", board=profile, kernel=b"another"
    )
    for bundle in (factory, update):
        sign.sign(bundle)
    both = compile_dtb(tree_source(extra=vipsi % ""), tmp_path / "both.dtb")
    board = FakeBoard(tmp_path / "board", factory)
    try:
        target = replace(board.target(), host=replace(board.host, board=None), check_health=False)
        before = board.snapshot()
        forced = replace(target, force_enable=True)
        ways: list[Callable[[], Deployment]] = [
            lambda: deploy(target, bundle=update, board=profile),
            lambda: deploy(forced, bundle=update, board=profile, dry_run=True),
            lambda: in_place.deploy_dtb(target, board=profile, dtb=both),
            lambda: in_place.deploy_dtb(forced, board=profile, dtb=both, dry_run=True),
        ]
        for send in ways:
            with pytest.raises(UserError, match="two owners") as caught:
                send()
            assert (
                "/soc@0/npu@38500000 (vivante,gc, for the free driver etnaviv)"
                in caught.value.message
            )
            assert "/soc@0/vipsi@38500000 (fsl,imx8-vipsi, for galcore" in caught.value.message
        assert board.snapshot() == before
    finally:
        board.close()


def test_what_a_dtb_alone_cannot_do_is_refused(board: FakeBoard, tmp_path: Path) -> None:
    before = board.snapshot()
    with pytest.raises(UserError, match="has no NPU"):
        in_place.deploy_dtb(board.target(), board=None, dtb=None)
    other = compile_dtb(tree_source("acme,one"), tmp_path / "other.dtb")
    with pytest.raises(UserError, match="is of another board"):
        in_place.deploy_dtb(board.target(), board=None, dtb=other)
    (tmp_path / "none.dtb").write_bytes(b"\xd0\x0d\xfe\xed")
    with pytest.raises(UserError, match="truncated"):
        in_place.deploy_dtb(board.target(), board=None, dtb=tmp_path / "none.dtb")
    assert board.snapshot() == before
