# SPDX-License-Identifier: MIT
"""Compares the virtual NPU with the lists of test results from real boards in Mesa's tree."""
