# SPDX-License-Identifier: MIT
"""Terminals: what is drawn on them, and what is asked there."""
