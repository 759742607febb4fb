# SPDX-License-Identifier: MIT
"""Would a kernel with its RAM disk reach the root file system of a board? Asked before it is sent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bsp.base.errors import UserError
from bsp.kernel.module_name import module_name
from images.bundle.manifest import Bundle

from .plan import Facts

# Linux Documentation/driver-api/early-userspace/buffer-format.rst: magic, then fields of 8 hexadecimal
# digits.
_MAGIC, _HEAD, _SIZE_AT, _NAME_AT = b"070701", 110, 54, 94


def refuse_without_root(bundle: Bundle, facts: Facts, host: str) -> None:
    """Refuse a bundle whose kernel has a driver of the root's disk as a module that its RAM disk lacks.

    A driver that it has not as a module is taken for built in, or called otherwise; a RAM disk that is not
    ours (packed, or elsewhere) is not looked into.

    Raises:
        UserError: names them.
    """
    initrd = bundle.path / "boot/initrd"
    inside = set(_modules_in(initrd)) if initrd.is_file() else set()
    if not inside:
        return
    loadable = {module_name(each.path) for each in bundle.manifest.files if ".ko" in each.path}
    missing = [name for name in facts.root_modules if name in loadable - inside]
    if missing:
        raise UserError(
            f"the RAM disk of {bundle.generation} has no {', '.join(missing)}: the root file system of "
            f"{host} lies behind that, and this kernel has it as a module",
            hint=f"add it to initrd_modules in the profile of {bundle.manifest.board}, and deploy again",
        )


def _modules_in(initrd: Path) -> Iterator[str]:
    """The modules in a cpio archive that is not packed; nothing of any other file."""
    with initrd.open("rb") as file:
        while (head := file.read(_HEAD)).startswith(_MAGIC):
            size, name_size = (int(head[at : at + 8], 16) for at in (_SIZE_AT, _NAME_AT))
            name = file.read(name_size).rstrip(b"\0").decode(errors="replace")
            if ".ko" in name:
                # Ours are numbered in the order that they are loaded in.
                yield re.sub(r"^\d+_", "", module_name(name))
            file.seek(-file.tell() % 4 + size, 1)
            file.seek(-file.tell() % 4, 1)
