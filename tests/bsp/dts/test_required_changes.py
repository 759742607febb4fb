# SPDX-License-Identifier: MIT
"""What is missing in a tree for the NPU: decided without any file or program."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsp.base.errors import UserError
from bsp.catalog import load_board, npu_of
from bsp.dts.inputs.identity import check_identity
from bsp.dts.npu.required_changes import Change, plan_changes, rates
from bsp.dts.tree import Tree
from bsp.profile import Npu, NpuSettings

NODE = "/npu@ff100000"
CLOCKS, OTHER, INTERRUPTS = 0x11, 0x22, 0x33


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def npu(**settings: object) -> Npu:
    board = msgspec.structs.replace(load_board("vim3"), npu=NpuSettings(**settings))  # type: ignore[arg-type]
    found = npu_of(board)
    assert found is not None
    return found


def tree(**properties: bytes | None) -> Tree:
    """A tree like 6.12's; keywords replace properties of the NPU's node (None leaves one out)."""
    node: dict[str, bytes | None] = {
        "compatible": b"vivante,gc\0",
        "reg": words(0, 0xFF100000, 0, 0x20000),
        "interrupts": words(0, 147, 4),
        "clocks": words(CLOCKS, 267, CLOCKS, 264),
        "clock-names": b"core\0bus\0",
        "power-domains": words(OTHER, 2),
        "assigned-clocks": words(CLOCKS, 267, CLOCKS, 264),
        "assigned-clock-rates": words(800_000_000, 800_000_000),
        "status": b"disabled\0",
    }
    node |= {name.replace("_", "-"): value for name, value in properties.items()}
    return Tree(
        {
            "/": {
                "compatible": b"khadas,vim3\0amlogic,a311d\0amlogic,g12b\0",
                "#address-cells": words(2),
                "#size-cells": words(2),
                "interrupt-parent": words(INTERRUPTS),
            },
            "/interrupt-controller": {"phandle": words(INTERRUPTS), "#interrupt-cells": words(3)},
            "/clock-controller": {"phandle": words(CLOCKS), "#clock-cells": words(1)},
            "/other": {
                "phandle": words(OTHER),
                "#clock-cells": words(0),
                "#power-domain-cells": words(1),
            },
            "/__symbols__": {"clkc": b"/clock-controller\0"},
            NODE: {name: value for name, value in node.items() if value is not None},
        }
    )


def applied(base: Tree, changes: list[Change]) -> Tree:
    nodes = {path: dict(node) for path, node in base.nodes.items()}
    for change in changes:
        nodes[change.path][change.property] = change.after_bytes()
    return Tree(nodes)


def plan(base: Tree, wanted: Npu | None = None) -> list[Change]:
    return plan_changes(base, wanted or npu(), what="the test's tree")


def test_a_disabled_node_needs_one_property() -> None:
    assert plan(tree()) == [Change(NODE, "status", "disabled", "okay")]


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"power_domains": b""}, "has no power-domains"),
        ({"clocks": None}, "has no clocks"),
        ({"power_domains": words(0x7777, 2)}, "power-domains of .* names phandle 0x7777"),
        ({"resets": words(0x7777)}, "resets of .* names phandle 0x7777"),
        ({"npu_supply": words(0x7777)}, "npu-supply of .* names phandle 0x7777"),
    ],
)
def test_what_is_named_has_to_be_there(properties: dict[str, bytes | None], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        plan(tree(**properties))
    assert caught.value.hint


def test_a_node_for_another_driver_is_called_that() -> None:
    with pytest.raises(
        UserError, match="the node says 'verisilicon,vip', not 'vivante,gc'"
    ) as caught:
        plan(tree(compatible=b"verisilicon,vip\0"))
    assert "missing" not in caught.value.message


@pytest.mark.parametrize("status", [None, b"okay\0", b"ok\0"])
def test_an_enabled_node_needs_nothing(status: bytes | None) -> None:
    assert plan(tree(status=status)) == []


def test_rates_are_added_where_they_are_missing() -> None:
    changes = plan(tree(assigned_clock_rates=None))
    assert changes[1:] == [Change(NODE, "assigned-clock-rates", None, (800_000_000, 800_000_000))]


def test_assigned_clocks_are_added_with_labels_of_the_tree() -> None:
    changes = plan(tree(assigned_clock_rates=None, assigned_clocks=None))
    assert [change.property for change in changes] == [
        "status", "assigned-clocks", "assigned-clock-rates",
    ]  # fmt: skip
    assert changes[1].after == (CLOCKS, 267, CLOCKS, 264)
    assert changes[1].labels == ((0, "clkc"), (2, "clkc"))


def test_rates_of_other_clocks_stay() -> None:
    base = tree(
        assigned_clocks=words(OTHER, 0, CLOCKS, 99, CLOCKS, 264, CLOCKS, 267),
        assigned_clock_rates=words(1, 2, 3),
    )
    changes = plan(base)
    # OTHER takes no argument, an empty place (0) none either: five clocks, the last two are ours.
    assert [(change.property, change.after) for change in changes] == [
        ("status", "okay"),
        ("assigned-clock-rates", (1, 2, 3, 800_000_000, 800_000_000)),
    ]


def test_disabling() -> None:
    off = npu(enabled=False)
    assert plan(tree(), off) == []
    assert plan(tree(status=None), off) == [Change(NODE, "status", None, "disabled")]


def test_board_settings_change_a_rate() -> None:
    changes = plan(tree(status=None), npu(rates_hz={"core": 400_000_000}))
    assert [(change.before, change.after) for change in changes] == [
        ((800_000_000, 800_000_000), (400_000_000, 800_000_000))
    ]


def test_a_rate_that_no_parent_reaches_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match="700000000 Hz") as caught:
        plan(tree(), npu(rates_hz={"core": 700_000_000}))
    assert "666666666" in caught.value.message
    assert "800000000" in caught.value.message
    assert "rates_hz" in caught.value.hint


def test_either_rounding_of_a_third_is_taken() -> None:
    for rate_hz in (666_666_666, 666_666_667):
        assert plan(tree(), npu(rates_hz={"core": rate_hz}))


def test_a_tree_without_the_node_is_refused_with_what_the_kernel_lacks() -> None:
    base = Tree({"/": {"compatible": b"khadas,vim3\0"}})
    with pytest.raises(UserError, match="PWRC_G12A_NNA_ID") as caught:
        plan(base)
    assert NODE in caught.value.message
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="missing: a moon"):
        plan_changes(base, npu(), what="it", lacks=("a moon",))


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"power_domains": None}, "no power-domains"),
        ({"compatible": b"vivante,other\0"}, "has no NPU"),
        ({"clock_names": b"bus\0reg\0", "assigned_clocks": None}, "no clock 'core'"),
        ({"assigned_clock_rates_u64": words(0, 1)}, "64-bit"),
        ({"assigned_clocks": words(0x99, 1)}, "phandle 0x99"),
    ],
)
def test_broken_nodes_are_refused(properties: dict[str, bytes | None], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        plan(tree(**properties))


def test_a_pinned_clock_reaches_only_what_its_parent_does() -> None:
    wanted = npu_of(
        msgspec.structs.replace(
            load_board("imx8mp-evk"), npu=NpuSettings(rates_hz={"core": 400_000_000})
        )
    )
    assert wanted is not None
    assert wanted.rates_node is not None

    def base(parent: int, rate_hz: int) -> Tree:
        return Tree(
            {
                "/": {"interrupt-parent": words(3)},
                "/soc@0": {"ranges": b""},
                "/intc": {"phandle": words(3), "#interrupt-cells": words(3)},
                "/clk": {"phandle": words(2), "#clock-cells": words(1)},
                wanted.node: {
                    "compatible": b"vivante,gc\0",
                    "reg": words(0x38500000, 0x200000),
                    "interrupts": words(0, 13, 4),
                    "clocks": words(2, 267, 2, 267, 2, 105, 2, 106),
                    "clock-names": b"core\0shader\0bus\0reg\0",
                    "power-domains": words(7),
                },
                str(wanted.rates_node): {
                    "phandle": words(7),
                    "#power-domain-cells": words(0),
                    "assigned-clocks": words(2, 306, 2, 105),
                    "assigned-clock-parents": words(2, parent, 2, 56),
                    "assigned-clock-rates": words(rate_hz, 800_000_000),
                },
            }
        )

    changes = plan(base(56, 800_000_000), wanted)
    assert changes == [
        Change(
            str(wanted.rates_node),
            "assigned-clock-rates",
            (800_000_000, 800_000_000),
            (400_000_000, 800_000_000),
        )
    ]
    with pytest.raises(UserError, match="333333333"):  # of 1 GHz: 500 MHz, 333 MHz, never 400
        plan(base(65, 1_000_000_000), wanted)


def test_another_board_is_refused() -> None:
    with pytest.raises(UserError, match="khadas,vim3l") as caught:
        check_identity(Tree({"/": {"compatible": b"khadas,vim3l\0"}}), load_board("vim3"), "it")
    assert "'khadas,vim3'" in caught.value.message


entry = st.sampled_from([(CLOCKS, 267), (CLOCKS, 264), (CLOCKS, 7), (OTHER,), (0,)])
core_hz = st.sampled_from(npu().clocks[0].reachable_hz()[:40])


@given(
    assigned=st.lists(entry, max_size=6, unique=True),
    old_rates=st.lists(st.sampled_from([0, 500_000_000, 800_000_000]), max_size=8),
    status=st.sampled_from([None, b"okay\0", b"ok\0", b"disabled\0", b"fail\0"]),
    core_hz=core_hz,
)
def test_planning_twice_gives_an_empty_plan(
    assigned: list[tuple[int, ...]], old_rates: list[int], status: bytes | None, core_hz: int
) -> None:
    base = tree(
        assigned_clocks=words(*(cell for one in assigned for cell in one)),
        assigned_clock_rates=words(*old_rates),
        status=status,
    )
    wanted = npu(rates_hz={"core": core_hz})
    after = applied(base, plan(base, wanted))
    assert plan(after, wanted) == []
    assert dict(rates(after, wanted)) == {"core": core_hz, "bus": 800_000_000}
    assert after.status(NODE) in ("okay", "ok")
    # What was assigned to other clocks is as before.
    new_rates = after.cells(NODE, "assigned-clock-rates")
    for index, one in enumerate(assigned):
        if one not in ((CLOCKS, 267), (CLOCKS, 264)):
            before = old_rates[index] if index < len(old_rates) else 0
            assert (new_rates[index] if index < len(new_rates) else 0) == before
