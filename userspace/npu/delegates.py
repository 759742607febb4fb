# SPDX-License-Identifier: MIT
"""Which rows a smoke test has: what ``--delegate`` means."""

from __future__ import annotations

from bsp.base.errors import UserError, nearest

CPU = "cpu"
REFERENCE = "cpu-reference"
TEFLON = "teflon"
_WORDS = {
    "all": (CPU, REFERENCE, TEFLON),
    CPU: (CPU, REFERENCE),
    REFERENCE: (REFERENCE,),
    TEFLON: (REFERENCE, TEFLON),
}


def rows(choice: str) -> tuple[str, ...]:
    """Return the delegates to run: ``all``, ``cpu``, ``teflon``, or ``PATH[:key=value;key=value]``.

    ``cpu`` is the best path that the CPU has (XNNPACK, threads). ``cpu-reference`` is the portable
    kernels, whose numbers are the same on every machine: the others are compared with it.

    Raises:
        UserError: the word is none of these, or the options are no key=value pairs.
    """
    if choice in _WORDS:
        return _WORDS[choice]
    path, _, options = choice.partition(":")
    if "/" not in path:
        raise UserError(
            f"unknown delegate {choice!r}{nearest(choice, list(_WORDS))}",
            hint="one of all, cpu, cpu-reference, teflon, or the path of a delegate's library "
            "with its options: /usr/lib/libvx_delegate.so:device_id=0",
        )
    for word in filter(None, options.split(";")):
        if "=" not in word:
            raise UserError(
                f"the option {word!r} of the delegate {path} is not key=value",
                hint=f"--delegate '{path}:key=value;key=value'",
            )
    return (REFERENCE, choice)


def implied(choice: str) -> tuple[str, ...]:
    """Return the rows that run only so that the others can be compared with them."""
    return () if choice in ("all", CPU, REFERENCE) else (REFERENCE,)
