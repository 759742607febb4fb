# SPDX-License-Identifier: MIT
"""How Mesa is configured for the delegate alone: sysroot, cross compiler, meson's options.

Everything that a display or a shader needs is left out; there remain the NPU's drivers and the delegate.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.errors import UserError, nearest
from bsp.base.packages.apt import Archive
from bsp.base.packages.optional_env import extra_python
from bsp.base.process import ToolFailedError, require_tool, run
from bsp.base.progress import step

DRIVERS = ("etnaviv", "rocket", "ethosu")
TRIPLET = "aarch64-linux-gnu"
_TOOLS = ("ninja", "pkg-config", "bison", "flex")
PACKAGES = ("libdrm-dev", "zlib1g-dev", "libc6-dev", "linux-libc-dev")
_EXTRA = "mesa"
SOURCE = "@SOURCE@"  # in meson's files: the source's folder, as compilers see it

# What is set where this Mesa has such an option; the first two it must have.
_OPTIONS = {
    "teflon": "true",
    "gallium-drivers": "",
    "vulkan-drivers": "",
    "platforms": "",
    "tools": "",
    "opengl": "false",
    "glx": "disabled",
    "egl": "disabled",
    "gbm": "disabled",
    "gles1": "disabled",
    "gles2": "disabled",
    "glvnd": "disabled",
    "llvm": "disabled",
    "xmlconfig": "disabled",
    "valgrind": "disabled",
    "libunwind": "disabled",
    "lmsensors": "disabled",
    "shader-cache": "disabled",
    "zstd": "disabled",
    "spirv-tools": "disabled",
    "build-tests": "false",
    "video-codecs": "",
}


@dataclass(frozen=True)
class Setup:
    """Everything that a build depends on but the source.

    Attributes:
        suite: whose packages it is built against.
        options: what meson is told, as words.
        cross: text of the cross file.
        compiler: first line of what the compiler says of itself.
        python: interpreter that has meson, and what Mesa's scripts need.
        files: more files that meson reads: the option that names it, and its text.
    """

    suite: str
    drivers: tuple[str, ...]
    options: tuple[str, ...]
    cross: str
    compiler: str
    python: Path
    files: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Changes when another build folder has to be made."""
        described = "\n".join((*self.options, self.cross, self.compiler, str(self.python)))
        described += "".join(text for _, text in self.files)
        return hashlib.sha256(described.encode()).hexdigest()[:16]


def drivers_named(text: str) -> tuple[str, ...]:
    """Return the drivers in ``etnaviv,rocket``.

    Raises:
        UserError: one of them is none of an NPU.
    """
    names = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for name in names:
        if name not in DRIVERS:
            raise UserError(
                f"{name!r} is not an NPU driver of Mesa{nearest(name, list(DRIVERS))}",
                hint=f"--drivers takes {', '.join(DRIVERS)}; several with commas",
            )
    if not names:
        raise UserError("no driver is named", hint="for instance --drivers etnaviv")
    return names


def require_tools() -> None:
    """See to the programs that a build starts.

    Raises:
        UserError: one is not installed; which package has it.
    """
    for tool in (*_TOOLS, f"{prefix()}gcc", f"{prefix()}g++"):
        require_tool(tool)


def prefix() -> str:
    """Return what the compiler's name begins with: nothing on an arm64 machine without a cross compiler."""
    native = platform.machine() == "aarch64" and not shutil.which(f"{TRIPLET}-gcc")
    return "" if native else f"{TRIPLET}-"


def setup_for(tree: Path, version: str, drivers: Sequence[str], suite: str) -> Setup:
    """Return how a source is configured; fetches the sysroot and meson where they lack.

    Raises:
        UserError: this Mesa has no such driver or option; a tool is missing.
        InfrastructureError: packages cannot be had.
    """
    require_tools()
    options = options_for(tree, version, drivers)
    sysroot = sysroot_of(suite)
    python = extra_python(_EXTRA, module="mesonbuild")
    banner = run([f"{prefix()}gcc", "--version"]).text.splitlines()[0]
    return Setup(suite, tuple(drivers), options, cross_file(sysroot), banner, python)


