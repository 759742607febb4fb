# SPDX-License-Identifier: MIT
"""Checks of device tree and kernel: node, status, power domain, clocks, configuration. Pure."""

from __future__ import annotations

import re

from bsp.catalog import load_soc
from bsp.dts.npu.available import Unavailable, unavailable
from bsp.dts.npu.clocks import ClockRate, compare_clocks, parse_clk_summary, same_rate
from bsp.dts.npu.owners import other_owners
from bsp.dts.npu.resources import defects
from bsp.dts.npu.switched_off import on_upstream, who_did
from bsp.profile import Clock, Npu

from .check import Outcome, broken, ok, unknown
from .subject import Subject

_CRYSTAL_HZ = 24_000_000


def node(subject: Subject) -> Outcome:
    """Whether the running device tree has the NPU."""
    npu, board, tree = subject.npu, subject.board, subject.facts.tree
    if board and npu is None:
        return broken(
            f"{load_soc(board.soc).title} has no NPU", "a board with an NPU", "./inv boards"
        )
    if tree is None or npu is None:
        return unknown("the device tree cannot be read", "a node of the NPU")
    expected = f"{npu.node}, compatible {npu.compatible}"
    if npu.compatible in tree.strings(npu.node, "compatible"):
        # Who may not read the whole tree sees the NPU's nodes alone, and not what they refer to.
        wrong = defects(tree, npu) if "/" in tree.nodes else []
        if wrong:
            resources = f"{expected}, with registers, interrupt and all it names"
            return broken("; ".join(wrong), resources, subject.deploy)
        return ok(npu.node, expected)
    others = sorted(path for path in tree.nodes if path.rpartition("/")[2].startswith("npu@"))
    return broken(
        f"no such node in the running tree{'; there is ' + ', '.join(others) if others else ''}",
        expected,
        subject.deploy,
    )


def status(subject: Subject) -> Outcome:
    """Whether the node is switched on."""
    npu, tree = subject.npu, subject.facts.tree
    if npu is None or tree is None or npu.node not in tree.nodes:
        return unknown("there is no node", "okay")
    off = [each for each in unavailable(tree, npu) if "power domain" not in each.role]
    if not off:
        return ok(tree.status(npu.node), "okay")
    return _switched_off(subject, npu, off, "okay")


def owners(subject: Subject) -> Outcome:
    """Whether the tree leaves the NPU to one driver."""
    npu, tree = subject.npu, subject.facts.tree
    if npu is None or tree is None or npu.node not in tree.nodes:
        return unknown("there is no node", "one node for the NPU")
    expected = f"{npu.node} alone, for {npu.driver}"
    others = other_owners(tree, npu)
    if not others:
        return ok(npu.node, expected)
    listed = " and ".join(map(str, others))
    return broken(f"{npu.node} ({npu.compatible}) and {listed}", expected, _look(subject))


def _switched_off(subject: Subject, npu: Npu, off: list[Unavailable], expected: str) -> Outcome:
    """Return the outcome for disabled nodes: a deployment enables them, unless they are off on purpose."""
    found = ", ".join(
        f"{each.path} is {each.status or 'off (its status is empty)'}" for each in off
    )
    needed = any(each.role != "NPU" for each in off)
    series = re.match(r"\d+\.\d+", subject.facts.kernel)
    on = subject.board is not None and on_upstream(
        subject.board, npu, series[0] if series else None
    )
    if not on and not needed:
        return broken(found, expected, subject.deploy)
    return broken(f"{found}. {who_did(npu, on=on)}", expected, _look(subject))


def _look(subject: Subject) -> str:
    """Return the command that shows what is wrong in the tree, and asks before it changes it."""
    return f"./inv build-dts --from-host {subject.host or 'NAME'}"


def power_domain(subject: Subject) -> Outcome:
    """Whether the NPU's power domain is there and came up."""
    npu, facts = subject.npu, subject.facts
    tree = facts.tree
    if npu is None or tree is None or npu.node not in tree.nodes:
        return unknown("there is no node", "a power domain, if the SoC has one")
    needed = "power-domains" in npu.requires
    words = tree.cells(npu.node, "power-domains")
    if not words:
        if needed:
            return broken(f"{npu.node} names none", "power-domains", subject.deploy)
        return ok("none needed", "none")
    provider = tree.by_phandle(words[0])
    expected = f"{provider or 'a power domain'}, attached"
    device = facts.device_at(npu.node)
    off = [each for each in unavailable(tree, npu) if "power domain" in each.role]
    if off:
        return _switched_off(subject, npu, off, expected)
    if device is None:
        return unknown("the kernel has no device for the NPU", expected)
    waits = [row for row in facts.deferred if row.startswith(f"{device.name} ")]
    if device.waits or any("supplier" in row or "power" in row for row in waits):
        why = f"{device.name} waits: {waits[0] if waits else 'a supplier is missing'}"
        see = subject.there("cat /sys/kernel/debug/devices_deferred")
        return broken(why, expected, see)
    if device.name in facts.domains:
        return ok("{} ({})".format(*facts.domains[device.name]), expected)
    if device.driver:
        return ok(f"{device.driver} is bound, so it is attached", expected)
    return unknown("no driver is bound yet", expected)


