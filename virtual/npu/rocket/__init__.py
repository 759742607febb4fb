# SPDX-License-Identifier: MIT
"""Rockchip's NPU (RK3588) as Mesa's driver rocket drives it: register commands, weights, arithmetic."""
