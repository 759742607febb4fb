# SPDX-License-Identifier: MIT
"""Runs the arm64 userspace of a board on this machine, on a virtual NPU behind the shim.

Everything arm64 comes from the distribution's own packages and the payload that boards get: Python and C
library from one, TFLite runtime and libteflon.so from the other. QEMU's user mode runs them, without root
and without binfmt. It is fetched too: version 7.2 (Debian bookworm's) crashes in ai-edge-litert's kernels,
10.0 does not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.errors import UserError
from bsp.base.packages.apt import Archive, unpacked_program
from bsp.base.packages.host_system import host_architecture
from bsp.base.process import run
from bsp.base.progress import step
from userspace.npu.profile.library import compiled
from userspace.npu.validate.delegates import TEFLON
from userspace.npu.validate.machine import ThisMachine
from userspace.npu.validate.records import RowResult, SmokeDocument
from userspace.payload import payload

from .. import shim
from ..finding import Blame
from ..identity import identity_names, load_npu
from .explain import explain
from .server import CUT_OFF
from .session import Emulator, emulator

PREFIX = "virtual:"
DISTRIBUTION = "trixie"
_TRACED_PARTS = ("mesa-teflon-delegate", "ai-edge-litert")
_QEMU_SUITE = "trixie"
_QEMU_MEMBER = "./usr/bin/qemu-aarch64"
# `-cpu max` has pointer authentication, whose emulation makes Python six times slower.
CPU = "cortex-a53"


@dataclass(frozen=True)
class VirtualHost:
    """A machine for the smoke test, and the emulator behind it."""

    machine: ThisMachine
    emulator: Emulator


@dataclass(frozen=True)
class System:
    """An arm64 system with a delegate of any version, to run the client in.

    Attributes:
        root: has Python, and libteflon.so where Debian's package has it.
        version: of its Mesa.
    """

    root: Path
    version: str


def npu_name(text: str) -> str:
    """Return the NPU in ``virtual:NAME``.

    Raises:
        UserError: it has another form, or there is no such NPU.
    """
    if not text.startswith(PREFIX):
        names = ", ".join(PREFIX + name for name in identity_names())
        raise UserError(f"no NPU {text!r}", hint=f"--npu takes one of: {names}")
    return load_npu(text.removeprefix(PREFIX)).name


@contextlib.contextmanager
def virtual_host(
    name: str,
    *,
    exact_for: Path | None = None,
    timeout_s: float = 120.0,
    poison: int = 0,
    audit_for: Path | None = None,
    picture: Path | None = None,
    record: Path | None = None,
    mesa: System | None = None,
) -> Iterator[VirtualHost]:
    """Provide a machine with a virtual NPU for a block; the emulator's report is there afterwards.

    Args:
        name: NPU, as in ``identities/``.
        exact_for: compute this model exactly as TFLite does.
        timeout_s: how long a client waits for one submit.
        poison: as ``session.emulator``; ``audit_for`` and ``picture`` likewise.
        record: file that gets a trace of all submissions.
        mesa: a system with a delegate, in place of the distribution's.

    Raises:
        UserError: there is no such NPU; a tool is missing.
        InfrastructureError: packages cannot be had, or the emulator does not start.
    """
    client_machine({}, mesa)  # fetches and builds what is missing, before the emulator waits for it
    with emulator(
        name,
        exact_for=exact_for,
        submit_timeout_s=timeout_s,
        poison=poison,
        audit_for=audit_for,
        picture=picture,
        record=record,
        software=_software(mesa) if record else None,
    ) as running:
        yield VirtualHost(client_machine(running.environment, mesa), running)


def client_machine(environment: dict[str, str], mesa: System | None = None) -> ThisMachine:
    """Return the arm64 userspace as a machine for the smoke test, with the shim loaded into it.

    Args:
        environment: what the shim needs; ``Emulator.environment``.
        mesa: as ``virtual_host``.
    """
    userspace = payload.build_payload(distribution=DISTRIBUTION).folder
    if mesa:
        userspace = _without_libraries(userspace)
    root = mesa.root if mesa else arm64_root()
    # The profile's library does nothing unless the runner asks it to; it passes ioctls on to the shim.
    preloaded = [*filter(None, [compiled("aarch64")]), shim.build("aarch64")]
    more = {**environment, "LD_PRELOAD": ":".join(map(str, preloaded))}
    return ThisMachine(userspace=userspace, python=arm64_python(root, more, as_root=bool(mesa)))


def arm64_python(
    root: Path, environment: Mapping[str, str], *, as_root: bool = False
) -> list[str | Path]:
    """Return the start of a command line that runs the Python of an unpacked arm64 system.

    On an arm64 machine it runs as it is, through the dynamic linker beside it; elsewhere in QEMU.

    Args:
        root: the system.
        environment: what only the arm64 program gets.
        as_root: paths are those of the system, as ``/usr/lib``; only QEMU looks there.
    """
    environment = {**_kept_bytecode(), **environment}
    # A crash of the client is a result; its memory image is not wanted.
    start: list[str | Path] = ["prlimit", "--core=0"]
    if os.uname().machine == "aarch64" and not as_root:
        start.append("env")
        start += [f"{key}={value}" for key, value in environment.items()]
        return [*start, f"PYTHONHOME={root}/usr", *unpacked_program(root, "usr/bin/python3")]
    start += [qemu_user(), "-cpu", CPU, "-L", root]
    for key, value in environment.items():
        start += ["-E", f"{key}={value}"]
    return [*start, root / "usr/bin/python3"]


def _kept_bytecode() -> dict[str, str]:
    """Return the variables that have Python keep what it compiled: under QEMU that takes three seconds.

    Nothing is written beside the sources: their folders are named by their content.
    """
    return {
        "PYTHONDONTWRITEBYTECODE": "",  # which this process may have been given
        "PYTHONPYCACHEPREFIX": str(cache_dir() / "bytecode"),
    }


def _without_libraries(userspace: Path) -> Path:
    """Return the payload without its delegate, so that the runner takes the system's."""

    def make(target: Path) -> None:
        target.mkdir()
        # Copied: Python follows links to a script, and the runner would find the delegate beside it.
        shutil.copytree(userspace / "bin", target / "bin")
        for name in ("site", "manifest.json"):
            (target / name).symlink_to(userspace / name)

    return make_once(userspace.with_name(f"{userspace.name}-without-delegate"), make)


