# SPDX-License-Identifier: MIT
"""The virtual NPU as a device in an unmodified QEMU: registers, MMU, interrupts, front end."""
