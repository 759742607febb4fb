# SPDX-License-Identifier: MIT
"""Measurements: each claim of speed in the documentation comes from one of these."""
