# SPDX-License-Identifier: MIT
"""deploy, rollback and status: one session to plan, send and arm; a new one to confirm."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bsp.base import progress
from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import BoardStateUnknownError, BspError, RolledBackError, UserError
from bsp.base.words import counted
from bsp.boot_survey.owners import slot_words
from bsp.boot_survey.survey import Survey
from bsp.profile import Board
from bsp.remote.inventory import Host
from bsp.remote.ssh import UnreachableError, connect
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Manifest, with_required_options

from . import plan as planning
from . import trial
from .boot import slots, state
from .checks import drift, health
from .checks.recognise import (
    board_at,
    check_identity,
    fat_mount_of,
    opened,
    problem_of,
    profile_named,
    refuse_doubtful,
    refuse_exchanged,
    refuse_without_boot,
)
from .checks.switched_off import refuse_forced_on
from .claim import Claim
from .onboard.boot_files import EMPTY_RAM_DISK
from .plan import Confirm, Discard, Facts, Mend, Plan, Send, Try
from .transfer import contents
from .transfer.agent import (
    Agent,
    BoardRefusedError,
    ConnectionLostError,
    Progress,
    decompress_fdt,
    each_known,
)
from .transfer.shared import Shared

BundleMaker = Callable[[Board], Bundle]

_CONNECT_S = 30.0
_CONFIRM_ATTEMPTS = 3
_ANSWER_S = 120.0  # hashing a kernel takes an emulated board a while


@dataclass
class Deployment:
    """What a deployment did; ``document()`` is its JSON.

    Attributes:
        outcome: planned, refused (--dry-run) | tried, persisted (--try) | unchanged | confirmed |
            rolled-back | unknown.
        health: the checks that were made before confirming.
        verified: all that was on the board was read, where otherwise it is believed.
        drift: what was found changed in that.
        problem: why it was not confirmed.
        running_dtb_matches: None where the running tree could not be read.
        survey: how the board boots today, where that was looked at.
    """

    host: str
    board: str
    before: str | None
    to: str
    outcome: str = "planned"
    sent: Progress = field(default_factory=Progress)
    bytes_total: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    running_dtb_matches: bool | None = None
    plan: Plan | None = None
    health: list[health.Verdict] = field(default_factory=list)
    verified: bool = False
    drift: list[drift.Change] = field(default_factory=list)
    problem: str = ""
    hint: str = ""
    console: str = ""
    survey: Survey | None = None

    @property
    def exit_code(self) -> int:
        """0, or the code of the error that this is."""
        codes = {
            "rolled-back": RolledBackError.exit_code,
            "unknown": BoardStateUnknownError.exit_code,
            "refused": UserError.exit_code,
        }
        return codes.get(self.outcome, 0)

    def document(self) -> dict[str, Any]:
        """The result as others may rely on it."""
        return {
            "host": self.host,
            "board": self.board,
            "from": self.before,
            "to": self.to,
            "outcome": self.outcome,
            "bytes_sent": self.sent.sent_bytes,
            "files_sent": self.sent.sent_files,
            "bytes_on_wire": self.sent.wire_bytes,
            "files_patched": self.sent.patched_files,
            "bytes_of_patches": self.sent.patch_bytes,
            "bytes_total": self.bytes_total,
            "steps": self.steps,
            "running_dtb_matches": self.running_dtb_matches,
            "verified": self.verified,
            "drift": [dataclasses.asdict(each) for each in self.drift],
            "health": [msgspec.structs.asdict(each) for each in self.health],
            "plan": [str(step) for step in self.plan.steps] if self.plan else [],
            "problem": self.problem,
            "hint": self.hint,
            "console": self.console,
            "survey": self.survey.document() if self.survey else None,
        }

    @contextmanager
    def step(self, name: str) -> Iterator[progress.Step]:
        """A step that is shown, and listed in the result."""
        with progress.step(name) as current:
            try:
                yield current
            finally:
                seconds = time.monotonic() - current.started
                self.steps.append({"name": name, "seconds": round(seconds, 3)})


@dataclass(frozen=True)
class Target:
    """Where and how to deploy.

    Attributes:
        timeout_s: how long the board may take to come up with the trial.
        recovery_s: how long it may then take to come back with the old generation.
        check_health: whether what the profile and the inventory ask for is checked before confirming.
        keep: how many generations stay on the board; None: what the inventory says, else two.
        verify: re-hash every deployed file instead of trusting the board's manifest.
        verify_every: do so on every Nth deployment; None: what the inventory says, else ten.
        force_enable: send a device tree with the NPU on also where somebody switched it off on purpose.
        root: prefix of all paths on the board; for the tests.
        reboot: command that reboots the board, run there.
        kexec: command that starts the kernel that was loaded, run there.
        claim: to the board: the same one in all sessions of a deployment.
        additions: code added to modules of the agent, by their names; for the power-cut test, which
            deploys with agents that are broken on purpose.
        shared: streams that were made for other boards; None: this is the only one.
    """

    host: Host
    timeout_s: float = 180.0
    recovery_s: float = 180.0
    accept_new_key: bool = False
    check_health: bool = True
    keep: int | None = None
    verify: bool = False
    verify_every: int | None = None
    force_enable: bool = False
    root: str = ""
    reboot: tuple[str, ...] = ("systemctl", "reboot")
    kexec: tuple[str, ...] = ("systemctl", "kexec")
    claim: Claim = field(default_factory=Claim)
    additions: Mapping[str, str] = field(default_factory=dict)
    shared: Shared | None = None


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
            facts, changes = _look(target, agent, opened, repair=not dry_run)
        result = planned(target, agent, facts, bundle, board, fat_mount)
        if thorough:
            result.verified, result.drift = True, changes + drift.changes_in(facts)
        if not result.plan:
            raise RuntimeError("nothing was planned")
        if facts.running != bundle.generation and not target.force_enable:
            refuse_forced_on(
                agent, board, bundle.path / "boot/board.dtb", fat_mount=fat_mount, host=host.name
            )
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
    said = board or profile_named(host.board)  # which board it is, where somebody has said that
    board = board or profile_named(bundle.manifest.board if bundle else host.board)
    if board is not None:
        refuse_without_boot(host, board)
    if bundle is None and board is not None and make_bundle is not None:
        bundle = make_bundle(board)
    fat_mount = fat_mount_of(board)
    generation = bundle.generation if bundle else None
    facts = agent.open(generation, fat_mount=fat_mount, lock=lock)
    if said is None and board is not None:
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


def _look(
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
    return drift.look(agent, bundle.generation, bundle, fat_mount=opened.fat_mount, repair=repair)


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
    present = facts.generations.get(bundle.generation) == ()
    known = {} if present else {each.generation: each for each in each_known(agent, facts)}
    plan = planning.plan_deploy(
        manifest,
        facts,
        good,
        known,
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


@contextmanager
def session(target: Target, *, accept_new_key: bool | None = None) -> Iterator[Agent]:
    """A new connection to the board, with the agent running at its end."""
    accept = target.accept_new_key if accept_new_key is None else accept_new_key
    with (
        connect(target.host, timeout_s=_CONNECT_S, accept_new_key=accept) as connection,
        Agent(
            connection,
            root=target.root,
            timeout_s=_ANSWER_S,
            additions=target.additions,
            shared=target.shared,
            claim=target.claim,
        ) as agent,
    ):
        yield agent


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


def prepare(agent: Agent, plan: Plan, bundle: Bundle, facts: Facts, result: Deployment) -> None:
    """Everything before the reboot: nothing of it touches what runs, but to make that whole again."""
    left: dict[str, list[str]] = {}
    for step in plan.steps:
        if isinstance(step, Discard):
            with result.step("Removing what is no longer needed"):
                agent.ask(
                    {"do": "discard", "keep": step.keep, "resume": bundle.generation},
                    timeout_s=_ANSWER_S,
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
            with result.step("Repairing what was changed"):
                left = drift.mend(agent, step, facts)
    if result.drift:
        result.drift = drift.outcome(result.drift, plan, left)


def arm(agent: Agent, plan: Plan, target: Target) -> None:
    """Have the plan's generation tried at the next boot, and reboot; nothing if the plan has no trial."""
    if not any(isinstance(step, Try) for step in plan.steps):
        return
    sectors = {
        form.value: in_base64(state.render_trial(plan.generation, form)) for form in state.Form
    }
    try:
        agent.ask(
            {
                "do": "arm",
                "generation": plan.generation,
                "sectors": sectors,
                "reboot": target.reboot,
                "hold_s": target.timeout_s + 2 * target.recovery_s + _ANSWER_S,
            },
            timeout_s=_ANSWER_S,
        )
    except ConnectionLostError as error:
        # Whether the board was told is seen from whether it reboots.
        progress.say(f"{error.message}, just when the trial was asked for: looking what it does")


