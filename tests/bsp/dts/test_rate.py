# SPDX-License-Identifier: MIT
"""--npu-rate: which clocks get it, from which parent, and what is refused."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.npu.available import unavailable
from bsp.dts.npu.rate import at_rate, parse_rate
from bsp.dts.npu.required_changes import plan_changes, rates
from bsp.dts.tree import Tree
from bsp.profile import Npu

MHZ = 1_000_000


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def the_npu(board: str) -> Npu:
    found = npu_of(load_board(board))
    assert found is not None
    return found


def imx8mp(core_mhz: int = 800, core_parent: int = 56) -> Tree:
    npu = the_npu("imx8mp-evk")
    return Tree(
        {
            "/": {"interrupt-parent": words(3)},
            "/soc@0": {"ranges": b""},
            "/intc": {"phandle": words(3), "#interrupt-cells": words(3)},
            "/clk": {"phandle": words(2), "#clock-cells": words(1)},
            npu.node: {
                "compatible": b"vivante,gc\0",
                "reg": words(0x38500000, 0x200000),
                "interrupts": words(0, 13, 4),
                "clocks": words(2, 267, 2, 267, 2, 105, 2, 106),
                "clock-names": b"core\0shader\0bus\0reg\0",
                "power-domains": words(7),
            },
            str(npu.rates_node): {
                "phandle": words(7),
                "#power-domain-cells": words(0),
                "assigned-clocks": words(2, 306, 2, 105, 2, 106),
                "assigned-clock-parents": words(2, core_parent, 2, 56, 2, 56),
                "assigned-clock-rates": words(core_mhz * MHZ, 800 * MHZ, 300 * MHZ),
            },
        }
    )


def planned(tree: Tree, asked_hz: int) -> dict[str, object]:
    npu = at_rate(the_npu("imx8mp-evk"), tree, asked_hz, "it")
    return {change.property: change.after for change in plan_changes(tree, npu, what="it")}


@pytest.mark.parametrize(
    ("text", "hertz"),
    [("500MHz", 500 * MHZ), ("0.8 GHz", 800 * MHZ), ("400000000", 400 * MHZ), ("12khz", 12_000)],
)
def test_rates_are_read(text: str, hertz: int) -> None:
    assert parse_rate(text) == hertz


@pytest.mark.parametrize("text", ["", "fast", "500 MB", "-1MHz", "0", "1e9", "5..0MHz"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="not a clock rate"):
        parse_rate(text)


def test_a_rate_of_the_present_parent_changes_the_rates_only() -> None:
    assert planned(imx8mp(), 400 * MHZ) == {
        "assigned-clock-rates": (400 * MHZ, 400 * MHZ, 300 * MHZ)
    }


def test_a_rate_of_another_parent_changes_the_parents_too() -> None:
    assert planned(imx8mp(), 500 * MHZ) == {
        "assigned-clock-parents": (2, 65, 2, 65, 2, 56),
        "assigned-clock-rates": (500 * MHZ, 500 * MHZ, 300 * MHZ),
    }


def test_the_bus_stays_within_its_own_limit() -> None:
    # 7.3's overdrive: core 1 GHz from another parent; the bus is at its 800 MHz.
    assert planned(imx8mp(core_mhz=1000, core_parent=65), 1000 * MHZ) == {}


def test_a_rate_near_one_that_can_be_had_means_that_one() -> None:
    rates_hz = planned(imx8mp(), 333 * MHZ)["assigned-clock-rates"]
    assert rates_hz == (333_333_333, 333_333_333, 300 * MHZ)


def test_what_is_above_the_limit_or_between_the_rates_is_refused_with_those_that_are_not() -> None:
    with pytest.raises(UserError, match="asks for 800 MHz") as caught:
        planned(imx8mp(), 1000 * MHZ)
    assert "reachable, for example: 800, 500, 400" in caught.value.message
    assert "clk-imx8mp.c" in caught.value.hint
    with pytest.raises(UserError, match="no parent clock reaches that"):
        planned(imx8mp(), 700 * MHZ)


# --- RK3588: firmware sets the clock, and the supply's lowest voltage limits it ------------------


def rk3588(*, least_microvolts: int = 550_000, supply: int = 5) -> Tree:
    """Three cores on one clock, as upstream's rk3588-base.dtsi and rk3588-rock-5b.dtsi have them."""
    npu = the_npu("rk3588-rock-5b")
    core = {
        "compatible": b"rockchip,rk3588-rknn-core\0",
        "status": b"okay\0",
        "clocks": words(2, 287, 2, 288, 3, 6, 2, 277),
        "clock-names": b"aclk\0hclk\0npu\0pclk\0",
        "assigned-clocks": words(3, 6),
        "assigned-clock-rates": words(200 * MHZ),
        "npu-supply": words(supply),
        "sram-supply": words(supply),
        "power-domains": words(0),
        "iommus": words(0),
        "resets": words(0, 0),
        "reset-names": b"srst_a\0srst_h\0",
        "reg-names": b"pc\0cna\0core\0",
    }
    return Tree(
        {
            "/": {"interrupt-parent": words(4)},
            "/intc": {"phandle": words(4), "#interrupt-cells": words(3)},
            "/cru": {"phandle": words(2), "#clock-cells": words(1)},
            "/scmi": {"phandle": words(3), "#clock-cells": words(1)},
            "/regulator@42": {
                "phandle": words(5),
                "regulator-name": b"vdd_npu_s0\0",
                "regulator-min-microvolt": words(least_microvolts),
                "regulator-max-microvolt": words(950_000),
            },
            **{
                path: {
                    **(core if path.startswith("/npu") else {"status": b"okay\0"}),
                    "reg": words(int(path.rpartition("@")[2], 16), 0x1000),
                    "interrupts": words(0, 110, 4),
                }
                for path in (npu.node, *npu.more_nodes)
            },
        }
    )


