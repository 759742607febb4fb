# SPDX-License-Identifier: MIT
"""A device tree alone, on trial with the kernel that the board runs: everything else stays where it is."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from bsp.base import progress
from bsp.base.errors import UserError
from bsp.dts.build import DtsResult
from bsp.dts.inputs.identity import dtb_of_board
from bsp.profile import Board
from bsp.remote.in_place import build_in_place
from images.bundle import manifest as bundles
from images.bundle import sign
from images.bundle.manifest import Bundle, Entry, Manifest

from . import plan as planning
from .checks.recognise import check_serial, recognised
from .checks.switched_off import refuse_forced_on
from .confirm import arm, decide
from .deploy import planned, prepare
from .deployment import Deployment
from .plan import Facts
from .session import Target, session
from .transfer.agent import Agent

DTB = "boot/board.dtb"
CHANGED = "changed in place"
"""What a manifest says of its device tree, where that is not the one that the system came with."""


def deploy_dtb(
    target: Target, *, board: Board | None, dtb: Path | None, dry_run: bool = False
) -> Deployment:
    """Boot the running generation once with another device tree, and confirm it or have the old one back.

    Args:
        board: profile; None: the host record's, or the one whose ``compatible`` the board has.
        dtb: the device tree; None: the running one with what the NPU lacks.

    Raises:
        UserError: another board, no way back there, or a kernel that has no driver for the NPU.
        InfrastructureError: the connection broke before the reboot; the board is as it was.
    """
    host = target.host
    with tempfile.TemporaryDirectory(prefix="npu-bsp-dtb-") as folder, session(target) as agent:
        board, fat_mount, facts = recognised(host, agent, board, target.root, lock=not dry_run)
        check_serial(host, facts)
        planning.check_layout(facts, host=host.name, fat_mount=fat_mount)
        running = _running(agent, facts, host.name)
        blob = new_tree(target, agent, board, dtb, Path(folder), fat_mount)
        if blob is None:
            return Deployment(
                host.name, board.name, facts.running, running.generation, outcome="unchanged"
            )
        bundle = with_dtb(running, blob, Path(folder) / "bundle")
        facts = agent.open(bundle.generation, fat_mount=fat_mount, lock=False)
        result = planned(target, agent, facts, bundle, board, fat_mount)
        if not result.plan:
            raise RuntimeError("nothing was planned")
        _refuse_damaged(result, running, host.name)
        if dry_run:
            return result
        if not result.plan.steps:
            result.outcome = "unchanged"
            return result
        progress.say(str(result.plan))
        prepare(agent, result.plan, bundle, facts, result)
        arm(agent, result.plan, target)
    return decide(target, result, facts, fat_mount)


def new_tree(
    target: Target, agent: Agent, board: Board, dtb: Path | None, folder: Path, fat_mount: str
) -> bytes | None:
    """Return the tree to be tried; None: the running one lacks nothing.

    Args:
        dtb: as for ``deploy_dtb``.
        folder: for what is built.

    Raises:
        UserError: it is another board's, or the NPU does not work with it.
    """
    if dtb is None:
        built = changes_of(agent, board, folder, target)
        return built.dtb.read_bytes() if built.changes else None
    blob = dtb_of_board(dtb, board)
    bundles.check_dtb_size(dtb, len(blob))
    if not target.force_enable:
        refuse_forced_on(agent, board, dtb, fat_mount=fat_mount, host=target.host.name)
    return blob


def with_dtb(running: Manifest, blob: bytes, folder: Path) -> Bundle:
    """Return a bundle of all that a generation has, with another DTB; only that is in the folder."""
    import hashlib

    entry = Entry(DTB, hashlib.sha256(blob).hexdigest(), len(blob))
    files = tuple(entry if each.path == DTB else each for each in running.files)
    manifest = msgspec.structs.replace(
        running, files=files, inputs={**running.inputs, "device-tree": CHANGED}
    )
    bundle = bundles.only_described(manifest, {DTB: blob}, folder)
    sign.sign(bundle)
    return bundle


def _running(agent: Agent, facts: Facts, host: str) -> Manifest:
    """The manifest of the generation that runs.

    Raises:
        UserError: none runs.
    """
    if facts.running is None or facts.running not in facts.generations:
        raise UserError(
            f"{host} runs something that is not a generation: none could try another device tree",
            hint="reboot it into its good generation, or take it over: ./inv deploy --adopt --dtb-only",
        )
    return agent.manifest(facts.running)


def changes_of(agent: Agent, board: Board, folder: Path, target: Target) -> DtsResult:
    """The running tree with what the NPU lacks, and the changes as an overlay.

    Raises:
        UserError: the kernel that runs there has no driver for the NPU.
    """
    changed_tree = build_in_place(
        agent.connection,
        board=board,
        target_dir=folder / "dts",
        keep_overlay=True,
        root=target.root,
        force_enable=target.force_enable,
    )
    progress.say(changed_tree.built.changes_text())
    if changed_tree.kernel is None:
        raise UserError(
            f"{board.name} has no NPU: there is nothing to switch on",
            hint="give a device tree of your own: --dtb F --dtb-only",
        )
    if not changed_tree.built.npu.supported:
        raise UserError(
            f"a device tree alone does not help: {changed_tree.built.npu.why}",
            hint=f"./inv deploy --host {target.host.name} brings a kernel along",
        )
    return changed_tree.built


def _refuse_damaged(result: Deployment, running: Manifest, host: str) -> None:
    send = result.plan.send if result.plan else None
    lacking = [running.files[index].path for index in send.indexes] if send else []
    if lacking and lacking != [DTB]:
        raise UserError(
            f"the generation that {host} runs is damaged: it lacks {', '.join(lacking[:3])}",
            hint=f"./inv deploy --host {host} brings a whole one",
        )
