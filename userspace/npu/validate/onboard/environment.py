# SPDX-License-Identifier: MIT
"""What a run finds around it: a payload's packages and libraries, the TFLite runtime, variables.

Shipped to boards beside ``runner.py``: the standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __package__:
    from .stage_error import StageError
else:
    from stage_error import StageError

HERE = Path(__file__).absolute().parent
ROOT = HERE.parent
IS_PAYLOAD = HERE.name == "bin" and (ROOT / "site").is_dir()
# The variables that change what drivers and delegates do: recorded with each row.
WATCHED = (
    "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBGL_DRIVERS_PATH", "RUSTICL_ENABLE", "RUSTICL_DEVICE_TYPE",
    "RUSTICL_FEATURES", "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES", "SMALLER_SOFTMAX", "TEFLON_DEBUG",
    "ETNA_MESA_DEBUG", "MESA_LOADER_DRIVER_OVERRIDE", "VIVANTE_SDK_DIR", "OMP_NUM_THREADS",
)  # fmt: skip
_LOG = "TEFLON_DEBUG"
# The one order of preference, for the doctor and the gate too: the runtime that is still developed first.
RUNTIMES = ("ai_edge_litert", "tflite_runtime")


def use_payload() -> None:
    """Put the payload's packages first, and load its libraries, so that the system's are not needed."""
    # A generation is not to change: compiled Python goes elsewhere.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    sys.pycache_prefix = sys.pycache_prefix or str(cache / "npu-bsp" / "pycache")
    sys.path.insert(0, str(HERE))
    if not IS_PAYLOAD:
        return
    needed = json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))["python"]
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != needed:
        raise StageError("set-up", f"the payload is for Python {needed}, this is Python {running}")
    sys.path.insert(0, str(ROOT / "site"))
    missing = sorted((ROOT / "lib").glob("*.so.*"))
    problem = ""
    for _ in range(len(missing)):  # they need each other: as many rounds as it takes
        for path in list(missing):
            try:
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                missing.remove(path)
            except OSError as error:
                problem = str(error)
    if missing:
        raise StageError("set-up", f"cannot load {missing[0].name}: {problem}")


def load_runtime() -> tuple[Any, str]:
    """Return the TFLite interpreter module that is there, and its name and version."""
    import importlib
    import importlib.metadata

    problems = []
    for name in RUNTIMES:
        try:
            module = importlib.import_module(f"{name}.interpreter")
        except ImportError as error:
            problems.append(f"{name}: {error}")
            continue
        package = name.replace("_", "-")
        try:
            return module, f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            return module, package
    raise StageError("runtime", "no TFLite runtime can be imported; " + "; ".join(problems))


def set_environment(
    variables: dict[str, str], rusticl: str | None, preload: str | None = None
) -> None:
    """Set variables before anything is loaded; starts this program anew if the linker has to see them.

    A folder of our own with rusticl in it comes behind what was asked for, ``preload`` before it.
    """
    linker = ("LD_LIBRARY_PATH", "LD_PRELOAD")
    before = [os.environ.get(name, "") for name in linker]
    os.environ.update(variables)
    if preload:
        loaded = [preload, *os.environ.get("LD_PRELOAD", "").split(":")]
        os.environ["LD_PRELOAD"] = ":".join(dict.fromkeys(filter(None, loaded)))
    if rusticl:
        more = (f"{rusticl}/lib", f"{rusticl}/lib/libclc_path.so")
        for name, path in zip(linker, more, strict=True):
            paths = [*os.environ.get(name, "").split(":"), path]
            os.environ[name] = ":".join(dict.fromkeys(filter(None, paths)))
        os.environ.setdefault("OCL_ICD_VENDORS", f"{rusticl}/rusticl.icd")
        os.environ["NPU_BSP_LIBCLC"] = f"{rusticl}/clc"
    if [os.environ.get(name, "") for name in linker] != before:
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606


def ask_for_log() -> None:
    """Have Mesa's delegate say what it takes, beside what it was asked for; it reads this as it loads.

    Without its log nobody can tell a run on the NPU from one on the CPU.

    Source: Mesa src/gallium/frontends/teflon/tfl_device.c; util/u_debug.c, which takes words with commas.
    """
    words = [word for word in os.environ.get(_LOG, "").split(",") if word]
    os.environ[_LOG] = ",".join(dict.fromkeys([*words, "verbose"]))


def profile_library() -> str | None:
    """Return the library that has to be preloaded for a profile; None if it is, or is not there."""
    import profiling  # type: ignore[import-not-found]

    library = ROOT / "lib" / profiling.LIBRARY_NAME
    return str(library) if library.exists() and not profiling.preloaded() else None
