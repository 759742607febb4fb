# SPDX-License-Identifier: MIT
"""The probe boot: what a board's U-Boot can do, learned before anything is tried with it.

Where nobody knows a board's U-Boot, the first boot through our script tries nothing. The script spends the
probe as it would spend a trial, and boots the board as before: that way back is proven as well. What then
runs says what is missing, if it hands that on (bsp/boot_survey/told.py); a probe that is not spent says
that something is.
"""

from __future__ import annotations

import base64

from bsp.base.errors import UserError
from bsp.boot_survey.told import explained, lacks_in

from . import confirm, trial
from .boot import state
from .checks.adoptable import BeforeAdoption
from .deployment import Deployment
from .plan import Facts, Plan
from .session import Target, session
from .transfer.agent import Agent


def arm(agent: Agent, plan: Plan, target: Target) -> None:
    """Put the probe in the place of a trial, and reboot."""
    # Only a board with the boot script of today is asked: it has just been installed.
    sectors = {state.Form.SCRIPT.value: base64.b64encode(state.render_probe()).decode()}
    confirm.reboot_with(agent, sectors, plan.generation, target)


def followed_by_trial(
    target: Target, plan: Plan, result: Deployment, before: BeforeAdoption
) -> Facts | None:
    """Wait for the board, and arm the trial where one can be taken.

    Args:
        before: the board before its reboot.

    Returns:
        What it says of itself then; None: nothing is on trial, and the result says why.
    """
    mount, exact = before.fat_mount, before.is_on_ext
    boot_id = before.facts.boot_id
    try:
        with result.step("Probe boot: what its U-Boot can do") as now:
            boot = _wait(target, boot_id)
            now.note("it answers" if boot else "no answer")
        if boot is None:
            _unknown(result, target)
            return None
        with session(target, accept_new_key=False) as agent:
            facts = agent.open(plan.generation, fat_mount=mount, lock=True, exact=exact)
            result.uboot_lacks = lacks_in(facts.cmdline)
            if why := _why_no_trial(facts, boot, boot_id, result.uboot_lacks, target):
                result.outcome = "rolled-back"
                running = facts.running or "the old system"
                result.problem = f"generation {result.to}: {why}; {running} runs"
                return None
            confirm.arm(agent, plan, target)
            return facts
    except UserError as error:  # something answers, and it is not the board
        result.outcome, result.hint = "unknown", error.hint
        result.problem = f"after the reboot: {error.message}"
        return None


def _why_no_trial(
    facts: Facts, boot: trial.Boot, boot_id: str, lacks: tuple[str, ...], target: Target
) -> str:
    """Say why no trial can be taken; empty: one can."""
    if facts.boot_id == boot_id:
        return f"it did not reboot within {target.timeout_s:g} s"
    if any(facts.sector("trial")[:4]):
        return trial.why_not_taken(boot, armed=True)
    return f"it was not tried: {explained(lacks)}" if lacks else ""


def _wait(target: Target, boot_id: str) -> trial.Boot | None:
    """Return the boot that the probe ended in, or the one that still runs; None: the board is silent."""
    host, root = target.host, target.root
    boot = trial.next_boot(target, other_than=boot_id)
    boot = boot or trial.probe(host, timeout_s=5, root=root)
    if boot is None and trial.reset_by_power(host):
        boot = trial.wait_for_boot(host, other_than=boot_id, timeout_s=target.recovery_s, root=root)
    return boot


def _unknown(result: Deployment, target: Target) -> None:
    host = target.host.name
    result.outcome = "unknown"
    result.problem = (
        f"{host} does not answer within {target.timeout_s:g} s of a boot that was to be as before"
    )
    result.hint = (
        "reset the board: nothing is on trial, and the boot script boots what booted it before; then "
        f"./inv deploy --host {host} --undo"
    )
