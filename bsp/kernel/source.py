# SPDX-License-Identifier: MIT
"""Kernel trees: fetched once, verified, cached outside the project.

A source is named as ``6.12`` (the distribution's source package of that series),
``tarball:URL#sha256=HASH``, ``git:URL@REF`` or ``path:DIR``. For device trees only the files that they
are made of are unpacked, a fifteenth of the whole.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base.cache import cache_dir, make_once
from ..base.errors import InfrastructureError, UserError, nearest
from ..base.process import ToolFailedError, require_unpacker, run
from ..base.progress import step
from .distribution import all_series, packaged, series_named

# What a device tree of arch/arm64 may include, and what tells which kernel it is. fnmatch patterns
# below the top folder; `*` does not match a slash; a folder stands for all that is below it.
_DTS_PARTS = (
    "Makefile",
    "arch/arm64/boot/dts",
    "arch/arm/boot/dts/*.dtsi",
    "arch/arm/boot/dts/*.h",
    "arch/arm/boot/dts/*/*.dtsi",
    "arch/arm/boot/dts/*/*.h",
    "arch/arm/boot/dts/allwinner",
    "arch/arm/boot/dts/broadcom",  # the Raspberry Pis of arm64 include those of arm
    "arch/arm/boot/dts/st",
    "arch/arm/boot/dts/bcm2*.dts",  # and the same before 6.5, which had no folders there
    "arch/arm/boot/dts/stm32*.dts",
    "arch/arm/boot/dts/sun*.dts",
    "arch/riscv/boot/dts/*/*.dtsi",
    "arch/riscv/boot/dts/*/*.h",
    "include/dt-bindings",
    "include/uapi/linux/input-event-codes.h",  # include/dt-bindings/input links there
    "scripts/dtc/include-prefixes",
    # what says which NPUs the kernel's drivers know, and which rates its clocks reach
    "drivers/gpu/drm/etnaviv/etnaviv_gpu.c",
    "drivers/gpu/drm/etnaviv/etnaviv_hwdb.c",
    "drivers/accel/*/*_drv.c",
    "drivers/clk/imx/clk-composite-8m.c",
    "drivers/clk/imx/clk-composite-93.c",
    "drivers/clk/imx/clk-imx8mp.c",
    "drivers/clk/imx/clk-imx93.c",
    "drivers/clk/meson/g12a.c",
    "drivers/clk/rockchip/clk-rk3588.c",
    "drivers/clk/sunxi-ng/ccu-sun55i-a523.c",
)

# What device trees are checked against.
BINDINGS = "Documentation/devicetree/bindings"
_BINDINGS_PARTS = ("Makefile", "arch/arm64/boot/dts/Makefile", BINDINGS)

_GIT_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


@dataclass(frozen=True)
class KernelTree:
    """A kernel source tree on this machine, whole or in part.

    Attributes:
        path: its top folder; not to be written to.
        name: how the source was named (``--kernel``).
        label: the same as a folder name.
        release: ``6.12.107``, from its Makefile.
        origin: which one exactly: package version, hash or commit.
        fixed: it is in the cache and never changes; ``path.name`` then tells it from all others.
    """

    path: Path
    name: str
    label: str
    release: str
    origin: str
    fixed: bool

    @property
    def series(self) -> str:
        """``6.12`` for ``6.12.107``."""
        return ".".join(self.release.split(".")[:2])


def kernel_tree(name: str, *, whole: bool = False, bindings: bool = False) -> KernelTree:
    """Return the kernel tree that ``name`` stands for, fetching it if need be.

    Args:
        name: ``6.12``, ``tarball:URL#sha256=HASH``, ``git:URL@REF`` or ``path:DIR``.
        whole: all of the source, not just what device trees need.
        bindings: a tree that has the bindings (``Documentation/devicetree/bindings``) and may have no
            more than them.

    Raises:
        UserError: ``name`` cannot be read, or what it names is no kernel tree.
        InfrastructureError: it cannot be fetched, or what came is corrupt.
    """
    parts = None if whole else _BINDINGS_PARTS if bindings else _DTS_PARTS
    kind, colon, rest = name.partition(":")
    makers = {"tarball": _from_tarball, "git": _from_git}
    if not colon:
        path, origin = _from_distribution(name, parts)
    elif kind == "path":
        path, origin = Path(rest).expanduser().absolute(), "as it is on disk"
        if not path.is_dir():
            raise UserError(f"--kernel {name}: there is no folder {path}")
    elif kind in makers:
        path, origin = makers[kind](rest, parts)
    else:
        raise UserError(
            f"unknown kind of kernel source {kind!r} in {name!r}{nearest(kind, [*makers, 'path'])}",
            hint=f"name {', '.join(all_series())}, tarball:URL#sha256=..., git:URL@ref or path:DIR",
        )
    return KernelTree(path, name, label(name), _release(path, name), origin, kind != "path")


def check_source_name(name: str) -> None:
    """Check what ``--kernel`` takes, without fetching anything.

    Raises:
        UserError: it is not such a name, or the folder that it names is no kernel tree.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        series_named(name)
    elif kind == "tarball":
        _tarball_named(rest)
    elif kind == "git":
        _ref_named(rest)
    else:
        kernel_tree(name)  # a folder; or no kind that there is


