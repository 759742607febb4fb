# SPDX-License-Identifier: MIT
"""Mesa's source: the distribution's package with its patches, a tarball, a git repository, or a folder.

It is fetched once, verified, and kept in the cache; a folder of somebody's own is never written to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.errors import InfrastructureError, UserError, nearest
from bsp.base.packages.apt import Archive
from bsp.base.process import ToolFailedError, run
from bsp.base.progress import step
from bsp.base.room import hint_of
from bsp.base.trees import Fetching, from_git, from_tarball, ref_named, tarball_named, unpack

OPTION = "--source"
DEFAULT = "distribution:trixie"
FRONTEND = "src/gallium/frontends/teflon"
_PACKAGE = "mesa"
_KINDS = ("distribution", "tarball", "git", "path")


@dataclass(frozen=True)
class MesaTree:
    """A source tree of Mesa on this machine.

    Attributes:
        path: its top folder; not to be written to.
        name: how it was named (``--source``).
        version: what its file VERSION says: ``25.0.7``, ``26.1.0-devel``.
        origin: which one exactly: package version, hash or commit.
        fixed: it is in the cache and never changes; ``path.name`` then tells it from all others.
    """

    path: Path
    name: str
    version: str
    origin: str
    fixed: bool

    @property
    def series(self) -> str:
        """``25.0`` for ``25.0.7``."""
        return ".".join(self.version.split(".")[:2])


def mesa_tree(name: str) -> MesaTree:
    """Return the source that ``name`` stands for, fetching it if need be.

    Raises:
        UserError: ``name`` cannot be read, or what it names is no Mesa with Teflon.
        InfrastructureError: it cannot be fetched, or what came is corrupt.
    """
    kind, rest = _kind_of(name)
    if kind == "path":
        path, origin = Path(rest).expanduser().absolute(), "as it is on disk"
        if not path.is_dir():
            raise UserError(f"{OPTION} {name}: there is no folder {path}")
        version_of(path, name)
    elif kind == "distribution":
        path, origin = _from_distribution(rest)
    elif kind == "tarball":
        path, origin = from_tarball(rest, _FETCHING)
    else:
        path, origin = from_git(rest, _FETCHING)
    return MesaTree(path, name, version_of(path, name), origin, kind != "path")


def check_source_name(name: str) -> None:
    """Check what ``--source`` takes, without fetching anything.

    Raises:
        UserError: it is not such a name, or the folder that it names is not Mesa.
    """
    kind, rest = _kind_of(name)
    if kind == "tarball":
        tarball_named(rest, OPTION)
    elif kind == "git":
        ref_named(rest, _FETCHING)
    elif kind == "path":
        mesa_tree(name)
    elif not re.fullmatch(r"[a-z]+(-[a-z]+)*", rest):
        raise UserError(f"{OPTION} {name}: {rest!r} is not a suite", hint=f"for instance {DEFAULT}")


def version_of(path: Path, name: str) -> str:
    """Return the version of a tree.

    Raises:
        UserError: it is not a tree of Mesa, or of one that has no Teflon yet.
    """
    try:
        version = (path / "VERSION").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        version = ""
    if not re.match(r"\d+\.\d+", version) or not (path / "src/gallium/meson.build").is_file():
        raise UserError(
            f"{OPTION} {name}: {path} is not a source of Mesa (expected a file VERSION with a version, and "
            "src/gallium/meson.build)",
            hint="name the top folder of Mesa's source",
        )
    if not (path / FRONTEND).is_dir():
        raise UserError(
            f"{OPTION} {name}: Mesa {version} has no Teflon yet (no folder {FRONTEND})",
            hint="Teflon came with Mesa 24.1; take a newer one",
        )
    return version


def _kind_of(name: str) -> tuple[str, str]:
    kind, colon, rest = name.partition(":")
    if not colon or kind not in _KINDS or not rest:
        raise UserError(
            f"{OPTION} {name!r} is not a source of Mesa{nearest(kind, list(_KINDS))}",
            hint="name distribution:SUITE, tarball:URL#sha256=..., git:URL@ref or path:DIR",
        )
    return kind, rest


def _place(name: str) -> Path:
    folder = cache_dir() / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"mesa-{name}"


_FETCHING = Fetching(
    option=OPTION,
    what="Mesa source",
    example="https://gitlab.freedesktop.org/mesa/mesa.git@mesa-25.0.7",
    check=version_of,
    place=_place,
)


def _from_distribution(suite: str) -> tuple[Path, str]:
    """The source package as it is built there: the original tarball, and the distribution's patches."""
    check_source_name(f"distribution:{suite}")
    try:
        files = Archive(suite, "arm64", sources=True).source(_PACKAGE)
    except InfrastructureError as error:
        raise InfrastructureError(
            f"the source package of Mesa in {suite} cannot be fetched: {error.message}",
            hint=hint_of(
                error,
                "check the network and the suite's name; distribution:trixie is known to work",
            ),
        ) from error
    original = next((file for file in files if re.search(r"\.orig\.tar\.\w+$", file.name)), None)
    debian = next((file for file in files if ".debian.tar." in file.name), None)
    if original is None or debian is None:
        raise InfrastructureError(f"the source package of Mesa in {suite} is not complete")
    version = debian.name.partition(".debian.tar.")[0].partition("_")[2].replace("%2b", "+")
    version = version.replace("%7e", "~")

    def make(target: Path) -> None:
        with step(f"Unpacking Mesa {version}"):
            unpack(original, target, None, "Mesa source")
            packaging = target.with_name("debian")
            unpack(debian, packaging, None, "Mesa packaging")
            _apply_series(target, packaging / "patches")
            version_of(target, f"distribution:{suite}")

    return make_once(_place(f"{version}-{suite}"), make), f"mesa {version} ({suite})"


def _apply_series(tree: Path, patches: Path) -> None:
    """Put the distribution's patches in, as dpkg-source does."""
    try:
        lines = (patches / "series").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        name = line.split("#")[0].strip()
        if not name:
            continue
        try:
            run(["patch", "--strip=1", "--fuzz=0", "--force", "--no-backup-if-mismatch",
                 "--directory", tree, "--input", patches / name])  # fmt: skip
        except ToolFailedError as error:
            raise InfrastructureError(
                f"the distribution's own patch {name} does not apply to its Mesa: {error.message}"
            ) from error
