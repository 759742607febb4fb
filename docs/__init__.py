# SPDX-License-Identifier: MIT
"""What of the documentation is made by a program."""
