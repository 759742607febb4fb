# SPDX-License-Identifier: MIT
"""``gate-kernel``: does a kernel's NPU driver work on virtual boards with an NPU, and keep quiet?

Each board is started from nothing in a state folder of its own, gets the kernel by a deployment through its
bootloader, as a real board would, and then runs models with Mesa's delegate until the wanted number of
invokes is reached, and once more after the driver was unloaded and loaded. The verdict rests on the
results and on the kernel's log.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bsp.base.errors import BspError, UserError
from bsp.base.output import table
from bsp.base.progress import step
from bsp.base.words import counted
from bsp.catalog import load_board
from bsp.readable_boards import readable_boards
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.bundle.assemble import bundle_for
from images.deploy.deploy import deploy
from images.deploy.session import Target
from userspace.npu.validate import models
from userspace.npu.validate.label_image import SmokeTestRequest as SmokeRequest
from userspace.npu.validate.smoke import smoke_test

from ..boards import boards
from .records import KernelGateDocument, KernelRow, KernelRun

FORMAT = 1
LARGE_MODEL = "mobilenet_v1_0.25_128_quant"
_LARGE_SHARE = 20  # one invoke of so many is the larger model's
_STATE = "NPU_BSP_STATE"
# Emulated boards boot in a minute on an idle machine, and in many on a busy one.
_BOOT_TIMEOUT_S = 900.0

# What a kernel says when something is wrong. Linux: kernel/panic.c, lib/bug.c, kernel/hung_task.c,
# kernel/rcu/tree_stall.h, mm/kasan; drivers/gpu/drm/etnaviv/etnaviv_{gpu,sched,mmu,dump}.c.
_COMPLAINTS = re.compile(
    r"BUG:|WARNING:|Oops|Kernel panic|Unable to handle|Call trace|refcount_t|KASAN|UBSAN"
    r"|blocked for more than|rcu.*stall|soft lockup"
    r"|recover hung GPU|MMU fault|AXI bus error|etnaviv.*(?:fail|error|fault|timed? ?out|hung)",
    re.IGNORECASE,
)
# Messages that say what is so, and that etnaviv prints on each virtual board that works.
_HARMLESS = re.compile(
    r"Kernel command line:|deferred probe|no version for|module verification failed", re.IGNORECASE
)


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        kernel: as ``bundle --kernel`` takes it; None for the profile's.
        invokes: inferences on each board.
    """

    boards: tuple[str, ...]
    kernel: str | None
    invokes: int


def plan(kernel: str, board: str, invokes: int) -> Plan:
    """Check the arguments.

    Raises:
        UserError: no such virtual board with an NPU, or no invokes.
    """
    names = [each.name for each in readable_boards() if each.qemu and each.qemu.npu]
    if board != "all" and board not in names:
        raise UserError(
            f"{board!r} is not a virtual board with an NPU", hint=f"there are: {', '.join(names)}"
        )
    if invokes < 1:
        raise UserError(f"--invokes {invokes}: at least 1 is needed")
    return Plan(tuple(names) if board == "all" else (board,), kernel or None, invokes)


def gate(planned: Plan) -> KernelGateDocument:
    """Run the gate and return its document; ``verdict`` is ``good`` or ``not good``.

    Raises:
        UserError: the kernel is none.
        InfrastructureError: a board does not start.
    """
    rows = []
    for name in planned.boards:
        with _started(name) as host:
            with step(f"Deploying the kernel to {name}"):
                result = deploy(
                    Target(host, timeout_s=_BOOT_TIMEOUT_S, recovery_s=_BOOT_TIMEOUT_S),
                    bundle=bundle_for(load_board(name), kernel=planned.kernel),
                    board=None,
                )
            if result.outcome in ("confirmed", "unchanged"):
                rows.append(examine(name, host, planned.invokes))
            else:
                problem = f"the deployment was not confirmed: {result.outcome}: {result.problem}"
                rows.append(_row(name, "", [], [problem], []))
    return {
        "format": FORMAT,
        "kernel": planned.kernel or "the profile's",
        "boards": rows,
        "verdict": "good" if all(row["verdict"] == "good" for row in rows) else "not good",
    }


