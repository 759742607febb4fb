# SPDX-License-Identifier: MIT
"""From the reboot on: the trial is confirmed over a new session, or the old generation comes back.

Every way out ends in an outcome of the deployment.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bsp.base import progress
from bsp.base.errors import BspError, UserError
from bsp.boot_survey.told import explained, lacks_in
from bsp.remote.inventory import Host
from bsp.remote.ssh import UnreachableError

from . import trial
from .boot import state
from .checks import health
from .checks.recognise import profile_named, refuse_exchanged
from .deployment import Deployment
from .plan import Confirm, Facts, Plan, Try
from .session import ANSWER_S, Target, session
from .transfer.agent import Agent, BoardRefusedError, ConnectionLostError, decompress_fdt

_CONFIRM_ATTEMPTS = 3


def arm(agent: Agent, plan: Plan, target: Target) -> None:
    """Have the plan's generation tried at the next boot, and reboot; nothing if the plan has no trial."""
    if not any(isinstance(step, Try) for step in plan.steps):
        return
    sectors = state.in_each_form(lambda form: state.render_trial(plan.generation, form))
    reboot_with(agent, sectors, plan.generation, target)


def reboot_with(agent: Agent, sectors: dict[str, str], generation: str, target: Target) -> None:
    """Put a sector into ``trial.env``, and reboot; the lease is kept until all that follows is over.

    Args:
        sectors: in each form that a boot script may read (``state.in_each_form``).
        generation: of which the boot files are looked at before.
    """
    try:
        agent.ask(
            {
                "do": "arm",
                "generation": generation,
                "sectors": sectors,
                "reboot": target.reboot,
                "hold_s": target.timeout_s + 2 * target.recovery_s + ANSWER_S,
            },
            timeout_s=ANSWER_S,
        )
    except ConnectionLostError as error:
        # Whether the board was told is seen from whether it reboots.
        progress.say(
            f"{error.message}, just when the trial was requested: watching whether it reboots"
        )


@dataclass(frozen=True)
class _Trial:
    """A trial boot that was asked for, and may have begun.

    Attributes:
        result: of the deployment that the trial belongs to; it is written to.
        confirm: the generation to be confirmed, and what is kept behind it.
        before: the facts of the board before its reboot.
        fat_mount: where the board mounts its boot partition; empty: it has none.
    """

    target: Target
    result: Deployment
    confirm: Confirm
    before: Facts
    fat_mount: str

    def wait(self, timeout_s: float, *, other_than: str) -> trial.Boot | None:
        """Return the next boot with another ID; None if the board does not answer in time."""
        return trial.next_boot(self.target, other_than=other_than, timeout_s=timeout_s)


def decide(target: Target, result: Deployment, facts: Facts, fat_mount: str) -> Deployment:
    """From the reboot on: every way out ends in an outcome."""
    if not result.plan:
        raise RuntimeError("nothing was planned")
    host = target.host
    confirm = next((step for step in result.plan.steps if isinstance(step, Confirm)), None)
    if confirm is None:  # it ran already; there were only leftovers to remove
        result.outcome = "unchanged"
        return result
    attempt = _Trial(target, result, confirm, facts, fat_mount)
    console_from = trial.console_size(host)
    boot_id = facts.boot_id
    try:
        if any(isinstance(step, Try) for step in result.plan.steps):
            with result.step(f"Trial boot of generation {confirm.generation}") as now:
                boot = attempt.wait(target.timeout_s, other_than=boot_id)
                now.note(f"generation {boot.generation} answers" if boot else "no answer")
            if boot is None:
                boot = _rescue(attempt)
                if boot is None:
                    return result
            if boot.generation != confirm.generation:
                result.console = trial.console_tail(host, since_bytes=console_from)
                return _rolled_back(result, boot.generation, _why_not(attempt, boot))
            boot_id = boot.boot_id
        return _confirm(attempt, boot_id)
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
    finally:
        target.spare.close()


