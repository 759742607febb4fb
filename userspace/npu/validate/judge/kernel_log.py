# SPDX-License-Identifier: MIT
"""What the kernel said while a delegate ran: the lines that mean that an NPU or GPU was in trouble.

After a hang or a fault Mesa returns zeros or garbage and no error to the application: these lines are
then the only witness.

Sources: Linux drivers/gpu/drm/etnaviv/ (etnaviv_gpu.c: "recover hung GPU!", "MMU fault status", "AXI bus
error", "timed out waiting for idle"; etnaviv_sched.c), drivers/accel/rocket/rocket_job.c ("NPU job timed
out"), drivers/gpu/drm/panfrost, drivers/gpu/drm/lima; mm/oom_kill.c; for galcore the vendor's source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# Drivers whose lines count. A device's own name (`ff100000.npu`) comes behind the driver's.
_DRIVER = re.compile(
    r"\b(etnaviv|galcore|rocket|ethosu?|panfrost|panthor|lima|msm|v3d|npu|vivante)\b|\.npu\b", re.I
)
_TROUBLE = re.compile(
    r"recover|hung|hang\b|hangcheck|fault|timed out|timeout|exception|bus error|reset|"
    r"validation failed|out of memory|failed to|error",
    re.IGNORECASE,
)
# Said of the kernel itself, whatever driver it is.
_OOPS = re.compile(
    r"^(Internal error: Oops|BUG: |Unable to handle kernel|Kernel panic|kernel BUG at|watchdog: BUG)"
)
_OUT_OF_MEMORY = re.compile(r"Out of memory: Killed process|oom-kill:|Memory cgroup out of memory")
_CMA = re.compile(r"cma: .*alloc failed", re.IGNORECASE)


def troubles(lines: Sequence[str]) -> list[str]:
    """Return the lines that a row must not have caused, each once, in their order."""
    troubling = [
        line
        for line in lines
        if _OOPS.search(line)
        or _CMA.search(line)
        or (_DRIVER.search(line) and _TROUBLE.search(line))
    ]
    return list(dict.fromkeys(troubling))


def out_of_memory(lines: Sequence[str]) -> str:
    """Return the line that says that the kernel ended a process for its memory; "" if none does."""
    return next((line for line in lines if _OUT_OF_MEMORY.search(line)), "")
