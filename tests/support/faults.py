# SPDX-License-Identifier: MIT
"""The faults that deployments are put through, and the table of them in docs/faults.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

FAULTS = {
    "cut-out": "link cut after byte N from here to the board",
    "cut-back": "link cut after byte N from the board to here",
    "stalls": "pieces of the stream held back, as TCP does for lost packets (3 in 100, 10 ms each way)",
    "server": "SSH server and all its sessions killed (SIGKILL), and started again",
    "sigkill": "`deploy` killed (SIGKILL) at a step",
    "ctrl-c": "Ctrl-C at a step",
    "full-root": "root file system full, with N bytes left",
    "full-fat": "boot partition full, with N bytes left",
    "read-only-root": "root file system turns read-only at a step",
    "read-only-fat": "boot partition turns read-only at a step",
    "clock": "the board's clock and ours jump",
    "two": "three deployments to one board at once",
    "never": "a board that does not come back from its trial",
    "other-board": "another board comes back from the trial",
    "host-key": "the board comes back with another host key",
}
"""Kind -> what it is."""

_HEAD = """\
# Faults in flight

Written by `./inv faults`; do not edit. Each row is that many whole deployments over a real SSH server to
a board that is a folder (its boot does what boot.cmd does), each with one fault. After every one it is
asked that

- the good generation is complete: kernel, RAM disk, DTB and each file hashed; what is armed is, too;
- the exit code says what the board then runs (0 the new one, 2 or 3 what it ran before, 5 rolled back,
  6 not known; 130 and -9 are those of a process that was interrupted or killed);
- the next deployment, of the same bundle, ends with 0 and the board runs it;
- that one sends exactly the bytes of the files that the board did not already hold whole.

| fault | cases | exit codes | sent again, of what was to be sent |
|---|---|---|---|
"""
_TAIL = """
Not in this table: power cuts ([power-cuts.md](power-cuts.md)) and trials that fail
([deploy.md](deploy.md)). Lost packets are stalls made by a relay: the kernel of the machine that this was
written on has no `sch_netem`.
"""


@dataclass(frozen=True)
class Row:
    """One deployment with one fault."""

    kind: str
    exit_code: int
    needed_bytes: int
    sent_again_bytes: int


def table(rows: Iterable[Row]) -> str:
    """The page."""
    lines = []
    listed = list(rows)
    for kind, what in FAULTS.items():
        mine = [row for row in listed if row.kind == kind]
        if not mine:
            continue
        codes = Counter(row.exit_code for row in mine)
        shown = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
        needed = sum(row.needed_bytes for row in mine)
        share = f"{sum(row.sent_again_bytes for row in mine) / needed:.0%}" if needed else "-"
        lines.append(f"| {what} | {len(mine)} | {shown} | {share} |\n")
    return _HEAD + "".join(lines) + _TAIL


def missing(page: str) -> list[str]:
    """The faults that a page has no row for."""
    return [what for what in FAULTS.values() if f"| {what} |" not in page]
