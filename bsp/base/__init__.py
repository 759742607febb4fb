# SPDX-License-Identifier: MIT
"""What every floor stands on: errors, processes, progress, cache, downloads, packages."""
