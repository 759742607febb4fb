# SPDX-License-Identifier: MIT
"""Deploys to a virtual board through its bootloader while QEMU writes down each write to its disk.

What is recorded: the first boot, a deployment that brings a lot (the userspace) with its trial boot and
confirmation, a rollback, and a deployment that changes little and removes the oldest generation. On a board
in somebody else's layout: its first boot, adoption, another device tree, and what gives it back at the end.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
from images.deploy.in_place import deploy_dtb
from images.deploy.onboard.board import BOOT
from images.deploy.session import Target
from images.disk import Disk
from virtual.boards.boot import Devices, start, wait_until_up
from virtual.boards.instance import Instance

from .resume_cache import Known
from .subject import Recorded
from .variants import Variant
from .writelog import entries_so_far

_UP_S = 600.0
_DOWN_S = 60.0
# trial.env is rewritten elsewhere, as by a copy or a defragmentation; the sector is another file's then.
_MOVED = f"""
cd {BOOT}/npu-bsp
ln trial.env ../of-somebody-else
cp trial.env copy
sync
mv copy trial.env
yes 'not a trial' | head -c 4096 | dd of=../of-somebody-else conv=notrunc
sync
systemctl reboot
"""


class Phase(msgspec.Struct, frozen=True):
    """A part of the record: how many requests there were when it had ended, and how it ended."""

    name: str
    requests: int
    outcome: str


class Step(NamedTuple):
    """A part of what is recorded: what it is called, what is done, how that has to end."""

    name: str
    act: Callable[[Target], Deployment]
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


def recording(subject: Recorded, folder: Path, variant: Variant) -> Recording:
    """Return the recording in ``folder``; make it if the folder is empty.

    Raises:
        UserError: what lies there was recorded with another variant or from another disk.
        InfrastructureError: the board did not come up.
    """
    disk = subject.disk
    log, about = folder / WRITE_LOG, folder / "recording.json"
    if about.exists():
        facts = msgspec.json.decode(about.read_bytes(), type=Facts)
        if (facts.variant, facts.disk) != (variant.name, str(disk.image)):
            raise UserError(
                f"{folder} holds a recording of variant {facts.variant or '(none)'} from {facts.disk}",
                hint="give --recording another folder, or remove this one",
            )
        return Recording(log, disk, facts)
    folder.mkdir(parents=True, exist_ok=True)
    Known.forget(folder)
    phases = _record(subject, log, variant)
    facts = Facts(variant.name, str(disk.image), tuple(phases), subject.name)
    write_atomically(about, msgspec.json.encode(facts) + b"\n")
    return Recording(log, disk, facts)


def _record(subject: Recorded, log: Path, variant: Variant) -> list[Phase]:
    board = subject.board
    instance = Instance(f"crash-test-{os.getpid()}")
    phases: list[Phase] = []
    with tempfile.TemporaryDirectory(prefix="npu-bsp-crash-") as work:
        # What is sent is made before the board runs.
        steps = _of_ours(board, Path(work)) if subject.old is None else _of_theirs(subject)
        try:
            started = time.monotonic()
            host = start(
                instance, board, subject.disk, kernel=board.kernel, way=subject.way,
                devices=Devices(log_writes=True),
            )  # fmt: skip
            with step("First boot"):
                wait_until_up(instance, host, deadline=started + _UP_S, timeout_s=_UP_S)
            phases.append(_phase("first boot", instance, "up"))
            target = Target(host, timeout_s=_UP_S, recovery_s=_UP_S, additions=variant.additions)
            for name, act, expected in steps[: variant.steps]:
                with step(f"Recording: {name}"):
                    result = act(target)
                say(f"{name}: {result.outcome}")
                if result.outcome != expected and not variant.name:
                    raise InfrastructureError(
                        f"{name} ended as {result.outcome}, expected {expected}: {result.problem}\n"
                        f"{result.console}"
                    )
                phases.append(_phase(name, instance, result.outcome))
            if subject.old is not None and not variant.name:
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


def _of_ours(board: Board, work: Path) -> list[Step]:
    """A deployment that brings a lot, back, and one that changes little."""
    big = bundle_for(board)
    small = _changed(board, big, work)
    return [
        Step("deploy", lambda to: deploy(to, bundle=big, board=board), "confirmed"),
        Step("rollback", rollback, "confirmed"),
        Step("deploy a change", lambda to: deploy(to, bundle=small, board=board), "confirmed"),
    ]


def _of_theirs(subject: Recorded) -> list[Step]:
    """Adoption and a device tree; on ext4 also a trial whose file is moved before U-Boot sees it."""
    board = subject.board

    def tree(to: Target) -> Deployment:
        return deploy_dtb(to, board=board, dtb=None)

    def moved(to: Target) -> Deployment:
        return tree(dataclasses.replace(to, reboot=("sh", "-c", _MOVED)))

    steps = [
        Step("adopt", lambda to: adopt(to, board=board), "confirmed"),
        Step("a trial that is moved", moved, "rolled-back"),
        Step("another device tree", tree, "confirmed"),
    ]
    on_ext4 = subject.places.fat_size_bytes == 0
    return [each for each in steps if on_ext4 or each.act is not moved]


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
