# SPDX-License-Identifier: MIT
"""Lock files: each input of a board's bundle by version and SHA-256; builds use exactly those inputs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import write_atomically
from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.packages import pins
from bsp.base.packages.apt import Archive
from bsp.base.progress import say, step
from bsp.base.project import PROJECT
from bsp.base.result import Result
from bsp.base.words import counted
from bsp.kernel.distribution import packaged, series_named
from bsp.kernel.select import is_build, record_file
from bsp.profile import Board
from userspace.payload.plan import plan_payload

FORMAT = 1


class Input(msgspec.Struct, frozen=True):
    """One input of a bundle.

    Attributes:
        kind: ``package``, ``source``, ``wheel``, ``kernel build``, ``model``...
        sha256: of its content; "" where another input has the hash, or ``sha256_any`` has several.
        sha256_any: of each file that is accepted: a wheel has one file for each Python and machine.
    """

    kind: str
    name: str
    version: str
    sha256: str = ""
    sha256_any: tuple[str, ...] = ()


class LockFile(msgspec.Struct, frozen=True):
    """The content of a lock file.

    Attributes:
        answers: query to a package list -> its result.
        files: name of a fetched package -> its SHA-256.
    """

    format: int
    board: str
    kernel: str
    inputs: tuple[Input, ...]
    answers: dict[str, list[str]]
    files: dict[str, str]


@dataclass(frozen=True)
class Locked(Result):
    """The result of ``lock``.

    Attributes:
        content: the lock file.
        changes: (what, before, now); empty for a new file.
    """

    path: Path
    content: LockFile
    changes: tuple[tuple[str, str, str], ...] = ()
    written: bool = False
    notes: tuple[str, ...] = field(default=())

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "file": str(self.path),
            "written": self.written,
            "board": self.content.board,
            "kernel": self.content.kernel,
            "inputs": msgspec.to_builtins(self.content.inputs),
            "changes": [
                {"input": what, "before": before, "now": now} for what, before, now in self.changes
            ],
        }

    def text(self) -> str:
        """For people."""
        inputs = self.content.inputs
        rows = [[entry.kind, entry.name, entry.version] for entry in inputs]
        if self.changes:
            rows = [[what, before or "-", now or "-"] for what, before, now in self.changes]
            listing = table(["changed", "before", "now"], rows)
        elif self.notes:
            listing = "\n".join(self.notes)
        else:
            listing = table(["kind", "input", "version"], rows)
        return f"{listing}\n{counted(len(inputs), 'input')}, {self.path}"


def default_file(board: Board) -> Path:
    """Return the path where builds look for the lock file of a board."""
    return PROJECT / "build" / f"{board.name}.lock.json"


def lock(
    board: Board, *, kernel: str | None, file: str = "", update: bool = False, dry_run: bool = False
) -> Locked:
    """Write the lock file of a board; an existing one is changed only with ``update``.

    Raises:
        UserError: the kernel is neither a series of the distribution nor a build; the file is not readable.
        InfrastructureError: an input cannot be fetched.
    """
    path = Path(file) if file else default_file(board)
    before = read(path) if path.exists() else None
    if before is not None and not update:
        note = "the lock file exists already; --update renews it and shows what changes"
        return Locked(path, before, notes=(note,))
    series = kernel or (before.kernel if before else "") or board.kernel
    if not is_build(series):
        series_named(series)
    with step("Reading and hashing the inputs"):
        content = _content(board, series, fresh=update)
    changes = _changes(before, content) if before is not None else ()
    if before is not None and not changes:
        return Locked(path, before, notes=("nothing has changed",))
    if not dry_run:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
    return Locked(path, content, tuple(changes), written=not dry_run)


def read(path: Path) -> LockFile:
    """Read a lock file.

    Raises:
        UserError: it is not a lock file, or its format is another.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=LockFile)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(
            f"{path} is not a lock file: {error}",
            hint=f"rm {path}; ./inv lock --board B writes one",
        ) from error
    if content.format != FORMAT:
        raise UserError(
            f"{path}: format is {content.format}, this version reads {FORMAT}",
            hint="./inv lock --board B --update writes it anew",
        )
    return content


def locked_kernel(board: Board) -> str | None:
    """Return the kernel that the board's lock file names; None without a lock file."""
    path = default_file(board)
    if pins.current() is not None or not path.exists():
        return None
    return read(path).kernel


@contextmanager
def followed(board: Board, file: Path | None = None) -> Iterator[Path | None]:
    """Build from exactly the inputs that the board's lock file names, if there is one.

    Raises:
        UserError: the file is another board's, or names wheels or a kernel build that are not here.
    """
    path = file or default_file(board)
    if pins.current() is not None or not path.exists():
        yield None
        return
    content = read(path)
    if content.board != board.name:
        raise UserError(f"{path} is the lock file of {content.board}, not of {board.name}")
    say(f"using the inputs of {path}")
    for entry in content.inputs:
        if (
            entry.kind in ("wheel list", "model list")
            and sha256_of(PROJECT / entry.name) != entry.sha256
        ):
            raise UserError(
                f"{path} was written for another version of {entry.name}",
                hint=f"./inv lock --board {board.name} --update",
            )
        if entry.kind == "kernel build" and not _is_here(entry):
            raise UserError(
                f"{path} names a kernel that was not built on this machine: build:{entry.name}",
                hint=f"./inv build-kernel --board {board.name}: the same source, patches, compiler and "
                f"fragment give the same build id; or ./inv lock --board {board.name} --update",
            )
    with pins.using(pins.Pins(where=str(path), answers=content.answers, files=content.files)):
        yield path


