# SPDX-License-Identifier: MIT
"""What runs on a board, what boots next, and whether it is what was sent."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import msgspec

from bsp.base.errors import UserError
from images.bundle.manifest import Manifest

from . import trial
from .checks import drift
from .checks.recognise import opened, problem_of
from .plan import Facts
from .session import Target, session
from .transfer.agent import Agent, BoardRefusedError


def status(target: Target) -> dict[str, Any]:
    """What runs on a board, what boots next, and whether the running device tree is the one sent.

    With ``target.verify`` all that is there is read, and the running modules where they are loaded from.
    """
    host = target.host
    changes: list[drift.Change] = []
    with session(target) as agent:
        fat_mount, facts, match = opened(target.host, agent, target.root, lock=False)
        if target.verify:
            facts, changes = drift.look(agent, None, None, fat_mount=fat_mount, repair=False)
            changes += drift.changes_in(facts)
            changes += _loaded_changes(agent, facts, changes)
        running: Manifest | None = None
        if facts.running in facts.generations and facts.running is not None:
            with contextlib.suppress(UserError):  # damaged: listed below
                running = agent.manifest(facts.running)
    good = facts.good
    differences = trial.tree_problems(facts.dtb, facts.fdt) if running else []
    return {
        "host": host.name,
        "compatible": list(facts.compatible),
        "model": facts.model,
        "kernel": facts.release,
        "running": facts.running,
        "slot": facts.slot,
        "good": good.good if good else None,
        "previous": good.previous if good else None,
        "trial": facts.trial,
        "confirmed": bool(good and facts.running == good.good),
        "board": running.board if running else None,
        "profile": match.board.name if match.board and not match.doubts else None,
        "profile_problem": problem_of(match),
        "kernel_matches": facts.release == running.kernel_release if running else None,
        "running_dtb_matches": not differences if running else None,
        "dtb_differences": differences,
        "userspace": any(e.path.startswith("userspace/") for e in running.files)
        if running
        else False,
        "inputs": running.inputs if running else {},
        "verified": target.verify,
        "drift": [dataclasses.asdict(each) for each in changes],
        "generations": {name: list(damaged) for name, damaged in facts.generations.items()},
        "lease": msgspec.structs.asdict(facts.lease) if facts.lease else None,
        "log": list(facts.log),
        "kept_by": facts.kept_by or None,
        "rivals": list(facts.rivals) if facts.boot_script else [],
        "boots_through_npu_bsp": facts.boot_script and good is not None,
    }


def _loaded_changes(agent: Agent, facts: Facts, known: list[drift.Change]) -> list[drift.Change]:
    """Modules of the running generation that are others where the kernel loads them from."""
    if facts.running is None or facts.running not in facts.generations:
        return []
    try:
        verified = agent.ask({"do": "verify", "generation": facts.running}, timeout_s=300)
    except BoardRefusedError:  # a broken manifest: known
        return []
    named = {each.path for each in known if each.generation == facts.running}
    return [drift.Change(facts.running, path) for path in verified["wrong"] if path not in named]
