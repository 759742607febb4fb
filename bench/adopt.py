# SPDX-License-Identifier: MIT
"""Adopting a board and switching its NPU on, by one command and by two, against two boots.

./inv bench adopt [--host H] [--rounds N] [--json]

The board has to be up, and boot in its own way with the NPU off
(./inv virtual.up --board virtual-a311d --layout armbian --name other); it is given back after each round.
"""

from __future__ import annotations

import argparse

from bsp.base.errors import InfrastructureError
from bsp.remote.inventory import Host, resolve
from images.deploy.adopt import adopt, undo
from images.deploy.command import Content, take_over
from images.deploy.deployment import Deployment
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

    def back() -> None:
        _back(host)

    arms = [
        Arm("two reboots, until SSH answers", twice),
        Arm("the same again (A/A)", twice),
        Arm("--adopt --dtb-only", lambda: _at_once(host), check=back, target=1.3),
        Arm("--adopt, then --dtb-only", lambda: _one_by_one(host), check=back, target=1.3),
    ]
    timings = measure(arms, rounds=options.rounds, warm_up=0)
    report({f"adopting {host.name}": timings}, as_json=options.json)


def _at_once(host: Host) -> None:
    target = Target(host, timeout_s=_TIMEOUT_S)
    _check(take_over(target, Content(), dtb_only=True, by_kexec=False, dry_run=False))


def _one_by_one(host: Host) -> None:
    target = Target(host, timeout_s=_TIMEOUT_S)
    _check(adopt(target, board=None))
    _check(deploy_dtb(target, board=None, dtb=None))


def _check(result: Deployment) -> None:
    if result.outcome != "confirmed":
        raise InfrastructureError(
            f"{result.host} is {result.outcome}, expected confirmed: {result.problem}",
            hint=result.hint,
        )


def _back(host: Host) -> None:
    """Give the board back, without the copies that would make the next adoption shorter."""
    undo(Target(host, timeout_s=_TIMEOUT_S))
    said(host, "rm", "-r", "/var/lib/npu-bsp")
    reboot(host, timeout_s=_TIMEOUT_S)


if __name__ == "__main__":
    main()
