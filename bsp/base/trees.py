# SPDX-License-Identifier: MIT
"""Source trees from a tarball or a git repository: fetched once, verified, kept in the cache.

What is named as ``tarball:URL#sha256=HASH``, ``git:URL@REF`` or ``path:DIR``, for kernels and for Mesa.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .cache import make_once
from .errors import InfrastructureError, UserError, nearest
from .process import ToolFailedError, require_unpacker, run
from .progress import step
from .room import hint_of

_HINT = "check the address and the network, then run the same command again"
_GIT_ENV = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}

Parts = tuple[str, ...] | None
"""Patterns of the files that are unpacked; None for all."""


@dataclass(frozen=True)
class Fetching:
    """How a source is fetched.

    Attributes:
        option: the flag that names it, for messages: ``--kernel``.
        what: what it should be: ``kernel source``.
        example: a ref, in a hint: ``https://.../linux.git@v6.12``.
        check: raises a UserError where a folder is no such source; is given the source's name, too.
        place: the folder of the cache for a name, not there yet.
        parts: what is unpacked.
    """

    option: str
    what: str
    example: str
    check: Callable[[Path, str], object]
    place: Callable[[str], Path]
    parts: Parts = None


def label(name: str) -> str:
    """Return a folder name for a source: short, readable, different for different sources."""
    if ":" not in name:
        return name
    words = re.sub(r"[^A-Za-z0-9.+]+", "-", name.split("#")[0].rstrip("/")).strip("-")
    return f"{name.split(':')[0]}-{words[-30:].strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


# --- a tarball -----------------------------------------------------------------------------------


def tarball_named(rest: str, option: str) -> tuple[str, str]:
    """Return (address, SHA-256) of ``URL#sha256=HASH``.

    Raises:
        UserError: it is not written so.
    """
    url, _, fragment = rest.partition("#")
    if not url or not fragment.startswith("sha256="):
        raise UserError(
            f"{option} tarball:{rest} has no hash (expected tarball:URL#sha256=HASH)",
            hint="sha256sum FILE prints it; kernel.org lists it in sha256sums.asc",
        )
    if "://" not in url:
        url = Path(url).expanduser().absolute().as_uri()
    sha256 = fragment.removeprefix("sha256=")
    if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise UserError(
            f"{sha256!r} is not a SHA-256 (64 hexadecimal digits)", hint="sha256sum FILE prints one"
        )
    return url, sha256.lower()


def from_tarball(rest: str, how: Fetching) -> tuple[Path, str]:
    """Return the tree of ``URL#sha256=HASH``, and which one it is.

    Raises:
        UserError: it is not written so, or is no such source.
        InfrastructureError: it cannot be fetched, or what came is corrupt.
    """
    url, sha256 = tarball_named(rest, how.option)

    def make(target: Path) -> None:
        from .download import download

        tarball = download(url, sha256)
        with step(f"Unpacking {tarball.name}"):
            unpack(tarball, target, how.parts, how.what)
            how.check(target, f"tarball:{rest}")

    return make_once(how.place(f"tarball-{sha256[:16]}"), make), f"sha256 {sha256}"


def unpack(tarball: Path, target: Path, parts: Parts, what: str) -> None:
    """Unpack a tarball, or parts of it, without its top folder.

    Raises:
        UserError: it is not an archive, or damaged; what unpacks it is not installed.
    """
    require_unpacker(tarball)
    target.mkdir()
    command: list[str | Path] = ["tar", "--extract", "--file", tarball, "--directory", target,
                                 "--no-same-owner", "--strip-components=1",
                                 # Where this machine's clock is wrong, all files are of the future.
                                 "--warning=no-timestamp"]  # fmt: skip
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
            f"{tarball.name} is not a complete tar archive: {complaints[0]}",
            hint=f"check that the address leads to a {what} tarball",
        )
    _refuse_devices(tarball, target, what)


def _refuse_devices(tarball: Path, target: Path, what: str) -> None:
    """tar keeps everything below the folder that it unpacks to; but as root it makes devices there."""
    for folder, _, names in os.walk(target):
        for name in names:
            kind = os.lstat(f"{folder}/{name}").st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                raise UserError(
                    f"{tarball.name} is no {what}: {name} is not a file, folder or link",
                    hint=f"check that the address leads to a {what} tarball",
                )


# --- git -----------------------------------------------------------------------------------------


def ref_named(rest: str, how: Fetching) -> tuple[str, str]:
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
            f"{how.option} git:{rest} names no ref (expected git:URL@REF)",
            hint=f"a ref is a tag, a branch or a full commit: git:{how.example}",
        )
    if "://" not in url and Path(url).expanduser().is_dir():
        url = Path(url).expanduser().absolute().as_uri()
    return url, ref


def from_git(rest: str, how: Fetching) -> tuple[Path, str]:
    """Return the tree of ``URL@REF``, and its commit.

    Raises:
        UserError: it is not written so, there is no such ref, or it is no such source.
        InfrastructureError: it cannot be fetched.
    """
    url, ref = ref_named(rest, how)
    parts = how.parts
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
                    hint=hint_of(error, _HINT),
                ) from error
            how.check(target, f"git:{rest}")

    return make_once(how.place(f"git-{commit}"), make), f"commit {commit}"


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
    lines = error.completed.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else error.message
