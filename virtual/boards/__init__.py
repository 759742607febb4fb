# SPDX-License-Identifier: MIT
"""Boards that are QEMU machines."""
