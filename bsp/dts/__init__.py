# SPDX-License-Identifier: MIT
"""Device trees: what is missing, the overlay that adds it, compiling, verifying."""
