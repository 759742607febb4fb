# SPDX-License-Identifier: MIT
"""What stands in for hardware: an emulated NPU, boards in QEMU, gates, power cuts."""
