# SPDX-License-Identifier: MIT
"""What runs on a board in user space: runtime, delegates, validation."""
