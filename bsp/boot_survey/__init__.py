# SPDX-License-Identifier: MIT
"""How a board boots today, before anything is written to it; and how a deployment could be tried there."""
