# SPDX-License-Identifier: MIT
"""The NPU's clocks as the kernel runs them, beside what the device tree asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ...profile import Npu
from ..tree import Tree
from .required_changes import rates


@dataclass(frozen=True)
class ClockRate:
    """A clock of the NPU as the kernel runs it: its name at the NPU, the clock, its rate."""

    name: str
    clock: str
    rate_hz: int


@dataclass(frozen=True)
class ClockResult:
    """One clock: the rate that the device tree asks for (None: none), and the one it runs at.

    Attributes:
        name: the NPU's name for it.
        clock: the kernel's name for it.
        rounded: no parent reaches the rate that is asked for, so that the kernel took another.
    """

    name: str
    clock: str
    asked_hz: int | None
    rate_hz: int
    rounded: bool


def parse_clk_summary(text: str, device: str | None) -> tuple[ClockRate, ...]:
    """Return the clocks that ``device`` consumes, from ``/sys/kernel/debug/clk/clk_summary``.

    Since Linux 6.6 the last two columns are the consumer and its name for the clock; a clock with more
    than one consumer has one more line each (drivers/clk/clk.c, ``clk_summary_show_one``).
    """
    clock_rates: list[ClockRate] = []
    clock, rate_hz = "", 0
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 9 and words[4].isdigit() and words[1].isdigit():
            clock, rate_hz = words[0], int(words[4])
        if device and len(words) >= 2 and words[-2] == device and rate_hz:
            clock_rates.append(ClockRate(name=words[-1], clock=clock, rate_hz=rate_hz))
    return tuple(clock_rates)


def compare_clocks(
    tree: Tree, npu: Npu, measured: tuple[ClockRate, ...]
) -> tuple[ClockResult, ...]:
    """Put the rates that a device tree asks for beside the real ones."""
    tree_rates = dict(rates(tree, npu))
    profile = {clock.name: clock for clock in npu.clocks}
    results = []
    for each in measured:
        asked_hz = tree_rates.get(each.name)
        rounded = False
        if asked_hz is not None and not same_rate(asked_hz, each.rate_hz):
            reachable = profile[each.name].reachable_hz(None)
            rounded = not any(same_rate(asked_hz, other_hz) for other_hz in reachable)
        results.append(ClockResult(each.name, each.clock, asked_hz, each.rate_hz, rounded))
    return tuple(results)


def same_rate(one_hz: int, other_hz: int) -> bool:
    """Whether two rates are the same; the kernel rounds fractions of a hertz."""
    return abs(one_hz - other_hz) <= 1
