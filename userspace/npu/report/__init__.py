# SPDX-License-Identifier: MIT
"""Reports of measurements: history, regressions, HTML, SVG and JUnit."""
