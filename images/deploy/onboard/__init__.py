# SPDX-License-Identifier: MIT
"""The agent that runs on a board: each file can be read, and tested, alone.

The Python modules are the board's half of a deployment (start at ``agent.py``). They run from memory on
the board's own Python, 3.9 or later, need nothing but its standard library, and import it sparingly: a
board's start-up time counts.
"""
