# SPDX-License-Identifier: MIT
"""Device trees checked against the kernel's bindings."""
