# SPDX-License-Identifier: MIT
"""Proof of delegation: what Mesa's Teflon delegate says that it took, from its own log.

An exit code of 0 proves nothing: with a delegate that takes no operation, TFLite runs the whole model on
the CPU. Teflon prints what follows when ``TEFLON_DEBUG=verbose`` is set.

Source: Mesa ``src/gallium/frontends/teflon/tfl_device.c``. 24.1-25.x print the graphs that they compile;
later ones (rocket came with 25.3) also a table of all operations, ``supported`` or ``unsupported``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..delegates import CPU, REFERENCE, TEFLON
from ..records import RunnerRow

NO_DEVICE = "Couldn't open kernel device"
CPU_ROWS = (CPU, REFERENCE)

_DRIVER = re.compile(r"^Teflon delegate: loaded (\S+) driver$", re.MULTILINE)
_COMPILING = re.compile(r"^teflon: compiling graph: (\d+) tensors (\d+) operations$", re.MULTILINE)
_COMPILED = re.compile(r"^teflon: compiled graph, took (\d+) ms$", re.MULTILINE)
_INVOKED = re.compile(r"^teflon: invoked graph, took (\d+) ms$", re.MULTILINE)
# userspace/npu/opencl/adapter.cc, and what TFLite's delegates/gpu/delegate.cc says when it starts.
_OPENCL_DEVICE = re.compile(r"^npu-bsp opencl: device (.*?) \| (.*?) \| (.*)$", re.MULTILINE)
_OPENCL_COUNT = re.compile(r"^npu-bsp opencl: (\d+) platforms, (\d+) devices$", re.MULTILINE)
_OPENCL_MISSING = re.compile(r"^npu-bsp opencl: (libOpenCL\.so cannot be loaded)$", re.MULTILINE)
# src/util/log.c: mesa_loge; seen when the kernel refuses a job.
_ERROR = re.compile(r"^MESA: error: (.*)$", re.MULTILINE)
# " 12  DWCONV v3  supported   in: 5(u8) 7(u8) 8(i32) out: 9(u8)"
_OPERATION = re.compile(r"^ *(\d+) +(\S+) +v(\d+) +(supported|unsupported) +in:(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Delegation:
    """What the delegate did, as far as its log says.

    Attributes:
        driver: Mesa driver that it loaded; None where none did.
        no_device: whether it said that it found no device.
        graphs: operations in each graph that it began to compile.
        compiled_ms: time to compile each graph.
        invocations: how often a graph ran on the device.
        unsupported: names of the operations that it refused, with their count, where the log says.
        errors: what Mesa complained about, each once.
    """

    driver: str | None
    no_device: bool
    graphs: tuple[int, ...]
    compiled_ms: tuple[int, ...]
    invocations: int
    unsupported: tuple[tuple[str, int], ...]
    errors: tuple[str, ...]

    @property
    def operations(self) -> int:
        """Operations in graphs that were compiled to the end."""
        return sum(self.graphs[: len(self.compiled_ms)])


@dataclass(frozen=True)
class OpenCl:
    """What the adapter of the OpenCL delegate found.

    Attributes:
        problem: why there is no device; empty where there is one.
        devices: (platform, device, driver's version) of each GPU.
    """

    problem: str
    devices: tuple[tuple[str, str, str], ...]


def parse_opencl(log: str) -> OpenCl | None:
    """Return what the OpenCL delegate found; None where the log is another delegate's."""
    log = log.replace("\r\n", "\n")
    missing, count = _OPENCL_MISSING.search(log), _OPENCL_COUNT.search(log)
    if missing:
        return OpenCl(missing.group(1), ())
    if count is None:
        return None
    devices = tuple(_OPENCL_DEVICE.findall(log))
    problem = "" if devices else f"{count.group(1)} OpenCL platforms, none with a GPU"
    return OpenCl(problem, devices)


def kind_of(row: RunnerRow) -> str:
    """Return the delegate of a row without its options."""
    return str(row["delegate"]).partition(":")[0]


def is_npus(row: RunnerRow) -> bool:
    """Whether a row of the runner is Teflon's, by its name or by what its log says."""
    return kind_of(row) == TEFLON or parse_log(row.get("log", "")).driver is not None


def parse_log(log: str) -> Delegation:
    """Return what a log of ``TEFLON_DEBUG=verbose`` says; other lines in it do not matter."""
    log = log.replace("\r\n", "\n")
    driver = _DRIVER.search(log)
    refused: dict[str, int] = {}
    for _, name, _, support, _ in _OPERATION.findall(log):
        if support == "unsupported":
            refused[name] = refused.get(name, 0) + 1
    return Delegation(
        driver=driver.group(1) if driver else None,
        no_device=NO_DEVICE in log,
        graphs=tuple(int(count) for _, count in _COMPILING.findall(log)),
        compiled_ms=tuple(int(took) for took in _COMPILED.findall(log)),
        invocations=len(_INVOKED.findall(log)),
        unsupported=tuple(sorted(refused.items())),
        errors=tuple(dict.fromkeys(_ERROR.findall(log))),
    )
