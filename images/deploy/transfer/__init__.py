# SPDX-License-Identifier: MIT
"""What a board lacks is sent: one channel, patches where they are smaller, content shared by a fleet."""