def decide(target: Target, result: Deployment, facts: Facts, fat_mount: str) -> Deployment:
    """From the reboot on: every way out ends in an outcome."""
    if not result.plan:
        raise RuntimeError("nothing was planned")
    host = target.host
    confirm = next((step for step in result.plan.steps if isinstance(step, Confirm)), None)
    if confirm is None:  # it ran already; there were only leftovers to remove
        result.outcome = "unchanged"
        return result
    console_from = trial.console_size(host)
    boot_id = facts.boot_id
    try:
        if any(isinstance(step, Try) for step in result.plan.steps):
            with result.step(f"Trial boot of generation {confirm.generation}") as now:
                boot = trial.wait_for_boot(
                    host, other_than=boot_id, timeout_s=target.timeout_s, root=target.root
                )
                now.note(f"generation {boot.generation} answers" if boot else "no answer")
            if boot is None:
                boot = _rescue(target, result, boot_id, fat_mount)
                if boot is None:
                    return result
            if boot.generation != confirm.generation:
                result.console = trial.console_tail(host, since_bytes=console_from)
                _release_lease(target, fat_mount)
                why = result.problem or "it crashed during the trial boot and was reset"
                return _rolled_back(result, boot.generation, why)
            boot_id = boot.boot_id
        return _confirm(target, result, confirm, boot_id, fat_mount, facts)
    except UserError as error:  # something answers, and it is not the board
        result.outcome = "unknown"
        result.problem = f"after the reboot: {error.message}"
        result.hint = (
            f"{error.hint}. A trial that nobody confirms is over at the board's next reset"
        )
        return result
    except KeyboardInterrupt:
        progress.say(
            f"interrupted: {host.name} may be on a trial of {confirm.generation}; unless confirmed, it "
            f"returns to the good generation at the next reset. See: ./inv status --host {host.name}"
        )
        raise


