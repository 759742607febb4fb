# SPDX-License-Identifier: MIT
"""The virtual NPU: one engine (front end, NN and TP units, coefficients), used by two doors.

The doors are a device in QEMU and a shim for quick runs on the host; docs/virtual-npu.md explains both.
"""
