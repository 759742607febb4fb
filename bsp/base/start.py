# SPDX-License-Identifier: MIT
"""Starts invoke as its own script does, in less time: for ``./inv``, whose start each command feels.

invoke imports ``unittest.mock``, and with it asyncio, for a class that only tests use; that alone is a
tenth of a short command. Looking for cycles among all that imports make takes another part.
"""

import gc
import sys
import types

gc.set_threshold(100_000, 20, 20)  # as tasks.py does, and before invoke is imported
_without = types.ModuleType("unittest.mock")
_without.Mock = object  # type: ignore[attr-defined]
sys.modules["unittest.mock"] = _without
from invoke.main import program  # noqa: E402

del sys.modules["unittest.mock"]  # whoever really needs it gets the real one

if __name__ == "__main__":
    program.run()
