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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from bsp.base import progress
from bsp.base.at_once import at_once, ended_by
from bsp.base.errors import BspError, UserError
from bsp.boot_survey.facts import BootFacts, ask
from bsp.boot_survey.survey import Survey, survey_of
from bsp.boot_survey.told import lacks_in
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
from .boot.command_line import refuse_slot_words
from .checks.recognise import check_serial, opened, recognised
from .deploy import prepare
from .deployment import Deployment
from .in_place import CHANGED, DTB
from .onboard.board import BOOT
from .plan import Confirm, Facts, Plan, Probe, RunningSystem, Send, TakeOver, Try
from .session import Target, session
from .transfer.agent import Agent, each_known

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
        kept = (*system.rivals, *(["boot.scr"] if system.script else []))
        if dry_run:
            _planned(result, board, facts, system, how, fat_mount, kept)
            if tree and result.outcome == "planned":
                tree(agent, board, Path(folder), fat_mount)  # says what it changes
            return result
        _refuse_system(how, host.name)
        _refuse_unknown_script(how, system.rivals, host.name)
        _refuse(facts, system, host.name, fat_mount, how)
        progress.say(f"what runs: kernel {system.kernel}, RAM disk {system.initrd}")
        if facts.kept_by:
            progress.say(
                f"{facts.kept_by} keeps a device tree there, and goes on to: it counts where npu-bsp does "
                "not boot the board. --undo takes both back"
            )
        new_dtb = tree(agent, board, Path(folder), fat_mount) if tree else None
        with _given_up_on_failure(target, facts, fat_mount):
            facts, plan = _take_in(
                target,
                agent,
                board,
                facts,
                system,
                how,
                kept,
                fat_mount,
                Path(folder),
                new_dtb,
                result,
            )
        probes = any(isinstance(step, Probe) for step in plan.steps)
        (probe if probes else confirm).arm(agent, plan, target)
    exact = how.way == "raw"
    if not probes or probe.answered(target, result, facts, fat_mount, exact=exact):
        if probes:
            with session(target, accept_new_key=False) as agent:
                facts = agent.open(plan.generation, fat_mount=fat_mount, lock=True, exact=exact)
                confirm.arm(agent, plan, target)
        confirm.decide(target, result, facts, fat_mount)
    if result.outcome == "rolled-back":
        undo(target, fat_mount=fat_mount)
        result.hint = (
            "what booted the board before boots it again, and all of npu-bsp is gone from it"
        )
        if result.uboot_lacks:
            result.hint += f"; ./inv deploy --host {host.name} --try needs nothing of U-Boot"
        elif new_dtb:
            result.hint += (
                f"; ./inv deploy --host {host.name} --adopt alone shows whether what it runs boots through "
                "npu-bsp, without another device tree"
            )
    return result


def _probe_of(board: Board, facts: Facts) -> tuple[planning.Step, ...]:
    """Return the probe boot of a board whose U-Boot has to be asked what it can do; of others none."""
    return (Probe(),) if facts.good is None and trial_of(board).way == "asked" else ()


def _take_in(
    target: Target,
    agent: Agent,
    board: Board,
    facts: Facts,
    system: RunningSystem,
    how: Survey,
    kept: tuple[str, ...],
    fat_mount: str,
    folder: Path,
    new_dtb: bytes | None,
    result: Deployment,
) -> tuple[Facts, Plan]:
    """Make a generation of what runs, on the board, and install our boot script.

    Args:
        new_dtb: its device tree; None: the running one.
    """
    host = target.host
    with result.step("Copying kernel and RAM disk to the boot partition, on the board"):
        question = {"do": "take-in", "fat_mounts": system.fat_mounts}
        entries = agent.ask(question, timeout_s=_ANSWER_S)["entries"]
    blob = new_dtb or without_boot(read_fdt(agent.connection, root=target.root), host.name)
    inputs = {"kernel": f"{facts.release}, the system's own"}
    if new_dtb:
        inputs["device-tree"] = CHANGED
    bundle = _bundle(board, facts, [Entry(**each) for each in entries], blob, inputs, folder)
    result.to = bundle.generation
    result.bytes_total = bundle.manifest.total_bytes
    facts = agent.open(bundle.generation, fat_mount=fat_mount, lock=False, exact=how.way == "raw")
    plan = result.plan = _plan(agent, board, facts, bundle, kept, host.name)
    progress.say(str(plan))
    prepare(agent, plan, bundle, facts, result)
    script = slots.boot_script(board.name, root=facts.boot_root)
    with result.step("Installing the boot script"):
        agent.ask({"do": "take-over", "script": base64.b64encode(script).decode()})
    return facts, plan


