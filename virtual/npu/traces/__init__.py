# SPDX-License-Identifier: MIT
"""Traces of what was submitted to an NPU: written, shown in words, computed again."""
