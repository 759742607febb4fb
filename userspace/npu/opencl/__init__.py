# SPDX-License-Identifier: MIT
"""TFLite's OpenCL delegate and its C++ ``label_image``, built from the distribution's TensorFlow source."""