@contextmanager
def _given_up_on_failure(target: Target, facts: Facts, fat_mount: str) -> Iterator[None]:
    """Have the board remove an adoption that failed half-way, where there was none before."""
    try:
        yield
    except BaseException:
        if facts.good is None and not facts.adopted:
            # A session of its own: the one that failed is over, or its answers are not to be waited for.
            with contextlib.suppress(BspError), session(target, accept_new_key=False) as agent:
                agent.open(None, fat_mount=fat_mount, lock=True, exact=fat_mount == BOOT)
                agent.ask({"do": "give-up", "onboard": _onboard_names()}, timeout_s=_ANSWER_S)
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
        need_bytes=_needed_bytes(system),
        trial=trial_of(board),
    )
    return system, how


def _planned(
    result: Deployment,
    board: Board,
    facts: Facts,
    system: RunningSystem,
    how: Survey,
    fat_mount: str,
    kept: tuple[str, ...],
) -> Deployment:
    """What ``--dry-run`` says: how the board boots, and what would be done, or why nothing would be."""
    result.to, result.survey = "what runs", how
    try:
        _refuse_system(how, result.host)
        _refuse_unknown_script(how, system.rivals, result.host)
        _refuse(facts, system, result.host, fat_mount, how)
    except UserError as error:
        result.outcome, result.problem, result.hint = "refused", error.message, error.hint
        return result
    take_in = Send("", (0, 1, 2), system.size_bytes, None, ())
    steps = (
        take_in,
        TakeOver(kept),
        *_probe_of(board, facts),
        Try("of it"),
        Confirm("of it", None),
    )
    result.plan = Plan("what runs", facts.running, steps)
    return result


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


def _refuse_system(how: Survey, host: str) -> None:
    """Refuse systems that choose what boots themselves (A/B updates), and layouts that must not be changed.

    Raises:
        UserError: says which system, or what is wrong with the set-up.
    """
    if how.owner is not None:
        raise UserError(
            f"{how.owner.system} decides what {host} boots ({how.owner.mark}); npu-bsp leaves that alone",
            hint=how.owner.instead,
        )
    refuse_slot_words(how.cmdline)
    if how.problems:
        raise UserError(
            f"{host} is not taken over: {'; '.join(how.problems)}",
            hint="nothing was changed; ./inv deploy --adopt --dry-run shows how it boots today",
        )


def _refuse_unknown_script(how: Survey, rivals: Sequence[str], host: str) -> None:
    """Refuse to rename what boots a board, as long as it is not known that its U-Boot runs scripts at all.

    Raises:
        UserError: it is not known, and extlinux.conf would have to make way.
    """
    if rivals and not how.runs_scripts:
        raise UserError(
            f"{how.layout.first or rivals[0]} boots {host} and would have to make way for our script: "
            "whether its U-Boot runs boot scripts is not known, and if not, nothing would boot it",
            hint="on its console, at U-Boot's prompt: `printenv boot_scripts` or `bootmeth list`. If it "
            "runs scripts, `extlinux.conf` may become a boot.scr of your own first; nothing was changed",
        )


def _needed_bytes(system: RunningSystem) -> int:
    """Return the room that a generation of what runs takes on the boot partition: unpacked files, a DTB."""
    return system.size_bytes + planning.FAT_RESERVE_BYTES + bundles.DTB_MAX_BYTES


