# SPDX-License-Identifier: MIT
"""Which device tree sources of a kernel can have an NPU at all.

A string can get into a compiled tree only from a file that the source includes, so a source none of whose
included files has any of the telling words need not be compiled. The rest is compiled, and decided there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_INCLUDE = re.compile(rb"^[ \t]*(?:#[ \t]*include[ \t]+|/include/[ \t]+)([^\s]+)", re.M)


@dataclass(frozen=True)
class Source:
    """A board's device tree source: ``arch/ARCH/boot/dts/DIRECTORY/STEM.dts``."""

    arch: str
    directory: str
    stem: str

    @property
    def name(self) -> str:
        """As it is shown: ``freescale/imx8mp-evk``; ``arm/st/...`` outside arm64."""
        path = f"{self.directory}/{self.stem}"
        return path if self.arch == "arm64" else f"{self.arch}/{path}"


def all_sources(tree: Path) -> list[Source]:
    """Return every board of a kernel tree, sorted: all of arm64, and what the tree has of arm."""
    sources = []
    for arch in ("arm64", "arm"):
        top = tree / "arch" / arch / "boot/dts"
        for folder, folders, files in os.walk(top):
            folders.sort()
            directory = os.path.relpath(folder, top)
            sources += [
                Source(arch, directory, file.removesuffix(".dts"))
                for file in sorted(files)
                if file.endswith(".dts")
            ]
    return sources


class Closures:
    """Reads each file once, and says what words the files have that a source includes.

    Args:
        tree: a kernel tree.
        words: sets of words; a source counts if for one set all words are somewhere in its files.
    """

    def __init__(self, tree: Path, words: Iterable[frozenset[str]]) -> None:
        self._sets = tuple(words)
        alphabet = sorted({word for group in self._sets for word in group}, key=len, reverse=True)
        self._find = re.compile(b"|".join(re.escape(word.encode()) for word in alphabet))
        self._prefixes = str(tree / "scripts/dtc/include-prefixes")
        self._resolved: dict[tuple[str, str], str | None] = {}
        self._files: dict[str, tuple[frozenset[str], tuple[str, ...], bool]] = {}

    def may_have(self, source: Path) -> bool:
        """Whether a source has to be compiled to know: it has the words, or cannot be followed."""
        words: set[str] = set()
        visited: set[str] = set()
        waiting = [str(source)]
        while waiting:
            path = waiting.pop()
            if path in visited:
                continue
            visited.add(path)
            mine, includes, followed = self._read(path)
            if not followed:
                return True
            words |= mine
            waiting += includes
        return any(required <= words for required in self._sets)

    def _read(self, path: str) -> tuple[frozenset[str], tuple[str, ...], bool]:
        entry = self._files.get(path)
        if entry is None:
            try:
                content = Path(path).read_bytes()
            except OSError:  # a link that leads nowhere: who compiles it says so
                entry = self._files[path] = frozenset(), (), False
                return entry
            words = frozenset(word.decode() for word in self._find.findall(content))
            includes, followed = [], True
            for match in _INCLUDE.finditer(content):
                target = match.group(1).decode(errors="replace")
                if target[:1] not in '"<':
                    followed = False  # a macro names the file
                elif not target.strip('"<>').startswith("dt-bindings/"):  # those define numbers
                    included = self._resolve(path.rpartition("/")[0], target)
                    followed = followed and included is not None
                    includes += [included] if included else []
            entry = self._files[path] = words, tuple(includes), followed
        return entry

    def _resolve(self, folder: str, target: str) -> str | None:
        """Return the file that an include means, as cpp finds it; None if there is none."""
        key = (folder, target)
        if key not in self._resolved:
            name = target.strip('"<>')
            places = [folder, self._prefixes] if target[0] == '"' else [self._prefixes]
            candidates = (Path(place, name) for place in places)
            file_found = next((file for file in candidates if file.is_file()), None)
            self._resolved[key] = os.path.realpath(file_found) if file_found else None
        return self._resolved[key]
