# SPDX-License-Identifier: MIT
"""What runs where the storage is. Sent along: needs Python 3 and nothing of ours on the board."""
