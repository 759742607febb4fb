# SPDX-License-Identifier: MIT
"""Checks of what runs on top of the driver: device node, delegate, versions, runtime, a model. Pure."""

from __future__ import annotations

import re

from ..mesa.manifest import named
from ..model.faults.known_wrong import npu_of_soc, wrong_models
from ..validate.judge.delegation import parse_log
from .check import Outcome, broken, ok, unknown
from .subject import Subject
from .surroundings import LIBRARY, run_line

# Mesa src/gallium/targets/teflon/test_teflon.cpp: what it tolerates for one operation.
_TOLERANCE = 2
_PACKAGE = "apt-get install mesa-teflon-delegate"


def device_node(subject: Subject) -> Outcome:
    """Whether userspace can see the driver."""
    node = subject.node
    folder = "dri/renderD*" if subject.driver == "etnaviv" else "accel/accel*"
    expected = f"/dev/{folder} of {subject.driver}"
    if node is None:
        others = ", ".join(f"{each.path} ({each.driver})" for each in subject.facts.render_nodes)
        see = subject.there(f"dmesg | grep -i -e drm -e {subject.driver}")
        return broken(f"none{'; there is ' + others if others else ''}", expected, see)
    if node.mode == "absent":
        repair = run_line(subject) if subject.facts.system.container else ""
        repair = repair or subject.there("udevadm trigger")
        return broken(f"{node.path} is not in /dev", expected, repair)
    stable = subject.facts.system.stable(node.path)
    return ok(node.path if stable == node.path else f"{node.path} ({stable})", expected)


def permissions(subject: Subject) -> Outcome:
    """Whether this user, and members of the group render, may open the node."""
    node, facts = subject.node, subject.facts
    if node is None or not node.mode.isdigit():
        return unknown("there is no device node", "readable and writable")
    expected = "rw for the group render"
    found = f"{node.path} has mode {node.mode}, {node.owner}:{node.group}"
    if facts.user_id and node.access != "rw":
        member = node.group in facts.groups
        repair = f"sudo chmod 660 {node.path}" if member else f"sudo usermod -aG {node.group} $USER"
        why = "" if member else f"; this user is not in {node.group}"
        if facts.system.container:
            return broken(f"{found}{why}", expected, run_line(subject))
        return broken(f"{found}{why}", expected, subject.there(repair))
    group, others = int(node.mode[-2]), int(node.mode[-1])
    # Root may open everything; whoever else runs models here may not.
    shared = others & 6 == 6 or (group & 6 == 6 and node.group != "root")
    if facts.user_id == 0 and facts.has_render_group and not shared:
        repair = f"chgrp render {node.path} && chmod 660 {node.path}"
        return broken(f"{found}: only root can open it", expected, subject.there(repair))
    return ok(found, expected)


def libc(subject: Subject) -> Outcome:
    """Whether the board's programs are linked to glibc, as all that is published for TFLite is."""
    files = subject.facts.system.libc
    expected = "glibc: TFLite's wheels and libteflon.so are made for it"
    if not files:
        return unknown("the C library cannot be seen", expected)
    names = [file.rpartition("/")[2] for file in files]
    musl = [file for file, name in zip(files, names, strict=True) if "musl" in name]
    if musl:
        # A container has a C library of its own, and shares only the kernel.
        return broken(
            f"musl ({musl[0]}): they do not load",
            expected,
            run_line(subject, image="debian:trixie"),
        )
    return ok("glibc", expected)


_SPEAKS = {
    "librknn": "rknpu", "rknnlite": "rknpu", "libVIP": "vipcore",
    "libGAL": "galcore", "libovxlib": "galcore", "libtim-vx": "galcore", "libvx_delegate": "galcore",
    "ksnn": "galcore",
}  # fmt: skip


def vendor_runtime(subject: Subject) -> Outcome:
    """Whether what there is to run models speaks Linux's own driver, not only a vendor's."""
    facts = subject.facts
    expected = f"a runtime that speaks {subject.driver}"
    by_driver: dict[str, str] = {}
    for path in facts.system.vendor_libraries:
        name = path.rpartition("/")[2]
        speaks = next((driver for start, driver in _SPEAKS.items() if name.startswith(start)), "")
        if speaks:
            by_driver.setdefault(speaks, path)
    if not by_driver:
        return ok("no runtime of a vendor's", expected)
    libraries = ", ".join(f"{path} speaks only {driver}" for driver, path in by_driver.items())
    has_runtime = bool((facts.python or {}).get("runtime"))
    if facts.libraries and (has_runtime or facts.payload):
        return ok(f"{libraries}; libteflon.so is there, too", expected)
    return broken(f"{libraries}, the vendor's driver", expected, subject.deploy)


