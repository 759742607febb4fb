# SPDX-License-Identifier: MIT
"""Which boards of a kernel tree have an NPU that a free driver knows, found by looking."""
