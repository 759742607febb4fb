# SPDX-License-Identifier: MIT
"""Running a model with each delegate, and judging the answers."""
