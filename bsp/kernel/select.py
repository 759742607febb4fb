# SPDX-License-Identifier: MIT
"""Kernels by name, for those who boot or ship one: the distribution's, or one that was built here."""

from __future__ import annotations

import json
from pathlib import Path

from ..base.cache import cache_dir
from ..base.errors import UserError
from .packaged import PrebuiltKernel, prebuilt_kernel

_PREFIX = "build:"


def is_build(name: str) -> bool:
    """Whether a name stands for a kernel that was built here (``build:FOLDER``, ``build:ID``)."""
    return name.startswith(_PREFIX)


def kernel_named(name: str) -> PrebuiltKernel:
    """Return the kernel that ``6.12`` or ``build:FOLDER`` stands for.

    Raises:
        UserError: there is none.
        InfrastructureError: a package cannot be fetched.
    """
    return built_kernel(name.removeprefix(_PREFIX)) if is_build(name) else prebuilt_kernel(name)


def built_kernel(where: str) -> PrebuiltKernel:
    """Return a kernel that build-kernel made, from its folder or its build id.

    Raises:
        UserError: it is not there, or not whole.
    """
    folder = Path(where).expanduser().absolute()
    if not folder.is_dir():
        every = (cache_dir() / "kernels/built").glob(f"*-{where}*") if where else []
        folders = sorted(path for path in every if path.is_dir())
        if len(folders) != 1 or "/" in where:
            raise UserError(
                f"build:{where} names no kernel that was built here",
                hint="./inv build-kernel --board B prints the folder and the build id",
            )
        folder = folders[0]
    try:
        record = json.loads((folder / "build.json").read_bytes())
        release = str(record["release"])
        kernel = PrebuiltKernel(
            series=".".join(str(record["version"]).split(".")[:2]),
            release=release,
            image=folder / "boot/Image",
            modules=folder / "lib/modules" / release,
            dtbs=folder / "dtbs",
            config=folder / "boot/config",
            package=f"npu-bsp-kernel ({record['origin']})",
            version=str(record["build_id"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} holds no kernel that build-kernel made: {error}",
            hint="./inv build-kernel --board B --output FOLDER",
        ) from error
    if not (kernel.image.is_file() and (kernel.modules / "modules.dep").is_file()):
        raise UserError(
            f"{folder} is not whole: Image or modules are missing", hint="build it again"
        )
    return kernel


def record_file(name: str) -> Path:
    """Return the file that records what ``build:FOLDER`` was made of.

    Raises:
        UserError: the build is not there.
    """
    return kernel_named(name).image.parents[1] / "build.json"
