# SPDX-License-Identifier: MIT
"""What the NPU needs of a device tree, and what of it a tree has. Pure."""
