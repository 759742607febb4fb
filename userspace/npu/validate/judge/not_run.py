# SPDX-License-Identifier: MIT
"""Why a row did not run to its end, and whether that is ``skip`` or ``fail``."""

from __future__ import annotations

from collections.abc import Sequence

from ..delegates import OPENCL, TEFLON, TIM_VX
from ..records import DeviceRecord, RunnerDocument, RunnerRow
from .delegation import CPU_ROWS, kind_of, parse_log, parse_opencl
from .kernel_log import out_of_memory

NO_DEVICE = "no NPU device"
NO_OPENCL = "no OpenCL device"
_OPENCL_BROKEN = "libOpenCL.so does not load: "  # the runner's words: it is there
# Delegates that a board need not have, and how to come by them.
_OTHERS = {
    OPENCL: " (./inv build-delegate opencl makes it)",
    TIM_VX: " (the vendor's library, which npu-bsp may not distribute)",
}


def why_not(row: RunnerRow, facts: RunnerDocument) -> tuple[str, str]:
    """Status and reason of a row that did not run to its end.

    It is ``skip`` only where what it needs is absent and nothing of the model ran: the library or the
    vendor's device node is not there, or the delegate was loaded and found no device. All else is
    ``fail``.
    """
    stage, message = row["error"]["stage"], row["error"]["message"]
    name = kind_of(row)
    if name in CPU_ROWS:
        return "fail", message
    log = parse_log(row.get("log", ""))
    devices = facts["npu_devices"]
    usable = [device for device in devices if any(core["npu"] for core in device["cores"])]
    if stage == "library":
        if name == TEFLON:
            return ("skip", message) if usable else _without_npu(devices)
        return ("skip", f"{message}{_OTHERS[name]}") if name in _OTHERS else ("fail", message)
    if stage == "device":  # the runner did not dare to open it
        return _without_npu(devices)
    if stage == "delegate":
        return _not_loaded(row, usable, devices)
    if stage == "prepare":
        return "fail", f"the delegate could not prepare this model: {_last_words(row, message)}"
    killed = out_of_memory(row.get("kernel_log") or [])
    if stage == "crash" and killed:
        return "fail", f"{message}, out of memory; the kernel says: {killed}"
    if log.driver:
        done = f"after it compiled {len(log.compiled_ms)} of {len(log.graphs)} graphs"
        return "fail", f"{message} (driver {log.driver}, {done})"
    return "fail", message


def _not_loaded(
    row: RunnerRow, usable: Sequence[DeviceRecord], devices: Sequence[DeviceRecord]
) -> tuple[str, str]:
    """Status and reason of a row whose library is there and gave no delegate."""
    opencl = parse_opencl(row.get("log", ""))
    if opencl and opencl.problem:
        message = str(row["error"]["message"])
        if message.startswith(_OPENCL_BROKEN):
            return "fail", message
        return "skip", f"{NO_OPENCL}: {opencl.problem}"
    if parse_log(row.get("log", "")).no_device:
        if not usable:
            return _without_npu(devices)
        nodes = ", ".join(device.get("by_path") or device["node"] for device in usable)
        return "fail", f"the delegate finds no device, although {nodes} is there"
    message = why_it_did_not(row["error"]["message"], row.get("log", ""))
    return "fail", f"the delegate does not load: {message}"


def _without_npu(devices: Sequence[DeviceRecord]) -> tuple[str, str]:
    """Status and reason where the kernel shows no NPU; ``devices`` are nodes without one."""
    for device in devices:
        if device["error"]:
            return "fail", (
                f"{device['node']} ({device['driver']}) cannot be opened: {device['error']}; "
                "the user must be in the group render"
            )
    if not devices:
        return "skip", NO_DEVICE
    nodes = ", ".join(f"{device['node']} ({device['driver']})" for device in devices)
    unsafe = [device for device in devices if "unsafe" in device]
    if unsafe:
        return "fail", (
            f"opening {unsafe[0]['node']} ({unsafe[0]['driver']}) {unsafe[0]['unsafe']}, as happens "
            "where the kernel's driver found no core; see dmesg"
        )
    models = sorted({f"GC{core['model']:x}" for device in devices for core in device["cores"]})
    # Linux drivers/gpu/drm/etnaviv/etnaviv_gpu.c gives up a core that reads model 0.
    cores = "no core that is an NPU, only " + ", ".join(models) if models else "no core"
    return "skip", f"{NO_DEVICE}: the kernel's driver found {cores} behind {nodes}"


def _last_words(row: RunnerRow, message: str) -> str:
    """What a delegate printed last, and the runtime's message; Mesa's own log has no reasons in it."""
    log = row.get("log", "").partition("Exception ignored in")[0]
    printed = [line.strip() for line in log.splitlines() if line.strip()]
    words = " ".join(message.split())
    if not printed or parse_log(log).driver:
        return f"TFLite says: {words}"
    return f"{printed[-1]} (TFLite says: {words})"


def why_it_did_not(message: str, log: str) -> str:
    """Return why a delegate did not load: in the words of its library, or of the dynamic linker.

    The runtime's own first line says only which library it was. Where the delegate reported nothing, what
    it printed counts; Python's complaints about the half-made delegate come behind that.
    """
    first, _, rest = message.partition("\n")
    words = rest if first.startswith("Failed to load delegate from") else message
    printed = log.partition("Exception ignored in")[0].splitlines()
    lines = [line.strip() for line in words.splitlines() or printed[-1:]]
    return " ".join(filter(None, lines)) or "it refused, and did not say why"