def _content(board: Board, series: str, *, fresh: bool) -> LockFile:
    recorder = pins.recorder(fresh=fresh)
    built = built_inputs(series) if is_build(series) else []
    with pins.using(recorder):
        if not built:
            suite, package, _ = packaged(series, image=True)
            release = package.removeprefix("linux-image-")
            parts = [part.format(release=release) for part in series_named(series).parts]
            Archive(suite, "arm64").download([package, *parts])
        if board.dts is not None and not built:  # a built kernel comes with its device trees
            source_suite, source, _ = packaged(series, image=False)
            Archive(source_suite, "arm64").download([source])
        busybox = Archive("trixie", "arm64")
        busybox.version("busybox-static")
        busybox.download(["busybox-static"])
        plan = plan_payload(board.userspace.distribution)
    inputs = built
    inputs += [_deb(name, sha256) for name, sha256 in sorted(recorder.files.items())]
    inputs += _wheels(plan.requirements)
    lists = {
        "wheel list": plan.requirements,
        "model list": PROJECT / "userspace/npu/validate/models.toml",
    }
    for kind, file in lists.items():
        name = str(file.relative_to(PROJECT))
        inputs.append(Input(kind, name, "", sha256_of(file)))
    inputs += _models()
    return LockFile(
        FORMAT,
        board.name,
        series,
        tuple(inputs),
        dict(sorted(recorder.answers.items())),
        dict(sorted(recorder.files.items())),
    )


def built_inputs(name: str) -> list[Input]:
    """Return a kernel that build-kernel made, and its inputs."""
    file = record_file(name)
    record = json.loads(file.read_bytes())

    def hash_text(content: str) -> str:
        return hashlib.sha256(content.encode()).hexdigest()

    return [
        Input("kernel build", record["build_id"], record["release"], sha256_of(file)),
        Input("kernel source", record["origin"], record["version"]),
        Input("compiler", record["compiler"], ""),
        Input("kernel fragment", record["board"], "", hash_text(record["fragment"])),
        *(Input("patch", patch["name"], "", patch["sha256"]) for patch in record["patches"]),
    ]


def _is_here(build: Input) -> bool:
    try:
        return sha256_of(record_file(f"build:{build.name}")) == build.sha256
    except UserError:
        return False


def _deb(name: str, sha256: str) -> Input:
    package, version, _ = name.removesuffix(".deb").split("_")
    kind = "source" if package.startswith("linux-source") else "package"
    return Input(kind, package, version.replace("%3a", ":"), sha256)


def _wheels(requirements: Path) -> list[Input]:
    text = requirements.read_text(encoding="utf-8").replace("\\\n", " ")
    wheels = []
    for line in text.splitlines():
        match = re.match(r"([\w.-]+)==([\w.]+)", line)
        if match:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})", line)
            wheels.append(Input("wheel", match[1], match[2], sha256_any=tuple(hashes)))
    return wheels


def _models() -> list[Input]:
    """Models have no version, only a hash. They are copied by smoke-test, and are not in a bundle."""
    from userspace.npu.validate.models import catalogue

    return [
        Input(entry.kind, entry.name, "", sha256)
        for entry in catalogue().files
        if (sha256 := entry.sha256 or entry.archive_sha256)
    ]


def _changes(before: LockFile, now: LockFile) -> list[tuple[str, str, str]]:
    """Return the changed inputs: (kind and name, old version, new version)."""

    def by_name(content: LockFile) -> dict[str, tuple[str, str]]:
        inputs = {}
        for entry in content.inputs:
            sha256 = entry.sha256 or " ".join(entry.sha256_any)
            # A model is listed once for each content that has its name.
            content_name = sha256[:8] if entry.kind in ("model", "image") else ""
            inputs[f"{entry.kind} {entry.name} {content_name}".strip()] = entry.version, sha256
        return inputs

    old_inputs, new_inputs = by_name(before), by_name(now)
    changes = []
    for name in sorted({*old_inputs, *new_inputs}):
        old_input, new_input = old_inputs.get(name), new_inputs.get(name)
        if old_input != new_input:
            shown = [
                f"{side[0]} ({side[1][:8]})".strip() if side else ""
                for side in (old_input, new_input)
            ]
            changes.append((name, shown[0], shown[1]))
    if before.kernel != now.kernel:
        changes.insert(0, ("kernel", before.kernel, now.kernel))
    return changes
