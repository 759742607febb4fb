# SPDX-License-Identifier: MIT
"""Models that tests make."""
