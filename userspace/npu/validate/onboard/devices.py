# SPDX-License-Identifier: MIT
"""The device nodes of NPUs, the cores behind them, and what the kernel says while they are used.

Shipped to boards beside ``runner.py``: the standard library only.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .child import in_child
else:
    from child import in_child

# Opening a device node, and a few ioctls.
PROBE_TIMEOUT_S = 10.0

# What is kept of the kernel's log of one row: of a long one, what may tell of trouble (kernel_log.py, which
# judges it, has no word that has none of these), the first lines first.
KERNEL_LOG_LINES = 200
TELLING = (
    "alloc", "bug", "error", "exception", "fail", "fault", "hang", "hung", "kill", "memory", "panic",
    "recover", "reset", "time", "unable",
)  # fmt: skip
LOST = "(messages were lost)"
"""Stands in the log where the kernel has overwritten messages, or more were told than are kept."""

# Linux include/uapi/drm/etnaviv_drm.h: DRM_IOWR(DRM_COMMAND_BASE + DRM_ETNAVIV_GET_PARAM,
# struct drm_etnaviv_param { __u32 pipe, param; __u64 value; }), and its ETNAVIV_PARAM_GPU_*.
ETNAVIV_GET_PARAM = (3 << 30) | (16 << 16) | (ord("d") << 8) | 0x40
ETNAVIV_PARAM = {"model": 0x01, "revision": 0x02, "product_id": 0x1C, "customer_id": 0x1D}
ETNAVIV_PIPES = 4
# Linux drivers/gpu/drm/etnaviv/etnaviv_hwdb.c: the NPUs are all GC8000.
NPU_MODEL = 0x8000


def npu_devices() -> list[dict[str, Any]]:
    """List device nodes whose kernel driver drives NPUs, and the cores behind them."""
    devices = []
    entries = [*Path("/sys/class/drm").glob("renderD*"), *Path("/sys/class/accel").glob("accel*")]
    for entry in sorted(entries):
        driver = driver_of(entry)
        accel = entry.name.startswith("accel")
        if not accel and driver != "etnaviv":
            continue
        node = f"/dev/{'accel' if accel else 'dri'}/{entry.name}"
        device: dict[str, Any] = {"node": node, "driver": driver, "error": None, "cores": []}
        device["by_path"] = by_path(node)
        # In a process of its own: Linux 6.12's etnaviv_open() dereferences NULL where the driver has
        # found no core, which kills the process that opens the node.
        device |= in_child(lambda node=node, accel=accel: open_node(node, accel), PROBE_TIMEOUT_S)
        del device["log"]
        if isinstance(device["error"], dict):  # it did not come to an answer
            device["error"], device["unsafe"] = None, device["error"]["message"]
        devices.append(device)
    return devices


def driver_of(entry: Path) -> str:
    """Return the driver of a device node. Rocket's cores share a device that no driver is bound to.

    Source: Linux drivers/accel/rocket/rocket_drv.c, ``drm_dev``.
    """
    if (entry / "device" / "driver").exists():
        return (entry / "device" / "driver").resolve().name
    name = (entry / "device").resolve().name
    return "rocket" if name == "rknn" else name


def by_path(node: str) -> str | None:
    """Return the name of a device node that is the same whichever driver comes first; None without udev."""
    links = sorted((Path(node).parent / "by-path").glob("*"))
    return next((str(link) for link in links if link.resolve() == Path(node)), None)


def open_node(node: str, accel: bool) -> dict[str, Any]:
    """Open a device node, and list the cores behind it."""
    try:
        handle = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return {"error": error.strerror}
    return {"cores": [{"pipe": 0, "npu": True}] if accel else etnaviv_cores(handle)}


def etnaviv_cores(handle: int) -> list[dict[str, Any]]:
    """Ask the kernel's driver which cores it has found behind an open render node."""
    cores = []
    for pipe in range(ETNAVIV_PIPES):
        core: dict[str, Any] = {"pipe": pipe}
        for name, number in ETNAVIV_PARAM.items():
            request = bytearray(struct.pack("<IIQ", pipe, number, 0))
            try:
                fcntl.ioctl(handle, ETNAVIV_GET_PARAM, request)
            except OSError:
                continue
            core[name] = struct.unpack("<IIQ", request)[2]
        if "model" in core:
            cores.append(core | {"npu": core["model"] == NPU_MODEL})
    return cores


def kept(lines: list[str]) -> list[str]:
    """Return what is kept of a log: all, or the lines that may tell of trouble."""
    if len(lines) <= KERNEL_LOG_LINES:
        return lines
    telling = [
        line for line in lines if line == LOST or any(word in line.lower() for word in TELLING)
    ]
    return telling if len(telling) <= KERNEL_LOG_LINES else [*telling[: KERNEL_LOG_LINES - 1], LOST]


class KernelLog:
    """The kernel's messages since this was made; ``read`` returns None where they may not be read."""

    def __init__(self) -> None:
        self._handle = -1
        try:
            self._handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._handle, 0, os.SEEK_END)
        except OSError:
            self.close()

    def read(self) -> list[str] | None:
        """Return the messages so far, oldest first, and close.

        A record is ``priority,number,microseconds,flags;text`` (Linux Documentation/ABI/testing/dev-kmsg).
        """
        if self._handle < 0:
            return None
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._handle, 8192).decode(errors="replace")
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten before it was read
                lines.append(LOST)
                continue
            except OSError:
                break
            lines.append(record.partition(";")[2].partition("\n")[0])
        self.close()
        return kept(lines)

    def close(self) -> None:
        """Close the log, if it is open."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
