# SPDX-License-Identifier: MIT
"""Packages that a task needs: Debian's, Python's, each of a fixed version."""
