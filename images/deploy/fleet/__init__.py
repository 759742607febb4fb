# SPDX-License-Identifier: MIT
"""Deployments to many boards: waves with a canary first, a gate between them."""
