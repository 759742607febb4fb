# SPDX-License-Identifier: MIT
"""The layer between the command line and the commands: parsing, help, printing, errors, exit codes."""
