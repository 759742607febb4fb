# SPDX-License-Identifier: MIT
"""``deploy --try``: a device tree is tried once by kexec, on a board whose disk is left as it is.

The running kernel starts itself again, with its own RAM disk and command line and the other tree. Whatever
comes of it, the next reset ends in the system that was there, in the way that it always boots.
"""

from __future__ import annotations

import base64
import secrets
import tempfile
import zlib
from pathlib import Path
from typing import NamedTuple

from bsp.base import progress
from bsp.base.errors import UserError
from bsp.boot_survey.keeping import how_to_keep
from bsp.boot_survey.survey import Survey
from bsp.catalog import npu_of
from bsp.dts.build import DtsResult
from bsp.dts.inputs.identity import dtb_of_board
from bsp.dts.running import without_boot
from bsp.dts.tree import Tree, read_tree
from bsp.profile import Board
from bsp.remote.facts import read_fdt
from images.bundle.manifest import with_required_options

from . import kept_tree, trial
from .adopt import survey
from .checks import health
from .checks.recognise import check_serial, recognised
from .checks.switched_off import refuse_forced_on
from .deployment import Deployment
from .in_place import changes_of
from .plan import Facts, RunningSystem
from .session import Target, session
from .transfer.agent import Agent, ConnectionLostError

MARK = "npu_bsp.try"
_ANSWER_S = 300.0
_LEFT_OUT = ("npu_bsp.", "BOOT_IMAGE=", "initrd=", "oops=panic", "kexec_")


def try_dtb(
    target: Target,
    *,
    board: Board | None,
    dtb: Path | None,
    dry_run: bool = False,
    persist: bool = False,
) -> Deployment:
    """Start the running kernel once with another device tree; its disk is not written to.

    Args:
        board: profile; None: the host record's, or the one whose ``compatible`` the board has.
        dtb: the device tree; None: the running one with what the NPU lacks.
        persist: where it works, have the distribution keep it, and reboot into that.

    Raises:
        UserError: another board, or kexec does not work there; nothing was changed.
    """
    host = target.host
    token = secrets.token_hex(6)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-try-") as folder, session(target) as agent:
        board, fat_mount, facts = recognised(host, agent, board, target.root, lock=not dry_run)
        check_serial(host, facts)
        result = Deployment(host.name, board.name, facts.running, "a trial by kexec")
        with result.step("Surveying how it boots"):
            system, how = survey(agent, board, target.root)
        result.survey = how
        _refuse(how, system, host.name)
        if persist:
            kept_tree.refuse_without_keeper(how, host.name, overlay=dtb is None)
        if dtb:
            tree = _given_tree(agent, board, dtb, target, fat_mount)
        else:
            changed_tree = changes_of(agent, board, Path(folder), target)
            if not changed_tree.changes:
                result.outcome = "unchanged"
                return result
            if persist:
                kept_tree.refuse_overlay(how, facts.kept_by, changed_tree.changes, host.name)
            tree = _changed_tree(changed_tree)
        if dry_run:
            return result
        with result.step("Loading kernel, RAM disk and device tree into memory"):
            request = {
                "do": "kexec-load",
                "token": token,
                "fat_mounts": system.fat_mounts,
                "dtb": base64.b64encode(zlib.compress(tree.blob)).decode(),
                "cmdline": command_line(facts.cmdline, token),
            }
            agent.ask(request, timeout_s=_ANSWER_S)
        try:
            agent.ask({"do": "reboot", "reboot": target.kexec})
        except ConnectionLostError as error:
            progress.say(f"{error.message}, just when kexec was requested: watching what it does")
    checks = _checks(target, board, npu_enabled=dtb is None)
    _judge(target, result, facts, tree.blob, token, how, checks)
    if persist and result.outcome == "tried":
        kept_tree.persist(target, result, how, blob=tree.blob, overlay=tree.overlay, checks=checks)
    return result


class _TriedTree(NamedTuple):
    """The DTB that kexec starts, and the overlay that makes it of the running one, where we built it."""

    blob: bytes
    overlay: bytes | None


def _given_tree(
    agent: Agent, board: Board, dtb: Path, target: Target, fat_mount: str
) -> _TriedTree:
    """The user's DTB, if it is for this board as it is."""
    blob = dtb_of_board(dtb, board)
    _check_memory(agent, dtb, target)
    if not target.force_enable:
        refuse_forced_on(agent, board, dtb, fat_mount=fat_mount, host=target.host.name)
    return _TriedTree(without_boot(blob, "the device tree"), None)


