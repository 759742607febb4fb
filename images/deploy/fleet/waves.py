# SPDX-License-Identifier: MIT
"""The order in which a fleet is deployed to, and when the run stops. Pure: nothing here runs anything.

The first wave is the canary: few boards; if one of them fails, no other board is started. A wave begins
when every board of the previous one has a result and no more have failed than permitted. Once more have
failed, no further board is started; deployments under way are finished.
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
    """How cautious a run is.

    Attributes:
        canary: boards in the first wave; 0 for no canary.
        wave_size: boards in each further wave; 0 for a quarter of the fleet, at least four.
        max_failures: boards beyond the canary that may fail before the run stops.
        jobs: most deployments at a time.
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
    """Boards that are deployed to at the same time, as far as ``jobs`` allows."""

    name: str
    hosts: tuple[str, ...]
    gate: bool = False
    """Any failure in this wave stops the run, whatever ``max_failures`` permits."""


@dataclass(frozen=True)
class Next:
    """The next step of a run.

    Attributes:
        start: boards to start.
        stopped: why no further board is started; empty while the run goes on.
    """

    start: tuple[str, ...] = ()
    stopped: str = ""


def plan_waves(
    hosts: Sequence[str], rules: Rules, *, done: Collection[str] = ()
) -> tuple[Wave, ...]:
    """Return the waves of the hosts, in the order of the hosts.

    Args:
        done: boards that an interrupted run finished: they are verified first, all in one wave, and the
            others continue. A canary that passed is not waited for again.
    """
    finished = [name for name in hosts if name in done]
    waves = [Wave("done before", tuple(finished))] if finished else []
    # Divided as by the first run, so that the same boards are canaries in both.
    size = rules.wave_size or max(-(-len(hosts) // _PART_OF_FLEET), _LEAST_IN_A_WAVE)
    canary = min(rules.canary, len(hosts))
    bounds = [0, canary] if canary else [0]
    while bounds[-1] < len(hosts):
        bounds.append(min(bounds[-1] + size, len(hosts)))
    for number, (first, end) in enumerate(itertools.pairwise(bounds)):
        remaining = tuple(name for name in hosts[first:end] if name not in done)
        is_canary = canary > 0 and number == 0
        name = "canary" if is_canary else f"wave {number if canary else number + 1}"
        if remaining:
            waves.append(Wave(name, remaining, gate=is_canary))
    return tuple(waves)


def decide_next(
    waves: Sequence[Wave], ended: Mapping[str, bool], running: Collection[str], rules: Rules
) -> Next:
    """Return which boards to start now.

    Args:
        ended: board with a result -> whether it succeeded.
        running: boards whose deployment is under way.
    """
    failed = [name for wave in waves for name in wave.hosts if ended.get(name) is False]
    for wave in waves:
        failed_here = [name for name in wave.hosts if ended.get(name) is False]
        if wave.gate and failed_here:
            return Next(stopped=f"the canary failed: {', '.join(failed_here)}")
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