def _confirm(attempt: _Trial, boot_id: str) -> Deployment:
    """Confirm the boot with ``boot_id``; where that fails, wait for the old generation."""
    target, result = attempt.target, attempt.result
    for _ in range(_CONFIRM_ATTEMPTS):
        try:
            problems = _confirm_once(attempt, boot_id)
            break
        except (ConnectionLostError, UnreachableError, BoardRefusedError) as error:
            problems = [f"the session to confirm it broke: {error.message}"]
            if isinstance(error, BoardRefusedError):
                break
    if not problems:
        return result
    result.problem = "; ".join(problems)
    with result.step("Going back to the old generation"):
        boot = attempt.wait(target.recovery_s, other_than=boot_id)
        if boot is None and trial.reset_by_power(target.host):
            boot = attempt.wait(target.recovery_s, other_than=boot_id)
    if boot is None:
        return _unknown(result, target.host)
    _release_lease(target, attempt.fat_mount)
    return _rolled_back(result, boot.generation, result.problem)


def _confirm_once(attempt: _Trial, boot_id: str) -> list[str]:
    """Confirm, or have the board reboot; return why. Doing it again after a broken link does no harm."""
    target, result, confirm = attempt.target, attempt.result, attempt.confirm
    host = target.host
    with (
        result.step("Confirming over a new session"),
        session(target, accept_new_key=False) as agent,
    ):
        facts = agent.open(confirm.generation, fat_mount=attempt.fat_mount, lock=True)
        manifest = agent.manifest(confirm.generation)
        profile = profile_named(manifest.board)
        refuse_exchanged(attempt.before, facts, host, manifest.compatible, profile)
        release = manifest.kernel_release
        result.uboot_lacks = lacks_in(facts.cmdline)
        verified = agent.verify(confirm.generation)
        problems = trial.problems(facts, verified, release=release, generation=confirm.generation)
        result.running_dtb_matches = not trial.tree_problems(verified.dtb, verified.fdt)
        if not problems and target.check_health:
            checks = health.checks_for(host, profile, manifest, decompress_fdt(verified.dtb))
            result.health = health.examine(agent, host, checks)
            problems = [f"not healthy: {each}" for each in result.health if not each.ok]
        if not problems:
            good = state.Good(confirm.generation, confirm.previous)
            sectors = state.in_each_form(lambda form: state.render_good(good, form))
            agent.ask({"do": "commit", "generation": confirm.generation, "sectors": sectors})
            keep = [good.good, *filter(None, [good.previous]), *confirm.keep]
            agent.ask({"do": "discard", "keep": keep, "resume": confirm.generation})
            result.outcome = "confirmed"
            return []
        if facts.boot_id == boot_id:
            agent.ask({"do": "reboot", "reboot": target.reboot})
    return problems


def _why_not(attempt: _Trial, boot: trial.Boot) -> str:
    """Say why something else runs than the trial; disarm it where U-Boot did not take it.

    The board's lease is given back.
    """
    result = attempt.result
    result.uboot_lacks = boot.uboot_lacks
    armed = False
    with contextlib.suppress(BspError), session(attempt.target, accept_new_key=False) as agent:
        facts = agent.open(None, fat_mount=attempt.fat_mount, lock=True)
        armed = facts.trial == attempt.confirm.generation
        if armed:
            agent.ask({"do": "disarm"})
    if why := trial.why_not_taken(boot, armed=armed):
        return "; ".join(filter(None, [result.problem, why]))
    crashed = result.problem or "it crashed during the trial boot and was reset"
    return "; ".join(filter(None, [crashed, explained(boot.uboot_lacks)]))


def _release_lease(target: Target, fat_mount: str) -> None:
    """Give the board's lease back after a trial that failed; without this it ends by itself, later."""
    with contextlib.suppress(BspError), session(target, accept_new_key=False) as agent:
        agent.open(None, fat_mount=fat_mount, lock=True)


def _rescue(attempt: _Trial) -> trial.Boot | None:
    """The deadline has passed. Return the boot that then came; None: the result says what is known."""
    target, result = attempt.target, attempt.result
    host, boot_id = target.host, attempt.before.boot_id
    now = trial.probe(host, timeout_s=5, root=target.root)
    if now is not None and now.boot_id == boot_id:
        with session(target, accept_new_key=False) as agent:
            agent.open(None, fat_mount=attempt.fat_mount, lock=True)
            agent.ask({"do": "disarm"})
        _rolled_back(result, now.generation, f"it did not reboot within {target.timeout_s:g} s")
        return None
    result.problem = f"it did not answer within {target.timeout_s:g} s of the trial boot"
    if not trial.reset_by_power(host):
        progress.say(
            f"{host.name} has no power command that works; waiting for its own watchdog to reset it"
        )
    with result.step("Waiting for the board to come back") as now_step:
        boot = attempt.wait(target.recovery_s, other_than=boot_id)
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