def mesa_version(mesa: System | None) -> str:
    """Return the version of the delegate that ``client_machine`` takes; "" where it has none."""
    return _software(mesa).get(_TRACED_PARTS[0], "")


def _software(mesa: System | None) -> dict[str, str]:
    """Versions of the parts that a trace may hang on."""
    parts = payload.build_payload(distribution=DISTRIBUTION).manifest["parts"]
    versions = {part["name"]: part["version"] for part in parts if part["name"] in _TRACED_PARTS}
    return versions | ({_TRACED_PARTS[0]: mesa.version} if mesa else {})


def add_to_document(
    document: SmokeDocument,
    name: str,
    mode: str,
    emulator: Emulator,
    *,
    strict: bool = False,
    model: bytes = b"",
) -> None:
    """Put into a smoke test's document what the emulator saw; a fault fails Teflon's row.

    Mesa returns garbage or zeros after a fault, and no error: only the emulator knows. A finding that says
    that values are wrong fails the row in every mode; with ``strict`` one of a job that is not understood
    does so, too. Of operations that outputs are wrong for and no finding names, ``explain`` says why, from
    the model's file.
    """
    jobs = sum(client["nn_jobs"] + client["tp_jobs"] for client in emulator.report)
    document["npu"] = {
        "name": PREFIX + name,
        "mode": mode,
        "jobs": jobs,
        "peak_memory_bytes": emulator.peak_memory_bytes,
        "faults": emulator.faults,
        "findings": [each for client in emulator.report for each in client["findings"]],
        "wrong": emulator.wrong,
    }
    for row in document["results"]:
        if row["delegate"].partition(":")[0] != TEFLON:
            continue
        problems = _problems(row, emulator, jobs, strict=strict)
        # A job that fits no operation may well be of one that should not have been taken.
        understood = [fault for fault in emulator.faults if Blame.NOT_UNDERSTOOD not in fault]
        if model and row["latency_ms"] is not None and not understood:
            named = " ".join(emulator.wrong)
            missing = [
                str(each)
                for each in explain(row, model)
                if not each.operation or each.operation not in named
            ]
            document["npu"]["findings"] += missing
            document["npu"]["wrong"] = [*emulator.wrong, *missing]
            if missing and not emulator.wrong:
                problems = [
                    f"not what the model says: {missing[0]}",
                    *(problems or [row["reason"]]),
                ]
        if problems:
            row["status"] = "fail"
            row["reason"] = "; ".join(problems)
            document["verdict"] = "fail"


def _problems(row: RowResult, emulator: Emulator, jobs: int, *, strict: bool) -> list[str]:
    """Return what is wrong with Teflon's row: its own reason, and what the emulator knows."""
    own = [row["reason"]] if row["reason"] else []
    faults = [fault for fault in emulator.faults if not fault.startswith(CUT_OFF)]
    stopped = [f"the virtual NPU stopped: {fault}" for fault in faults[:1]]
    if row["latency_ms"] is None:
        # It ended before its time, and that it left the emulator is a consequence, not the reason.
        return [*own, *stopped] if row["status"] == "fail" or stopped else []
    if emulator.faults:
        return [f"the virtual NPU stopped: {emulator.faults[0]}", *own]
    blamed = emulator.blamed if strict else emulator.wrong
    if blamed:
        return [f"not what the model says: {blamed[0]}", *own]
    if row["status"] == "pass" and not jobs:
        return ["no job came to the virtual NPU", *own]
    return []


@functools.cache
def arm64_root() -> Path:
    """Return an unpacked arm64 system that has Python: the cached packages, not configured."""
    archive = Archive(DISTRIBUTION, "arm64")
    return archive.unpacked(["python3", "base-files", "libstdc++6"], with_dependencies=True)


@functools.cache
def qemu_user() -> Path:
    """Return QEMU's user-mode emulator of arm64 for this machine (a static program, 16 MB)."""
    host = host_architecture()
    (package,) = Archive(_QEMU_SUITE, host).download(["qemu-user"])
    folder = cache_dir() / "packages"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        with step("Unpacking qemu-user"), tempfile.TemporaryFile() as content:
            run(["dpkg-deb", "--fsys-tarfile", package], stdout=content)
            content.seek(0)
            with tarfile.open(fileobj=content) as archive:
                member = archive.extractfile(_QEMU_MEMBER)
                if member is None:
                    raise RuntimeError(f"{_QEMU_MEMBER} is not a file of the package")
                with target.open("wb") as program:
                    shutil.copyfileobj(member, program)
        target.chmod(0o755)

    return make_once(folder / f"qemu-aarch64-{package.stem}", make)
