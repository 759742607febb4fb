# SPDX-License-Identifier: MIT
"""One rate for the NPU, as ``--npu-rate`` asks for it: which clocks take it, from which parent. Pure.

The limit of each clock is the rate that the tree itself asks for: its authors chose it for the voltage
that the board gives the chip. Only where the chip's maker says what voltage a higher rate needs, and the
tree promises that voltage, may it be higher.
"""

from __future__ import annotations

import re

import msgspec

from ...base.errors import UserError
from ...profile import Clock, Npu
from ..tree import Tree
from .required_changes import assigned_parent, rates

_UNITS = {"": 1, "hz": 1, "khz": 10**3, "mhz": 10**6, "ghz": 10**9}

# A rate that is written to three digits (333MHz) means the one that is nearest (333.33 MHz).
_NEAR = 1 / 500


def parse_rate(text: str) -> int:
    """Return hertz: ``500MHz``, ``0.8 GHz``, ``500000000``.

    Raises:
        UserError: it is not a rate.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match.group(2) not in _UNITS or float(match.group(1)) <= 0:
        raise UserError(f"{text!r} is not a clock rate", hint="one looks like 500MHz or 0.8GHz")
    return round(float(match.group(1)) * _UNITS[match.group(2)])


def at_rate(npu: Npu, tree: Tree, rate_hz: int, what: str) -> Npu:
    """Return the NPU with the rates and parents that ``rate_hz`` means in this tree.

    The first of the profile's ``rate_clocks`` runs at the rate, the others at the highest that they reach
    and that is not above it. A clock keeps its parent if that reaches the rate.

    Args:
        npu: the NPU as its profile has it.
        tree: the base tree.
        rate_hz: what is asked for.
        what: what the tree is, for errors.

    Raises:
        UserError: the profile has no facts, or no parent reaches the rate; the message lists those that
            can be reached.
    """
    chosen = [clock for clock in npu.clocks if clock.name in npu.rate_clocks]
    if not chosen:
        raise UserError(
            "the rate of this NPU cannot be set by a device tree: its profile has no facts on its clocks",
            hint="leave out --npu-rate",
        )
    tree_rates = dict(rates(tree, npu))
    changed: dict[str, Clock] = {}
    for number, clock in enumerate(chosen):
        limit_hz = tree_rates.get(clock.name) or clock.rate_hz or max(clock.reachable_hz())
        if clock.firmware_rates:
            taken_hz = _of_firmware(npu, clock, tree, rate_hz, limit_hz)
            changed[clock.name] = msgspec.structs.replace(clock, rate_hz=taken_hz)
            continue
        present = assigned_parent(tree, npu, clock, what)
        choices = _choices(clock, present)
        fitting = [choice for choice in choices if choice[0] <= limit_hz + 1]
        if number == 0:
            near = [one for one in fitting if abs(one[0] - rate_hz) <= max(1, rate_hz * _NEAR)]
            if not near:
                raise UserError(
                    _refusal(clock, rate_hz, limit_hz, [choice for choice, _ in fitting]),
                    hint=f"the facts are those of {clock.source}",
                )
            taken = min(near, key=lambda one: abs(one[0] - rate_hz))
            rate_hz = taken[0]
        else:
            below = [choice for choice in fitting if choice[0] <= rate_hz + 1]
            taken = max(below or fitting[-1:], key=lambda one: one[0])
        changed[clock.name] = msgspec.structs.replace(
            clock, rate_hz=taken[0], parent_cell=taken[1] if taken[1] != present else None
        )
    clocks = tuple(changed.get(clock.name, clock) for clock in npu.clocks)
    return msgspec.structs.replace(npu, clocks=clocks)


def _of_firmware(npu: Npu, clock: Clock, tree: Tree, rate_hz: int, limit_hz: int) -> int:
    """Return the rate that firmware gives for ``rate_hz``, if the tree promises the voltage for it.

    The kernel brings a regulator into the range that the tree gives it (of_regulator.c sets apply_uV): the
    lower end is what is promised.
    """
    near = min(clock.firmware_rates, key=lambda each: abs(each.rate_hz - rate_hz))
    if abs(near.rate_hz - rate_hz) > max(1, rate_hz * _NEAR):
        had = ", ".join(f"{each / 1e6:g}" for each in clock.reachable_hz())
        raise UserError(
            f"the NPU's clock {clock.name!r} cannot run at {rate_hz / 1e6:.6g} MHz: the firmware that "
            f"sets it knows {had} MHz only",
            hint=f"the facts are those of {clock.source}",
        )
    if near.rate_hz <= limit_hz:
        return near.rate_hz
    request = f"the NPU's clock {clock.name!r} at {near.rate_hz / 1e6:g} MHz"
    if near.least_microvolts is None:
        raise UserError(
            f"{request} is above the {limit_hz / 1e6:g} MHz of this tree, and what voltage it needs is not "
            "published",
            hint=f"the facts are those of {clock.source}",
        )
    regulator = tree.by_phandle((tree.cells(npu.node, clock.supply) or [0])[0])
    needed_v = near.least_microvolts / 1e6
    if regulator is None:
        raise UserError(
            f"{request} needs {needed_v:g} V, and this tree does not say which regulator feeds the NPU "
            f"({npu.node} has no {clock.supply} that leads anywhere)",
            hint="which one it is, the board's maker or its schematic knows",
        )
    low, high = (
        (tree.cells(regulator, f"regulator-{end}-microvolt") or [0])[0] for end in ("min", "max")
    )
    if low >= near.least_microvolts:
        return near.rate_hz
    name = (tree.strings(regulator, "regulator-name") or [regulator])[0]
    raise UserError(
        f"{request} needs {needed_v:g} V, and this tree promises less: its supply {name} may be anything "
        f"from {low / 1e6:g} to {high / 1e6:g} V. Neither the driver {npu.driver} nor the clock sets a "
        "voltage, so that it stays what the power chip or the bootloader made it, which no public document "
        "says.",
        hint=f"build-dts --apply FILE.dtbo with regulator-min-microvolt = <{near.least_microvolts}> in "
        f"{regulator} makes Linux set it at boot; whether the board bears that, its maker knows",
    )


def _choices(clock: Clock, present: int | None) -> list[tuple[int, int | None]]:
    """Return (rate, parent's cell) a clock can have, highest first; each rate once.

    A parent that the tree has chosen comes before the others; None as a parent leaves the choice to the
    kernel.
    """
    parent_of: dict[int, int | None] = {}
    parents = sorted(clock.parents, key=lambda parent: parent.cell != present)
    for parent in parents:
        if clock.pinned and parent.cell is None:
            continue  # the tree cannot name it, so the kernel would not switch to it
        for divider in range(1, clock.max_divider + 1):
            parent_of.setdefault(parent.rate_hz // divider, parent.cell if clock.pinned else None)
    return sorted(parent_of.items(), reverse=True)


def _refusal(clock: Clock, rate_hz: int, limit_hz: int, reachable: list[int]) -> str:
    shown = reachable[:3] + sorted(reachable[3:], key=lambda one: abs(one - rate_hz))[:7]
    rates_mhz = ", ".join(f"{one / 1e6:.6g}" for one in sorted(set(shown), reverse=True))
    if rate_hz > limit_hz:
        why = (
            f"the tree asks for {limit_hz / 1e6:.6g} MHz, and whether the board's voltage allows "
            "more is not known"
        )
    else:
        why = "no parent clock reaches that"
    return (
        f"the NPU's clock {clock.name!r} cannot run at {rate_hz / 1e6:.6g} MHz: {why}.\n"
        f"reachable, for example: {rates_mhz} MHz"
    )
