# SPDX-License-Identifier: MIT
"""Debian packages of any suite and architecture, without touching the host's own package system.

apt is run with a private configuration: its own lists, cache and an empty package status. Mirror and keys
are those of ``debian.py``. apt verifies the archive's signature and each package's hash.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import cache_dir, keep, lock, make_once, write_atomically
from ..download import download
from ..errors import InfrastructureError, UserError
from ..process import Completed, ToolFailedError, run
from ..progress import say, step
from ..room import hint_of
from . import pins
from .debian import debian_keyring
from .debian import debian_mirror as debian_mirror
from .host_apt import STRICT

_LISTS_FRESH_S = 24 * 3600


@dataclass(frozen=True)
class Archive:
    """A view of the Debian archive: one suite, or a suite and its backports.

    Attributes:
        suite: ``trixie``, ``trixie-backports``, ``bookworm``...; a backports suite brings its base
            suite along, and wins over it.
        architecture: Debian's name: ``amd64``, ``arm64``, ``all``.
        sources: also read the lists of source packages (8 MB more), for ``source``.
    """

    suite: str
    architecture: str
    sources: bool = False

    @property
    def folder(self) -> Path:
        """The private apt folder."""
        name = f"{self.suite}-{self.architecture}{'-sources' if self.sources else ''}"
        return cache_dir() / "apt" / name

    def newest(self, pattern: str) -> str:
        """Return the name of the newest package that matches a regular expression.

        Raises:
            UserError: no package matches.
        """
        import re

        self._refresh()
        all_names = self._apt("apt-cache", "pkgnames").text.split()
        names = [name for name in all_names if re.fullmatch(pattern, name)]
        if not names:
            raise UserError(f"no package in {self.suite} ({self.architecture}) matches {pattern!r}")

        def natural(name: str) -> list[tuple[int, str]]:
            return [(int(part), "") if part.isdigit() else (-1, part)
                    for part in re.split(r"(\d+)", name)]  # fmt: skip

        return max(names, key=natural)

    def version(self, package: str) -> str:
        """Return the version that this archive would install.

        Raises:
            UserError: the archive has no such package.
        """
        self._refresh(f"version {package}")

        def ask() -> list[str]:
            for line in self._apt("apt-cache", "policy", package).text.splitlines():
                label, _, value = line.strip().partition(": ")
                if label == "Candidate" and value != "(none)":
                    return [value]
            raise UserError(f"Debian {self.suite} ({self.architecture}) has no package {package!r}")

        return self._answer(f"version {package}", ask)[0]

    def download(self, packages: Sequence[str], *, with_dependencies: bool = False) -> list[Path]:
        """Return the .deb files of ``packages`` (and of all that they depend on), verified by apt."""
        with lock(self.folder / "download.lock"):
            if with_dependencies:
                command = ["apt-get", "install", "--yes", "--no-install-recommends"]
            else:
                command = ["apt-get", "download"]
            question = f"{' '.join(command)} {' '.join(packages)}"
            self._refresh(question)

            def plan() -> list[str]:
                # apt leaves out what its archive folder holds already: show it an empty one.
                nothing = f"Dir::Cache::Archives={self.folder / 'nothing'}/"
                planned = self._apt(*command, "-o", nothing, "--print-uris", *packages).text
                # Each line: 'address' file-name size hash
                return re.findall("^'.*' (\\S+)", planned, re.MULTILINE)

            names = self._answer(question, plan)
            archives = self.folder / "archives"
            missing = [name for name in names if not (archives / name).exists()]
            if missing:
                with step(f"Fetching {_these(packages)} from Debian {self.suite}") as progress:
                    progress.note(f"{len(missing)} of {len(names)} packages")
                    if self._pinned(question):
                        self._fetch_pinned(missing)
                    elif with_dependencies:
                        self._apt(*command, "--download-only", *packages)
                    else:
                        self._apt(*command, *packages, cwd=archives)
            files = [archives / name for name in names]
            chosen = pins.current()
            if chosen is not None:
                for file in files:
                    chosen.check(file)
            return files

    def _pinned(self, question: str) -> bool:
        """Whether a lock file answers a question."""
        chosen = pins.current()
        return chosen is not None and chosen.knows(self._full(question))

    def _full(self, question: str) -> str:
        return f"{self.suite} {self.architecture}: {question}"

    def _fetch_pinned(self, names: Sequence[str]) -> None:
        """Fetch packages in exactly the versions that their files' names say.

        Raises:
            UserError: the mirror no longer has one.
        """
        chosen = pins.current()
        if chosen is None:
            raise RuntimeError("the packages are asked for without pinned answers")
        self._refresh("")  # where they are is only in the lists
        for name in names:
            package, version, _ = name.removesuffix(".deb").split("_")
            exact_version = f"{package}={version.replace('%3a', ':')}"
            try:
                self._apt("apt-get", "download", exact_version, cwd=self.folder / "archives")
            except ToolFailedError as error:
                raise chosen.gone(name) from error

    def unpacked(
        self,
        packages: Sequence[str],
        *,
        with_dependencies: bool = False,
        alone: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> Path:
        """Return a cached folder that holds the files of ``packages``, unpacked, not configured.

        Args:
            alone: more packages, without what they depend on.
            without: patterns of paths of files that are left out.
        """
        import hashlib

        debs = self.download(packages, with_dependencies=with_dependencies)
        if alone:
            debs = [*debs, *self.download(alone)]
        described = "\n".join([*(deb.name for deb in debs), *without])
        key = hashlib.sha256(described.encode()).hexdigest()[:16]

        def make(target: Path) -> None:
            with step(f"Unpacking {_these([*packages, *alone])}"):
                target.mkdir()
                for deb in debs:
                    run(["dpkg-deb", "--extract", deb, target])
                    for file in (file for pattern in without for file in target.glob(pattern)):
                        file.unlink()

        folder = cache_dir() / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        return make_once(folder / f"{packages[0]}-{self.architecture}-{key}", make)

    def source(self, package: str) -> list[Path]:
        """Return the tarballs of a source package, by the hashes that apt vouches for; needs ``sources``.

        The .dsc is left out: its content is what the archive's signed list says already, and some mirrors
        have none.
        """
        self._refresh()

        def plan() -> list[str]:
            command = ("apt-get", "source", "--print-uris", "--only-source", package)
            # Each line: 'address' file-name size SHA256:hash
            lines = [line.split() for line in self._apt(*command).text.splitlines()]
            return [
                f"{re.sub('^copy:', 'file:', words[0].strip(quote))} {words[3].removeprefix('SHA256:')}"
                for words in lines
                if len(words) == 4 and words[3].startswith("SHA256:") and ".tar." in words[1]
            ]

        quote = "'"
        tarballs = [line.split() for line in self._answer(f"tarballs of {package}", plan)]
        if not tarballs:
            raise UserError(f"Debian {self.suite} has no source package {package!r}")
        return [download(address, sha256) for address, sha256 in tarballs]

    def _answer(self, question: str, ask: Callable[[], list[str]]) -> list[str]:
        """Return what apt answers, remembered as long as the package lists stay as they are.

        A start of apt costs half a second; a task that finds everything cached is to start none.
        """
        chosen = pins.current()
        if chosen is not None:
            return chosen.answer(self._full(question), lambda: self._remembered(question, ask))
        return self._remembered(question, ask)

    def _remembered(self, question: str, ask: Callable[[], list[str]]) -> list[str]:
        memory = self.folder / "answers.json"
        state = str((self.folder / "updated").stat().st_mtime_ns)
        try:
            remembered = json.loads(memory.read_bytes())
            answers = dict(remembered["answers"]) if remembered["lists"] == state else {}
        except (OSError, ValueError, KeyError, TypeError):
            answers = {}
        if question not in answers:
            answers[question] = ask()
            keep(memory, json.dumps({"lists": state, "answers": answers}).encode())
        return [str(line) for line in answers[question]]

    def _refresh(self, question: str = "") -> None:
        """Fetch the package lists, at most once a day; without a network the last ones serve.

        Args:
            question: what they are needed for; a lock file may answer it without them.
        """
        chosen = pins.current()
        if question and self._pinned(question):
            return
        fresh_since = time.time() - _LISTS_FRESH_S
        if chosen is not None and chosen.recording:
            fresh_since = max(fresh_since, chosen.fresh_since)
        stamp = self.folder / "updated"
        with lock(self.folder / "lists.lock"):
            configuration = self._configuration().encode()
            current = self.folder / "apt.conf"
            same = current.exists() and current.read_bytes() == configuration
            if same and stamp.exists() and stamp.stat().st_mtime > fresh_since:
                return
            for name in ("lists/partial", "archives/partial", "sources.list.d", "preferences.d"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            (self.folder / "status").touch()
            write_atomically(self.folder / "sources.list", self._sources().encode())
            write_atomically(current, configuration)
            try:
                with step(f"Reading Debian {self.suite} package lists ({self.architecture})"):
                    self._apt("apt-get", "update", "--error-on=any")
            except ToolFailedError as error:
                if not (same and stamp.exists()):
                    raise InfrastructureError(
                        f"cannot read the package lists of Debian {self.suite}:\n{error.message}",
                        hint="the keys of Debian on this machine do not know that suite: install "
                        "debian-archive-keyring of 2023 or later"
                        if "NO_PUBKEY" in error.message
                        else hint_of(
                            error,
                            "check the network and `apt-get update`; "
                            "NPU_BSP_DEBIAN_MIRROR sets another mirror",
                        ),
                    ) from error
                say(f"the package lists of {self.suite} could not be renewed; using the last ones")
                return
            stamp.touch()

    def _sources(self) -> str:
        base_suite, _, extra = self.suite.partition("-")
        suites = [base_suite] if not extra else [base_suite, self.suite]
        # Of a folder of this machine, too, apt is to put the files into its cache.
        mirror = re.sub("^file:", "copy:", debian_mirror()).replace(" ", "%20")
        signed_by = f"signed-by={debian_keyring()}"
        kinds = ("deb", "deb-src") if self.sources else ("deb",)
        return "".join(
            f"{kind} [{signed_by}] {mirror} {suite} main\n" for suite in suites for kind in kinds
        )

    def _configuration(self) -> str:
        folder = self.folder
        release = f'APT::Default-Release "{self.suite}";' if "-" in self.suite else ""
        return f"""\
