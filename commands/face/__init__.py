# SPDX-License-Identifier: MIT
"""What stands between the command line and the commands: parsing, help, printing, errors, exit codes."""
