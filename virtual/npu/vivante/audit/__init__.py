# SPDX-License-Identifier: MIT
"""What was submitted, compared with what the model says."""
