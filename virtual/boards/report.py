# SPDX-License-Identifier: MIT
"""What is printed about virtual boards, out of what ``boards.py`` returns."""

from __future__ import annotations

from typing import Any

from bsp.base.output import table


def text_of(found: dict[str, Any]) -> str:
    """Say what ``up`` did, and what to type next."""
    name = found["name"]
    state = "is up already" if found["already_up"] else f"is up after {found['seconds']:.1f} s"
    option = "" if name == "virtual" else f" --name {name}"
    return (
        f"{name} {state}: {found['board']}, Linux {found['kernel']}, "
        f"SSH on {found['address']}:{found['port']}\n"
        f"log in:    ./inv virtual.ssh{option}\n"
        f"console:   {found['console_log']}\n"
        f"take down: ./inv virtual.down{option}"
    )


def text_of_down(found: dict[str, Any]) -> str:
    """Say what ``down`` did."""
    if found["dry_run"]:
        return f"would shut {found['name']} down and remove it"
    if not found["was_running"]:
        return f"{found['name']} did not run any more; removed what it had left"
    return f"{found['name']} is down" + ("" if found["clean"] else " (QEMU was ended)")


def text_of_list(found: list[dict[str, Any]]) -> str:
    """Return the table of virtual boards."""
    rows = [
        (
            each["name"],
            each["board"],
            each["kernel"],
            str(each["port"]),
            "up" if each["running"] else "gone",
        )
        for each in found
    ]
    return table(("name", "board", "kernel", "port", "state"), rows) if rows else "none is up"
