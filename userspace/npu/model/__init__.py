# SPDX-License-Identifier: MIT
"""Reading a .tflite file: its graph, its operations, which of them a driver takes. Knows no board."""
