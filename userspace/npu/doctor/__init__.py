# SPDX-License-Identifier: MIT
"""Why does the NPU not work? Facts in one round trip, ordered checks, the first broken link."""
