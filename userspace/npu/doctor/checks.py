# SPDX-License-Identifier: MIT
"""The checks, from the device tree to a convolution, in the order in which one needs the other. Pure.

Each looks at the facts alone: what comes after a broken link is judged as far as it can be seen, and
is ``unknown`` where it cannot. ``next`` is one command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from bsp.catalog import load_soc, npu_of, runs_as
from bsp.dts.inputs.identity import names_another
from bsp.identify import Machine, find, machine_of, tie_error, vendor_words
from bsp.kernel.distribution import all_series, series_key
from bsp.profile import Board

from . import device_tree, software, surroundings
from .check import Check, broken, ok, unknown
from .facts import Device, Facts
from .subject import Subject

_VENDORS = ("galcore", "rknpu", "vipcore")
_FREE = ("etnaviv", "rocket", "ethosu")


_DEBIANS = re.compile(r"\d+\.\d+\.\d+(?:-\d+|\+(?:deb|bpo)\S*)-(?:cloud-|rt-)?arm64")


def stack(facts: Facts) -> str:
    """Return what drives the NPU: ``galcore``... (a vendor's), ``etnaviv``... (Linux's own) or ``none``."""
    nodes = {node.driver.lower() for node in facts.render_nodes}
    there = {*facts.modules, *nodes}
    bound = {device.driver.lower() for device in facts.devices}
    held = [name for name in _VENDORS if name in there | bound]
    free = [name for name in _FREE if name in there]
    return (held or free or ["none"])[0]


def examine(subject: Subject) -> list[Check]:
    """Return all checks, in order."""
    return [Check(name, *check(subject)) for name, check in CHECKS]


def _compatible(subject: Subject) -> tuple[str, str, str, str]:
    facts, board, wanted = subject.facts, subject.board, subject.wanted
    if not facts.compatible and facts.system.container:
        return unknown(
            f"no device tree is visible in this container ({facts.system.container})",
            wanted.compatible[0] if wanted else "a board that has a profile",
            "./inv doctor --board BOARD",
        )
    if not facts.compatible:
        return broken(
            f"no device tree ({facts.machine or 'unknown machine'})",
            "a board that boots with a device tree",
            "./inv doctor --host NAME",
        )
    found = f"{facts.model or 'no model'} ({', '.join(facts.compatible)})"
    if (
        wanted
        and wanted.compatible[0] not in facts.compatible
        and not runs_as(wanted, facts.compatible, facts.model)
    ):
        vendor = vendor_words(facts.tree) if facts.tree else ""
        if vendor and not names_another(facts.compatible, wanted):
            return unknown(
                f"{found}, the tree of a vendor's kernel: {vendor}", wanted.compatible[0]
            )
        return broken(
            found,
            f"{wanted.compatible[0]}, since the inventory says board = {wanted.name}",
            "./inv boards",
        )
    if board is None:
        if subject.doubts:
            found = f"{found}: {subject.doubts}"
        return unknown(
            found,
            "a board that has a profile",
            f"./inv new-board NAME --like BOARD --from-host {subject.host or 'HOST'}",
        )
    return ok(f"{board.title} ({board.compatible[0]})", board.compatible[0])


def _stack(subject: Subject) -> tuple[str, str, str, str]:
    found = stack(subject.facts)
    driver = subject.driver
    expected = f"{driver}, Linux's own driver"
    if found in _VENDORS:
        return broken(
            f"{found}, the vendor's driver, holds the NPU; it and {driver} exclude each other",
            expected,
            subject.deploy,
        )
    return ok(found, expected) if found in _FREE else unknown("no NPU driver", expected)


def _kernel(subject: Subject) -> tuple[str, str, str, str]:
    match = re.match(r"\d+\.\d+", subject.facts.kernel)
    found = f"Linux {subject.facts.kernel}"
    if subject.npu is None or match is None:
        return unknown(found, "a kernel that knows the NPU")
    since = subject.npu.kernel_since
    # Who builds a kernel may have backported the driver; Debian has not, up to the series that has it.
    backported = _DEBIANS.fullmatch(subject.facts.kernel) is None
    if (since is None or backported) and _came_up(subject):
        return ok(f"{found}: its {subject.driver} knows this NPU", "a kernel that knows the NPU")
    if since is None:
        return broken(
            f"{found} lacks {subject.npu.kernel_lacks}, as far as is known of released kernels",
            "a kernel that knows the NPU",
            "./inv boards --scan",
        )
    expected = f"Linux {since} or later"
    if series_key(match[0])[:2] < series_key(since):
        return broken(
            f"{found} lacks {subject.npu.kernel_lacks}",
            expected,
            subject.deploy_with(_kernel_flag(since)),
        )
    return ok(found, expected)


def _came_up(subject: Subject) -> bool:
    """Return whether the driver has found an NPU with cores: then it supports it, on any kernel."""
    if subject.driver != "etnaviv":  # these make no node without a core
        return subject.node is not None
    devices = (subject.facts.python or {}).get("devices") or []
    return any(core["npu"] for device in devices for core in device["cores"])


def _kernel_flag(since: str) -> str:
    """The flag that takes the first packaged kernel that knows the NPU; empty where none does."""
    new = (series for series in all_series() if series_key(series) >= series_key(since))
    return next((f"--kernel {series}" for series in new), "")


def _module(subject: Subject) -> tuple[str, str, str, str]:
    facts, driver = subject.facts, subject.driver
    expected = f"{driver} loaded"
    barred = [
        name
        for word in facts.cmdline.split()
        if word.partition("=")[0] in ("module_blacklist", "modprobe.blacklist")
        for name in word.partition("=")[2].split(",")
    ]
    if driver in facts.modules or subject.node:
        return ok("loaded", expected)
    if facts.system.container:
        return broken("not loaded", expected, f"modprobe {driver}  # outside the container")
    if barring := [row for row in facts.blacklist if driver in row.partition(":")[2].split()]:
        where = barring[0]
        file = where.partition(":")[0]
        # The file may be the distribution's, with many others in it.
        comment_out = rf"sed -i -E 's/^\s*(blacklist|install)\s+{driver}\b/# &/' {file}"
        command = subject.there(f"{comment_out} && modprobe {driver}")
        return broken(f"blacklisted: {where}", expected, command)
    if driver in barred:
        return broken("blacklisted on the kernel's command line", expected, subject.deploy)
    if not any(f"/{driver}.ko" in f"/{file}" for file in facts.module_files):
        return broken(f"Linux {facts.kernel} has no {driver} module", expected, subject.deploy)
    return broken("there, and not loaded", expected, subject.there(f"modprobe {driver}"))


def _memory(subject: Subject) -> tuple[str, str, str, str]:
    total, free = subject.facts.cma_kib
    if subject.driver != "etnaviv":
        return ok(f"{subject.driver} needs no contiguous memory", "no contiguous memory")
    # Linux etnaviv_cmdbuf.c: SUBALLOC_SIZE, in one piece.
    expected = f"{_COMMANDS_KIB} KiB of contiguous memory (CMA) free"
    log = subject.facts.log
    # What failed before the driver came up anew is past.
    up = max((number for number, line in enumerate(log) if "model: GC" in line), default=0)
    failed = [line for line in log[up:] if re.search(r"cma.*alloc failed", line)]
    if total is None or free is None:
        return unknown("the kernel does not say", expected)
    found = f"{free} of {total} KiB free"
    if total < _COMMANDS_KIB or free < _COMMANDS_KIB or failed:
        return broken(
            found + (f"; the kernel says: {failed[-1]}" if failed else ""),
            expected,
            subject.there("reboot")
            if total >= _COMMANDS_KIB
            else f"{subject.deploy}  # after adding cma=64M to the board's boot.cmdline",
        )
    return ok(found, expected)


_COMMANDS_KIB = 512
_FAILED = re.compile(
    r"hw init failed|Unknown GPU model|probe .*failed|failed to|recover hung GPU|MMU fault"
    # Linux 7.3 drivers/accel/rocket/rocket_job.c, ethosu/ethosu_job.c
    r"|NPU job timed out|NPU sched timed out|Error IRQ",
    re.I,
)
# Linux 7.3 etnaviv_gpu.c, rocket_core.c, ethosu_drv.c
_CAME_UP = re.compile(r"model: GC|Rockchip NPU core \d+ version|Ethos-U NPU, arch")


def _probe(subject: Subject) -> tuple[str, str, str, str]:
    facts, npu = subject.facts, subject.npu
    device = facts.device_at(npu.node) if npu else None
    name = device.name if device else "npu"
    about = _about(facts, name)
    identified = [line for line in about if _CAME_UP.search(line)]
    model = f"GC{npu.identity.model:x}" if npu and npu.identity else "GC..."
    expected = f"{subject.driver} bound to {name}" if npu else "a model"
    if npu and subject.driver == "etnaviv":
        expected += f": model: {model}"
    see = subject.there(f"dmesg | grep -i -e {subject.driver} -e npu")
    if failure := _last_failure(about):
        return broken(failure, expected, see)
    if device is None:
        return unknown("the kernel has no device for the NPU", expected)
    if not device.driver:
        return broken(
            f"no driver is bound to {device.name}{_why_unbound(facts, device)}", expected, see
        )
    cores = [facts.device_at(node) for node in npu.more_nodes] if npu else []
    if idle := [each for each in cores if each and not each.driver]:
        names = ", ".join(each.name for each in idle)
        return broken(f"no driver is bound to {names}{_why_unbound(facts, idle[0])}", expected, see)
    return ok(
        identified[-1].strip() if identified else f"{device.driver} is bound to {device.name}",
        expected,
    )


def _about(facts: Facts, name: str) -> list[str]:
    """The log's lines about a device: a SoC's GPUs may have the same driver."""
    return [line for line in facts.log if f"{name}: " in line or " npu: " in line]


def _last_failure(about: list[str]) -> str:
    """Return the driver's last message, where that is a failure: one that it came up supersedes it.

    By place: the log says the same words each time the driver is loaded.
    """
    for line in reversed(about):
        if _CAME_UP.search(line):
            return ""
        if _FAILED.search(line):
            return line
    return ""


def _why_unbound(facts: Facts, device: Device) -> str:
    waits = [row for row in facts.deferred if row.startswith(device.name)]
    if waits:
        return f": {waits[0]}"
    return " and waits for a supplier" if device.waits else ""


def _identity(subject: Subject) -> tuple[str, str, str, str]:
    facts, npu = subject.facts, subject.npu
    want = npu.identity if npu else None
    expected = (
        f"GC{want.model:x} r{want.revision:x}, product {want.product_id:#x}, "
        f"customer {want.customer_id:#x}"
        if want
        else "an NPU that etnaviv knows"
    )
    devices = (facts.python or {}).get("devices") or []
    for device in devices:
        for core in device["cores"]:
            if not core["npu"] or "model" not in core:
                continue
            found = (
                f"GC{core['model']:x} r{core.get('revision', 0):x}, product "
                f"{core.get('product_id', 0):#x}, customer {core.get('customer_id', 0):#x}"
            )
            if want is None or found == expected:
                return ok(found, expected)
            return broken(found, expected, "./inv boards")
    device_of_npu = facts.device_at(npu.node) if npu else None
    log = _about(facts, device_of_npu.name) if device_of_npu else facts.log
    lines = re.findall(r"model: GC(\w+), revision: (\w+)", "\n".join(log))
    for model, revision in lines:
        if want and (int(model, 16), int(revision, 16)) == (want.model, want.revision):
            return ok(f"GC{model} r{revision} (from the kernel's log)", expected)
    if lines and want:
        model, revision = lines[-1]
        why = {"0": ": no clock or no power", "ffffffff": ": nothing answers there"}.get(model, "")
        see = subject.there("dmesg | grep -i etnaviv")
        return broken(f"GC{model} r{revision}{why}", expected, see)
    unsafe = [device["unsafe"] for device in devices if "unsafe" in device]
    if unsafe:
        see = subject.there("dmesg | grep -i etnaviv")
        return broken(f"opening the device node {unsafe[0]}: no core came up", expected, see)
    return unknown("neither driver nor log reports it", expected)


CHECKS: tuple[tuple[str, Callable[[Subject], tuple[str, str, str, str]]], ...] = (
    ("compatible", _compatible),
    ("stack", _stack),
    ("boot-script", surroundings.boot_script),
    ("kernel", _kernel),
    ("node", device_tree.node),
    ("status", device_tree.status),
    ("owners", device_tree.owners),
    ("power-domain", device_tree.power_domain),
    ("supplies", device_tree.supplies),
    ("clocks", device_tree.clocks),
    ("config", device_tree.config),
    ("memory", _memory),
    ("module", _module),
    ("probe", _probe),
    ("identity", _identity),
    ("container", surroundings.container),
    ("device-node", software.device_node),
    ("permissions", software.permissions),
    ("libc", software.libc),
    ("vendor-runtime", software.vendor_runtime),
    ("library", software.library),
    ("delegate-driver", software.delegate_driver),
    ("mesa", software.mesa),
    ("runtime", software.runtime),
    ("model", software.model),
    ("displays", surroundings.displays),
)


def subject_of(
    facts: Facts, *, wanted: Board | None, host: str | None, boards: Sequence[Board] = ()
) -> Subject:
    """Return what the facts say it is.

    Args:
        wanted: profile that the inventory or ``--board`` names.
        boards: profiles to choose from; all that there are by default.

    Raises:
        UserError: several profiles fit equally well.
    """
    tree = facts.tree
    machine = machine_of(tree) if tree else Machine(())
    machine = replace(machine, compatible=facts.compatible, model=facts.model or machine.model)
    match = find(machine, chosen=wanted, boards=boards)
    if match.tied:
        raise tie_error(match.tied, host or "this machine")
    board = match.board or wanted
    npu = npu_of(board) if board and load_soc(board.soc).npu else None
    if match.doubts:  # another board than its string says; the chip is certain
        return Subject(facts, None, npu, wanted, host, "; ".join(match.doubts))
    return Subject(facts, board, npu, wanted, host)
