# SPDX-License-Identifier: MIT
"""Time by operation, taken on a board."""