def examine(name: str, host: Host, invokes: int) -> KernelRow:
    """Run models on a board that is up, and return its row: results, and the kernel's complaints."""
    release = _output_of(host, "uname", "-r").strip()
    before = _log(host)
    problems: list[str] = []
    runs: list[KernelRun] = []
    if "etnaviv has been instantiated on a NPU" not in before:
        problems.append("etnaviv has not bound to the NPU")
    else:
        large = max(1, invokes // _LARGE_SHARE)
        for model, count in ((models.tiny().name, max(1, invokes - large)), (LARGE_MODEL, large)):
            with step(f"{name}: {counted(count, 'invoke')} of {model}"):
                runs.append(_runs(host, model, count, problems))
        _output_of(host, "modprobe", "-r", "etnaviv")
        _output_of(host, "modprobe", "etnaviv")
        with step(f"{name}: after a reload of the driver"):
            runs.append(_runs(host, models.tiny().name, 1, problems))
    return _row(name, release, runs, problems, complaints(_log(host)))


def complaints(log: str) -> list[str]:
    """Return the lines of a kernel's log that say that something is wrong."""
    return [
        line.strip()
        for line in log.splitlines()
        if _COMPLAINTS.search(line) and not _HARMLESS.search(line)
    ]


def text_of(document: KernelGateDocument) -> str:
    """Return the document for people."""
    rows = [
        (
            row["board"],
            row["kernel"] or "?",
            row["verdict"],
            str(row["invokes"]),
            str(len(row["complaints"])),
        )
        for row in document["boards"]
    ]
    lines = [table(("board", "kernel", "verdict", "invokes", "complaints"), rows)]
    for row in document["boards"]:
        lines += [f"{row['board']}: {problem}" for problem in row["problems"]]
        lines += [f"{row['board']}: {line}" for line in row["complaints"][:10]]
    return "\n".join(lines)


def _row(
    name: str,
    release: str,
    runs: Sequence[KernelRun],
    problems: Sequence[str],
    complained: Sequence[str],
) -> KernelRow:
    return {
        "board": name,
        "kernel": release,
        "runs": list(runs),
        "invokes": sum(run["invokes"] for run in runs),
        "problems": list(problems),
        "complaints": list(complained),
        "verdict": "not good" if problems or complained else "good",
    }


def _runs(host: Host, model: str, count: int, problems: list[str]) -> KernelRun:
    """Run a model so often; add what is wrong with the results to ``problems``."""
    request = SmokeRequest(
        delegate="teflon",
        model=model,
        runs=count,
        budget_s=max(60.0, 5.0 * count),
        timeout_s=max(300.0, 10.0 * count),
    )
    try:
        document = smoke_test("label_image", request, host=host)
    except BspError as error:
        problems.append(f"{model}: {error.message}")
        return {"model": model, "invokes": 0, "status": "fail", "median_ms": None}
    row = next(row for row in document["results"] if row["delegate"] == "teflon")
    if row["status"] != "pass":
        problems.append(f"{model}: {row['reason']}")
    done = count + 1 if row["status"] == "pass" else 0  # the first one is not measured
    return {
        "model": model,
        "invokes": done,
        "status": row["status"],
        "median_ms": row["latency_ms"]["median"] if row["latency_ms"] else None,
    }


@contextlib.contextmanager
def _started(name: str) -> Iterator[Host]:
    """Start a board of a name in a state folder of its own, and take it down afterwards."""
    earlier = os.environ.get(_STATE)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-gate-") as folder:
        os.environ[_STATE] = folder
        try:
            boards.up(name, timeout_s=_BOOT_TIMEOUT_S)
            try:
                yield inventory.resolve(name)
            finally:
                boards.down(name)
        finally:
            if earlier is None:
                del os.environ[_STATE]
            else:
                os.environ[_STATE] = earlier


def _output_of(host: Host, *command: str) -> str:
    with ssh.connect(host, timeout_s=60) as connection:
        return connection.run(list(command), timeout_s=120).text


def _log(host: Host) -> str:
    return _output_of(host, "dmesg")
