# SPDX-License-Identifier: MIT
"""Checks on a board: which one it is, what was changed on it, whether a trial runs as it was sent."""
