# SPDX-License-Identifier: MIT
"""From device tree source to DTB, and why a source does not compile."""
