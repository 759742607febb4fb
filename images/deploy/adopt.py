# SPDX-License-Identifier: MIT
"""Adopts a board that npu-bsp did not set up: what it runs becomes its first good generation.

Kernel and RAM disk are copied on the board, the device tree is the running one, the command line too. Our
boot script then boots that once, on trial. As long as there is no good generation the script falls back on
what booted the board before, so that whatever goes wrong, the next reset ends in the old system.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from bsp.base import progress
from bsp.base.at_once import at_once, ended_by
from bsp.base.errors import BspError, UserError
from bsp.boot_survey.facts import BootFacts, ask
from bsp.boot_survey.survey import Survey, survey_of
from bsp.dts.running import without_boot
from bsp.profile import Board
from bsp.remote.facts import read_fdt
from bsp.uboot import trial_of, uboot_of
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.manifest import Bundle, Entry, Manifest

from . import confirm, probe
from . import plan as planning
from .boot import slots, state
from .checks.adoptable import BeforeAdoption, needed_bytes, refuse_unadoptable
from .checks.recognise import check_serial, opened, recognised
from .deploy import prepare
from .deployment import Deployment
from .in_place import CHANGED, DTB
from .onboard.board import BOOT
from .plan import Confirm, Facts, Plan, Probe, RunningSystem, Send, TakeOver, Try
from .session import Target, session
from .transfer.agent import Agent, ConnectionLostError, each_known

_ANSWER_S = 600.0  # copying a kernel and a RAM disk to a slow card


TreeMaker = Callable[[Agent, Board, Path, str], bytes | None]
"""Returns the device tree to be tried, of an agent, profile, folder for files, and mount point of the boot
partition; None: the running one lacks nothing."""


def adopt(
    target: Target, *, board: Board | None, tree: TreeMaker | None = None, dry_run: bool = False
) -> Deployment:
    """Make a board boot what it runs as a generation, or leave it as it was.

    Args:
        board: profile; None: the host record's, or the one whose ``compatible`` the board has.
        tree: makes the generation's device tree, so that one boot tries both; None: the running one.

    Raises:
        UserError: it cannot be done there with a way back; nothing was changed.
    """
    host = target.host
    with tempfile.TemporaryDirectory(prefix="npu-bsp-adopt-") as folder, session(target) as agent:
        board, fat_mount, facts = recognised(host, agent, board, target.root, lock=not dry_run)
        check_serial(host, facts)
        result = Deployment(host.name, board.name, facts.running, facts.running or "")
        if facts.boot_script and facts.good and not facts.rivals:
            result.outcome, result.to = "unchanged", facts.good.good
            return result
        with result.step("Surveying what it runs, and how it boots"):
            system, how = survey(agent, board, target.root)
        if how.way == "raw":
            fat_mount = BOOT
            facts = agent.open(None, fat_mount=BOOT, lock=False, exact=True)
            system = agent.running_system()
        before = BeforeAdoption(host.name, board, fat_mount, facts, system, how)
        if dry_run:
            _planned(result, before)
            if tree and result.outcome == "planned":
                tree(agent, board, Path(folder), fat_mount)  # says what it changes
            return result
        refuse_unadoptable(before)
        progress.say(f"what runs: kernel {system.kernel}, RAM disk {system.initrd}")
        if facts.kept_by:
            progress.say(
                f"{facts.kept_by} keeps a device tree there, and goes on to: it counts where npu-bsp does "
                "not boot the board. --undo takes both back"
            )
        dtb = tree(agent, board, Path(folder), fat_mount) if tree else None
        with _taken_back_on_failure(target, before):
            plan, facts = _take_in(target, agent, before, dtb, Path(folder), result)
            probes = any(isinstance(step, Probe) for step in plan.steps)
            (probe if probes else confirm).arm(agent, plan, target)
    on_trial = probe.followed_by_trial(target, plan, result, before) if probes else facts
    if on_trial:
        confirm.decide(target, result, on_trial, fat_mount)
    if result.outcome == "rolled-back":
        undo(target, fat_mount=fat_mount)
        result.hint = _hint_of_fallen(result, with_tree=dtb is not None)
    return result


def _hint_of_fallen(result: Deployment, *, with_tree: bool) -> str:
    """Say what became of an adoption that was not confirmed, and what to do."""
    hint = "what booted the board before boots it again, and all of npu-bsp is gone from it"
    again = f"./inv deploy --host {result.host}"
    if result.uboot_lacks:
        return f"{hint}; {again} --try needs nothing of U-Boot"
    if with_tree:
        hint += (
            f"; {again} --adopt alone shows whether what it runs boots through npu-bsp, without another "
            "device tree"
        )
    return hint


def _probe_of(board: Board, facts: Facts) -> tuple[planning.Step, ...]:
    """Return the probe boot of a board whose U-Boot has to be asked what it can do; of others none."""
    return (Probe(),) if facts.good is None and trial_of(board).way == "asked" else ()


def _take_in(
    target: Target,
    agent: Agent,
    before: BeforeAdoption,
    dtb: bytes | None,
    folder: Path,
    result: Deployment,
) -> tuple[Plan, Facts]:
    """Make a generation of what runs, on the board, and install our boot script.

    Args:
        dtb: its device tree; None: the running one.
        folder: for the bundle.
        result: of the deployment that it belongs to; it is written to.
    """
    with result.step("Copying kernel and RAM disk to the boot partition, on the board"):
        question = {"do": "take-in", "fat_mounts": before.system.fat_mounts}
        answer = agent.ask(question, timeout_s=_ANSWER_S)
    inputs = {"kernel": f"{before.facts.release}, the system's own"}
    if dtb is None:
        dtb = without_boot(read_fdt(agent.connection, root=target.root), before.host)
    else:
        inputs["device-tree"] = CHANGED
    entries = [Entry(**each) for each in answer["entries"]]
    bundle = _bundle(before, entries, dtb, inputs, folder)
    result.to = bundle.generation
    result.bytes_total = bundle.manifest.total_bytes
    facts = agent.open(
        bundle.generation, fat_mount=before.fat_mount, lock=False, exact=before.is_on_ext
    )
    plan = result.plan = _plan(agent, replace(before, facts=facts), bundle)
    progress.say(str(plan))
    prepare(agent, plan, bundle, facts, result)
    script = slots.boot_script(before.board.name, root=facts.boot_root)
    with result.step("Installing the boot script"):
        agent.ask({"do": "take-over", "script": base64.b64encode(script).decode()})
    return plan, facts


@contextmanager
def _taken_back_on_failure(target: Target, before: BeforeAdoption) -> Iterator[None]:
    """Have the board take back an adoption that failed half-way, where there was none before."""
    try:
        yield
    except BaseException as error:
        if before.facts.good is None and not before.facts.adopted:
            # A session of its own: the one that failed is over, or its answers are not to be waited for.
            with contextlib.suppress(BspError), session(target, accept_new_key=False) as agent:
                mount, exact = before.fat_mount, before.is_on_ext
                facts = agent.open(None, fat_mount=mount, lock=True, exact=exact)
                # Where nothing was answered, a take-over may still be at work.
                answered = isinstance(error, BspError) and not isinstance(
                    error, ConnectionLostError
                )
                what = "give-back" if facts.adopted and answered else "give-up"
                agent.ask({"do": what, "onboard": _onboard_names()}, timeout_s=_ANSWER_S)
        raise


def _onboard_names() -> list[str]:
    return [*slots.ONBOARD_LINKS, *(file.target for file in slots.ONBOARD_FILES)]


def survey(agent: Agent, board: Board, root: str) -> tuple[RunningSystem, Survey]:
    """Return what the board runs, and how it boots and a deployment would be tried; nothing is written.

    The agent and the survey's own questions look at the board side by side.
    """

    def ask_there() -> BootFacts:
        with ended_by(agent.connection.transport.close):
            return ask(agent.connection, root=root)

    with at_once(1) as pool:
        facts = pool.submit(ask_there)
        system = agent.running_system()
    problems = [each.partition("\n")[0] for each in system.problems]
    how = survey_of(
        facts.result(),
        uboot_of(board),
        kernel=system.kernel or f"not found: {'; '.join(problems)}",
        initrd=system.initrd or "not found",
        need_bytes=needed_bytes(system),
        trial=trial_of(board),
    )
    return system, how


def _planned(result: Deployment, before: BeforeAdoption) -> None:
    """What ``--dry-run`` says: how the board boots, and what would be done, or why nothing would be."""
    result.to, result.survey = "what runs", before.how
    try:
        refuse_unadoptable(before)
    except UserError as error:
        result.outcome, result.problem, result.hint = "refused", error.message, error.hint
        return
    steps = (
        Send("", (0, 1, 2), before.system.size_bytes, None, ()),
        TakeOver(before.kept),
        *_probe_of(before.board, before.facts),
        Try("of it"),
        Confirm("of it", None),
    )
    result.plan = Plan("what runs", before.facts.running, steps)


def undo(
    target: Target, *, fat_mount: str | None = None, dry_run: bool = False
) -> list[str] | None:
    """Undo an adoption: from the next boot on the board boots as it did before.

    Returns:
        The names of the files that are back; None where the board was not adopted.
    """
    with session(target, accept_new_key=target.accept_new_key) as agent:
        if fat_mount is None:
            fat_mount, facts, _ = opened(target.host, agent, target.root, lock=not dry_run)
        else:
            facts = agent.open(None, fat_mount=fat_mount, lock=not dry_run)
        if not facts.adopted:
            return None
        if dry_run:
            return []
        question = {"do": "give-back", "onboard": _onboard_names()}
        return list(agent.ask(question, timeout_s=_ANSWER_S)["returned"])


def refuse_not_adopted(host: str) -> NoReturn:
    """Say that there is nothing to undo.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{host} was not adopted by npu-bsp: there is nothing to undo",
        hint=f"./inv status --host {host}",
    )


