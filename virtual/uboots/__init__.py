# SPDX-License-Identifier: MIT
"""U-Boots for virtual boards that can do what a real board's can: ``virtual.up --uboot like:BOARD``."""
