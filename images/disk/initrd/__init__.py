# SPDX-License-Identifier: MIT
"""Initial RAM disks: a shell, the modules that a board needs to reach its root, and one script.

The distribution's kernels have storage and ext4 as modules, so that a board cannot boot without a RAM
disk. Ours is built on the host without running the board's programs; the same inputs give the same bytes.
"""

from __future__ import annotations

import lzma
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from bsp.base.errors import UserError, nearest
from bsp.base.packages.apt import Archive
from bsp.base.process import run
from bsp.kernel.module_name import module_name
from bsp.kernel.packaged import PrebuiltKernel

HERE = Path(__file__).parent
ROOT_INIT = HERE / "init"
"""Loads the modules, mounts the root file system and starts its init."""
PROBE_INIT = HERE / "probe"
"""Loads the modules, reports the state of the NPU, and powers the machine off."""

# busybox programs that the scripts use by name.
_PROGRAMS = (
    "cat", "dmesg", "echo", "findfs", "grep", "insmod", "ls", "mkdir", "mount", "poweroff", "readlink",
    "sh", "sleep", "switch_root", "tr", "umount",
)  # fmt: skip


def busybox_version() -> str:
    """Return the version of busybox in initial RAM disks."""
    return Archive("trixie", "arm64").version("busybox-static")


def build_initrd(
    kernel: PrebuiltKernel, modules: Sequence[str], *, init: Path, target: Path
) -> Path:
    """Write an initial RAM disk (cpio, not compressed: U-Boot and QEMU read it as it is).

    Args:
        modules: names of modules; their dependencies are added, built-in ones are left out.
        init: the script that becomes ``/init``.
        target: file to write.

    Raises:
        UserError: the kernel has no such module.
    """
    busybox = Archive("trixie", "arm64").unpacked(["busybox-static"]) / "usr/bin/busybox"
    order = load_order(kernel.modules, modules)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-initrd-") as name:
        tree = Path(name) / "tree"
        for folder in ("bin", "dev", "proc", "sys", "root", "modules"):
            (tree / folder).mkdir(parents=True)
        _place(busybox, tree / "bin/busybox", mode=0o755)
        for program in _PROGRAMS:
            (tree / "bin" / program).symlink_to("busybox")
        _place(init, tree / "init", mode=0o755)
        # The script loads them in the order of their numbers.
        for number, path in enumerate(order):
            module = tree / "modules" / f"{number:03}-{module_name(path)}.ko"
            module.write_bytes(_module_bytes(kernel.modules / path))
            module.chmod(0o644)
        _pack(tree, target)
    return target


def load_order(folder: Path, modules: Iterable[str]) -> list[str]:
    """Return paths of modules below ``folder`` (``lib/modules/RELEASE``), dependencies first, each once.

    Args:
        modules: names of modules; one that ends in ``?`` is left out where a kernel does not have it.

    Raises:
        UserError: a module is neither in the folder nor built in.
    """
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, words = line.partition(":")
        depends[module_name(path)] = (path, words.split())
    builtin = {module_name(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    order: list[str] = []
    for name in modules:
        optional = name.endswith("?")
        key = module_name(name.removesuffix("?"))
        if key in builtin or (optional and key not in depends):
            continue
        if key not in depends:
            names = sorted([*depends, *builtin])
            raise UserError(
                f"the kernel {folder.name} has no module {name!r}{nearest(key, names)}",
                hint="correct initrd_modules in the board's profile",
            )
        path, needed = depends[key]
        # modules.dep lists the nearest dependency first; they are loaded the other way round.
        for dependency in [*reversed(needed), path]:
            if dependency not in order:
                order.append(dependency)
    return order


def _module_bytes(path: Path) -> bytes:
    """Return a module, decompressed: busybox's ``insmod`` reads plain files only."""
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return run(["zstd", "-dc", path]).stdout
    if path.suffix == ".gz":
        import gzip

        return gzip.decompress(content)
    return content


def _place(source: Path, target: Path, *, mode: int) -> None:
    shutil.copyfile(source, target)
    target.chmod(mode)


def _pack(tree: Path, target: Path) -> None:
    names = ["."]
    tree.chmod(0o755)
    for path in sorted(tree.rglob("*")):
        if not path.is_symlink():  # independent of the umask
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        names.append(str(path.relative_to(tree)))
    for name in reversed(names):
        os.utime(tree / name, (0, 0), follow_symlinks=False)
    with target.open("wb") as file:
        run(
            ["cpio", "--quiet", "--null", "--create", "--format=newc", "--reproducible",
             "--owner=0:0"],
            cwd=tree, stdin="\0".join(names).encode() + b"\0", stdout=file,
        )  # fmt: skip
