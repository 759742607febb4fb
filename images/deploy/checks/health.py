# SPDX-License-Identifier: MIT
"""What has to work on a trial before it is confirmed: services, the NPU's device node, a quick smoke test.

That it runs as it was sent is checked before (trial.py). What is asked for is in the board's profile
(``[health]``) and, for services, in the inventory as well.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from bsp.base.errors import BspError, UserError
from bsp.base.progress import step
from bsp.catalog import npu_of
from bsp.dts.npu.available import unavailable
from bsp.dts.tree import read_tree
from bsp.profile import Board, Npu
from bsp.remote.inventory import Host
from images.bundle.manifest import Manifest

from ..transfer.agent import Agent

_POLL_S = 1.0
_DEADLINE_S = 60.0
_TEST = "label_image"
_SMOKE_TEST = "smoke-test --quick"


class Verdict(msgspec.Struct, frozen=True):
    """One check: whether it passed, and what was found."""

    name: str
    ok: bool
    found: str

    def __str__(self) -> str:
        return f"{self.name}: {self.found}"


@dataclass(frozen=True)
class Checks:
    """What is to be checked; see ``bsp.profile.Health``.

    Attributes:
        driver: whose device node has to be there; ``""``: none has to.
    """

    services: tuple[str, ...] = ()
    driver: str = ""
    smoke_test: bool = False
    deadline_s: float = _DEADLINE_S


def checks_for(host: Host, board: Board | None, manifest: Manifest, dtb: bytes | None) -> Checks:
    """Return what a generation has to show on a host. Pure.

    Args:
        board: None: there is no profile for it; only what the inventory says counts.
        dtb: the device tree that was sent; None: unknown.
    """
    if board is None:
        return Checks(host.services)
    profile = board.health
    services = tuple(dict.fromkeys((*profile.services, *host.services)))
    npu = npu_of(board)
    needs_node = profile.render_node
    if needs_node is None:
        needs_node = npu is not None and _is_to_work(npu, manifest, dtb)
    return Checks(
        services,
        npu.driver if npu and needs_node else "",
        profile.smoke_test and any(each.path.startswith("userspace/") for each in manifest.files),
        profile.deadline_s,
    )


def _is_to_work(npu: Npu, manifest: Manifest, dtb: bytes | None) -> bool:
    """Return whether the device tree enables the NPU and the kernel supports it."""
    if dtb is None or npu.kernel_since is None or not npu.enabled:
        return False
    if _numbers(manifest.kernel_release) < _numbers(npu.kernel_since):
        return False
    try:
        tree = read_tree(dtb, "the device tree that was sent")
    except UserError:
        return False
    return npu.node in tree.nodes and not unavailable(tree, npu)


def _numbers(release: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", release)[:2]]


def examine(agent: Agent, host: Host, checks: Checks) -> list[Verdict]:
    """Run the checks over the session that confirms; those of the board until they pass, or time is up."""
    verdicts = _on_board(agent, checks)
    if checks.smoke_test and all(each.ok for each in verdicts):
        verdicts.append(_smoke_test(host))
    return verdicts


def _on_board(agent: Agent, checks: Checks) -> list[Verdict]:
    if not checks.services and not checks.driver:
        return []
    request: dict[str, Any] = {
        "do": "health",
        "services": checks.services,
        "driver": checks.driver,
    }
    deadline = time.monotonic() + checks.deadline_s
    with step("Running the health checks") as now:
        while True:
            verdicts = msgspec.convert(agent.ask(request)["checks"], list[Verdict])
            wrong = [each for each in verdicts if not each.ok]
            now.note(", ".join(str(each) for each in wrong or verdicts))
            if not wrong or time.monotonic() >= deadline:
                return verdicts
            time.sleep(_POLL_S)


def _smoke_test(host: Host) -> Verdict:
    from userspace.npu.validate.label_image import (  # late: it costs an ordinary deployment nothing
        SmokeTestRequest,
        quick,
    )
    from userspace.npu.validate.smoke import smoke_test

    try:
        document = smoke_test(_TEST, quick(SmokeTestRequest()), host=host)
    except BspError as error:
        return Verdict(_SMOKE_TEST, False, error.message)
    if document["verdict"] == "pass":
        rows = [row["delegate"] for row in document["results"] if row["status"] == "pass"]
        return Verdict(_SMOKE_TEST, True, f"pass: {', '.join(rows)}")
    failed = [
        f"{row['delegate']}: {row['reason']}"
        for row in document["results"]
        if row["status"] == "fail"
    ]
    return Verdict(_SMOKE_TEST, False, "; ".join(failed) or document["verdict"])
