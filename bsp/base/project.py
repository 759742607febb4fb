# SPDX-License-Identifier: MIT
"""Where this checkout is: for what is read or run by its place in the project, not beside a module."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
