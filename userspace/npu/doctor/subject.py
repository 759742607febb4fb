# SPDX-License-Identifier: MIT
"""What the checks examine: the facts of a board, and the profile that it has."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from bsp.profile import Board, Npu

from .facts import Facts, RenderNode

# Ways of trial with which a board is adopted; kexec leaves its disk alone (bsp/boot_survey/ways.py).
_ADOPTED_BY = ("fat", "raw")


@dataclass(frozen=True)
class Subject:
    """What is examined, and as what.

    Attributes:
        board: profile that the facts, or the inventory, say it is; None: none fits.
        npu: the board's NPU, with the board's settings; None where there is no profile or no NPU.
        wanted: profile that the inventory names.
        host: name of the host for commands; None: this machine.
        doubts: what contradicts its ``compatible`` string, in words; ``board`` is then None.
        way: how a trial is booted there, as ``boot_survey`` found it; empty: in no way; None: not known.
    """

    facts: Facts
    board: Board | None
    npu: Npu | None
    wanted: Board | None = None
    host: str | None = None
    doubts: str = ""
    way: str | None = None

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
    def is_ours(self) -> bool:
        """Whether npu-bsp's boot script has booted it."""
        return bool(re.search(r"\bnpu_bsp\.generation=", self.facts.cmdline))

    @property
    def deploy(self) -> str:
        """The command that puts our kernel, device tree and userspace there."""
        return self.deploy_with("")

    def deploy_with(self, flags: str) -> str:
        """As ``deploy``; on a board that boots in another way, what comes before that, without flags."""
        command = f"./inv deploy --host {self.host or 'NAME'}"
        if self.is_ours or self.host is None:
            return f"{command} {flags}".rstrip()
        if self.way in (None, *_ADOPTED_BY):
            return f"{command} --adopt  # once; then without --adopt"
        return f"{command} --adopt --dry-run  # says how a device tree can be tried there"

    def there(self, command: str) -> str:
        """A command that runs on the board."""
        quoted = shlex.quote(command) if "'" in command else f"'{command}'"
        return f"ssh {self.host} {quoted}" if self.host else command
