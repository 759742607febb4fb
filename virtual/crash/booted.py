# SPDX-License-Identifier: MIT
"""Really boots a virtual board from a disk in the state of a point, up to an answer over SSH."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from bsp.base.errors import BspError, InfrastructureError
from bsp.base.process import run
from bsp.remote import inventory, ssh
from virtual.boards.boot import start, wait_until_up
from virtual.boards.instance import Instance

from .points import Point, materialise
from .subject import Recorded
from .writelog import WriteLog

_WHOLE = """
if grep -q npu_bsp.generation= /proc/cmdline; then readlink /run/npu-bsp/current || exit 1; fi
modprobe -n -v etnaviv
"""


def boot_problem(
    subject: Recorded, log: Path, point: Point, folder: Path, *, name: str, timeout_s: float
) -> str:
    """Boot a point; return what went wrong, or ``""``.

    The board has to answer over SSH, with its modules in place; from a generation, if it is ours.

    Args:
        folder: the disk is made there.
        name: of the virtual board; several may be booted at a time.
    """
    image = folder / f"{name}.img"
    run(["cp", "--sparse=always", subject.disk.image, image])
    image.chmod(0o644)
    with WriteLog(log) as writes:
        materialise(writes, point, image)
    instance = Instance(name)
    changed = dataclasses.replace(subject.disk, image=image)
    try:
        board = subject.board
        host = start(instance, board, changed, kernel=board.kernel, way=subject.way)
        deadline = time.monotonic() + timeout_s
        wait_until_up(instance, host, deadline=deadline, timeout_s=timeout_s)
        with ssh.connect(host, timeout_s=60) as connection:
            completed = connection.run(["sh", "-c", _WHOLE], check=False, timeout_s=60)
        if completed.exit_code != 0:
            return (
                f"it answers, but not from a whole generation: {completed.stderr.decode().strip()}"
            )
        return ""
    except InfrastructureError as error:
        return error.message
    except BspError as error:
        return f"{error.message} {error.hint}"
    finally:
        instance.kill()
        inventory.unregister(instance.name)
        instance.forget()
        image.unlink(missing_ok=True)
