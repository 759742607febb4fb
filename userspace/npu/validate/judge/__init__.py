# SPDX-License-Identifier: MIT
"""From what the runner found to a verdict: delegation, outputs, boxes, accuracy. Pure."""
