# SPDX-License-Identifier: MIT
"""An arm64 Debian in a folder, whose Python runs here under qemu-user: no root, no chroot, no board."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bsp.base.cache import cache_dir
from bsp.base.packages.apt import Archive

EMULATOR = "qemu-aarch64-static"
CPU = "cortex-a53"
"""As in ``_CPUINFO``. QEMU's default signs pointers, as trixie's programs do: three times as slow."""
_FOLDERS = ("usr", "etc", "var", "bin", "lib", "sbin")
# Without this the runtime's cpuinfo reads this machine's, finds no Arm core in it, and crashes.
_CPUINFO = """\
processor\t: {number}
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4

"""


def python_command(folder: Path, suite: str, *, preload: Path | None = None,
                   environment: dict[str, str] | None = None) -> list[str | Path]:  # fmt: skip
    """Return the command that starts an arm64 Python of a Debian suite; ``folder`` is scratch space."""
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"needs {EMULATOR} (qemu-user-static)")
    root = Archive(suite, "arm64").unpacked(["python3", "base-files"], with_dependencies=True)
    view = folder / "root"
    (view / "proc").mkdir(parents=True)
    for name in _FOLDERS:  # bookworm's packages still have /lib beside /usr/lib
        (view / name).symlink_to(root / name if (root / name).exists() else root / "usr" / name)
    (view / "proc" / "cpuinfo").write_text("".join(_CPUINFO.format(number=n) for n in range(2)))
    guest = dict(environment or {})
    if preload:
        guest["LD_PRELOAD"] = str(preload)
    setting = [word for key, value in guest.items() for word in ("-E", f"{key}={value}")]
    # Compiled Python is kept: under emulation that takes longer than what most tests ask for.
    emulated: list[str | Path] = [EMULATOR, "-cpu", CPU, "-L", view, *setting]
    emulated.append(view / "usr/bin/python3")
    compiled = f"pycache_prefix={cache_dir() / 'bytecode'}"
    return ["env", "-u", "PYTHONDONTWRITEBYTECODE", *emulated, "-X", compiled]
