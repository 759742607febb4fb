# SPDX-License-Identifier: MIT
"""This machine's own apt, asked as an ordinary user: its sources and keys, with lists of our own.

What apt fetches that way is verified as for the system itself: by the archive's signature, and each package
by its hash. The system's packages, lists and caches stay as they are.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ..cache import cache_dir, lock, write_atomically
from ..errors import InfrastructureError
from ..progress import step
from ..room import hint_of
from ..spawn import Completed, ToolFailedError, find_tool, spawn

_STATUS = Path("/var/lib/dpkg/status")
_HINT = "check the network, and what apt is set up with: apt-get update"
_FRESH_S = 24 * 3600
# Last on the command line, where no file in /etc/apt changes them: nothing is taken unverified.
STRICT = (
    "-o", "APT::Get::AllowUnauthenticated=false",
    "-o", "Acquire::AllowInsecureRepositories=false",
    "-o", "Acquire::AllowWeakRepositories=false",
    "-o", "Acquire::AllowDowngradeToInsecureRepositories=false",
)  # fmt: skip


def is_there() -> bool:
    """Whether this machine has apt and dpkg."""
    return all(find_tool(name) for name in ("apt-get", "dpkg-deb")) and _STATUS.exists()


def packages(names: Sequence[str]) -> list[Path]:
    """Return the .deb files of packages, and of what they depend on and this machine lacks.

    Raises:
        InfrastructureError: they cannot be fetched.
    """
    folder = _folder()
    with lock(folder / "apt.lock"):
        _refresh(folder)
        archives = folder / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        words = ["install", "--yes", "--no-install-recommends", "--reinstall", "--download-only"]
        with step(f"Fetching {' and '.join(names)}, to be used from the cache"):
            try:
                listed = _apt(folder, "apt-get", *words, "--print-uris", *names).text
                _apt(folder, "apt-get", *words, *names)
            except ToolFailedError as error:
                raise InfrastructureError(
                    f"apt cannot fetch {' '.join(names)}: {error.message.splitlines()[-1]}",
                    hint=hint_of(error, _HINT),
                ) from error
        # Of an archive that is a folder of this machine, apt verifies the files where they are.
        in_place = map(Path, re.findall("^'file:([^']+)'", listed, re.MULTILINE))
        return sorted([*archives.glob("*.deb"), *in_place])


def unpack(names: Sequence[str], target: Path) -> None:
    """Put the files of packages, and of what they lack here, into a new folder; nothing is configured."""
    files = packages(names)
    target.mkdir()
    for file in files:
        spawn(["dpkg-deb", "--extract", file, target])


def mirrors() -> list[tuple[str, str, str]]:
    """Return (origin, suite, address) of each source of this machine's apt, with lists of our own."""
    folder = _folder()
    with lock(folder / "apt.lock"):
        _refresh(folder)
        listed = _apt(folder, "apt-get", *INDEX_TARGETS).text
    return read_targets(listed)


INDEX_TARGETS = ("indextargets", "--format", "$(ORIGIN)|$(RELEASE)|$(REPO_URI)",
                 "Created-By: Packages")  # fmt: skip


def read_targets(listed: str) -> list[tuple[str, str, str]]:
    """Take apart what apt says to ``INDEX_TARGETS``; an origin may be several words."""
    words = [tuple(line.split("|")) for line in listed.splitlines()]
    return [(fields[0], fields[1], fields[2]) for fields in words if len(fields) == 3]


def _folder() -> Path:
    return cache_dir() / "apt" / "this-machine"


def _refresh(folder: Path) -> None:
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_STATUS, folder / "status")
    configuration = (
        f'Dir::State "{folder}";\nDir::State::Lists "{folder}/lists";\n'
        f'Dir::State::status "{folder}/status";\nDir::Cache "{folder}";\n'
        f'Dir::Cache::Archives "{folder}/archives";\nAPT::Sandbox::User "";\n'
        'Acquire::Languages "none";\nAcquire::Retries "3";\n'
    )
    write_atomically(folder / "apt.conf", configuration.encode())
    stamp = folder / "updated"
    if stamp.exists() and time.time() - stamp.stat().st_mtime < _FRESH_S:
        return
    with step("Reading the package lists of this machine's distribution"):
        done = _apt(folder, "apt-get", "update", check=False)
    if done.exit_code == 0:
        stamp.touch()
    elif not stamp.exists() and not any((folder / "lists").glob("*_Packages*")):
        raise InfrastructureError(
            "apt cannot read the package lists of this machine's distribution:\n"
            + "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-4:]),
            hint=hint_of(done.stderr.decode(errors="replace"), _HINT),
        )


def _apt(folder: Path, *argv: str, check: bool = True) -> Completed:
    environment = {
        "APT_CONFIG": str(folder / "apt.conf"),
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    words = [argv[0], *STRICT, "-o", f"Dir::Cache::Archives={folder}/archives", *argv[1:]]
    return spawn(words, env=environment, timeout_s=1800, check=check)