def supplies(subject: Subject) -> Outcome:
    """Whether the kernel cut the NPU's power as unused before the driver came.

    Linux switches off what nobody has asked for 30 seconds after it has started (drivers/regulator/core.c,
    ``regulator_init_complete``). A module that loads later may find its NPU without power.
    """
    facts, npu = subject.facts, subject.npu
    expected = f"{subject.driver} loaded before unused regulators are cut"
    if not facts.log_readable:
        return unknown("the kernel's log cannot be read", expected)
    names = _supply_names(subject)
    cut = {
        name: at_s
        for name, at_s in (facts.system.cut or {}).items()
        if name in names or "npu" in name
    }
    device = facts.device_at(npu.node) if npu else None
    came_up = subject.node is not None and (device is None or bool(device.driver))
    if not cut and facts.log_begins_late and not came_up:
        return unknown("the log's first lines, which would say so, are overwritten", expected)
    if not cut:
        return ok("none was cut", expected)
    name, at_s = min(cut.items(), key=lambda each: each[1])
    found = f"{name} was cut as unused after {at_s:.1f} s"
    if came_up:
        return ok(f"{found}; {subject.driver} came up all the same", expected)
    early = f"echo {subject.driver} >>/etc/initramfs-tools/modules && update-initramfs -u && reboot"
    how = f"{subject.driver} is a module"
    if not any(f"/{subject.driver}.ko" in file for file in facts.module_files):
        how = f"{subject.driver} was not there"
    return broken(
        f"{found}, before {subject.driver} came up ({how})", expected, subject.there(early)
    )


def _supply_names(subject: Subject) -> set[str]:
    """Return what the regulators of the NPU, and of its power domain, are called."""
    npu, tree = subject.npu, subject.facts.tree
    if npu is None or tree is None:
        return set()
    names: set[str] = set()
    domain = tree.cells(npu.node, "power-domains") if npu.node in tree.nodes else ()
    provider = tree.by_phandle(domain[0]) if domain else None
    # Rockchip: the controller's child whose reg is the domain's number has the supply.
    of_domain = [
        path
        for path in tree.nodes
        if provider and len(domain) > 1 and path.startswith(f"{provider}/")
        and tuple(tree.cells(path, "reg"))[:1] == (domain[1],)
    ]  # fmt: skip
    # Domains nest: one in another needs both supplies.
    around = [
        path for path in tree.nodes if any(f"{each}/".startswith(f"{path}/") for each in of_domain)
    ]
    for path in (npu.node, *npu.more_nodes, *around):
        for name in tree.nodes.get(path, {}):
            if name.endswith("-supply") and (cells := tree.cells(path, name)):
                regulator = tree.by_phandle(cells[0])
                if regulator:
                    names |= {
                        *tree.strings(regulator, "regulator-name"),
                        regulator.rpartition("/")[2],
                    }
    return names


def clocks(subject: Subject) -> Outcome:
    """Whether the NPU's clocks run at the rates that profile and tree ask for."""
    npu, facts = subject.npu, subject.facts
    device = facts.device_at(npu.node) if npu else None
    if npu is None or facts.tree is None or device is None:
        return unknown("the kernel has no device for the NPU", "the NPU's clocks")
    measured = parse_clk_summary(facts.clk_summary, device.name)
    if not measured:
        why = "only root can see them" if facts.user_id else "no clock names the NPU its consumer"
        return unknown(why, "the NPU's clocks")
    rates = {each.name: each for each in measured}
    compared = {each.name: each for each in compare_clocks(facts.tree, npu, measured)}
    wrong, expected = [], []
    for clock in npu.clocks:
        each = rates.get(clock.name)
        if each is None:
            continue
        tree_asks = compared[clock.name]
        from_tree = None if tree_asks.rounded else tree_asks.asked_hz
        if problem := _wrong_rate(clock, each, from_tree):
            wrong.append(f"{clock.name} {_mhz(each.rate_hz)} ({each.clock})")
            expected.append(problem)
    shown = ", ".join(f"{name} {_mhz(each.rate_hz)}" for name, each in rates.items())
    if wrong:
        return broken(", ".join(wrong), ", ".join(expected), subject.deploy)
    return ok(shown, "the rates that profile and device tree ask for")


def _wrong_rate(clock: Clock, measured: ClockRate, tree_hz: int | None) -> str:
    """Say at which rate the clock should run, or return an empty string if it does."""
    if clock.rate_hz is not None:
        fits = same_rate(clock.rate_hz, measured.rate_hz)
        return "" if fits else f"{clock.name} {_mhz(clock.rate_hz)} (profile)"
    if clock.least_hz is not None and measured.rate_hz < clock.least_hz - 1:
        return f"{clock.name} {_mhz(clock.least_hz)} or more (profile)"
    if tree_hz is not None and not same_rate(tree_hz, measured.rate_hz):
        return f"{clock.name} {_mhz(tree_hz)} (device tree)"
    if tree_hz is None and clock.parents and measured.rate_hz <= _CRYSTAL_HZ:
        return f"{clock.name} above the crystal's {_mhz(_CRYSTAL_HZ)}"
    return ""


def config(subject: Subject) -> Outcome:
    """Whether the kernel was built with what the NPU needs."""
    npu, facts = subject.npu, subject.facts
    if npu is None:
        return unknown("no profile says what is needed", "kernel options")
    expected = ", ".join(npu.kernel_symbols)
    off = [name for name in npu.kernel_symbols if facts.config.get(name) == "n"]
    # A symbol that is not even mentioned depends on another that is off.
    off += [name for name in npu.kernel_symbols if facts.config and name not in facts.config]
    if off:
        return broken(f"not set: {', '.join(dict.fromkeys(off))}", expected, subject.deploy)
    if facts.config:
        return ok("all set", expected)
    if subject.driver in facts.modules:
        return ok("no configuration file, but the driver is there", expected)
    return unknown("no configuration file of this kernel is on the board", expected)


def _mhz(rate_hz: int) -> str:
    return f"{rate_hz / 1e6:.6g} MHz"
