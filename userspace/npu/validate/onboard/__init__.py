# SPDX-License-Identifier: MIT
"""The half that runs where the model runs: the runner, and what lies beside it in a payload."""
