# SPDX-License-Identifier: MIT
"""VeriSilicon's NPU, generations 7 and 8: command stream, descriptors, coefficients, arithmetic, audit."""
