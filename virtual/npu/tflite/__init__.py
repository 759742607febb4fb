# SPDX-License-Identifier: MIT
"""What TFLite computes: the measure of every engine, whoever made its NPU."""
