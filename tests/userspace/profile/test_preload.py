# SPDX-License-Identifier: MIT
"""The library that stamps jobs, in a process of its own, before a driver whose times are known."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bsp.base.compile.shared_library import SharedLibrary
from bsp.base.project import PROJECT
from userspace.npu.profile import library
from userspace.npu.validate.onboard import profiling

JOB_MS = 30
FAKE = SharedLibrary(
    "fake-drm", "a driver of the tests", (PROJECT / "tests/support/npu/fake_drm.c",)
)
LOAD_NN, LOAD_TP = 0x0801_0428, 0x0801_042E
"""LOAD_STATE of one value: PS_NN_INST_ADDR, PS_TP_INST_ADDR."""


def submit_etnaviv(ioctl: Any, jobs: list[int]) -> None:
    """One submit; its stream writes a state for each job."""
    words = (ctypes.c_uint32 * (2 * len(jobs)))(*[word for job in jobs for word in (job, 0)])
    args = bytearray(72)
    struct.pack_into(
        "<6I3Q", args, 0, 0, 0, 0, 0, 0, len(bytes(words)), 0, 0, ctypes.addressof(words)
    )
    ioctl(0xC0486446, args)


def submit_rocket(ioctl: Any, outs: list[int]) -> None:
    """One submit of a job for each buffer that is written."""
    handles = [(ctypes.c_uint32 * 1)(out) for out in outs]
    jobs = b"".join(
        struct.pack("<3Q4I", 0, 0, ctypes.addressof(each), 2, 8, 0, 1) for each in handles
    )
    place = ctypes.create_string_buffer(jobs)
    ioctl(0x40186441, bytearray(struct.pack("<QIIQ", ctypes.addressof(place), len(outs), 40, 0)))


def submit_ethosu(ioctl: Any) -> None:
    place = ctypes.create_string_buffer(struct.pack("<10I", 1, 0, 5, 6, *[0] * 6))
    ioctl(0xC0106445, bytearray(struct.pack("<QII", ctypes.addressof(place), 1, 0)))


def client(driver: str) -> None:
    """What the process does that has the library: an inference of 3 submits, thrice; prints the record."""
    plain = ctypes.CDLL(None, use_errno=True).ioctl

    def ioctl(request: int, args: bytearray) -> None:
        buffer = (ctypes.c_char * len(args)).from_buffer(args)
        if plain(0, ctypes.c_ulong(request), buffer):
            raise OSError(ctypes.get_errno(), driver)

    def invoke() -> None:
        if driver == "etnaviv":
            for jobs in ([LOAD_TP, LOAD_TP], [LOAD_NN], [LOAD_NN]):
                submit_etnaviv(ioctl, jobs)
            fence = profiling.preloaded()
            assert (
                fence
            )  # the inference ends with its last job, as reading its outputs waits for that
            while not fence.npu_profile_events()[counts[0] + 2].end_ns:
                pass
            counts[0] += 3
        elif driver == "rocket":
            submit_rocket(ioctl, [5, 5, 9])
        else:
            for _ in range(3):
                submit_ethosu(ioctl)

    counts = [0]
    found = profiling.record(invoke, 3, 60)
    fake = ctypes.CDLL(None)
    fake.fake_end_ns.restype = ctypes.c_uint64
    stamped = profiling.preloaded()
    assert stamped
    # The record's times are from its own start on, the library's are not.
    start_ns = stamped.npu_profile_events()[0].begin_ns - found["events"][0][0]
    found["true_ends"] = [fake.fake_end_ns(place) - start_ns for place in range(9)]
    sys.stdout.write(json.dumps(found))


@pytest.mark.parametrize("driver", ["etnaviv", "rocket", "ethosu"])
def test_each_job_lasts_as_long_as_it_does(driver: str) -> None:
    ours = library.compiled(platform.machine())
    assert ours
    environment = os.environ | {
        "LD_PRELOAD": f"{ours}:{FAKE.build(platform.machine())}",
        "FAKE_DRIVER": driver,
        "FAKE_JOB_MS": str(JOB_MS),
    }
    command = [sys.executable, "-c", f"from {__name__} import client; client({driver!r})"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert len(found["events"]) == 9
    last, times = 0, []
    for place, (begin, end, *_) in enumerate(found["events"]):
        assert begin <= found["true_ends"][place] <= end
        times.append((end - max(begin, last)) / 1e6)
        last = end
    # Of the most: on a busy machine some are seen late, and the next one seems short.
    assert JOB_MS / 2 <= statistics.median(times) <= JOB_MS * 3
    first = found["events"][:3]
    if driver == "etnaviv":
        assert [event[2:4] for event in first] == [[0, 2], [1, 0], [1, 0]]
        assert first[1][0] < first[0][1]  # submitted while the one before it ran
    if driver == "rocket":
        assert [event[2:] for event in first] == [[2, 0, 5], [2, 0, 5], [2, 0, 9]]


def test_without_the_stampedit_says_so() -> None:
    with pytest.raises(profiling.ProfileError, match="is not loaded: it is in"):
        profiling.record(lambda: None, 1, 1)


def test_only_a_mesa_that_can_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETNA_MESA_DEBUG", "ml_msgs")
    old, new = tmp_path / "old.so", tmp_path / "new.so"
    old.write_bytes(b"\0npu_parallel\0")
    new.write_bytes(b"\0npu_parallel\0npu_no_batching\0")
    assert not profiling.ask_for_one_job_a_submit(str(old))
    assert os.environ["ETNA_MESA_DEBUG"] == "ml_msgs"
    assert profiling.ask_for_one_job_a_submit(str(new))
    assert os.environ["ETNA_MESA_DEBUG"] == "ml_msgs,npu_no_batching"
