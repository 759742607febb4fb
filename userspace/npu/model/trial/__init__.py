# SPDX-License-Identifier: MIT
"""A model of a report, run: what each input is given, and what became of the run."""
