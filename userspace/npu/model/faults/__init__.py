# SPDX-License-Identifier: MIT
"""What comes out wrong on an NPU: by rules, and by what was run."""
