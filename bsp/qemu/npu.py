# SPDX-License-Identifier: MIT
"""The virtual NPU beside a virtual board: QEMU's options for it, and its node.

A board has one if its profile says ``npu = IDENTITY`` under ``[qemu]``. The NPU is a PCI function as far
as QEMU knows. The board's own device tree describes its register window as an NPU of a SoC, switched off,
as on boards that one can buy: switching it on is what build-dts is for.
"""

from __future__ import annotations

import json

from bsp.catalog import npu_of
from bsp.profile import Board

SOCKET = "npu.sock"

# hw/arm/virt.c: interrupt pin A of PCI slot N is SPI 3 + N % 4. Slots 1 and 2 are network and disk, whose
# drivers do not share the interrupts 4 and 5.
_SLOT = 8
_SPI = 3 + _SLOT % 4
# hw/arm/virt.c, VIRT_PCIE_MMIO: the first address of the window for BARs. Our BAR is larger than any other,
# so enumeration puts it there; the driver needs the first 256 KiB of it.
_WINDOW = 0x1000_0000
_REGISTERS_BYTES = 0x4_0000
_CLOCK_HZ = 800_000_000


def machine_option(board: Board) -> str:
    """What ``-machine`` gets in addition: memory that the NPU's process can share."""
    return ",memory-backend=ram" if board.qemu and board.qemu.npu else ""


def device_arguments(board: Board) -> list[str]:
    """Return QEMU's options for the board's virtual NPU; none for a board without one."""
    if board.qemu is None or board.qemu.npu is None:
        return []
    device = {
        "driver": "vfio-user-pci",
        "addr": f"{_SLOT:x}",
        "socket": {"type": "unix", "path": SOCKET},
    }
    memory = f"memory-backend-memfd,id=ram,size={board.qemu.memory_mib}M,share=on"
    return ["-object", memory, "-device", json.dumps(device)]


def node_source(board: Board) -> str | None:
    """Return an overlay for QEMU's own device tree: the NPU's node, and whose board it is.

    None for a board without a virtual NPU. The clocks do not exist; the driver wants to name them.
    """
    npu = npu_of(board)
    if board.qemu is None or board.qemu.npu is None or npu is None:
        return None
    compatible = ", ".join(f'"{each}"' for each in board.compatible)
    return f"""\
/dts-v1/;
/plugin/;

&{{/}} {{
	model = "{board.title}";
	compatible = {compatible};

	npu_clock: npu-clock {{
		compatible = "fixed-clock";
		#clock-cells = <0>;
		clock-frequency = <{_CLOCK_HZ}>;
		clock-output-names = "npu";
	}};

	{npu.node.lstrip("/")} {{
		compatible = "{npu.compatible}";
		reg = <0 {_WINDOW:#x} 0 {_REGISTERS_BYTES:#x}>;
		interrupts = <0 {_SPI} 4>;
		clocks = <&npu_clock>, <&npu_clock>;
		clock-names = "core", "bus";
		dma-coherent;
		status = "disabled";
	}};
}};
"""
