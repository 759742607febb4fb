# SPDX-License-Identifier: MIT
"""What goes onto boards, and how it gets there."""