def library(subject: Subject) -> Outcome:
    """Whether Mesa's delegate is there."""
    facts = subject.facts
    expected = "libteflon.so, in the deployed userspace or in /usr/lib/teflon"
    if facts.libraries:
        return ok(facts.libraries[0], expected)
    if facts.payload:
        return broken("the deployed userspace has none", expected, subject.deploy)
    if facts.system.elsewhere:
        place = facts.system.elsewhere[0]
        repair = f"mkdir -p /usr/lib/teflon && ln -s {place} {LIBRARY}"
        return broken(f"only {place}, which is not searched", expected, subject.there(repair))
    repair = subject.deploy if subject.host else _PACKAGE
    return broken("none, and no userspace was deployed", expected, repair)


def delegate_driver(subject: Subject) -> Outcome:
    """Whether the delegate was built with the driver that this NPU needs: distributions leave some out."""
    facts = subject.facts
    expected = f"libteflon.so with the driver {subject.driver}"
    has = facts.system.delegate_drivers
    if not has:
        return unknown("its drivers cannot be seen", expected)
    if subject.driver in has:
        return ok(", ".join(has), expected)
    where = facts.libraries[0] if facts.libraries else "it"
    repair = subject.deploy if subject.host else "./inv build-userspace --board BOARD"
    return broken(f"{where} has only {', '.join(has)}", expected, repair)


def mesa(subject: Subject) -> Outcome:
    """Whether the delegate's Mesa knows the NPU."""
    facts = subject.facts
    since = subject.npu.mesa_since if subject.npu else None
    expected = f"Mesa {since} or later" if since else "a Mesa that knows the NPU"
    full_version: str | None = facts.mesa
    if not full_version and facts.libraries and "/usr/lib" not in facts.libraries[0]:
        full_version = facts.payload_mesa
    if not full_version:
        return unknown("the version cannot be seen", expected)
    version = _version(full_version)
    shown = named(full_version)
    if since and version and version < (_version(since) or ()):
        return broken(f"Mesa {shown}", expected, subject.deploy if subject.host else _PACKAGE)
    wrong = wrong_models(npu_of_soc(subject.board.soc), full_version) if subject.board else []
    if wrong:
        shown += f"; known to compute wrongly on this NPU: {', '.join(wrong)} (./inv build-mesa)"
    return ok(f"Mesa {shown}", expected)


def runtime(subject: Subject) -> Outcome:
    """Whether Python and a TFLite runtime work there."""
    facts = subject.facts
    python = facts.python
    expected = "a TFLite runtime that Python can import"
    if facts.payload_python:
        expected = f"Python {facts.payload_python}, as the deployed userspace was made for"
    if python is None:
        if not facts.python_said:
            return broken("no python3", expected, subject.there("apt-get install python3"))
        return broken(facts.python_said.splitlines()[-1][:200], expected, subject.deploy)
    problem = python.get("runtime_error", "")
    series = ".".join(str(python.get("python", "")).split(".")[:2])
    if facts.payload_python and series != facts.payload_python:
        board = subject.board.name if subject.board else "BOARD"
        return broken(
            f"Python {python.get('python')}",
            expected,
            f"./inv build-userspace --board {board} --python {series}",
        )
    if problem:
        return broken(problem, expected, subject.deploy)
    return ok(f"{python.get('runtime')}, Python {python.get('python')}", expected)


def model(subject: Subject) -> Outcome:
    """Whether one convolution runs on the NPU and comes out right."""
    result = (subject.facts.python or {}).get("model")
    expected = f"one convolution on the NPU, within {_TOLERANCE} of the CPU"
    if result is None:
        return unknown("not run", expected)
    log = parse_log(result.get("log", ""))
    see = f"./inv smoke-test label_image{f' --host {subject.host}' if subject.host else ''}"
    if "error" in result:
        failure = log.errors[0] if log.errors else result["error"]["message"]
        return broken(failure, expected, subject.there("dmesg | tail -n 20"))
    if log.errors:
        return broken(f"Mesa: {log.errors[0]}", expected, subject.there("dmesg | tail -n 20"))
    if not log.operations or not log.invocations:
        return broken("the delegate took nothing: it ran on the CPU", expected, see)
    difference = result["max_difference"]
    if result["constant"] or difference > _TOLERANCE:
        what = "the output is constant" if result["constant"] else f"it is {difference} off"
        return broken(
            f"{what} (driver {log.driver})", expected, subject.there("dmesg | tail -n 20")
        )
    off = f"off by at most {difference}" if difference else "the same output as the CPU's"
    return ok(f"driver {log.driver}, {off}", expected)


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else ()
