# SPDX-License-Identifier: MIT
"""A dtc for sources that the host's own cannot read: the distribution's newer one, in a folder of its own.

Since dtc 1.7 a reference may be a label with a path behind it (``&{noc_opp_table/opp-1000000000}``),
which sources of Linux 7.3 use. The kernel's build brings such a dtc along; Debian 12's is 1.6. It is
started through the dynamic linker that comes with it, so that no package of the host is touched.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

from ...base.errors import BspError
from ...base.packages.apt import Archive
from ...base.packages.host_system import host_architecture

_SUITE = "trixie"

_ERROR = re.compile(r"(\S+):(\d+)\.\d+\S* syntax error")
_LABEL_AND_PATH = re.compile(r"&\{\w[^}]*/")


def needs_newer_dtc(tree: Path, message: str) -> bool:
    """Whether a syntax error that dtc reports is at a reference which only dtc 1.7 knows.

    Args:
        tree: folder that the file names in the message are relative to.
        message: dtc's message.
    """
    match = _ERROR.search(message)
    if match is None:
        return False
    try:
        lines = (tree / match[1]).read_text(encoding="utf-8", errors="replace").splitlines()
        return _LABEL_AND_PATH.search(lines[int(match[2]) - 1]) is not None
    except (OSError, IndexError):
        return False


@functools.cache
def newer_dtc() -> tuple[str, ...]:
    """Return the start of a command line that runs the newer dtc; empty if it cannot be had."""
    try:
        host = host_architecture()
        root = Archive(_SUITE, host).unpacked(["device-tree-compiler"], with_dependencies=True)
    except BspError:
        return ()  # then the first dtc's message is what there is to say
    linkers = sorted(root.glob("usr/lib/*-linux-gnu*/ld-linux*.so.*"))
    program = root / "usr/bin/dtc"
    if not linkers or not program.exists():
        return ()
    return str(linkers[0]), "--library-path", str(linkers[0].parent), str(program)
