# SPDX-License-Identifier: MIT
"""Takes the times of each job of an NPU, with the library that stamps them.

The library (userspace/npu/profile/preload.c) has to be preloaded when the process starts (``LD_PRELOAD``).
Part of the payload: it needs only the standard library.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBRARY_NAME = "npu_profile.so"
# Mesa src/gallium/drivers/etnaviv/etnaviv_screen.c: an option of ETNA_MESA_DEBUG since 24.1.
ONE_JOB = "npu_no_batching"
MOST_EVENTS = 1 << 16


class ProfileError(Exception):
    """No times can be taken; the message says why."""


class Event(ctypes.Structure):
    """``struct event`` of the library."""

    _fields_ = [
        ("begin_ns", ctypes.c_uint64),
        ("end_ns", ctypes.c_uint64),
        ("nn", ctypes.c_uint32),
        ("tp", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("fence", ctypes.c_uint32),
        ("pipe", ctypes.c_uint32),
        ("fd", ctypes.c_int32),
    ]


def preloaded() -> Any | None:
    """Return the library, if this process was started with it."""
    library: Any = ctypes.CDLL(None)
    if not hasattr(library, "npu_profile_start"):
        return None
    library.npu_profile_events.restype = ctypes.POINTER(Event)
    return library


def ask_for_one_job_a_submit(teflon: str) -> bool:
    """Have Mesa submit each job by itself, before its library is loaded; whether this version can.

    Only etnaviv has to be asked: the library itself divides rocket's submits.
    """
    if ONE_JOB.encode() not in Path(teflon).read_bytes():
        return False
    words = [*filter(None, [os.environ.get("ETNA_MESA_DEBUG")]), ONE_JOB]
    os.environ["ETNA_MESA_DEBUG"] = ",".join(words)
    return True


def record(invoke: Callable[[], Any], most: int, budget_s: float) -> dict[str, Any]:
    """Return when each of up to ``most`` calls began and ended, and each submit of them.

    Nanoseconds from the first call on; of each event: the submit, the end (None: it was not seen), NN jobs,
    TP jobs, and what it writes (rocket).

    Raises:
        ProfileError: the library is not there, or it had not enough room.
    """
    library = preloaded()
    if library is None:
        raise ProfileError(f"{LIBRARY_NAME} is not loaded: it is in the lib folder of a payload")
    error = library.npu_profile_start(MOST_EVENTS)
    if error:
        raise ProfileError(f"{LIBRARY_NAME} cannot begin: {os.strerror(error)}")
    runs: list[list[int]] = []
    try:
        start_ns = time.monotonic_ns()  # the library's clock
        while len(runs) < most and (
            not runs or time.monotonic_ns() - start_ns < budget_s * 1_000_000_000
        ):
            begin_ns = time.monotonic_ns()
            invoke()
            runs.append([begin_ns - start_ns, time.monotonic_ns() - start_ns])
    finally:
        count = library.npu_profile_stop()
    if dropped := library.npu_profile_dropped():
        raise ProfileError(f"{dropped} submits more than the {MOST_EVENTS} that there is room for")
    recorded = library.npu_profile_events()
    return {
        "runs": runs,
        "events": [
            [
                each.begin_ns - start_ns,
                each.end_ns - start_ns if each.end_ns else None,
                each.nn,
                each.tp,
                each.group,
            ]
            for each in recorded[:count]
        ],
    }
