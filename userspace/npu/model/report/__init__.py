# SPDX-License-Identifier: MIT
"""What a driver makes of a model: the facts, as a document and as text."""
