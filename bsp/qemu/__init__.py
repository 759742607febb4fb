# SPDX-License-Identifier: MIT
"""QEMU as this project has it: which one, how a profile's machine is started, the tree it describes."""
