# SPDX-License-Identifier: MIT
"""For this machine: what writer.py takes of the deployment's frames.py, which is sent along to boards."""

from images.deploy.onboard.frames import CHUNK_BYTES, RefusedError, codec

__all__ = ["CHUNK_BYTES", "RefusedError", "codec"]
