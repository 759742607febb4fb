# SPDX-License-Identifier: MIT
"""What the checks examine: the facts of a board, and the profile that it has."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from bsp.profile import Board, Npu

from .facts import Facts, RenderNode


@dataclass(frozen=True)
class Subject:
    """What is examined, and as what.

    Attributes:
        board: profile that the facts, or the inventory, say it is; None: none fits.
        npu: the board's NPU, with the board's settings; None where there is no profile or no NPU.
        wanted: profile that the inventory names.
        host: name of the host for commands; None: this machine.
        doubts: what contradicts its ``compatible`` string, in words; ``board`` is then None.
    """

    facts: Facts
    board: Board | None
    npu: Npu | None
    wanted: Board | None = None
    host: str | None = None
    doubts: str = ""

    @property
    def driver(self) -> str:
        """The free driver of the NPU; without a profile, of what is there."""
        if self.npu:
            return self.npu.driver
        there = {*self.facts.modules, *(node.driver for node in self.facts.render_nodes)}
        return next((name for name in ("rocket", "ethosu") if name in there), "etnaviv")

    @property
    def node(self) -> RenderNode | None:
        """The NPU's device node, as sysfs has it: by its driver, whatever its number is."""
        nodes = self.facts.render_nodes
        return next((node for node in nodes if node.driver == self.driver), None)

    @property
    def deploy(self) -> str:
        """The command that puts our kernel, device tree and userspace there."""
        return f"./inv deploy --host {self.host or 'NAME'}"

    def there(self, command: str) -> str:
        """A command that runs on the board."""
        quoted = shlex.quote(command) if "'" in command else f"'{command}'"
        return f"ssh {self.host} {quoted}" if self.host else command
