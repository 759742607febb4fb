# SPDX-License-Identifier: MIT
"""``deploy --try --persist``: a device tree that passed its trial is kept by the distribution itself.

Where it names a tree or an overlay, it does so for every kernel that it installs. So the NPU stays on
through its updates, and nothing of ours takes part in booting.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from bsp.base.errors import UserError
from bsp.boot_survey.keeping import how_to_keep
from bsp.boot_survey.survey import Survey
from bsp.dts.npu.required_changes import Change

from . import trial
from .checks import health
from .deployment import Deployment
from .onboard.board import BOOT
from .session import Target, session
from .transfer.agent import BoardRefusedError

_ANSWER_S = 300.0
_NAMED_IN = {
    "armbian": "boot/armbianEnv.txt",
    "dietpi": "boot/dietpiEnv.txt",
    "toradex": "overlays.txt of the boot partition",
    "u-boot-menu": "boot/extlinux/extlinux.conf",
    "grub": "boot/grub/custom.cfg",
    "flash-kernel": "etc/flash-kernel/dtbs",
}


def refuse_without_keeper(how: Survey, host: str, *, overlay: bool) -> None:
    """Refuse to try a tree that could not be kept afterwards.

    Args:
        overlay: whether the tree is one of ours, so that there is an overlay of what it changes.

    Raises:
        UserError: nothing there keeps a tree, or an overlay is to be kept, and there is none.
    """
    if not how.keeper:
        raise UserError(
            f"--persist: nothing on {host} ({how.layout.name}) is known to keep a tree through updates",
            hint=_own_way(how, host),
        )
    if how.keeps_overlay and not overlay:
        named = f" ({' '.join(how.overlays)} now)" if how.overlays else ""
        raise UserError(
            f"--persist: {how.keeper} names overlays{named}, which U-Boot applies to any tree; --dtb is a "
            "whole tree",
            hint=f"leave --dtb out; or an overlay of your own: {_own_way(how, host)}",
        )


def _own_way(how: Survey, host: str) -> str:
    """Return how somebody keeps a tree there by hand."""
    return how_to_keep(how.layout, host, overlays=how.overlays, owner=how.owner)


def refuse_overlay(how: Survey, kept_by: str, changes: Sequence[Change], host: str) -> None:
    """Refuse to keep an overlay that would not do: in place of an earlier one, or on another kernel's tree.

    Args:
        kept_by: who keeps one already; empty: nobody.
        changes: what it changes in the running tree.

    Raises:
        UserError: says why.
    """
    if not how.keeps_overlay:
        return
    numbers = [each for each in changes if each.of_this_tree]
    if numbers:
        raise UserError(
            f"--persist: {how.keeper} keeps overlays; this one would name clocks by their numbers in the "
            f"running tree ({numbers[0].path}: {numbers[0].property}), which has no labels (__symbols__): "
            "another kernel's tree has others",
            hint=f"./inv deploy --host {host} --adopt --dtb-only: that keeps a whole tree",
        )
    if kept_by:
        raise UserError(
            f"--persist: {kept_by} keeps an overlay of npu-bsp's already; one of what {host} lacks now "
            "would replace it, and what that one changed would be gone",
            hint=f"./inv deploy --host {host} --undo, reboot it, then the same command: one overlay of all",
        )


def persist(
    target: Target,
    result: Deployment,
    how: Survey,
    *,
    blob: bytes,
    overlay: bytes | None,
    checks: health.Checks,
) -> None:
    """Have the distribution keep what runs on trial, and reboot into that; or take it back.

    Args:
        blob: the tree that runs.
        overlay: what it changes, where that is known.
    """
    content = overlay if how.keeps_overlay else blob
    if content is None:
        raise RuntimeError("there is nothing to keep")
    request = {
        "do": "persist",
        "way": how.keeper,
        "overlay": how.keeps_overlay,
        "content": base64.b64encode(content).decode(),
    }
    with result.step(f"Handing the tree to {how.keeper}"), session(target) as agent:
        before = agent.open(None, fat_mount=BOOT, lock=True, exact=True)
        try:
            agent.ask(request, timeout_s=_ANSWER_S)
        except BoardRefusedError as error:
            result.outcome = "refused"
            result.problem = f"it passed its trial, and is not kept: {error.message}"
            result.hint = f"it runs with that device tree; {_own_way(how, target.host.name)}"
            return
        agent.ask({"do": "reboot", "reboot": target.reboot})
    with result.step(f"Booting as {how.keeper} does") as now:
        boot = trial.next_boot(target, other_than=before.boot_id)
        now.note("it answers" if boot else "no answer")
    if boot is None:
        result.outcome = "unknown"
        result.problem = (
            f"it passed its trial, and {how.keeper} does not boot it within {target.timeout_s:g} s"
        )
        result.hint = (
            "if a reset does not help: with the disk in another machine, take what names npu-bsp out of "
            f"{_NAMED_IN[how.keeper]}"
        )
        return
    if problems := _problems_or_undo(target, result, blob, checks):
        result.outcome = "rolled-back"
        why = "; ".join(problems)
        result.problem = f"it passed its trial, and not as {how.keeper} boots it: {why}"
        result.hint = f"{how.keeper} no longer keeps it; the board is rebooting into what it had"
        if how.keeps_overlay:
            needs = "`fdt apply`, and for extlinux.conf fdtoverlay_addr_r"
            result.hint += f". Overlays need a U-Boot that has {needs}"
        return
    result.outcome = "persisted"
    result.hint = (
        f"{how.keeper} keeps it, for each kernel that it installs. To go back: ./inv deploy --host "
        f"{target.host.name} --undo"
    )


def _problems_or_undo(
    target: Target, result: Deployment, blob: bytes, checks: health.Checks
) -> list[str]:
    """Check what the distribution booted; where something is wrong, undo it, reboot, and return that."""
    with session(target) as agent:
        facts = agent.open(None, fat_mount=BOOT, lock=True, exact=True, tree=True)
        problems = trial.differences_from(blob, facts.fdt)
        if not problems and target.check_health:
            result.health = health.examine(agent, target.host, checks)
            problems = [f"not healthy: {each}" for each in result.health if not each.ok]
        result.running_dtb_matches = not problems
        if problems:
            agent.ask({"do": "unpersist"}, timeout_s=_ANSWER_S)
            agent.ask({"do": "reboot", "reboot": target.reboot})
    return problems


def take_back(target: Target, *, dry_run: bool) -> list[str] | None:
    """Have the distribution no longer keep a tree; return which files changed, None where it keeps none."""
    with session(target, accept_new_key=target.accept_new_key) as agent:
        facts = agent.open(None, fat_mount=BOOT, lock=not dry_run, exact=True)
        if not facts.kept_by:
            return None
        if dry_run:
            return []
        return list(agent.ask({"do": "unpersist"}, timeout_s=_ANSWER_S)["changed"])