def _confirm(
    target: Target,
    result: Deployment,
    confirm: Confirm,
    boot_id: str,
    fat_mount: str,
    before: Facts,
) -> Deployment:
    host = target.host
    for _ in range(_CONFIRM_ATTEMPTS):
        try:
            found = _confirm_once(target, result, confirm, boot_id, fat_mount, before)
            break
        except (ConnectionLostError, UnreachableError, BoardRefusedError) as error:
            found = [f"the session to confirm it broke: {error.message}"]
            if isinstance(error, BoardRefusedError):
                break
    if not found:
        return result
    result.problem = "; ".join(found)
    with result.step("Going back to the old generation"):
        boot = trial.wait_for_boot(
            host, other_than=boot_id, timeout_s=target.recovery_s, root=target.root
        )
        if boot is None and trial.reset_by_power(host):
            boot = trial.wait_for_boot(
                host, other_than=boot_id, timeout_s=target.recovery_s, root=target.root
            )
    if boot is None:
        return _unknown(result, host)
    _release_lease(target, fat_mount)
    return _rolled_back(result, boot.generation, result.problem)


def _confirm_once(
    target: Target,
    result: Deployment,
    confirm: Confirm,
    boot_id: str,
    fat_mount: str,
    before: Facts,
) -> list[str]:
    """Confirm, or have the board reboot; return why. Doing it again after a broken link does no harm."""
    host = target.host
    with (
        result.step("Confirming over a new session"),
        session(target, accept_new_key=False) as agent,
    ):
        facts = agent.open(confirm.generation, fat_mount=fat_mount, lock=True)
        manifest = agent.manifest(confirm.generation)
        refuse_exchanged(before, facts, host, manifest.compatible, profile_named(manifest.board))
        release = manifest.kernel_release
        verified = agent.ask({"do": "verify", "generation": confirm.generation}, timeout_s=300)
        found = trial.problems(facts, verified, release=release, generation=confirm.generation)
        result.running_dtb_matches = not trial.tree_problems(verified["dtb"], verified["fdt"])
        if not found and target.check_health:
            checks = health.checks_for(
                host, profile_named(manifest.board), manifest, decompress_fdt(verified["dtb"])
            )
            result.health = health.examine(agent, host, checks)
            found = [f"not healthy: {each}" for each in result.health if not each.ok]
        if not found:
            good = state.Good(confirm.generation, confirm.previous)
            sectors = {form.value: in_base64(state.render_good(good, form)) for form in state.Form}
            agent.ask({"do": "commit", "generation": confirm.generation, "sectors": sectors})
            keep = [good.good, *filter(None, [good.previous]), *confirm.keep]
            agent.ask({"do": "discard", "keep": keep, "resume": confirm.generation})
            result.outcome = "confirmed"
            return []
        if facts.boot_id == boot_id:
            agent.ask({"do": "reboot", "reboot": target.reboot})
    return found


def _release_lease(target: Target, fat_mount: str) -> None:
    """Give the board's lease back after a trial that failed; without this it ends by itself, later."""
    with contextlib.suppress(BspError), session(target, accept_new_key=False) as agent:
        agent.open(None, fat_mount=fat_mount, lock=True)


