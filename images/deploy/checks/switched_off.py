# SPDX-License-Identifier: MIT
"""Before a tree with the NPU on is sent: did a bootloader switch it off on purpose? Is the NPU shared?"""

from __future__ import annotations

from pathlib import Path

from bsp.base.errors import UserError
from bsp.catalog import npu_of
from bsp.dts.npu import switched_off
from bsp.dts.npu.available import unavailable
from bsp.dts.npu.owners import refuse_two_owners
from bsp.dts.npu.required_changes import newer_kernel
from bsp.dts.npu.resources import refuse_defects
from bsp.dts.tree import Tree, read_tree
from bsp.profile import Board

from ..transfer.agent import Agent, decompress_fdt


def refuse_forced_on(
    agent: Agent, board: Board | None, dtb: Path, *, fat_mount: str, host: str
) -> None:
    """Refuse to send a tree with the NPU on to a board that runs with it off, though its kernel has it on.

    Nothing is asked of boards whose kernels leave the NPU off: switching it on there is what deployments
    are for.

    Args:
        dtb: the device tree that is to be sent.

    Raises:
        UserError: as ``bsp.dts.npu.switched_off.refuse_switched_off``.
    """
    npu = npu_of(board) if board else None
    if board is None or npu is None or not npu.enabled:
        return
    if not switched_off.on_upstream(board, npu, None):
        return
    facts = agent.open(None, fat_mount=fat_mount, lock=False, tree=True)
    running = _tree(facts.fdt)
    before = _tree(facts.dtb)
    if running is None or (before is not None and unavailable(before, npu)):
        return  # or the generation that runs was sent with the NPU off
    sent = read_tree(dtb.read_bytes(), str(dtb))
    switched_off.refuse_forced_on(running, sent, board, npu, host=host)


def refuse_shared(board: Board | None, dtb: Path) -> None:
    """Refuse to send a tree that gives the NPU to a vendor's driver as well, or to none.

    Raises:
        UserError: as ``bsp.dts.npu.owners.refuse_two_owners`` and ``bsp.dts.npu.resources.refuse_defects``.
    """
    npu = npu_of(board) if board else None
    if npu is None or not npu.enabled:
        return
    tree, what = read_tree(dtb.read_bytes(), str(dtb)), "the bundle's device tree"
    refuse_two_owners(tree, npu, what)
    if npu.compatible in tree.strings(npu.node, "compatible") and not unavailable(tree, npu):
        refuse_defects(tree, npu, what, newer_kernel(npu))


def is_on(fdt: str | None, board: Board | None) -> bool | None:
    """Whether a board's NPU and all that it needs are switched on in its running tree; None: not known."""
    npu = npu_of(board) if board else None
    tree = _tree(fdt)
    if npu is None or tree is None or npu.node not in tree.nodes:
        return None
    return not unavailable(tree, npu)


def _tree(packed: str | None) -> Tree | None:
    blob = decompress_fdt(packed)
    try:
        return read_tree(blob, "the running device tree") if blob else None
    except UserError:
        return None
