# SPDX-License-Identifier: MIT
"""Optional Python packages, each set in an environment of its own, made when it is first needed.

``requirements/NAME.txt`` lists the packages, ``requirements/NAME-build.txt`` what those of them are
compiled with that come as source only. Both are pinned and hashed, like all that ``./inv`` installs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import sysconfig
from pathlib import Path

from bsp.base.project import PROJECT

from ..cache import cache_dir, make_once
from ..errors import InfrastructureError, UserError
from ..process import ToolFailedError, run
from ..progress import step
from ..room import hint_of
from .host_packages import has_header, install_packages

_REQUIREMENTS = PROJECT / "requirements"


def extra_python(
    name: str, *, module: str, compiled: tuple[str, ...] = (), python: str = sys.executable
) -> Path:
    """Return the Python interpreter of an environment that has the packages of an extra.

    Args:
        name: of ``requirements/NAME.txt``.
        module: what is imported to see that the environment works, before it is kept.
        compiled: those of its packages that exist as source only; a C compiler and Python's headers are
            then needed, and installed with apt where they lack.
        python: the interpreter that the environment is made of.

    Raises:
        UserError: a system package is missing, and only root can install it.
        InfrastructureError: a package cannot be fetched or compiled.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    build = _REQUIREMENTS / f"{name}-build.txt"
    digest = hashlib.sha256(_identity_of(python).encode())
    for file in (requirements, build):
        digest.update(file.read_bytes() if file.exists() else b"-")
    folder = cache_dir() / "extras"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step(f"Installing {name} (pinned, hashed), once"):
            if compiled:
                _require_compiler()
            run([python, "-m", "venv", "--without-pip", target])
            if build.exists():
                _install(target, ["--only-binary", ":all:", "-r", str(build)])
            source = [word for package in compiled for word in ("--no-binary", package)]
            choice = ["--only-binary", ":all:", *source, "--no-build-isolation"]
            # pip would reuse what an earlier run compiled, by whatever means.
            cache = ["--no-cache-dir"] if compiled else []
            _install(target, [*cache, *choice, "-r", str(requirements)])
            run([target / "bin" / "python", "-c", f"import {module}"])
            _move_scripts(target, final)

    final = folder / f"{name}-{digest.hexdigest()[:16]}"
    return make_once(final, make) / "bin" / "python"


def _move_scripts(environment: Path, final: Path) -> None:
    """Have the scripts of an environment name the Python that they will lie beside."""
    for script in (environment / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        content = script.read_bytes()
        start = f"#!{environment}/bin/".encode()
        if content.startswith(start):
            script.write_bytes(f"#!{final}/bin/".encode() + content[len(start) :])


def _identity_of(python: str) -> str:
    if python == sys.executable:
        return f"{sys.version} {sys.base_prefix}"
    return run([python, "-c", "import sys; print(sys.version, sys.base_prefix)"]).text.strip()


def find_python(wanted: str) -> str:
    """Return an interpreter of this machine: ``3.13``, ``python3.13`` or a path.

    Raises:
        UserError: there is none, it does not run, or it is older than 3.11.
    """
    name = f"python{wanted}" if re.fullmatch(r"\d+(\.\d+)*", wanted) else wanted
    path = shutil.which(name)
    version_check = path and run(
        [path, "-c", "import sys, venv; print(sys.version_info >= (3, 11))"], check=False
    )
    if not path or not version_check or version_check.exit_code != 0:
        series = name.removeprefix("python")
        raise UserError(
            f"there is no {name} on this machine that runs and has the module venv",
            hint=f"sudo apt-get install {name} {name}-venv (Debian 12 has 3.11, Debian 13 has 3.13)"
            if re.fullmatch(r"3\.\d+", series)
            else "--python 3.13, or --python FILE",
        )
    if version_check.text.strip() != "True":
        raise UserError(f"{path} is older than 3.11, which is needed", hint="--python 3.13")
    return path


def _install(environment: Path, words: list[str]) -> None:
    python = environment / "bin" / "python"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    path = f"{python.parent}:{os.environ.get('PATH', os.defpath)}"
    try:
        run([*pip, "--disable-pip-version-check", "--require-hashes", *words],
            env={"PATH": path}, timeout_s=1800)  # fmt: skip
    except ToolFailedError as error:
        raise InfrastructureError(
            f"pip could not install what {words[-1]} lists:\n{error.message}",
            hint=hint_of(error, "check the network, then run the same command again"),
        ) from error


def _require_compiler() -> None:
    """See to a C compiler with its headers, and the headers of this Python.

    Raises:
        UserError: they lack, and cannot be installed from here.
    """
    missing = [] if has_header("stdlib.h") else ["gcc", "libc6-dev"]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append(f"python{sys.version_info.major}.{sys.version_info.minor}-dev")
    install_packages(missing)
