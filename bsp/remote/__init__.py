# SPDX-License-Identifier: MIT
"""A board that runs: how to reach it, what it says about itself, which one it is."""