def _changed_tree(built: DtsResult) -> _TriedTree:
    """The running tree with what its NPU lacks."""
    blob = without_boot(built.dtb.read_bytes(), "the device tree")
    return _TriedTree(blob, built.overlay.read_bytes() if built.overlay else None)


def _check_memory(agent: Agent, dtb: Path, target: Target) -> None:
    """Refuse a tree without what the bootloader fills in: kexec passes it on as it is.

    Raises:
        UserError: the memory that it names is not that of the running tree.
    """
    running = read_tree(read_fdt(agent.connection, root=target.root), "the running device tree")
    sent = read_tree(dtb.read_bytes(), str(dtb))
    if _memory(running) != _memory(sent):
        raise UserError(
            f"{dtb} does not name the memory of {target.host.name} as its running device tree does; no "
            "bootloader would fill that in for kexec",
            hint=f"make it from the running one: ./inv build-dts --from-host {target.host.name}",
        )


def _memory(tree: Tree) -> dict[str, bytes | None]:
    names = (name for name in tree.nodes if name.startswith("/memory") and name.count("/") == 1)
    return {name: tree.get(name, "reg") for name in names}


def command_line(running: str, token: str) -> str:
    """Return the command line of a trial: the running one, what every trial needs, a mark of its own."""
    words = [word for word in running.split() if not word.startswith(_LEFT_OUT)]
    return f"{with_required_options(' '.join(words))} {MARK}={token} oops=panic"


def _refuse(how: Survey, system: RunningSystem, host: str) -> None:
    kexec = next(each for each in how.ways if each.name == "kexec")
    if not kexec.works:
        raise UserError(
            f"{host} cannot try a device tree by kexec: {kexec.why}",
            hint="./inv deploy --adopt --dry-run shows the other ways; nothing was changed",
        )
    if system.problems:
        raise UserError(
            f"what {host} runs cannot be started again: " + ";\n".join(system.problems),
            hint="mount the partition that it was booted from; nothing was changed",
        )


def _checks(target: Target, board: Board, *, npu_enabled: bool) -> health.Checks:
    """What a trial has to show: services, and the NPU's device node where the tree was made for that."""
    profile, npu = board.health, npu_of(board)
    needs_node = profile.render_node if profile.render_node is not None else npu_enabled
    services = tuple(dict.fromkeys((*profile.services, *target.host.services)))
    return health.Checks(
        services, npu.driver if npu and needs_node else "", False, profile.deadline_s
    )


def _judge(
    target: Target,
    result: Deployment,
    before: Facts,
    blob: bytes,
    token: str,
    how: Survey,
    checks: health.Checks,
) -> None:
    """Wait for what comes up, and say whether it is the trial."""
    host = target.host
    with result.step("Trial by kexec") as now:
        boot = trial.next_boot(target, other_than=before.boot_id)
        now.note("it answers" if boot else "no answer")
    if boot is None:
        result.problem = f"it did not answer within {target.timeout_s:g} s"
        if trial.reset_by_power(host):
            boot = trial.wait_for_boot(
                host, other_than=before.boot_id, timeout_s=target.recovery_s, root=target.root
            )
        if boot is None:
            result.outcome = "unknown"
            result.hint = (
                "reset the board: nothing on its disk was changed, it boots what it always did"
            )
            return
    with session(target, accept_new_key=False) as agent:
        facts = agent.open(None, fat_mount="/boot/firmware", lock=True, tree=True)
        if f"{MARK}={token}" not in facts.cmdline.split():
            result.outcome = "rolled-back"
            why = result.problem or "the trial ended in a reset"
            result.problem = f"{why}; the system that was there before runs"
            result.hint = "nothing on its disk was changed"
            return
        problems = trial.differences_from(blob, facts.fdt)
        result.running_dtb_matches = not problems
        if not problems and target.check_health:
            result.health = health.examine(agent, host, checks)
            problems = [f"not healthy: {each}" for each in result.health if not each.ok]
        if problems:
            result.outcome, result.problem = "rolled-back", "; ".join(problems)
            result.hint = (
                "it was reset into the system that was there; nothing on its disk was changed"
            )
            agent.ask({"do": "reboot", "reboot": target.reboot})
            return
    result.outcome = "tried"
    result.hint = how_to_keep(how.layout, host.name, how.keeper, how.overlays, how.owner)