def _bundle(
    before: BeforeAdoption, entries: list[Entry], dtb: bytes, inputs: dict[str, str], folder: Path
) -> Bundle:
    """What runs as a bundle; of its files only the device tree is here, the others are on the board."""
    entry = Entry(DTB, hashlib.sha256(dtb).hexdigest(), len(dtb))
    manifest = Manifest(
        format=bundles.FORMAT,
        generation="",
        board=before.board.name,
        compatible=before.board.compatible,
        kernel_release=before.facts.release,
        cmdline=None,
        files=tuple(sorted([*entries, entry], key=lambda entry: entry.path)),
        inputs=inputs,
    )
    bundle = bundles.only_described(manifest, {DTB: dtb}, folder / "bundle")
    sign.sign(bundle)
    return bundle


def _plan(agent: Agent, before: BeforeAdoption, bundle: Bundle) -> Plan:
    facts = before.facts
    good = facts.good or state.Good(bundle.generation)
    kept_generations = {each.generation: each for each in each_known(agent, facts)}
    planned = planning.plan_deploy(bundle.manifest, facts, good, kept_generations, host=before.host)
    previous = facts.good.good if facts.good and facts.good.good != bundle.generation else None
    # What was just copied would count as left over; nothing is removed before there is a generation.
    steps = [step for step in planned.steps if isinstance(step, Send)]
    trial = (Try(bundle.generation), Confirm(bundle.generation, previous))
    boots = (TakeOver(before.kept), *_probe_of(before.board, facts), *trial)
    return Plan(bundle.generation, facts.running, (*steps, *boots))
