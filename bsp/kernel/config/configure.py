# SPDX-License-Identifier: MIT
"""Makes a kernel's configuration from fragments in a build folder, and stops where it is not as asked.

What no fragment asks for is off (``allnoconfig``), so a configuration holds what somebody had a reason
for; below a whole ``.config`` or ``defconfig`` it has Kconfig's default (``alldefconfig``). It is made anew
only when a fragment, the compiler or a Kconfig file has changed, so that ``make`` finds nothing to do where
nothing is.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.cache import write_atomically
from ...base.process import run
from ...base.progress import say, step
from ..toolchain import Toolchain
from . import fragments
from .compare import Difference, differences, foreign_symbols, known_symbols, read_config
from .fragments import Asked
from .judge import GaveWay, Judged, judge, off_without_name, overruled

if TYPE_CHECKING:
    from .kconfig import Reasons

_KEY = "npu-bsp.config-key"


@dataclass(frozen=True)
class Workspace:
    """A kernel tree, the folder that it is built in, and what builds it.

    Attributes:
        tree: never written to.
        release: ``6.12.107``.
        folder: ``make O=``.
        environment: what makes two builds of the same the same bytes.
    """

    tree: Path
    release: str
    folder: Path
    toolchain: Toolchain
    environment: Mapping[str, str]

    def make(self, *words: str) -> list[str]:
        """The command line of ``make`` for the build folder."""
        return [
            "make",
            "-C",
            str(self.tree),
            f"O={self.folder}",
            *self.toolchain.make_arguments,
            *words,
        ]

    @property
    def config(self) -> Path:
        """Its ``.config``."""
        return self.folder / ".config"


@dataclass(frozen=True)
class Configured:
    """A configuration that was made.

    Attributes:
        differences: what is not as asked for, and is wrong.
        nameless: what is switched off and is no symbol of this kernel, in words.
        not_had: what only a whole configuration or a preference asks for, and this kernel does not have.
        check_s: how long comparing took.
        fresh: whether the configuration was there already.
        gave_way: what is not as asked for, as a later fragment wants something else.
        left_out: what is not as asked for, and nobody can ask for.
    """

    asked: Mapping[str, Asked]
    differences: tuple[Difference, ...]
    check_s: float
    fresh: bool
    gave_way: tuple[GaveWay, ...] = ()
    left_out: tuple[Asked, ...] = ()
    not_had: tuple[Difference, ...] = ()
    nameless: tuple[str, ...] = ()


def configure(work: Workspace, asked: dict[str, Asked]) -> Configured:
    """Make ``.config``, and compare it with what was asked for; does not raise where they differ.

    Raises:
        ToolFailedError: the kernel's own tools failed.
    """
    text = fragments.render(asked)
    target = fragments.base_target(asked)
    key = hashlib.sha256(
        "\n".join([text, target, work.toolchain.banner, *work.toolchain.make_arguments]).encode()
    ).hexdigest()
    marker = work.folder / _KEY
    fresh = marker.exists() and marker.read_text() == key and not _kconfig_changed(work)
    if not fresh:
        _make_config(work, text, target)
        write_atomically(marker, key.encode())
    started = time.monotonic()
    got = read_config(work.config)
    mismatches = differences(asked, got)
    check_s = time.monotonic() - started
    known_names = functools.cache(lambda: known_symbols(work.tree))
    nameless = tuple(off_without_name(asked, got, known_names))
    result = judged(work, asked, mismatches) if mismatches else Judged()
    gave_way = (*overruled(asked), *result.gave_way)
    return Configured(
        asked, result.wrong, check_s, fresh, gave_way, result.left_out, result.not_had, nameless
    )


def _make_config(work: Workspace, text: str, target: str) -> None:
    with step("Configuring"):
        work.folder.mkdir(parents=True, exist_ok=True)
        merged = work.folder / "npu-bsp.fragment"
        write_atomically(merged, text.encode())
        before = work.config.read_bytes() if work.config.exists() else None
        times = work.config.stat() if before is not None else None
        variables = {**work.environment, "KCONFIG_ALLCONFIG": str(merged)}
        run(work.make("-s", target), env=variables)
        # Says again what the first said, unless a default depends on what came after it.
        run(work.make("-s", "olddefconfig"), env=work.environment)
        if before == work.config.read_bytes() and times is not None:
            import os

            os.utime(work.config, ns=(times.st_atime_ns, times.st_mtime_ns))


def _kconfig_changed(work: Workspace) -> bool:
    """Whether a Kconfig file is newer than the configuration, or there is none."""
    listed = work.folder / "include/config/auto.conf.cmd"
    try:
        made = work.config.stat().st_mtime
        words = listed.read_text().replace("\\\n", " ").split()
    except OSError:
        return not work.config.exists()
    for word in words:
        name = word.rpartition("/")[2]
        if not name.startswith("Kconfig"):
            continue
        path = work.tree / word.removeprefix("$(srctree)/")
        try:
            if path.stat().st_mtime > made:
                return True
        except OSError:
            return True
    return False


def judged(work: Workspace, asked: Mapping[str, Asked], mismatches: list[Difference]) -> Judged:
    """Say what each difference means, from the tree's Kconfig files; takes some seconds."""
    # The names are looked for while kconfiglib waits for what it asks the compiler.
    with step("Looking for the reasons"), ThreadPoolExecutor(1) as pool:
        names = pool.submit(lambda: known_symbols(work.tree))
        reasons = _reasons(work)
        return judge(
            mismatches,
            asked,
            reasons,
            release=work.release,
            known_names=names.result,
            foreign_names=functools.cache(lambda: foreign_symbols(work.tree)),
        )


def _reasons(work: Workspace) -> Reasons | None:
    from .kconfig import Reasons

    variables = work.toolchain.kconfig_variables(work.tree, work.release)
    import kconfiglib  # type: ignore[import-untyped]

    try:
        return Reasons(work.tree, work.config, variables)
    except (kconfiglib.KconfigError, OSError, RecursionError) as error:
        say(f"the reasons cannot be told: kconfiglib cannot read these Kconfig files: {error}")
        return None