def label(name: str) -> str:
    """Return a folder name for a kernel source: short, readable, different for different sources."""
    if ":" not in name:
        return name
    words = re.sub(r"[^A-Za-z0-9.+]+", "-", name.split("#")[0].rstrip("/")).strip("-")
    return f"{name.split(':')[0]}-{words[-30:].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _release(path: Path, name: str) -> str:
    """Return ``6.12.107`` from the Makefile of a kernel tree.

    Raises:
        UserError: it is no kernel tree.
    """
    try:
        with (path / "Makefile").open(encoding="utf-8", errors="replace") as makefile:
            top = makefile.read(4096)
    except OSError:
        top = ""
    parts = [re.search(rf"^{word} *= *(\d+)", top, re.M) for word in
             ("VERSION", "PATCHLEVEL", "SUBLEVEL")]  # fmt: skip
    if not all(parts) or not (path / "arch/arm64/boot/dts").is_dir():
        raise UserError(
            f"--kernel {name}: {path} is no Linux source tree "
            "(expected a Makefile with VERSION and a folder arch/arm64/boot/dts)",
            hint="name the top folder of the kernel source",
        )
    return ".".join(part.group(1) for part in parts if part)


Parts = tuple[str, ...] | None
"""Patterns of the files that are unpacked; None for all."""


def _target(name: str, parts: Parts) -> Path:
    """Return where in the cache a tree belongs; trees of other parts lie beside each other."""
    folder = cache_dir() / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    name = name.replace(":", "-")
    if parts is None:
        return folder / f"{name}-whole"
    kind = "bindings" if parts == _BINDINGS_PARTS else "dts"
    if kind == "bindings" and (folder / f"{name}-whole").exists():
        return folder / f"{name}-whole"
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    return folder / f"{name}-{kind}-{key}"


# --- the distribution's source package -----------------------------------------------------------


def _from_distribution(series: str, parts: Parts) -> tuple[Path, str]:
    series_named(series)
    suite, package, version = packaged(series, image=False)

    def make(target: Path) -> None:
        from ..base.packages.apt import Archive

        debs = Archive(suite, "arm64").download([package])
        with step(f"Unpacking {package}"):
            unpacked = target.with_name("deb")
            run(["dpkg-deb", "--extract", debs[0], unpacked])
            tarballs = sorted(unpacked.glob("usr/src/*.tar.xz"))
            if len(tarballs) != 1:
                raise InfrastructureError(f"{package} {version} holds no single usr/src/*.tar.xz")
            _unpack(tarballs[0], target, parts)
            _release(target, series)  # what is no kernel tree must not get into the cache

    return make_once(_target(f"{package}_{version}", parts), make), f"{package} {version}"


# --- a tarball -----------------------------------------------------------------------------------


def _tarball_named(rest: str) -> tuple[str, str]:
    """Return (address, SHA-256) of ``URL#sha256=HASH``.

    Raises:
        UserError: it is not written so.
    """
    url, _, fragment = rest.partition("#")
    if not url or not fragment.startswith("sha256="):
        raise UserError(
            f"--kernel tarball:{rest} has no hash (expected tarball:URL#sha256=HASH)",
            hint="sha256sum FILE prints it; kernel.org lists it in sha256sums.asc",
        )
    if "://" not in url:
        url = Path(url).expanduser().absolute().as_uri()
    sha256 = fragment.removeprefix("sha256=")
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(
            f"{sha256!r} is no SHA-256 (64 hexadecimal digits)", hint="sha256sum FILE prints one"
        )
    return url, sha256.lower()


def _from_tarball(rest: str, parts: Parts) -> tuple[Path, str]:
    url, sha256 = _tarball_named(rest)

    def make(target: Path) -> None:
        from ..base.download import download

        tarball = download(url, sha256)
        with step(f"Unpacking {tarball.name}"):
            _unpack(tarball, target, parts)
            _release(target, f"tarball:{rest}")

    return make_once(_target(f"tarball-{sha256[:16]}", parts), make), f"sha256 {sha256}"


