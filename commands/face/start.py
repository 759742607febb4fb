# SPDX-License-Identifier: MIT
"""Starts invoke as its own script does, in less time: each command of ``./inv`` waits for that.

invoke imports ``unittest.mock``, and with it asyncio, for a class that only tests use; that alone is a
tenth of a short command. Looking for cycles among all that imports make takes another part.
"""

import gc
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
# Debian leaves sbin out of an ordinary user's PATH; mke2fs, depmod and their like are there.
os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

gc.set_threshold(100_000, 20, 20)  # as tasks.py does, and before invoke is imported
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120
_without = types.ModuleType("unittest.mock")
_without.Mock = object  # type: ignore[attr-defined]
sys.modules["unittest.mock"] = _without
from commands.face.program import program  # noqa: E402

del sys.modules["unittest.mock"]  # whoever really needs it gets the real one

if __name__ == "__main__":
    program().run()
