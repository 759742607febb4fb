# SPDX-License-Identifier: MIT
"""The gates: is this Mesa, or this kernel, still right on the virtual NPU?"""
