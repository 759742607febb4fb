# SPDX-License-Identifier: MIT
"""A doctor's visit over SSH, against the least that any visit to the same board takes.

./inv bench doctor [--host H] [--rounds N] [--json]

The board has to be up, deployed to, and healthy (./inv virtual.up --board virtual-a311d, ./inv deploy).
Every arm makes a connection of its own, so an emulated board is compared with itself.
"""

from __future__ import annotations

import argparse

from bsp.base.errors import UserError
from bsp.remote.inventory import Host, resolve
from bsp.remote.ssh import connect
from userspace.npu.doctor import doctor

from .measure import Arm, measure, report

_TIMEOUT_S = 60
_IMPORT = (
    "import sys; sys.path.insert(0, '/run/npu-bsp/current/userspace/site'); "
    "sys.pycache_prefix = '/root/.cache/npu-bsp/pycache'; import ai_edge_litert.interpreter"
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Times a visit of the doctor.")
    parser.add_argument("--host", default="virtual-a311d", help="a healthy board")
    parser.add_argument("--rounds", type=int, default=7, help="how often each arm is run")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    options = parser.parse_args()
    host = resolve(options.host)

    def remote(*command: str) -> None:
        with connect(host, timeout_s=_TIMEOUT_S) as connection:
            connection.run(list(command), timeout_s=_TIMEOUT_S)

    arms = [
        Arm("ssh HOST true", lambda: remote("true")),
        Arm("the same again (A/A)", lambda: remote("true")),
        Arm("ssh HOST python3 -c pass", lambda: remote("python3", "-c", "pass")),
        Arm("the same with the TFLite runtime's import", lambda: remote("python3", "-c", _IMPORT)),
        Arm("doctor", lambda: _visit(host)),
    ]
    report({f"doctor on {host.name}": measure(arms, rounds=options.rounds)}, as_json=options.json)


def _visit(host: Host) -> None:
    document = doctor.doctor(host)
    if document["verdict"] != "healthy":
        raise UserError(
            f"{host.name} is not healthy ({document['first_broken']}), and a healthy board is measured",
            hint=f"./inv doctor --host {host.name} says what to do",
        )


if __name__ == "__main__":
    main()
