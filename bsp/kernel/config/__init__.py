# SPDX-License-Identifier: MIT
"""A kernel's configuration: asked for by fragments, made, compared with what came of it."""
