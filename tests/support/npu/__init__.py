# SPDX-License-Identifier: MIT
"""What tests of the virtual NPU share."""
