# SPDX-License-Identifier: MIT
"""The collection of commands that ``invoke`` and ``./inv`` load; the commands are in commands/."""

import atexit
import gc

# Looking for cycles among all that imports make takes up to a quarter of a short command's time.
gc.set_threshold(100_000, 20, 20)
atexit.register(gc.freeze)

from commands import collection  # noqa: E402
from commands.face.program import adopt  # noqa: E402

namespace = collection()
adopt()
