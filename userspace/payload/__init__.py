# SPDX-License-Identifier: MIT
"""The offline userspace of a board: wheels and Debian packages as one folder."""
