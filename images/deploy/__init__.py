# SPDX-License-Identifier: MIT
"""Deployment that leaves a board that boots: plan, transfer, trial, confirm, roll back."""
