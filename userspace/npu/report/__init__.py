# SPDX-License-Identifier: MIT
"""What was measured, told: history, regressions, HTML, SVG and JUnit."""