def planned_rk3588(tree: Tree, asked_hz: int) -> dict[str, object]:
    npu = at_rate(the_npu("rk3588-rock-5b"), tree, asked_hz, "it")
    return {change.path: change.after for change in plan_changes(tree, npu, what="it")}


def test_what_the_tree_asks_for_is_shown_and_asked_again_changes_nothing() -> None:
    tree = rk3588()
    assert rates(tree, the_npu("rk3588-rock-5b")) == [("npu", 200 * MHZ)]
    assert planned_rk3588(tree, 200 * MHZ) == {}


def test_a_higher_rate_needs_a_supply_that_promises_its_voltage() -> None:
    with pytest.raises(UserError, match=r"needs 0\.75 V, and this tree promises less") as caught:
        planned_rk3588(rk3588(), 600 * MHZ)
    assert "vdd_npu_s0 may be anything from 0.55 to 0.95 V" in caught.value.message
    assert "regulator-min-microvolt = <750000> in /regulator@42" in caught.value.hint
    with pytest.raises(UserError, match=r"needs 0\.85 V"):
        planned_rk3588(rk3588(least_microvolts=800_000), 1000 * MHZ)
    with pytest.raises(UserError, match="does not say which regulator"):
        planned_rk3588(rk3588(supply=99), 600 * MHZ)


def test_a_promised_voltage_allows_the_rate_on_all_cores() -> None:
    npu = the_npu("rk3588-rock-5b")
    cores = [npu.node, *(path for path in npu.more_nodes if path.startswith("/npu"))]
    found = planned_rk3588(rk3588(least_microvolts=850_000), 1000 * MHZ)
    assert found == dict.fromkeys(cores, (1000 * MHZ,))


def test_an_iommu_that_is_off_is_named() -> None:
    tree, npu = rk3588(), the_npu("rk3588-rock-5b")
    nodes = {path: dict(node) for path, node in tree.nodes.items()}
    nodes["/iommu@fdaca000"] |= {"status": b"disabled\0", "phandle": words(9)}
    nodes["/npu@fdac0000"]["iommus"] = words(9)
    (off,) = unavailable(Tree(nodes), npu)
    assert (off.path, off.status) == ("/iommu@fdaca000", "disabled")


def test_firmware_has_no_rates_in_between() -> None:
    with pytest.raises(UserError, match="knows 1000, 900, 800, 700, 600, 500, 400, 300, 200 MHz"):
        planned_rk3588(rk3588(least_microvolts=850_000), 650 * MHZ)


def test_parents_are_added_where_the_tree_has_none() -> None:
    tree = imx8mp()
    nodes = {path: dict(node) for path, node in tree.nodes.items()}
    node = nodes[str(the_npu("imx8mp-evk").rates_node)]
    del node["assigned-clock-parents"]
    node["assigned-clocks"] = words(2, 7, 2, 306, 2, 105)
    node["assigned-clock-rates"] = words(1, 800 * MHZ, 800 * MHZ)
    changes = planned(Tree(nodes), 500 * MHZ)
    assert changes["assigned-clock-parents"] == (0, 2, 65, 2, 65)
    assert changes["assigned-clock-rates"] == (1, 500 * MHZ, 500 * MHZ)


@given(st.integers(min_value=1, max_value=2000 * MHZ))
def test_whatever_is_asked_is_refused_or_reached_within_limits(asked_hz: int) -> None:
    tree, npu = imx8mp(), the_npu("imx8mp-evk")
    try:
        wanted = at_rate(npu, tree, asked_hz, "it")
    except UserError:
        return
    nodes = {path: dict(node) for path, node in tree.nodes.items()}
    for change in plan_changes(tree, wanted, what="it"):
        nodes[change.path][change.property] = change.after_bytes()
    after = dict(rates(Tree(nodes), npu))
    core, bus = after["core"], after["bus"]
    assert core is not None
    assert bus is not None
    assert abs(core - asked_hz) <= max(1, asked_hz / 500)
    assert bus <= core <= 800 * MHZ
    # Asked again, nothing is left to do.
    again = at_rate(npu, Tree(nodes), core, "it")
    assert plan_changes(Tree(nodes), again, what="it") == []
    assert msgspec.structs.replace(again, clocks=npu.clocks) == npu


# --- the console of a board that QEMU does not have ----------------------------------------------


def test_the_console_comes_out_where_the_boards_tree_says() -> None:
    from virtual.boards.same_soc import on_machine, qemu_of_soc

    board = load_board("imx8mp-verdin-wifi-dahlia")
    qemu = qemu_of_soc(board)
    assert qemu == load_board("imx8mp-evk").qemu
    uart = "/soc@0/bus@30800000/serial@30880000"
    for said in (b"serial0:115200n8\0", uart.encode() + b"\0"):
        tree = Tree(
            {
                "/": {},
                "/chosen": {"stdout-path": said},
                "/aliases": {"serial0": uart.encode() + b"\0"},
            }
        )
        there = on_machine(board, qemu, tree).qemu
        assert there is not None
        assert there.serial_index == 2  # UART3, the machine's third
        assert there.cmdline.split()[0] == "console=ttymxc0"
    # A tree that names none: as on the machine's own board.
    there = on_machine(board, qemu, Tree({"/": {}})).qemu
    assert there is not None
    assert there.serial_index == qemu.serial_index


def test_a_soc_that_qemu_does_not_have_is_refused() -> None:
    from virtual.boards.same_soc import qemu_of_soc

    with pytest.raises(UserError, match="no machine with the SoC of rk3588-rock-5b"):
        qemu_of_soc(load_board("rk3588-rock-5b"))
