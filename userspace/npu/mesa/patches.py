# SPDX-License-Identifier: MIT
"""Our patches for Mesa: a folder for each series of versions, and how they get into a copy of its source.

They are in ``git format-patch`` form, one fault each, so that a maintainer can take them. A patch that the
source has already is left out: what is upstream later drops out by itself.
"""

from __future__ import annotations

import email
import email.policy
import functools
import hashlib
import re
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bsp.base.cache import cache_dir, lock, make_once, write_atomically
from bsp.base.compile.patching import Patch, apply_all, key_of
from bsp.base.errors import UserError, nearest
from bsp.base.process import run
from bsp.base.progress import step

from .source import MesaTree

FOLDER = Path(__file__).with_name("patches")
NONE = "none"
_TOUCHED = re.compile(r"^(?:---|\+\+\+) [ab]/(\S+)", re.MULTILINE)


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``series.toml``.

    Attributes:
        versions: series of Mesa (``25.0``) that they are for.
        judged: version that they were judged on.
    """

    format: int
    title: str
    versions: tuple[str, ...]
    judged: str


@dataclass(frozen=True)
class Patched:
    """A source with patches in it.

    Attributes:
        path: where it is.
        series: name of the series, or empty.
        applied: patches that were put in.
        present: those that the source has already.
    """

    path: Path
    series: str
    applied: tuple[Patch, ...]
    present: tuple[Patch, ...]


@functools.cache
def all_series() -> dict[str, Series]:
    """Return the series by name."""
    return {
        file.parent.name: msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Series)
        for file in sorted(FOLDER.glob("*/series.toml"))
    }


def patches_of(series: str) -> list[Patch]:
    """Return the patches of a series, in order; of ``none`` or an empty name, none.

    Raises:
        UserError: there is no such series.
    """
    if series in ("", NONE):
        return []
    available = all_series()
    if series not in available:
        raise UserError(
            f"there is no series of patches {series!r} for Mesa{nearest(series, list(available))}",
            hint=f"there are: {', '.join(available)}; or {NONE}",
        )
    return [Patch(series, path) for path in sorted((FOLDER / series).glob("*.patch"))]


def series_for(version: str) -> str:
    """Return the series for a version of Mesa; empty where there is none."""
    short = ".".join(version.split(".")[:2])
    return next((name for name, series in all_series().items() if short in series.versions), "")


def title_of(patch: Patch) -> str:
    """Return what a patch says that it does: its subject."""
    with patch.path.open("rb") as file:
        message = email.message_from_binary_file(file, policy=email.policy.default)
    return re.sub(r"^\[PATCH[^\]]*\] *", "", " ".join(str(message["subject"]).split()))


def patched(tree: MesaTree, series: str, mark: str) -> Patched:
    """Return the source with the patches of a series: itself where it needs none, or a copy in the cache.

    Args:
        mark: what the copy's version gets behind it, with ``{count}`` for the number of patches; a program
            reads there what it was built from.

    Raises:
        UserError: a patch does not apply; which hunk of which file.
    """
    patches = patches_of(series)
    missing = missing_from(tree.path, patches)
    present = tuple(patch for patch in patches if patch not in missing)
    if not missing:
        return Patched(tree.path, series if patches else "", (), present)
    version = tree.version + mark.format(count=len(patches))
    key = key_of(missing)
    if tree.fixed:
        place = tree.path.with_name(f"{tree.path.name}-patched-{key}-{_short(version)}")
        path = make_once(place, lambda target: _patch_copy(tree.path, target, missing, version))
    else:
        name = _short(str(tree.path))
        path = cache_dir() / "sources" / f"mesa-path-{name}-patched"
        with lock(path.with_name(path.name + ".lock")):
            _renew(tree.path, path, missing, version)
    return Patched(path, series, tuple(missing), present)


def missing_from(tree: Path, patches: Sequence[Patch]) -> list[Patch]:
    """Return the patches that a source does not have.

    Later ones change what earlier ones brought, so each is taken out again, the last one first, from a copy
    of the files that they touch.
    """
    missing = []
    with tempfile.TemporaryDirectory(prefix="npu-bsp-mesa-") as folder:
        copy = Path(folder)
        _copy_files(tree, copy, touched_by(patches))
        for patch in reversed(patches):
            words: list[str | Path] = ["patch", "--strip=1", "--fuzz=0", "--force", "--reverse",
                                       "--reject-file=-", "--directory", copy,
                                       "--input", patch.path.absolute()]  # fmt: skip
            if run([*words, "--dry-run"], check=False).exit_code != 0:
                missing.append(patch)
            else:
                run([*words, "--no-backup-if-mismatch"])
    return missing[::-1]


def touched_by(patches: Sequence[Patch]) -> list[str]:
    """Return the files that patches change, relative to the source."""
    text = "\n".join(patch.path.read_text(encoding="utf-8", errors="replace") for patch in patches)
    return sorted(set(_TOUCHED.findall(text)))


def _copy_files(source: Path, target: Path, files: Sequence[str]) -> None:
    for name in files:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def _patch_copy(source: Path, target: Path, patches: Sequence[Patch], version: str) -> None:
    with step(f"Copying Mesa to patch it ({len(patches)} patches)"):
        # Hard links: patch writes a file anew, so the original stays as it is.
        run(["cp", "--archive", "--link", source, target])
        _apply(target, patches)
        write_atomically(target / "VERSION", f"{version}\n".encode())


def _renew(source: Path, target: Path, patches: Sequence[Patch], version: str) -> None:
    """Bring a patched copy of somebody's folder up to date; what did not change keeps its time.

    So ``ninja`` compiles again only what was edited.
    """
    files = touched_by(patches)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-mesa-") as folder:
        copy = Path(folder)
        _copy_files(source, copy, files)
        _apply(copy, patches)
        (copy / "VERSION").write_text(f"{version}\n", encoding="utf-8")
        kept = [f"--exclude=/{name}" for name in (".git", "VERSION", *files)]
        target.mkdir(parents=True, exist_ok=True)
        run(["rsync", "--archive", "--delete", *kept, f"{source}/", f"{target}/"])
        for name in ("VERSION", *files):
            new, old = copy / name, target / name
            if not new.is_file():
                old.unlink(missing_ok=True)
            elif not old.is_file() or old.read_bytes() != new.read_bytes():
                write_atomically(old, new.read_bytes())


def _apply(tree: Path, patches: Sequence[Patch]) -> None:
    apply_all(tree, patches, what="Mesa", correct="the versions")


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
