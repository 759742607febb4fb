# SPDX-License-Identifier: MIT
"""Whether a kernel's driver knows the NPU: by looking into its source, or by its series."""

from __future__ import annotations

import re
from pathlib import Path

from ...catalog import load_soc
from ...kernel.distribution import series_key
from ...profile import Board, Npu
from ...scan.c_source import seen_by_compiler
from ...scan.drivers import drivers_of, has_database


def lacking(tree: Path, npu: Npu) -> tuple[str, ...]:
    """Return what a kernel source tree lacks for the NPU, in words; empty if it has everything.

    The source decides, whatever the profile knows of released kernels: a driver is there if it matches the
    NPU's node, and knows the NPU if its database has an entry with the NPU's numbers. Only files that are
    there can be looked into; where the tree has no such file, its need counts as unmet.
    """
    missing = []
    driver = drivers_of(tree).get(npu.driver)
    if driver is None or not driver.takes([npu.compatible]):
        missing.append(f"the driver {npu.driver}")
    elif driver.knows(npu.identity) is False:
        missing.append(f"the NPU's entry in {npu.driver}_hwdb.c")
    for need in npu.kernel_needs:
        file = tree / need.file
        if not file.is_file() or not re.search(
            need.text,
            seen_by_compiler(file.read_text(encoding="utf-8", errors="replace"), keep_defines=True),
        ):
            missing.append(need.what)
    return tuple(missing)


def cannot_tell(npu: Npu) -> str:
    """Say why no source can tell whether its driver knows the NPU; empty where it can."""
    if npu.identity is not None or not has_database(npu.driver):
        return ""
    return (
        f"{npu.driver} knows NPUs by their numbers (model, revision, product...); this profile does not "
        "know the NPU's numbers, so it cannot be told whether this kernel does"
    )


def series_supports(series: str, npu: Npu) -> bool:
    """Whether a kernel series (``6.12``) is new enough for the NPU."""
    since = npu.kernel_since
    return since is not None and series_key(series)[:2] >= series_key(since)


def verdict(
    board: Board, npu: Npu | None, *, series: str | None, lacks: tuple[str, ...] | None
) -> tuple[bool, str]:
    """Return whether the NPU will work with this kernel, and why, in words.

    Args:
        board: the board.
        npu: its NPU with the board's settings; None if it has none.
        series: the kernel's series; None if it is not known.
        lacks: what its source was found to lack; None where there is no source to look into.
    """
    if npu is None:
        return False, f"{load_soc(board.soc).title} has no NPU"
    if not npu.enabled:
        return False, "the profile switches the NPU off"
    mesa = f"Mesa {npu.mesa_since} or later" if npu.mesa_since else "a newer Mesa than there is"
    if lacks:
        return False, f"{npu.driver} of this kernel will not work: it lacks {', '.join(lacks)}"
    if unknown := cannot_tell(npu):
        return False, unknown
    if lacks is not None:
        return True, f"{npu.driver} of this kernel knows the NPU; Teflon needs {mesa}"
    if npu.kernel_since is None:
        return False, f"{npu.driver} does not recognise this NPU: it lacks {npu.kernel_lacks}"
    if series is None:
        return True, f"needs Linux {npu.kernel_since} or later (a DTB does not tell) and {mesa}"
    if not series_supports(series, npu):
        return (
            False,
            f"Linux {series} lacks {npu.kernel_lacks}; it takes {npu.kernel_since} or later",
        )
    return True, f"Linux {series} knows the NPU ({npu.kernel_since} or later); Teflon needs {mesa}"
