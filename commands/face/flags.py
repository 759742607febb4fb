# SPDX-License-Identifier: MIT
"""Help texts of flags that several commands have."""

JSON = "print one JSON document on stdout"
BOARD = "board profile (./inv boards lists them)"
KERNEL = "kernel source: 6.12, tarball:URL#sha256=..., git:URL@ref or path:DIR"
HOST = "inventory name, name from ~/.ssh/config, user@address[:port], or lab:TAG=VALUE"
HOSTS = f"{HOST}; several: separated by commas, tag:T, group:G"
ACCEPT_NEW_KEY = "on first contact, trust the host's key without asking"
MESA = "folder that ./inv build-mesa made: its delegate in place of the package's"
ANY_MESA = (
    "Mesa's delegate: Debian suite, version, .deb file, libteflon.so, or folder of ./inv build-mesa"
)
FORCE_ENABLE = (
    "switch the NPU on, and what it needs, also where somebody switched it off on purpose"
)
