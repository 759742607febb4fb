# SPDX-License-Identifier: MIT
"""Which packages of the distribution hold a kernel series: ``distribution.toml``, typed.

What the archive answered is remembered for a day, so that a run with everything cached starts no apt.
"""

from __future__ import annotations

import functools
import json
import re
import time
import tomllib
from pathlib import Path

import msgspec
from msgspec import Struct

from ..base.cache import cache_dir, keep
from ..base.errors import UserError, nearest
from ..base.packages import pins

FILE = Path(__file__).with_name("distribution.toml")

_ANSWER_FRESH_S = 24 * 3600


class Series(Struct, frozen=True, forbid_unknown_fields=True):
    """Where one kernel series is packaged.

    Attributes:
        suite: Debian suite (``trixie-backports``).
        image: regular expression for the package with kernel, modules and device trees.
        source: package with the source tree.
        parts: packages that hold what the image package only depends on; ``{release}`` is replaced.
    """

    suite: str
    image: str
    source: str
    parts: tuple[str, ...] = ()


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    series: dict[str, Series]


@functools.cache
def all_series() -> dict[str, Series]:
    """Return the packaged kernel series by name, oldest first."""
    file = msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), _File)
    return {name: file.series[name] for name in sorted(file.series, key=series_key)}


def series_named(name: str) -> Series:
    """Return where a series (``6.12``) is packaged.

    Raises:
        UserError: the distribution has no such series.
    """
    packaged = all_series()
    if name not in packaged:
        suites = ", ".join(dict.fromkeys(where.suite for where in packaged.values()))
        series = re.match(r"\d+\.\d+", name.removeprefix("v"))
        packaged_one = series.group() if series and series.group() in packaged else ""
        release = re.fullmatch(r"v?(\d+)\.(\d+)(\.\d+)?(-rc\d+)?", name)
        similar = "" if release else nearest(name, list(packaged))
        ways = [f"--kernel {packaged_one}"] if packaged_one else []
        ways += [_tarball_of(release)] if release and (not packaged_one or release[3]) else []
        raise UserError(
            f"unknown kernel {name!r}: the distribution has {', '.join(packaged)} (in {suites}) and no "
            f"other series{similar}",
            hint=f"{'; or '.join(ways) or 'take one of these'}; or name another source: "
            "tarball:URL#sha256=..., git:URL@ref, path:DIR",
        )
    return packaged[name]


def _tarball_of(release: re.Match[str]) -> str:
    """Say how a release that is not packaged is taken from where kernels are published."""
    major, patch, candidate = release[1], release[3] or "", release[4] or ""
    version = f"{major}.{release[2]}{patch}{candidate}"
    if candidate:
        return f"a release candidate is a tag of Linus' tree: --kernel git:URL@v{version}"
    folder = f"https://cdn.kernel.org/pub/linux/kernel/v{major}.x"
    return (
        f"the release's tarball: --kernel 'tarball:{folder}/linux-{version}.tar.xz#sha256=HASH', with "
        f"the HASH that {folder}/sha256sums.asc lists for it"
    )


def series_key(name: str) -> tuple[int, ...]:
    """Return what orders kernel series: ``6.8`` before ``6.12``.

    Raises:
        UserError: ``name`` is not a kernel series.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", name):
        raise UserError(f"{name!r} is not a kernel series; one looks like 6.12")
    return tuple(int(part) for part in name.split("."))


def packaged(series: str, *, image: bool) -> tuple[str, str, str]:
    """Return (suite, package, version) of a series' kernel image or source.

    Raises:
        UserError: the distribution has no such series, or its archive no such package.
        InfrastructureError: the archive cannot be read.
    """
    series_named(series)
    chosen = pins.current()
    if chosen is not None:
        question = f"kernel {series} {'image' if image else 'source'}"
        suite, package, version = chosen.answer(
            question, lambda: list(_newest_packaged(series, image=image))
        )
        return suite, package, version
    return _newest_packaged(series, image=image)


def _newest_packaged(series: str, *, image: bool) -> tuple[str, str, str]:
    entry = series_named(series)
    chosen = pins.current()
    fresh_since = max(time.time() - _ANSWER_FRESH_S, chosen.fresh_since if chosen else 0)
    memory = cache_dir() / "kernels" / f"{series}-{'image' if image else 'source'}.json"
    try:
        remembered = json.loads(memory.read_bytes())
        fresh = memory.stat().st_mtime > fresh_since
        if fresh and remembered["suite"] == entry.suite:
            return remembered["suite"], remembered["package"], remembered["version"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never asked, or written by another version: ask
    from ..base.packages.apt import Archive

    # The source is the same for every architecture; asking for arm64 makes one set of lists do.
    archive = Archive(entry.suite, "arm64")
    try:
        package = archive.newest(entry.image) if image else entry.source
        version = archive.version(package)
    except UserError as error:
        others = [name for name in all_series() if name != series]
        raise UserError(
            f"Linux {series} is not in the suite {entry.suite} of this machine's mirror: {error.message}",
            hint=f"--kernel {' or --kernel '.join(others)}; or name a source: tarball:URL#sha256=..., "
            "git:URL@ref, path:DIR",
        ) from error
    answer = {"suite": entry.suite, "package": package, "version": version}
    keep(memory, json.dumps(answer).encode())
    return entry.suite, package, version
