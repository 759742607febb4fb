# SPDX-License-Identifier: MIT
"""What runs on a board, what boots next, and whether it is what was sent."""

from __future__ import annotations

import contextlib
from typing import TypedDict

from bsp.base.errors import UserError
from bsp.boot_survey.told import lacks_in
from images.bundle.manifest import Manifest

from . import trial
from .checks import drift
from .checks.recognise import opened, problem_of
from .checks.switched_off import is_on
from .plan import Facts
from .session import Target, session
from .transfer.agent import Agent, BoardRefusedError


class ChangeRecord(TypedDict):
    """A file that is not as it was deployed; see ``checks.drift.Change``."""

    generation: str | None
    path: str
    repaired: bool | None


class LeaseRecord(TypedDict):
    """Who deploys to the board now; see ``plan.Lease``."""

    owner: str
    purpose: str
    age_s: float
    left_s: float


class StatusDocument(TypedDict):
    """The state of a board, as ``status --json`` prints it.

    What concerns the running generation is None or empty where the board runs none, or a damaged one.
    """

    host: str
    compatible: list[str]
    model: str
    kernel: str
    running: str | None
    slot: str | None
    good: str | None
    previous: str | None
    trial: str | None
    confirmed: bool
    board: str | None
    profile: str | None
    profile_problem: str | None
    kernel_matches: bool | None
    running_dtb_matches: bool | None
    dtb_differences: list[str]
    userspace: bool
    inputs: dict[str, str]
    verified: bool
    drift: list[ChangeRecord]
    generations: dict[str, list[str]]
    lease: LeaseRecord | None
    log: list[str]
    kept_by: str | None
    kept_tree_of: str | None
    rivals: list[str]
    npu_on: bool | None
    uboot_lacks: list[str]
    boots_through_npu_bsp: bool
    adopted: bool


def status(target: Target) -> StatusDocument:
    """What runs on a board, what boots next, and whether the running device tree is the one sent.

    With ``target.verify`` all that is there is read, and the running modules where they are loaded from.
    """
    host = target.host
    changes: list[drift.Change] = []
    with session(target) as agent:
        fat_mount, facts, match = opened(target.host, agent, target.root, lock=False)
        if target.verify:
            facts, changes = drift.rehash(agent, None, None, fat_mount=fat_mount, repair=False)
            changes += drift.changes_in(facts)
            changes += _loaded_changes(agent, facts, changes)
        running = _running_manifest(agent, facts)
    good = facts.good
    differences = trial.tree_problems(facts.dtb, facts.fdt) if running else []
    files = running.files if running else ()
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
        "userspace": any(entry.path.startswith("userspace/") for entry in files),
        "inputs": running.inputs if running else {},
        "verified": target.verify,
        "drift": [
            {"generation": each.generation, "path": each.path, "repaired": each.repaired}
            for each in changes
        ],
        "generations": {name: list(damaged) for name, damaged in facts.generations.items()},
        "lease": _lease(facts),
        "log": list(facts.log),
        "kept_by": facts.kept_by or None,
        "kept_tree_of": facts.kept_of or None,
        "rivals": list(facts.rivals) if facts.boot_script else [],
        "npu_on": is_on(facts.fdt, match.board),
        "uboot_lacks": list(lacks_in(facts.cmdline)),
        "boots_through_npu_bsp": facts.boot_script and good is not None,
        "adopted": facts.adopted,
    }


def _lease(facts: Facts) -> LeaseRecord | None:
    held = facts.lease
    if held is None:
        return None
    return {
        "owner": held.owner,
        "purpose": held.purpose,
        "age_s": held.age_s,
        "left_s": held.left_s,
    }


def _running_manifest(agent: Agent, facts: Facts) -> Manifest | None:
    """Return the manifest of the generation that runs; None if there is none, or it is damaged."""
    if facts.running is None or facts.running not in facts.generations:
        return None
    with contextlib.suppress(UserError):
        return agent.manifest(facts.running)
    return None


def _loaded_changes(agent: Agent, facts: Facts, earlier: list[drift.Change]) -> list[drift.Change]:
    """Return modules of the running generation whose copy that the kernel loads from differs."""
    if facts.running is None or facts.running not in facts.generations:
        return []
    try:
        verified = agent.verify(facts.running)
    except BoardRefusedError:  # a broken manifest: known
        return []
    named = {each.path for each in earlier if each.generation == facts.running}
    return [drift.Change(facts.running, path) for path in verified.wrong if path not in named]
