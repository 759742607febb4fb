# SPDX-License-Identifier: MIT
"""In which order a fleet is deployed to, and when that stops. Pure: nothing here runs anything.

The first wave is the canary: few boards, and if one of them is not well afterwards, no other board is
touched. A wave begins when all boards of the one before have been decided, and the failures so far are no
more than are allowed. Once they are more, no other board is started; those under way are brought to an end.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from bsp.base.errors import UserError

_PART_OF_FLEET = 4
_LEAST_IN_A_WAVE = 4


@dataclass(frozen=True)
class Rules:
    """How careful a run is.

    Attributes:
        canary: boards in the first wave; 0: there is no such wave.
        wave_size: boards in each further wave; 0: a quarter of the fleet, four at least.
        max_failures: boards beyond the canary that may fail before the run stops.
        jobs: boards under way at a time, at most.
    """

    canary: int = 1
    wave_size: int = 0
    max_failures: int = 0
    jobs: int = 16

    def __post_init__(self) -> None:
        for flag, value, least in (
            ("--canary", self.canary, 0),
            ("--wave-size", self.wave_size, 0),
            ("--max-failures", self.max_failures, 0),
            ("--jobs", self.jobs, 1),
        ):
            if value < least:
                raise UserError(f"{flag} is {value}, expected {least} or more")


@dataclass(frozen=True)
class Wave:
    """Boards that are deployed to together, as far as ``jobs`` allows."""

    name: str
    hosts: tuple[str, ...]
    gate: bool = False
    """Whether every one of them has to be well for the run to go on, whatever ``max_failures`` says."""


@dataclass(frozen=True)
class Next:
    """What to do now.

    Attributes:
        start: boards to start.
        stopped: why no further board is started; empty while the run goes on.
    """

    start: tuple[str, ...] = ()
    stopped: str = ""


def plan_waves(
    hosts: Sequence[str], rules: Rules, *, done: Collection[str] = ()
) -> tuple[Wave, ...]:
    """Return the waves for the hosts, in their order.

    Args:
        done: those that an interrupted run has brought to a good end: they are only looked at again,
            all at once, and the others go on where it was. A canary that was well is not waited for again.
    """
    seen = [name for name in hosts if name in done]
    waves = [Wave("done before", tuple(seen))] if seen else []
    # As the first run divided them: the same board is a canary in both.
    size = rules.wave_size or max(-(-len(hosts) // _PART_OF_FLEET), _LEAST_IN_A_WAVE)
    canary = min(rules.canary, len(hosts))
    bounds = [0, canary] if canary else [0]
    while bounds[-1] < len(hosts):
        bounds.append(min(bounds[-1] + size, len(hosts)))
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        left = tuple(name for name in hosts[first:end] if name not in done)
        is_canary = canary > 0 and number == 0
        name = "canary" if is_canary else f"wave {number if canary else number + 1}"
        if left:
            waves.append(Wave(name, left, gate=is_canary))
    return tuple(waves)


def decide_next(
    waves: Sequence[Wave], ended: Mapping[str, bool], running: Collection[str], rules: Rules
) -> Next:
    """Return which boards to start now.

    Args:
        ended: boards that were decided: whether each is well.
        running: boards under way.
    """
    failed = [name for wave in waves for name in wave.hosts if ended.get(name) is False]
    for wave in waves:
        broken = [name for name in wave.hosts if ended.get(name) is False]
        if wave.gate and broken:
            return Next(stopped=f"the canary failed: {', '.join(broken)}")
        if len(failed) > rules.max_failures:
            return Next(
                stopped=f"{len(failed)} failed, {rules.max_failures} may: {', '.join(failed)}"
            )
        waiting = [name for name in wave.hosts if name not in ended and name not in running]
        if waiting:
            return Next(tuple(waiting[: max(rules.jobs - len(running), 0)]))
        if any(name in running for name in wave.hosts):
            return Next()
    return Next()
