# SPDX-License-Identifier: MIT
"""A kernel module's name, from its file."""

import re


def module_name(path: str) -> str:
    """Return the kernel's name of a module file (``nvmem_imx_ocotp``)."""
    return re.sub(r"\.ko(\.(xz|zst|gz))?$", "", path.rsplit("/", 1)[-1]).replace("-", "_")
