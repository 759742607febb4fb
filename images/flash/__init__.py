# SPDX-License-Identifier: MIT
"""Writing disk images onto storage: of a board over SSH, or in a card reader of this machine."""
