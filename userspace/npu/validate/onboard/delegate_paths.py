# SPDX-License-Identifier: MIT
"""Which library a delegate's name stands for on this machine, what it lacks, and Mesa's version in it.

Shipped to boards beside ``runner.py``: the standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING or __package__:
    from .environment import ROOT
    from .stage_error import StageError
else:
    from environment import ROOT
    from stage_error import StageError

OPENCL_LIBRARY = "libOpenCL.so"  # as TFLite opens it (delegates/gpu/cl/opencl_wrapper.cc)
_SYSTEM = ("/usr/lib", "/usr/lib/aarch64-linux-gnu", "/usr/local/lib", "/usr/lib64")
# Where the delegates that have a name are looked for; {opencl} is --opencl.
PLACES = {
    "teflon": (str(ROOT / "lib" / "libteflon.so"), "/usr/lib/teflon/libteflon.so"),
    "opencl": (
        "{opencl}/lib/libopencl_delegate.so",
        str(ROOT / "opencl/lib/libopencl_delegate.so"),
    ),
    "tim-vx": tuple(f"{folder}/libvx_delegate.so" for folder in _SYSTEM),
}
# Without this node the vendor's driver is not loaded, and his libraries end the process.
DEVICES = {"tim-vx": "/dev/galcore"}


def parse_delegate(text: str, opencl: str | None) -> tuple[str, str | None, dict[str, str]]:
    """Split ``NAME:key=value;key=value`` or ``PATH:...`` into kind, library and options."""
    if text in ("cpu", "cpu-reference"):
        return text, None, {}
    name, _, rest = text.partition(":")
    words = [word for word in rest.split(";") if word]
    if any("=" not in word for word in words):
        raise StageError("arguments", f"delegate options are key=value;key=value, not {rest!r}")
    options = {key: value for key, _, value in (word.partition("=") for word in words)}
    if name not in PLACES:
        return "external", name, options
    places = [place.replace("{opencl}", opencl or "/nowhere") for place in PLACES[name]]
    return "external", next((place for place in places if Path(place).exists()), None), options


def not_there(name: str, library: str | None) -> str:
    """Say what a delegate lacks before it can be loaded; "" if nothing."""
    kind = name.partition(":")[0]
    if library is None:
        library_name = PLACES[kind][-1].rpartition("/")[2]
        return f"{library_name} is not there"
    if not Path(library).exists():
        if Path(library).is_symlink():
            return f"{library} is a link to {Path(library).readlink()}, which is not there: install that"
        return f"{library} is not there: give the delegate's path on the machine that runs it"
    node = DEVICES.get(kind)
    if node and not Path(node).exists():
        return f"{node} is not there: the vendor's kernel driver is not loaded"
    return ""


def mesa_version(library: str | None) -> str | None:
    """Return the version that is compiled into one of Mesa's libraries, as ``25.0.7-2``."""
    try:
        content = Path(library or "").read_bytes()
    except OSError:
        return None
    match = re.search(rb"\0(\d{2}\.\d\.\d{1,2}(?:[-+~.\w]{0,40}))\0", content)
    return match.group(1).decode() if match else None