APT::Architecture "{self.architecture}";
APT::Architectures {{ "{self.architecture}"; }};
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "";
{release}
Acquire::Languages "none";
Acquire::Retries "3";
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "{folder}/sources.list.d";
Dir::Etc::Preferences "{folder}/preferences";
Dir::Etc::PreferencesParts "{folder}/preferences.d";
Dir::State "{folder}";
Dir::State::Lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}";
Dir::Cache::Archives "{folder}/archives";
"""

    def _apt(self, *argv: str, cwd: Path | None = None) -> Completed:
        environment = {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C"}
        return run([argv[0], *STRICT, *argv[1:]], env=environment, cwd=cwd, timeout_s=1800)


def unpacked_program(root: Path, program: str) -> list[str]:
    """Return the start of a command line that runs a program of unpacked packages.

    It is started through the dynamic linker that lies beside it, so that it finds its own C library
    whatever this machine has.

    Args:
        root: what ``Archive.unpacked`` returned, with the program's dependencies.
        program: its path there (``usr/bin/qemu-img``).

    Raises:
        InfrastructureError: it is not complete.
    """
    linkers = sorted(root.glob("usr/lib/*-linux-gnu*/ld-linux*.so.*"))
    path = root / program
    if not linkers or not path.exists():
        raise InfrastructureError(
            f"what was unpacked is not complete: no {program} or no dynamic linker in {root}",
            hint=f"rm -r {root} and run the same command again",
        )
    return [str(linkers[0]), "--library-path", str(linkers[0].parent), str(path)]


def _these(packages: Sequence[str]) -> str:
    """In words: ``qemu-user and 2 more``; apt's patterns (``?and(...)``) stand for the base system."""
    names = ["the base system" if name.startswith("?") else name for name in packages]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
