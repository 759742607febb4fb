# SPDX-License-Identifier: MIT
"""deploy and rollback: one session to plan, send and arm; a new one to confirm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bsp.base import progress
from bsp.base.errors import UserError
from bsp.base.words import counted
from bsp.profile import Board
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Manifest

from . import plan as planning
from . import trial
from .boot import slots
from .boot.command_line import command_line_for
from .checks import drift
from .checks.recognise import (
    board_at,
    check_identity,
    check_serial,
    fat_mount_of,
    opened,
    profile_named,
    refuse_doubtful,
    refuse_without_boot,
)
from .checks.switched_off import refuse_forced_on, refuse_shared
from .confirm import arm, decide
from .deployment import Deployment
from .plan import Discard, Facts, Mend, Plan, Send
from .ram_disk import refuse_without_root
from .session import ANSWER_S, Target, session
from .transfer import contents
from .transfer.agent import Agent, each_known

BundleMaker = Callable[[Board], Bundle]


def deploy(
    target: Target,
    *,
    bundle: Bundle | Path | None,
    board: Board | None,
    make_bundle: BundleMaker | None = None,
    dry_run: bool = False,
    on_downgrade: Callable[[str], None] | None = None,
) -> Deployment:
    """Bring a bundle onto a board, boot it on trial, and confirm it or have the old one back.

    Args:
        bundle: or the folder that it is in; None has ``make_bundle`` make it for the board.
        board: profile; None: the bundle's, the host record's, or the one whose ``compatible`` it has.
        on_downgrade: called before an older kernel than the running one is sent; raises to stop.

    Raises:
        UserError: another board, no room, no boot script, wrong host key...; nothing was changed.
        InfrastructureError: the connection broke before the reboot; the board is as it was.
    """
    host = target.host
    with session(target) as agent:
        opened = _open(target, agent, bundle, board, make_bundle, lock=not dry_run)
        bundle, board, fat_mount = opened.bundle, opened.board, opened.fat_mount
        facts = opened.facts
        thorough = drift.is_due(host, asked=target.verify, every=target.verify_every)
        changes: list[drift.Change] = []
        if thorough:
            facts, changes = _rehash(target, agent, opened, repair=not dry_run)
        result = planned(target, agent, facts, bundle, board, fat_mount)
        if thorough:
            result.verified, result.drift = True, changes + drift.changes_in(facts)
        if not result.plan:
            raise RuntimeError("nothing was planned")
        if facts.running != bundle.generation:
            dtb = bundle.path / "boot/board.dtb"
            refuse_shared(board, dtb)
            if not target.force_enable:
                refuse_forced_on(agent, board, dtb, fat_mount=fat_mount, host=host.name)
        if result.plan.send and target.shared is None:  # a fleet's was checked once
            bundles.check(bundle)
        if dry_run:
            return result
        drift.count(host, thorough=thorough)
        if not result.plan.steps:
            result.outcome = "unchanged"
            return result
        if on_downgrade and planning.is_downgrade(facts.release, bundle.manifest.kernel_release):
            on_downgrade(
                f"kernel {bundle.manifest.kernel_release} is older than {facts.release}, which runs on "
                f"{host.name}"
            )
        progress.say(str(result.plan))
        prepare(agent, result.plan, bundle, facts, result)
        arm(agent, result.plan, target)
    with contextlib.suppress(OSError):  # a full disk here is no reason to stop the board's reboot
        contents.keep(bundle)
    return decide(target, result, facts, fat_mount)


@dataclass(frozen=True)
class _Opened:
    """What a deployment starts from: the bundle, the board that it is for, what the board says."""

    bundle: Bundle
    board: Board | None
    facts: Facts
    fat_mount: str


def _open(
    target: Target,
    agent: Agent,
    bundle: Bundle | Path | None,
    board: Board | None,
    make_bundle: BundleMaker | None,
    *,
    lock: bool,
) -> _Opened:
    """Find bundle and profile, as far as they are known, and ask the board for its facts."""
    host = target.host
    # While the agent starts over there:
    if isinstance(bundle, Path):
        bundle = bundles.load(bundle)
    # The board that the user named, by flag or in the inventory.
    named_board = board or profile_named(host.board)
    board = board or profile_named(bundle.manifest.board if bundle else host.board)
    if board is not None:
        refuse_without_boot(host, board)
    if bundle is None and board is not None and make_bundle is not None:
        bundle = make_bundle(board)
    fat_mount = fat_mount_of(board)
    generation = bundle.generation if bundle else None
    facts = agent.open(generation, fat_mount=fat_mount, lock=lock)
    if named_board is None and board is not None:
        refuse_doubtful(agent, facts, host, board, target.root)
    if bundle is not None:
        return _Opened(bundle, board, facts, fat_mount)
    return _open_unknown(target, agent, facts, make_bundle)


def _open_unknown(
    target: Target, agent: Agent, facts: Facts, make_bundle: BundleMaker | None
) -> _Opened:
    """The board says which one it is; the bundle is made for it."""
    host = target.host
    board = board_at(agent, facts, host, target.root)
    check_identity(facts, board.compatible, host=host.name, what=f"the profile {board.name}")
    refuse_without_boot(host, board)
    if make_bundle is None:
        raise RuntimeError("there is nothing that makes a bundle")
    bundle, fat_mount = make_bundle(board), fat_mount_of(board)
    facts = agent.open(bundle.generation, fat_mount=fat_mount, lock=False)
    return _Opened(bundle, board, facts, fat_mount)


def _rehash(
    target: Target, agent: Agent, opened: _Opened, *, repair: bool
) -> tuple[Facts, list[drift.Change]]:
    """Re-hash what is on the board; return the facts after repairs, and what was changed."""
    bundle, host = opened.bundle, target.host
    check_identity(
        opened.facts,
        bundle.manifest.compatible,
        host=host.name,
        what=f"the bundle {bundle.generation}",
        board=opened.board,
    )
    check_serial(host, opened.facts)
    return drift.rehash(agent, bundle.generation, bundle, fat_mount=opened.fat_mount, repair=repair)


def planned(
    target: Target, agent: Agent, facts: Facts, bundle: Bundle, board: Board | None, fat_mount: str
) -> Deployment:
    """Everything that only asks: is it the board, does it boot through us, what is to be done."""
    host, manifest = target.host, bundle.manifest
    _check_board_name(board, manifest)
    what = f"the bundle {bundle.generation}"
    check_identity(facts, manifest.compatible, host=host.name, what=what, board=board)
    check_serial(host, facts)
    good = planning.check_layout(facts, host=host.name, fat_mount=fat_mount)
    refuse_without_root(bundle, facts, host.name)
    present = facts.generations.get(bundle.generation) == ()
    kept_generations = (
        {} if present else {each.generation: each for each in each_known(agent, facts)}
    )
    plan = planning.plan_deploy(
        manifest,
        facts,
        good,
        kept_generations,
        host=host.name,
        keep=target.keep or host.keep or planning.KEEP,
        onboard=drift.onboard_changes(facts) if facts.manifests else (),
    )
    result = Deployment(
        host.name,
        manifest.board,
        facts.running,
        bundle.generation,
        bytes_total=manifest.total_bytes,
        plan=plan,
    )
    if facts.running == bundle.generation:
        result.running_dtb_matches = not trial.tree_problems(facts.dtb, facts.fdt)
        if not plan.steps and not result.running_dtb_matches:
            # The boot loader hands on another tree than the one sent; a reboot would not help.
            progress.say(f"the running device tree of {host.name} is not the one sent; see status")
    return result


def prepare(agent: Agent, plan: Plan, bundle: Bundle, facts: Facts, result: Deployment) -> None:
    """Everything before the reboot: nothing of it touches what runs, but to make that whole again."""
    left: dict[str, list[str]] = {}
    for step in plan.steps:
        if isinstance(step, Discard):
            with result.step("Removing what is no longer needed"):
                agent.ask(
                    {"do": "discard", "keep": step.keep, "resume": bundle.generation},
                    timeout_s=ANSWER_S,
                )
        elif isinstance(step, Send):
            with result.step(f"Sending {counted(len(step.indexes), 'file')}") as now:
                args = slots.args_forms(bundle.manifest, command_line_for(bundle.manifest, facts))
                agent.stage(bundle, step, args=args, facts=facts, progress=result.sent)
                sent = result.sent
                patched = f", {sent.patched_files} as patches" if sent.patched_files else ""
                now.note(
                    f"{sent.sent_bytes / 1e6:.2f} MB, {sent.wire_bytes / 1e6:.2f} MB on the wire{patched}"
                )
        elif isinstance(step, Mend):
            with result.step("Repairing changed files"):
                left = drift.mend(agent, step, facts)
    if result.drift:
        result.drift = drift.outcome(result.drift, plan, left)


def rollback(target: Target, *, to: str | None = None, dry_run: bool = False) -> Deployment:
    """Go back one generation, through the same trial and confirmation.

    Args:
        to: another generation that is kept on the board.

    Raises:
        UserError: there is none to go back to; nothing was changed.
    """
    host = target.host
    with session(target) as agent:
        fat_mount, facts, _ = opened(target.host, agent, target.root, lock=not dry_run)
        good = planning.check_layout(facts, host=host.name, fat_mount=fat_mount)
        check_serial(host, facts)
        plan = planning.plan_rollback(facts, good, host=host.name, to=to)
        manifest = agent.manifest(plan.generation)
        result = Deployment(host.name, manifest.board, facts.running, plan.generation, plan=plan)
        if dry_run:
            return result
        progress.say(str(plan))
        arm(agent, plan, target)
    return decide(target, result, facts, fat_mount)


def _check_board_name(board: Board | None, manifest: Manifest) -> None:
    if board is not None and board.name != manifest.board:
        raise UserError(
            f"the bundle is for {manifest.board}, not for {board.name}",
            hint="check --bundle and --board",
        )
