# SPDX-License-Identifier: MIT
"""Boards, and what is built for them. The lowest floor: imports nothing of ours above it."""
