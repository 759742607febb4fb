# SPDX-License-Identifier: MIT
"""What the commands for virtual boards return: as records, as documents, and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bsp.base.output import table
from bsp.base.result import Result


@dataclass(frozen=True)
class Described:
    """A virtual board, as it was started.

    Attributes:
        kernel: ``uname -r`` of the kernel on its disk.
        port: on ``address``, for SSH.
        pid: QEMU's.
        layout: whose images its disk is laid out like.
        uboot: ``like:BOARD``; None: Debian's own, or none.
        console_log: what its serial console said.
    """

    name: str
    board: str
    kernel: str
    address: str
    port: int
    pid: int
    layout: str
    uboot: str | None
    console_log: str

    def document(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Up(Result):
    """What ``virtual.up`` did.

    Attributes:
        already_up: it ran before.
        seconds: from QEMU's start until it answered over SSH.
    """

    board: Described
    already_up: bool
    seconds: float = 0.0

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            **self.board.document(),
            "already_up": self.already_up,
            "seconds": round(self.seconds, 1),
        }

    def text(self) -> str:
        """Say what was done, and what to type next."""
        board = self.board
        state = "is up already" if self.already_up else f"is up after {self.seconds:.1f} s"
        option = "" if board.name == "virtual" else f" --name {board.name}"
        return (
            f"{board.name} {state}: {board.board}, Linux {board.kernel}, "
            f"SSH on {board.address}:{board.port}\n"
            f"log in:    ./inv virtual.ssh{option}\n"
            f"console:   {board.console_log}\n"
            f"take down: ./inv virtual.down{option}"
        )


@dataclass(frozen=True)
class WouldUp(Result):
    """What ``virtual.up`` would do, one line a step."""

    name: str
    board: str
    would: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "name": self.name,
            "board": self.board,
            "dry_run": True,
            "would": list(self.would),
        }

    def text(self) -> str:
        """Return the steps."""
        return "\n".join(self.would)


@dataclass(frozen=True)
class Down(Result):
    """What ``virtual.down`` did, or with ``dry_run`` would do.

    Attributes:
        clean: it switched itself off.
    """

    name: str
    was_running: bool
    clean: bool = False
    dry_run: bool = False

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return asdict(self)

    def text(self) -> str:
        """Say what was done."""
        if self.dry_run:
            return f"would shut {self.name} down and remove it"
        if not self.was_running:
            return f"{self.name} did not run any more; removed what it had left"
        return f"{self.name} is down" + ("" if self.clean else " (QEMU was ended)")


@dataclass(frozen=True)
class Listed(Result):
    """All virtual boards of this user: each with whether it runs."""

    boards: tuple[tuple[Described, bool], ...]

    def document(self) -> list[dict[str, Any]]:
        """Return the document that ``--json`` prints."""
        return [{**board.document(), "running": running} for board, running in self.boards]

    def text(self) -> str:
        """Return the table of virtual boards."""
        rows = [
            (board.name, board.board, board.kernel, str(board.port), "up" if running else "gone")
            for board, running in self.boards
        ]
        return table(("name", "board", "kernel", "port", "state"), rows) if rows else "none is up"
