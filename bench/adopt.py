# SPDX-License-Identifier: MIT
"""Adopting a board and switching its NPU on, against the two boots that this takes.

./inv bench adopt [--host H] [--rounds N] [--json]

The board has to be up, and boot in its own way with the NPU off
(./inv virtual.up --board virtual-a311d --layout armbian --name other); it is given back after each round.
"""

from __future__ import annotations

import argparse
import functools

from bsp.base.errors import InfrastructureError
from bsp.remote.inventory import Host, resolve
from images.deploy.adopt import adopt, undo
from images.deploy.in_place import deploy_dtb
from images.deploy.session import Target
from tests.support.live_board import reboot, said

from .measure import Arm, measure, report

_TIMEOUT_S = 600


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description="Times an adoption and one trial of a device tree."
    )
    parser.add_argument("--host", default="other", help="a board that boots in its own way")
    parser.add_argument("--rounds", type=int, default=3, help="how often each arm is run")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args()
    host = resolve(options.host)

    def twice() -> None:
        for _ in range(2):
            reboot(host, timeout_s=_TIMEOUT_S)

    arms = [
        Arm("two reboots, until SSH answers", twice),
        Arm("the same again (A/A)", twice),
        Arm(
            "--adopt, then --dtb-only",
            lambda: _switch_on(host),
            check=lambda: _back(host),
            target=1.3,
        ),
    ]
    timings = measure(arms, rounds=options.rounds, warm_up=0)
    report({f"adopting {host.name}": timings}, as_json=options.json)


def _switch_on(host: Host) -> None:
    target = Target(host, timeout_s=_TIMEOUT_S)
    for do in (adopt, functools.partial(deploy_dtb, dtb=None)):
        outcome = do(target, board=None)
        if outcome.outcome != "confirmed":
            raise InfrastructureError(
                f"{host.name} is {outcome.outcome}, expected confirmed: {outcome.problem}",
                hint=outcome.hint,
            )


def _back(host: Host) -> None:
    """Give the board back, without the copies that would make the next adoption shorter."""
    undo(Target(host, timeout_s=_TIMEOUT_S))
    said(host, "rm", "-r", "/var/lib/npu-bsp")
    reboot(host, timeout_s=_TIMEOUT_S)


if __name__ == "__main__":
    main()
