# SPDX-License-Identifier: MIT
"""Programs of C: sources are patched, make or ninja run, libraries made once and kept."""
