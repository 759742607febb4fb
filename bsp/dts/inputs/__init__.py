# SPDX-License-Identifier: MIT
"""The trees and overlays that a build starts from: read, recognised, or refused."""
