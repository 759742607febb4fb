# SPDX-License-Identifier: MIT
"""Kernels from source: patched, configured, checked, cross-compiled; one folder under one build id.

The build folder in the cache belongs to a source, a board and a compiler, and ``make`` decides what is
stale in it. Two boards do not share one: another configuration recompiles nearly all. What comes out is
copied into a folder that never changes, named by a hash of its content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.cache import cache_dir, copy_folder, lock, make_once, remove, write_atomically
from ..base.compile.make import compile_in
from ..base.compile.patching import Patch, apply_all, key_of, missing_from
from ..base.errors import UserError
from ..base.process import run
from ..base.progress import Step, say, step
from ..base.room import require_room
from ..base.words import counted
from ..profile import Board
from .config import fragments
from .config.compare import read_config
from .config.configure import Configured, Workspace, configure
from .config.report import (
    describe_files,
    refuse,
    say_gave_way,
    say_left_out,
    say_nameless,
    say_not_had,
)
from .objects import count_objects, drop_unfinished, existing_objects
from .patches import needed_by, patches_for
from .source import KernelTree, kernel_tree
from .toolchain import find_toolchain

BUILD_ID_DIGITS = 12
RECORD = "build.json"
_RUNNING = "npu-bsp.running"
_LEAST_FREE_BYTES = 1500 << 20
_COMPILED = re.compile(rb"^  (?:CC|AS|CC \[M\]|AS \[M\])\s+\S+\.o$")


@dataclass(frozen=True)
class KernelRequest:
    """What is to be built.

    Attributes:
        kernel: how its source is named.
        fragments: the user's, after ours.
        experiments: patch series beyond those that the kernel needs.
        jobs: how many compilers at once.
    """

    board: Board
    kernel: str
    fragments: tuple[Path, ...] = ()
    experiments: tuple[str, ...] = ()
    llvm: bool = False
    jobs: int = 0


@dataclass(frozen=True)
class Prepared:
    """Everything before compiling.

    Attributes:
        fragments: ``file`` and ``kind`` of each of the user's.
    """

    request: KernelRequest
    source: KernelTree
    patches: tuple[Patch, ...]
    work: Workspace
    configured: Configured
    fragments: tuple[dict[str, str], ...] = ()

    def refuse_differences(self) -> None:
        """Stop where the configuration is not as asked for.

        Raises:
            UserError: it is not.
        """
        refuse(
            self.configured.differences,
            f"Linux {self.source.release}",
            name=f"{self.request.board.name}-{self.source.release}",
        )

    @property
    def local_version(self) -> str:
        """What tells this kernel from others of its version in ``uname -r``: source, patches, config."""
        digest = hashlib.sha256(self.work.config.read_bytes())
        origin = self.source.origin if self.source.fixed else str(self.source.path)
        digest.update(f"{origin}\0{key_of(self.patches)}".encode())
        return f"-npu-{digest.hexdigest()[:8]}"


def prepare(request: KernelRequest) -> Prepared:
    """Fetch, patch, configure and compare; compile nothing.

    Raises:
        UserError: a patch does not apply, a fragment cannot be read, the compiler is too old.
        InfrastructureError: the source cannot be fetched.
    """
    asked = fragments.merge(fragments.fragment_files(request.board, request.fragments))
    described = describe_files(request.fragments)
    source = kernel_tree(request.kernel, whole=True)
    patches = patches_for(request.board, source.series, request.experiments)
    patches = needed_by(source.path, patches)
    tree = _patched(source, patches)
    toolchain = find_toolchain(tree, llvm=request.llvm)
    _refuse_dirty(tree)
    key = tree.name if source.fixed else hashlib.sha256(str(tree).encode()).hexdigest()[:12]
    work = Workspace(
        tree,
        source.release,
        builds_dir() / f"{key}-{request.board.name}-{toolchain.kind}",
        toolchain,
        _environment(tree),
    )
    with lock(work.folder.with_name(work.folder.name + ".lock")):
        configured = configure(work, asked)
    say_left_out(configured.left_out)
    say_gave_way(configured.gave_way)
    say_nameless(configured.nameless)
    say_not_had(
        configured.not_had,
        f"Linux {source.release}",
        name=f"{request.board.name}-{source.release}",
    )
    return Prepared(request, source, tuple(patches), work, configured, tuple(described))


def build_kernel(prepared: Prepared, *, output: Path | None = None) -> Path:
    """Compile what was prepared; return the folder of the products.

    Args:
        output: a folder, not there yet, that gets a copy.

    Raises:
        UserError: a symbol is not as asked for, or the source does not compile.
        InfrastructureError: the disk is full; the next run goes on from there.
    """
    prepared.refuse_differences()
    if output is not None and output.exists():
        raise UserError(f"{output} exists already", hint="give another folder, or remove it")
    work = prepared.work
    with lock(work.folder.with_name(work.folder.name + ".lock")):
        if not (work.folder / "vmlinux").exists():
            require_room(work.folder, _LEAST_FREE_BYTES, "a kernel build")
        _compile(prepared)
        folder = _products(prepared)
    if output is not None:
        copy_folder(folder, output)
        return output
    return folder


def builds_dir() -> Path:
    """The folder of all build folders."""
    folder = cache_dir() / "builds"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# --- the source ----------------------------------------------------------------------------------


def _patched(source: KernelTree, patches: Sequence[Patch]) -> Path:
    """The tree with the patches in it: itself where it needs none, or a copy in the cache."""
    missing = missing_from(source.path, patches)
    if not missing:
        return source.path
    if not source.fixed:
        return _patched_copy_of_path(source, missing)
    folder = source.path.parent

    def make(target: Path) -> None:
        with step(f"Copying {source.label} to patch it"):
            # Hard links: patch writes a file anew, so the original stays as it is.
            run(["cp", "--archive", "--link", source.path, target])
        apply_all(target, patches)

    return make_once(folder / f"{source.path.name}-patched-{key_of(patches)}", make)


def _patched_copy_of_path(source: KernelTree, missing: Sequence[Patch]) -> Path:
    """A copy of a tree that somebody works on; only what changed is copied again."""
    name = hashlib.sha256(str(source.path).encode()).hexdigest()[:12]
    target = cache_dir() / "sources" / f"path-{name}-patched-{key_of(missing)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(target.with_name(target.name + ".lock")), step("Copying the source to patch it"):
        run(["rsync", "--archive", "--delete", "--exclude=/.git", f"{source.path}/", f"{target}/"])
        apply_all(target, missing)
    return target


def _refuse_dirty(tree: Path) -> None:
    if (tree / ".config").exists() or (tree / "include/config").exists():
        raise UserError(
            f"{tree} was built in: a build outside of it would mix the two",
            hint=f"make -C {tree} ARCH=arm64 mrproper (save its .config first)",
        )


def _environment(tree: Path) -> dict[str, str]:
    """What makes two builds of the same source the same bytes."""
    made = time.gmtime((tree / "Makefile").stat().st_mtime)
    return {
        "KBUILD_BUILD_TIMESTAMP": time.strftime("%Y-%m-%d %H:%M:%S UTC", made),
        "KBUILD_BUILD_USER": "npu-bsp",
        "KBUILD_BUILD_HOST": "npu-bsp",
        "KBUILD_BUILD_VERSION": "1",
        "LC_ALL": "C",
    }


# --- compiling -----------------------------------------------------------------------------------


def _compile(prepared: Prepared) -> None:
    work, folder = prepared.work, prepared.work.folder
    running = folder / _RUNNING
    if running.exists():  # the last build was killed, or the power was cut
        dropped = drop_unfinished(folder)
        say(f"the last build did not end; compiling {counted(len(dropped), 'file')} of it again")
    running.touch()
    jobs = prepared.request.jobs or os.cpu_count() or 1
    command = work.make(
        f"-j{jobs}", f"LOCALVERSION={prepared.local_version}", "Image", "modules", "dtbs"
    )
    with step("Compiling") as now:
        compile_in(
            folder,
            command,
            what="the kernel",
            env=work.environment,
            on_lines=_Progress(now, work).take,
        )
    running.unlink()


class _Progress:
    """How far make is, by the objects that it says it compiles."""

    def __init__(self, now: Step, work: Workspace) -> None:
        self._now, self._work = now, work
        self._present = existing_objects(work.folder)
        self._total = 0
        self._compiled = 0

    def take(self, lines: list[bytes]) -> None:
        """Count what make printed."""
        new = sum(bool(_COMPILED.match(line)) for line in lines)
        if not new:
            return
        self._compiled += new
        self._total = self._total or count_objects(self._work.tree, read_config(self._work.config))
        if self._present < 0.9 * self._total:
            done = min(self._present + self._compiled, self._total)
            percent = 100 * done // max(self._total, 1)
            self._now.note(f"{percent} %, {done} of about {self._total} objects")
        else:
            self._now.note(f"{self._compiled} of {self._total} objects compiled again")


# --- products ------------------------------------------------------------------------------------


def _products(prepared: Prepared) -> Path:
    """Copy what was built into a folder of its own, unless the build changed nothing."""
    work = prepared.work
    marker = work.folder / "npu-bsp.products.json"
    state = _state(work.folder, prepared)
    try:
        remembered = json.loads(marker.read_text())
        folder = kernels_dir() / str(remembered["folder"])
        if remembered["state"] == state and (folder / RECORD).exists():
            return folder
    except (OSError, ValueError, KeyError):
        pass
    with step("Collecting kernel, modules and device trees") as now:
        workspace = Path(tempfile.mkdtemp(prefix=".build-", dir=kernels_dir()))
        try:
            record = _collect(prepared, workspace / "new")
            folder = kernels_dir() / f"{record['board']}-{record['build_id']}"

            def move(target: Path) -> None:
                (workspace / "new").rename(target)

            make_once(folder, move)
        finally:
            remove(workspace)
        now.note(f"build {record['build_id']}")
    write_atomically(marker, json.dumps({"state": state, "folder": folder.name}).encode())
    return folder


def kernels_dir() -> Path:
    """The folder of all kernels that were built."""
    folder = cache_dir() / "kernels" / "built"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _state(folder: Path, prepared: Prepared) -> str:
    """Changes when a product in the build folder does."""
    digest = hashlib.sha256(f"{prepared.request.board.name} {prepared.local_version}".encode())
    names = ["arch/arm64/boot/Image", "System.map", ".config", "modules.order", "modules.builtin"]
    order = folder / "modules.order"
    if order.exists():
        names += [re.sub(r"\.o$", ".ko", line) for line in order.read_text().split()]
    for name in names:
        try:
            status = (folder / name).stat()
        except OSError:
            continue
        digest.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _collect(prepared: Prepared, target: Path) -> dict[str, Any]:
    work, folder = prepared.work, prepared.work.folder
    release = (folder / "include/config/kernel.release").read_text().strip()
    (target / "boot").mkdir(parents=True)
    for source, name in (
        ("arch/arm64/boot/Image", "Image"), ("System.map", "System.map"), (".config", "config"),
    ):  # fmt: skip
        shutil.copyfile(folder / source, target / "boot" / name)
    run(
        work.make(
            "-s", f"LOCALVERSION={prepared.local_version}", f"INSTALL_MOD_PATH={target}",
            "INSTALL_MOD_STRIP=1", "modules_install",
        ),
        env=work.environment,
    )  # fmt: skip
    modules = target / "lib/modules" / release
    for name in ("build", "source"):
        (modules / name).unlink(missing_ok=True)
    run(["depmod", "--basedir", target, release])
    _collect_dtbs(folder, target / "dtbs", prepared.request.board)
    files = {
        path.relative_to(target).as_posix(): _sha256(path)
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }
    identity = "".join(f"{name} {sha256}\n" for name, sha256 in files.items())
    record: dict[str, Any] = {
        "format": 1,
        "build_id": hashlib.sha256(identity.encode()).hexdigest()[:BUILD_ID_DIGITS],
        "board": prepared.request.board.name,
        "release": release,
        "kernel": prepared.source.name,
        "version": prepared.source.release,
        "origin": prepared.source.origin,
        "patches": [
            {"name": patch.name, "sha256": _sha256(patch.path)} for patch in prepared.patches
        ],
        "compiler": work.toolchain.banner,
        "fragment": fragments.render(prepared.configured.asked),
        "configured_from": fragments.base_target(prepared.configured.asked),
        "command": subprocess.list2cmdline(work.make("Image", "modules", "dtbs")),
        "files": files,
    }
    write_atomically(target / RECORD, json.dumps(record, indent=1).encode() + b"\n")
    return record


def _collect_dtbs(folder: Path, target: Path, board: Board) -> None:
    """Take the board's own DTB: those of the other boards of its vendor are no part of it."""
    target.mkdir()
    if board.dts is None:
        return
    for dtb in (folder / "arch/arm64/boot/dts").glob(f"*/{board.dts}.dtb"):
        (target / dtb.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(dtb, target / dtb.parent.name / dtb.name)


def _sha256(path: Path) -> str:
    from ..base.download import sha256_of

    return sha256_of(path)
