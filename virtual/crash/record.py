# SPDX-License-Identifier: MIT
"""Deploys to a virtual board through its bootloader while QEMU writes down each write to its disk.

What is recorded: the first boot, a deployment that brings a lot (the userspace) with its trial boot and
confirmation, a rollback, and a deployment that changes little and removes the oldest generation. A board in
somebody else's layout is adopted before, and given back at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bsp.base.cache import write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.base.progress import say, step
from bsp.profile import Board
from bsp.qemu.machine import WRITE_LOG
from bsp.remote.inventory import unregister
from images.bundle.assemble import bundle_for
from images.bundle.manifest import Bundle
from images.deploy.adopt import adopt, undo
from images.deploy.deploy import deploy, rollback
from images.deploy.deployment import Deployment
from images.deploy.session import Target
from images.disk import Disk
from virtual.boards.boot import Devices, start, wait_until_up
from virtual.boards.instance import Instance

from .resume_cache import Known
from .subject import Recorded
from .writelog import entries_so_far

_UP_S = 600.0
_DOWN_S = 60.0


class Phase(msgspec.Struct, frozen=True):
    """A part of the record: how many requests there were when it had ended, and how it ended."""

    name: str
    requests: int
    outcome: str


class Facts(msgspec.Struct, frozen=True):
    """``recording.json``: what lies in the folder of a recording."""

    variant: str
    disk: str
    phases: tuple[Phase, ...]
    layout: str = "npu-bsp"


@dataclass(frozen=True)
class Recording:
    """A record of writes, and the factory disk that they were made to."""

    log: Path
    disk: Disk
    facts: Facts


def recording(
    subject: Recorded, folder: Path, *, variant: str, additions: Mapping[str, str]
) -> Recording:
    """Return the recording in ``folder``; make it if the folder is empty.

    Raises:
        UserError: what lies there was recorded with another variant or from another disk.
        InfrastructureError: the board did not come up.
    """
    disk = subject.disk
    log, about = folder / WRITE_LOG, folder / "recording.json"
    if about.exists():
        facts = msgspec.json.decode(about.read_bytes(), type=Facts)
        if (facts.variant, facts.disk) != (variant, str(disk.image)):
            raise UserError(
                f"{folder} holds a recording of variant {facts.variant or '(none)'} from {facts.disk}",
                hint="give --recording another folder, or remove this one",
            )
        return Recording(log, disk, facts)
    folder.mkdir(parents=True, exist_ok=True)
    Known.forget(folder)
    phases = _record(subject, log, additions)
    facts = Facts(variant, str(disk.image), tuple(phases), subject.name)
    write_atomically(about, msgspec.json.encode(facts) + b"\n")
    return Recording(log, disk, facts)


def _record(subject: Recorded, log: Path, additions: Mapping[str, str]) -> list[Phase]:
    board = subject.board
    big = bundle_for(board)
    instance = Instance(f"crash-test-{os.getpid()}")
    phases: list[Phase] = []
    with tempfile.TemporaryDirectory(prefix="npu-bsp-crash-") as work:
        small = _changed(board, big, Path(work))
        try:
            started = time.monotonic()
            host = start(
                instance, board, subject.disk, kernel=board.kernel, way=subject.way,
                devices=Devices(log_writes=True),
            )  # fmt: skip
            with step("First boot"):
                wait_until_up(instance, host, deadline=started + _UP_S, timeout_s=_UP_S)
            phases.append(_phase("first boot", instance, "up"))
            target = Target(host, timeout_s=_UP_S, additions=additions)
            steps: tuple[tuple[str, Callable[[], Deployment]], ...] = (
                ("deploy", lambda: deploy(target, bundle=big, board=board)),
                ("rollback", lambda: rollback(target)),
                ("deploy a change", lambda: deploy(target, bundle=small, board=board)),
            )
            if subject.old is not None:
                steps = (("adopt", lambda: adopt(target, board=board)), *steps)
            # What is broken shows in the first deployment.
            for name, act in steps[:1] if additions else steps:
                with step(f"Recording: {name}"):
                    result = act()
                say(f"{name}: {result.outcome}")
                if result.outcome != "confirmed" and not additions:
                    raise InfrastructureError(
                        f"{name} ended as {result.outcome}: {result.problem}\n{result.console}"
                    )
                phases.append(_phase(name, instance, result.outcome))
            if subject.old is not None and not additions:
                with step("Recording: give back"):
                    undo(target)
                phases.append(_phase("give back", instance, "given back"))
        finally:
            _end(instance)
            written = instance.folder / WRITE_LOG
            if written.exists():
                _keep(written, log)
            unregister(instance.name)
            instance.forget()
    return phases


def _phase(name: str, instance: Instance, outcome: str) -> Phase:
    return Phase(name, entries_so_far(instance.folder / WRITE_LOG), outcome)


def _end(instance: Instance) -> None:
    """Cut the power: nothing of the record depends on a shutdown."""
    if instance.running():
        instance.command("quit")
        if not instance.wait_until_gone(timeout_s=_DOWN_S):
            instance.kill()


def _keep(written: Path, log: Path) -> None:
    """Keep the record. Most of its file is a hole, which a plain copy would fill the disk with."""
    run(["cp", "--sparse=always", written, log])


def _changed(board: Board, bundle: Bundle, work: Path) -> Bundle:
    """The same bundle with one property more in its device tree."""
    dtb = work / "changed.dtb"
    shutil.copyfile(bundle.path / "boot/board.dtb", dtb)
    dtb.chmod(0o644)
    run(["fdtput", "-t", "s", dtb, "/", "npu-bsp,power-cut-test", "yes"])
    return bundle_for(board, dtb=dtb)