def _rescue(target: Target, result: Deployment, boot_id: str, fat_mount: str) -> trial.Boot | None:
    """The deadline has passed. Return the boot that then came; None: the result says what is known."""
    host = target.host
    now = trial.probe(host, timeout_s=5, root=target.root)
    if now is not None and now.boot_id == boot_id:
        with session(target, accept_new_key=False) as agent:
            agent.open(None, fat_mount=fat_mount, lock=True)
            agent.ask({"do": "disarm"})
        _rolled_back(result, now.generation, f"it did not reboot within {target.timeout_s:g} s")
        return None
    result.problem = f"it did not answer within {target.timeout_s:g} s of the trial boot"
    if not trial.reset_by_power(host):
        progress.say(
            f"{host.name} has no power command that works; waiting for its own watchdog to reset it"
        )
    with result.step("Waiting for the board to come back") as now_step:
        boot = trial.wait_for_boot(
            host, other_than=boot_id, timeout_s=target.recovery_s, root=target.root
        )
        now_step.note(f"generation {boot.generation} answers" if boot else "no answer")
    if boot is None:
        _unknown(result, host)
    return boot


def _rolled_back(result: Deployment, running: str | None, why: str) -> Deployment:
    if running == result.to:
        result.outcome = "unknown"
        result.problem = f"{why}; and it still runs the trial"
        return result
    result.outcome = "rolled-back"
    result.problem = (
        f"generation {result.to} was not confirmed: {why}; {running or 'the old system'} runs"
    )
    result.hint = f"the board is as it was. ./inv status --host {result.host} shows it" + (
        "; above is what its console said last" if result.console else ""
    )
    return result


def _unknown(result: Deployment, host: Host) -> Deployment:
    result.outcome = "unknown"
    result.problem = f"{result.problem}; and {host.name} does not answer"
    result.hint = (
        "reset the board: the trial is spent, so it boots the old generation. A power command in the "
        "inventory lets deploy do that (docs/hosts.md)"
    )
    return result


def _check_board_name(board: Board | None, manifest: Manifest) -> None:
    if board is not None and board.name != manifest.board:
        raise UserError(
            f"the bundle is for {manifest.board}, not for {board.name}",
            hint="check --bundle and --board",
        )


def check_serial(host: Host, facts: Facts) -> None:
    """Refuse a machine that is not the one that had this name before, as far as it has a serial number.

    Raises:
        UserError: the serial number is another.
    """
    if not facts.serial:
        return
    file = state_dir() / "boards" / f"{host.name.replace('/', '_')}.json"
    try:
        remembered = json.loads(file.read_text())["serial"]
    except (OSError, ValueError, KeyError):
        write_atomically(file, json.dumps({"serial": facts.serial}).encode() + b"\n")
        return
    if remembered != facts.serial:
        raise UserError(
            f"{host.name} is another board than last time: expected serial number {remembered}, "
            f"found {facts.serial}",
            hint=f"if the board was exchanged: rm {file}. Nothing was written",
        )


def command_line_for(manifest: Manifest, facts: Facts) -> str:
    """Return the command line: the manifest's, or the running one without what boot loader and we add.

    A board that was adopted keeps its own: the manifest's root is that of an image of ours.
    """
    if manifest.cmdline is not None and not facts.adopted:
        return manifest.cmdline
    refuse_slot_words(facts.cmdline)
    ours = ("npu_bsp.", "BOOT_IMAGE=", "initrd=", "oops=panic")
    words = [word for word in facts.cmdline.split() if not word.startswith(ours)]
    if facts.root_uuid and manifest.entry("boot/initrd").size_bytes > len(EMPTY_RAM_DISK):
        # Partitions have identifiers for the kernel; our RAM disk finds file systems by theirs.
        root = f"root=UUID={facts.root_uuid}"
        words = [root if word.startswith("root=PARTUUID=") else word for word in words]
    return with_required_options(" ".join(words))


def refuse_slot_words(cmdline: str) -> None:
    """Refuse to copy a command line that is right for one copy of an A/B system only.

    Raises:
        UserError: it has words that name one.
    """
    if words := slot_words(cmdline):
        raise UserError(
            f"the running command line names one copy of an A/B system ({' '.join(words)}): a generation "
            "would stay with that copy",
            hint="give the bundle a command line of its own; or leave the board to its own updates",
        )


def in_base64(data: bytes) -> str:
    """Bytes as they go into a request to the agent."""
    import base64

    return base64.b64encode(data).decode()


def raise_for(result: Deployment) -> None:
    """Raise the error that a result is.

    Raises:
        RolledBackError, BoardStateUnknownError: as its outcome says.
    """
    kinds: dict[str, type[BspError]] = {
        "rolled-back": RolledBackError,
        "unknown": BoardStateUnknownError,
    }
    kind = kinds.get(result.outcome)
    if kind:
        console = f"\n{result.console}" if result.console else ""
        raise kind(f"{result.problem}{console}", hint=result.hint)