def _unpack(tarball: Path, target: Path, parts: Parts) -> None:
    """Unpack a kernel tarball, or the part that device trees need, without its top folder.

    Raises:
        UserError: it is no archive, or damaged; what unpacks it is not installed.
    """
    require_unpacker(tarball)
    target.mkdir()
    command: list[str | Path] = ["tar", "--extract", "--file", tarball, "--directory", target,
                                 "--no-same-owner", "--strip-components=1"]  # fmt: skip
    if parts is not None:
        command += [
            "--wildcards",
            "--no-wildcards-match-slash",
            *(f"*/{part}" for part in parts),
        ]
    done = run(command, env={"LC_ALL": "C"}, check=False)
    # Not every kernel has every part; anything else that tar says is real.
    complaints = [
        line
        for line in done.stderr.decode(errors="replace").splitlines()
        if "Not found in archive" not in line and "due to previous errors" not in line
    ]
    if done.exit_code != 0 and complaints:
        raise UserError(
            f"{tarball.name} is no complete tar archive: {complaints[0]}",
            hint="check that the address leads to a kernel source tarball",
        )
    _refuse_devices(tarball, target)


def _refuse_devices(tarball: Path, target: Path) -> None:
    """tar keeps everything below the folder that it unpacks to; but as root it makes devices there."""
    for folder, _, names in os.walk(target):
        for name in names:
            kind = os.lstat(f"{folder}/{name}").st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise UserError(
                    f"{tarball.name} is no kernel source: {name} is no file, folder or link",
                    hint="check that the address leads to a kernel source tarball",
                )


# --- git -----------------------------------------------------------------------------------------


def _ref_named(rest: str) -> tuple[str, str]:
    """Return (address, ref) of ``URL@REF``.

    Raises:
        UserError: it is not written so.
    """
    url, at, ref = rest.rpartition("@")
    if (
        not at
        or not url
        or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/+-]*", ref)
        or url[0] == "-"
    ):
        raise UserError(
            f"--kernel git:{rest} names no ref (expected git:URL@REF)",
            hint="a ref is a tag, a branch or a full commit: git:https://.../linux.git@v6.12",
        )
    if "://" not in url and Path(url).expanduser().is_dir():
        url = Path(url).expanduser().absolute().as_uri()
    return url, ref


def _from_git(rest: str, parts: Parts) -> tuple[Path, str]:
    url, ref = _ref_named(rest)
    commit = ref if re.fullmatch("[0-9a-f]{40}", ref) else _commit_of(url, ref)

    def make(target: Path) -> None:
        with step(f"Fetching {ref} from {url}"):
            git: list[str | Path] = ["git", "-C", target]
            run(["git", "init", "--quiet", target], env=_GIT_ENV)
            run([*git, "remote", "add", "origin", url], env=_GIT_ENV)
            if parts is not None:
                run([*git, "config", "core.sparseCheckout", "true"], env=_GIT_ENV)
                patterns = "".join(f"/{part}\n" for part in parts)
                (target / ".git/info").mkdir(exist_ok=True)
                (target / ".git/info/sparse-checkout").write_text(patterns, encoding="utf-8")
            lazily = [] if parts is None else ["--filter=blob:none"]
            try:
                run([*git, "fetch", "--quiet", "--depth=1", "--no-tags", *lazily, "origin", commit],
                    env=_GIT_ENV)  # fmt: skip
                run([*git, "checkout", "--quiet", "--detach", commit], env=_GIT_ENV)
            except ToolFailedError as error:
                raise InfrastructureError(
                    f"cannot fetch {ref} from {url}:\n{_last_line(error)}",
                    hint="check the address and the network, then run the same command again",
                ) from error
            _release(target, f"git:{rest}")

    return make_once(_target(f"git-{commit}", parts), make), f"commit {commit}"


def _commit_of(url: str, ref: str) -> str:
    """Return the commit that a tag or branch stands for now.

    Raises:
        UserError: the repository has no such ref.
        InfrastructureError: it does not answer.
    """
    try:
        listed = run(
            ["git", "ls-remote", "--heads", "--tags", url], env=_GIT_ENV, timeout_s=120
        ).text
    except ToolFailedError as error:
        raise InfrastructureError(
            f"cannot read the git repository {url}:\n{_last_line(error)}",
            hint="check the address and the network",
        ) from error
    lines = [line.partition("\t") for line in listed.splitlines()]
    commits = {name: commit for commit, _, name in lines}
    # A tag's own object comes first, the commit that it tags with ^{} after it.
    for name in (f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref):
        if name in commits:
            return commits[name]
    short = [name.split("/", 2)[2] for name in commits if not name.endswith("^{}")]
    raise UserError(
        f"the git repository {url} has no tag or branch {ref!r}{nearest(ref, short)}",
        hint="git ls-remote URL lists them; a commit needs all 40 digits",
    )


def _last_line(error: ToolFailedError) -> str:
    said = error.completed.stderr.decode(errors="replace").strip().splitlines()
    return said[-1] if said else error.message


@functools.cache
def board_sources(folder: Path) -> Sequence[str]:
    """Return the names (without ``.dts``) of the boards in a folder of device tree sources."""
    return sorted(entry.name[:-4] for entry in os.scandir(folder) if entry.name.endswith(".dts"))
