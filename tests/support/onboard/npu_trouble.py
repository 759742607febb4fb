# SPDX-License-Identifier: MIT
"""Runs on a board: hands the NPU's driver a command stream that goes wrong. Standard library only.

    npu_trouble.py fault    a job whose descriptor is at an address that is not mapped
    npu_trouble.py hang     a state that no NPU knows
    npu_trouble.py nothing  a stream without effect

Prints one JSON document: whether the fence was signalled, and what the kernel said meanwhile.
Interfaces: Linux include/uapi/drm/etnaviv_drm.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

STREAMS = {
    "fault": [0x08010428, 0x7F000000],  # PS_NN_INST_ADDR
    "hang": [0x08011111, 0],
    "nothing": [0x08010E4C, 0],  # GL_NN_CONFIG
}
PIPE_3D = 0
WAIT_S = 20


def command(number: int, size: int, *, read: bool) -> int:
    return ((3 if read else 1) << 30) | (size << 16) | (ord("d") << 8) | (0x40 + number)


def submit(device: int, words: list[int]) -> int:
    stream = struct.pack(f"<{len(words)}I", *words)
    holder = ctypes.create_string_buffer(stream, len(stream))
    request = bytearray(
        struct.pack(
            "<IIIIIIQQQIiQII",
            0, 0, PIPE_3D, 0, 0, len(stream), 0, 0, ctypes.addressof(holder), 0x8, -1, 0, 0, 0,
        )
    )  # fmt: skip
    fcntl.ioctl(device, command(0x06, len(request), read=True), request)
    return int.from_bytes(request[:4], "little")


def wait_fence(device: int, fence: int) -> bool:
    deadline = time.clock_gettime(time.CLOCK_MONOTONIC) + WAIT_S
    request = struct.pack("<IIIIqq", 0, fence, 0, 0, int(deadline), 0)
    try:
        fcntl.ioctl(device, command(0x07, len(request), read=False), request)
    except OSError as error:
        if error.errno in (errno.ETIMEDOUT, errno.EBUSY):
            return False
        raise
    return True


def kernel_log() -> list[str]:
    return subprocess.run(["dmesg"], capture_output=True, text=True).stdout.splitlines()


def main() -> None:
    before = len(kernel_log())
    device = os.open(next(Path("/dev/dri").glob("renderD*")), os.O_RDWR)
    signalled = wait_fence(device, submit(device, STREAMS[sys.argv[1]]))
    time.sleep(0.5)
    sizes = []
    for path in Path("/sys/class/devcoredump").glob("devcd*/data"):
        sizes.append(len(path.read_bytes()))
        path.write_bytes(b"0")  # removes it
    print(
        json.dumps(
            {
                "signalled": signalled,
                "log": kernel_log()[before:],
                "dump_bytes": sizes,
            }
        )
    )


main()
