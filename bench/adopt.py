# SPDX-License-Identifier: MIT
"""Adopting a board and switching its NPU on, against the two boots that this takes.

.venv/bin/python -m bench.adopt [--host H] [--rounds N] [--json]

The board has to be up, and boot in its own way with the NPU off
(./inv virtual.up --board virtual-a311d --layout armbian --name other); it is given back after each round.
"""

from __future__ import annotations

import argparse
import functools

from bsp.remote.inventory import Host, resolve
from bsp.remote.ssh import connect
from images.deploy import trial
from images.deploy.adopt import adopt, undo
from images.deploy.in_place import deploy_dtb
from images.deploy.session import Target

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
            _reboot(host)

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


def _reboot(host: Host) -> None:
    with connect(host, timeout_s=_TIMEOUT_S) as connection:
        boot_id = connection.run(["cat", "/proc/sys/kernel/random/boot_id"]).text.strip()
        connection.run(["systemctl", "reboot"], check=False)
    if not trial.wait_for_boot(host, other_than=boot_id, timeout_s=_TIMEOUT_S, root=""):
        raise RuntimeError(f"{host.name} did not come back")


def _switch_on(host: Host) -> None:
    target = Target(host, timeout_s=_TIMEOUT_S)
    for do in (adopt, functools.partial(deploy_dtb, dtb=None)):
        outcome = do(target, board=None)
        if outcome.outcome != "confirmed":
            raise RuntimeError(f"{host.name}: {outcome.outcome}: {outcome.problem}")


def _back(host: Host) -> None:
    """Give the board back, without the copies that would make the next adoption shorter."""
    undo(Target(host, timeout_s=_TIMEOUT_S))
    with connect(host, timeout_s=_TIMEOUT_S) as connection:
        connection.run(["rm", "-r", "/var/lib/npu-bsp"])
    _reboot(host)


if __name__ == "__main__":
    main()