def _refuse(facts: Facts, system: RunningSystem, host: str, fat_mount: str, how: Survey) -> None:
    """Refuse boards that cannot be adopted with a way back.

    Raises:
        UserError: says what is missing, and what to do.
    """
    why_not = {each.name: each.why for each in how.ways}
    raw = why_not["raw"]
    if lacks_in(how.cmdline) and how.way not in ("fat", "raw"):
        on_ext = how.layout.mount is not None and not how.layout.is_fat
        raise UserError(
            f"no trial can be taken on {host}: {raw if on_ext else why_not['fat']}",
            hint=f"./inv deploy --host {host} --try needs nothing of U-Boot; after a change of U-Boot, "
            "reboot once",
        )
    others = ", ".join(system.fat_mounts)
    if how.way != "raw" and (not facts.fat_mounted or system.kind != "vfat"):
        state_of = "nothing is mounted there" if not facts.fat_mounted else f"it is {system.kind}"
        raise UserError(
            f"{host} has no FAT partition at {fat_mount} ({state_of}), and no ext4 that serves ({raw}). A "
            "trial boot is marked as spent by U-Boot; without that a device tree that hangs would be tried "
            "again and again",
            hint=(
                f"FAT is mounted at {others}: say so with boot.fat_mount in the profile"
                if others
                else f"./inv deploy --host {host} --try: a device tree by kexec, the disk left alone; or "
                "a FAT partition that U-Boot looks at first, mounted there; or start from an image: "
                "./inv build-image"
            ),
        )
    planning.check_writable(facts, host=host, fat_mount=fat_mount)
    if system.problems:
        raise UserError(
            f"what {host} runs (Linux {system.release}) cannot be made a generation: "
            + ";\n".join(system.problems),
            hint=f"mount the partition that it was booted from, or leave one of the files there. {host} is "
            "as it was; a whole bundle needs none of this: ./inv bundle, docs/deploy.md",
        )
    need = _needed_bytes(system)
    if facts.space["fat"].bytes < need:
        raise UserError(
            f"the boot partition {fat_mount} of {host} has room for "
            f"{facts.space['fat'].bytes / 1e6:.0f} MB; kernel and RAM disk take {need / 1e6:.0f} MB",
            hint="remove old kernels there (apt autoremove), or use a larger partition",
        )
    if how.way not in ("fat", "raw"):
        raise UserError(
            f"no trial can be taken on {host}: {why_not['fat']}",
            hint=f"./inv deploy --host {host} --try needs nothing of what boots it (kexec); "
            "--adopt --dry-run says whether that works. Nothing was changed",
        )
    place = facts.boot_place
    reads = how.layout.mount.place if how.layout.mount and how.layout.is_fat else place
    if how.way == "fat" and reads != place:
        raise UserError(
            f"U-Boot reads {how.layout.first} on {host}, and npu-bsp's files would go to {place}",
            hint=f'fat_mount = "{reads}" below [boot] of the profile; nothing was changed',
        )


def _bundle(
    board: Board,
    facts: Facts,
    entries: list[Entry],
    blob: bytes,
    inputs: dict[str, str],
    folder: Path,
) -> Bundle:
    """What runs as a bundle; of its files only the device tree is here, the others are on the board."""
    dtb = Entry(DTB, hashlib.sha256(blob).hexdigest(), len(blob))
    manifest = Manifest(
        format=bundles.FORMAT,
        generation="",
        board=board.name,
        compatible=board.compatible,
        kernel_release=facts.release,
        cmdline=None,
        files=tuple(sorted([*entries, dtb], key=lambda entry: entry.path)),
        inputs=inputs,
    )
    bundle = bundles.only_described(manifest, {DTB: blob}, folder / "bundle")
    sign.sign(bundle)
    return bundle


def _plan(
    agent: Agent, board: Board, facts: Facts, bundle: Bundle, kept: tuple[str, ...], host: str
) -> Plan:
    good = facts.good or state.Good(bundle.generation)
    kept_generations = {each.generation: each for each in each_known(agent, facts)}
    planned = planning.plan_deploy(bundle.manifest, facts, good, kept_generations, host=host)
    before = facts.good.good if facts.good and facts.good.good != bundle.generation else None
    # What was just copied would count as left over; nothing is removed before there is a generation.
    steps = [step for step in planned.steps if isinstance(step, Send)]
    trial = (Try(bundle.generation), Confirm(bundle.generation, before))
    boots = (TakeOver(kept), *_probe_of(board, facts), *trial)
    return Plan(bundle.generation, facts.running, (*steps, *boots))
