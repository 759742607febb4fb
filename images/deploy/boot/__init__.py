# SPDX-License-Identifier: MIT
"""How a board is made to boot a generation: the boot script, its files on the boot partition, its state."""
