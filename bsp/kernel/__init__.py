# SPDX-License-Identifier: MIT
"""Kernels: the distribution's, or built from source."""
