# SPDX-License-Identifier: MIT
"""Virtual boards that boot the way other people's images do: ``virtual.up --layout L``."""
