# SPDX-License-Identifier: MIT
"""Kernel modules of the tests (``onboard/*.c``), compiled for the distribution's kernel that boards run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.packages.apt import Archive
from bsp.base.process import run
from bsp.kernel.distribution import packaged

ONBOARD = Path(__file__).parent / "onboard"
# Programs of this machine that a kernel's make calls. Those of an older release run here, too.
_TOOLS_SUITE = "bookworm-backports"


def compiled(names: list[str], release: str, folder: Path) -> dict[str, Path]:
    """Return the modules of these names, compiled in ``folder`` for a kernel (``uname -r``)."""
    series = ".".join(release.split(".")[:2])
    headers = [f"linux-headers-{release}", f"linux-headers-{release.removesuffix('arm64')}common"]
    suite, _, _ = packaged(series, image=True)
    packages = Archive(suite, "arm64").download(headers)
    host = Archive(_TOOLS_SUITE, run(["dpkg", "--print-architecture"]).text.strip())
    try:
        packages += host.download([host.newest(rf"linux-kbuild-{series}\..*")])
    except UserError as error:
        pytest.skip(f"no programs for the make of Linux {series}: {error}")
    for package in packages:
        run(["dpkg-deb", "--extract", package, folder])
    sources = folder / "usr/src"
    tools = next((folder / "usr/lib").glob("linux-kbuild-*"))
    for place in sources.glob("linux-headers-*"):
        for name in ("scripts", "tools"):
            (place / name).unlink()
            (place / name).symlink_to(tools / name)
    # The Debian makefile includes the other one by the path that it has when it is installed.
    own = sources / headers[0]
    (own / "Makefile").write_text(f"include {sources / headers[1]}/Makefile\n")
    modules = folder / "modules"
    modules.mkdir()
    for name in names:
        (modules / f"{name}.c").write_text((ONBOARD / f"{name}.c").read_text())
    objects = " ".join(f"{name}.o" for name in names)
    # The compiler is another one than the kernel's: no functions that the kernel would patch.
    (modules / "Makefile").write_text(
        f"obj-m := {objects}\nccflags-remove-y := $(CC_FLAGS_FTRACE)\n"
    )
    run(
        ["make", "-C", own, f"M={modules}", "CC=aarch64-linux-gnu-gcc",
         "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"],
        timeout_s=300,
    )  # fmt: skip
    return {name: modules / f"{name}.ko" for name in names}
