# SPDX-License-Identifier: MIT
"""One deployable unit: its manifest, and how it is assembled, signed, described, locked and reproduced."""
