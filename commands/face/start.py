# SPDX-License-Identifier: MIT
"""Starts invoke as its own script does, in less time: each command of ``./inv`` waits for that.

invoke imports ``unittest.mock``, and with it asyncio, for a class that only tests use; that alone is a
tenth of a short command. Looking for cycles among all that imports make takes another part, and so do
``importlib.metadata``, with email and zipfile, which invoke and paramiko ask for their own version, and
invoke's YAML, which it needs for a file of settings that hardly anybody has.
Compiling our modules anew each time is a third of what a deployment takes here.
"""

import gc
import importlib
import os
import signal
import sys
import types

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up before a command begins
for _descriptor in (0, 1, 2):  # one that is closed (>&-) would be given to the next file opened
    try:
        os.fstat(_descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)
if sys.stdout is None:
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
if sys.stderr is None:
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
if not os.environ.get(
    "HOME"
):  # empty, it would be the root folder for Python, and for what is started
    import pwd

    try:
        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir or "/nonexistent"
    except KeyError:
        os.environ["HOME"] = "/nonexistent"  # as Debian names it where a user has none
if sys.dont_write_bytecode:  # as in many containers; it keeps our folders clean, not the cache
    _below = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    _cache = os.environ.get("NPU_BSP_CACHE") or f"{_below}/npu-bsp"
    _prefix = sys.pycache_prefix or os.path.abspath(f"{_cache}/bytecode")  # noqa: PTH100
    try:
        # Python itself would make /nonexistent/.cache below the current folder.
        os.makedirs(_prefix, exist_ok=True)  # noqa: PTH103
    except OSError:
        pass  # nothing is kept; a command that needs the cache says why it has none
    else:
        sys.pycache_prefix, sys.dont_write_bytecode = _prefix, False
# Debian leaves sbin out of an ordinary user's PATH; mke2fs, depmod and their like are there.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class _Later(types.ModuleType):
    """A module that is imported when something of it is wanted."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class _Metadata(_Later):
    """``importlib.metadata``, imported when more is wanted of it than a version."""

    @staticmethod
    def version(name: str) -> str:
        """Return a package's version, from the name of its folder where that says it."""
        for folder in filter(os.path.isdir, sys.path):
            for entry in os.listdir(folder):  # noqa: PTH208
                if entry.startswith(f"{name}-") and entry.endswith(".dist-info"):
                    return entry[len(name) + 1 : -len(".dist-info")]
        sys.modules.pop("importlib.metadata", None)
        return str(importlib.import_module("importlib.metadata").version(name))


if "importlib.metadata" not in sys.modules:
    _metadata = _Metadata("importlib.metadata")
    sys.modules["importlib.metadata"] = importlib.metadata = _metadata

sys.modules.setdefault("invoke.vendor.yaml", _Later("invoke.vendor.yaml"))
gc.set_threshold(100_000, 20, 20)  # as tasks.py does, and before invoke is imported
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
_without = types.ModuleType("unittest.mock")
_without.Mock = object  # type: ignore[attr-defined]
sys.modules["unittest.mock"] = _without
from commands.face.program import program  # noqa: E402

del sys.modules["unittest.mock"]  # whoever really needs it gets the real one

if __name__ == "__main__":
    program().run()