def options_for(
    tree: Path, version: str, drivers: Sequence[str], more: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Return meson's words for a source, from what its own list of options has.

    Args:
        more: options beside the usual ones, or in their place.

    Raises:
        UserError: it has no Teflon to switch on, or no such driver.
    """
    available = options_of(tree)
    if "teflon" not in available or "gallium-drivers" not in available:
        raise UserError(
            f"Mesa {version} has no meson option 'teflon'",
            hint="Teflon came with Mesa 24.1; a version that is newer than all that is known here may "
            "call it otherwise",
        )
    there = re.findall(r"'([\w-]+)'", available["gallium-drivers"])
    for driver in drivers:
        if driver not in there:
            has = ", ".join(name for name in DRIVERS if name in there) or "none"
            raise UserError(
                f"Mesa {version} has no driver {driver!r}; of the NPUs' it has: {has}",
                hint="take a newer Mesa (Rocket and Ethos-U came with 25.3), or leave it out of --drivers",
            )
    chosen = {**_OPTIONS, "gallium-drivers": ",".join(drivers), **(more or {})}
    return tuple(f"-D{name}={value}" for name, value in chosen.items() if name in available)


def options_of(tree: Path) -> dict[str, str]:
    """Return each option's definition from ``meson_options.txt``, or what newer meson calls it."""
    for name in ("meson.options", "meson_options.txt"):
        if (tree / name).is_file():
            text = (tree / name).read_text(encoding="utf-8", errors="replace")
            parts = re.split(r"^option\(\s*", text, flags=re.MULTILINE)[1:]
            return {part.split("'")[1]: part.split("'", 2)[2] for part in parts if "'" in part}
    return {}


def sysroot_of(suite: str) -> Path:
    """Return headers and libraries of a Debian suite's arm64, as the cross compiler wants them.

    Raises:
        UserError: the suite has no such packages.
        InfrastructureError: they cannot be had.
    """
    unpacked = Archive(suite, "arm64").unpacked(PACKAGES, with_dependencies=True)

    def make(target: Path) -> None:
        target.mkdir()
        (target / "usr").symlink_to(unpacked / "usr")
        (target / "lib").symlink_to("usr/lib")

    folder = cache_dir() / "mesa" / "sysroots"
    folder.mkdir(parents=True, exist_ok=True)
    return make_once(folder / f"{suite}-{unpacked.name}", make)


def cross_file(sysroot: Path) -> str:
    """Return what meson is told of the cross compiler; ``SOURCE`` in it is still to be replaced."""
    ccache = f"'{shutil.which('ccache')}', " if shutil.which("ccache") else ""
    libraries = f"{sysroot}/usr/lib/{TRIPLET}/pkgconfig:{sysroot}/usr/share/pkgconfig"
    return f"""\
[binaries]
c = [{ccache}'{prefix()}gcc']
cpp = [{ccache}'{prefix()}g++']
ar = '{prefix()}ar'
strip = '{prefix()}strip'
pkg-config = 'pkg-config'

[properties]
sys_root = '{sysroot}'
pkg_config_libdir = '{libraries}'
needs_exe_wrapper = true

[built-in options]
c_args = ['--sysroot={sysroot}', '-ffile-prefix-map={SOURCE}/=']
cpp_args = ['--sysroot={sysroot}', '-ffile-prefix-map={SOURCE}/=']
c_link_args = ['--sysroot={sysroot}']
cpp_link_args = ['--sysroot={sysroot}']

[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'
"""


def configure(setup: Setup, tree: Path, folder: Path) -> None:
    """Have meson make a build folder, unless it has made it for the same set-up already.

    Raises:
        UserError: meson refuses; its last words say why.
    """
    marker = folder / "npu-bsp.configured"
    if marker.exists() and marker.read_text() == setup.key and (folder / "build.ninja").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # half made, or for something else
    folder.mkdir(parents=True)
    # The path of the source, as compilers see it, is in no message of the library.
    relative = os.path.relpath(tree, folder)
    (folder / "npu-bsp.cross").write_text(setup.cross.replace(SOURCE, relative))
    files = [f"--cross-file={folder / 'npu-bsp.cross'}"]
    for number, (option, content) in enumerate(setup.files):
        (folder / f"npu-bsp.{number}").write_text(content.replace(SOURCE, relative))
        files.append(f"{option}={folder / f'npu-bsp.{number}'}")
    words: list[str | Path] = [setup.python, "-m", "mesonbuild.mesonmain", "setup", folder, tree,
             *files, "--auto-features=disabled",
             "--wrap-mode=nodownload", "--buildtype=release", "-Db_ndebug=true", "--prefix=/usr",
             *setup.options]  # fmt: skip
    with step("Configuring Mesa"):
        try:
            run(words, env=environment(setup))
        except ToolFailedError as error:
            lines = error.completed.text.splitlines()
            wrong = [line for line in lines if "ERROR:" in line] or lines[-6:]
            raise UserError(
                "meson cannot configure this Mesa:\n" + "\n".join(wrong[:6]),
                hint=f"all that was said: {folder}/meson-logs/meson-log.txt; a Mesa that is much older or "
                "newer than 25.0 may want other options or tools",
            ) from error
    marker.write_text(setup.key)


def environment(setup: Setup) -> dict[str, str]:
    """What meson and ninja are started with."""
    path = f"{setup.python.parent}:{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "LC_ALL": "C.UTF-8", "SOURCE_DATE_EPOCH": "1", "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1", "CFLAGS": "", "CXXFLAGS": "", "LDFLAGS": "",
            # A path that a package names is one of the board: the sysroot is not put before it.
            "PKG_CONFIG_FDO_SYSROOT_RULES": "1"}  # fmt: skip
