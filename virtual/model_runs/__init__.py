# SPDX-License-Identifier: MIT
"""Any model, run with any Mesa on virtual NPUs, and looked at operation by operation."""
