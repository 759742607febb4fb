# SPDX-License-Identifier: MIT
"""Validation of the NPU: runtime, delegates, preprocessing, proof, report."""
