# SPDX-License-Identifier: MIT
"""Examines a host (or this machine): asks for its facts, judges them, names the first broken link."""

from __future__ import annotations

import time
from dataclasses import replace

from bsp.base.errors import InfrastructureError
from bsp.base.output import table
from bsp.base.process import Completed, run
from bsp.base.progress import step
from bsp.base.words import filled
from bsp.boot_survey import facts as boot_facts
from bsp.boot_survey.facts import BootFacts
from bsp.boot_survey.survey import Survey, survey_of
from bsp.catalog import load_board
from bsp.profile import Board
from bsp.remote.inventory import Host
from bsp.remote.ssh import Connection, connect
from bsp.uboot import trial_of, uboot_of

from ..validate.machine import DEPLOYED_USERSPACE
from .check import Check
from .checks import examine, stack, subject_of
from .facts import Facts, parse_facts, script
from .records import CheckRecord, DoctorDocument

_CONNECT_TIMEOUT_S = 30
_ANSWER_TIMEOUT_S = 120


def doctor(
    host: Host | None = None,
    *,
    board: str | None = None,
    userspace: str | None = None,
    accept_new_key: bool = False,
) -> DoctorDocument:
    """Return the document of the command line's contract.

    Args:
        host: None: this machine.
        board: profile that it is to be; None: the inventory's, or the one that the device tree names.
        userspace: folder of a payload there; None: the deployed one.

    Raises:
        UserError: there is no such board.
        InfrastructureError: the host cannot be reached, or its answer is cut short.
    """
    userspace = userspace or DEPLOYED_USERSPACE
    name = board or (host.board if host else None)
    wanted = load_board(name) if name else None
    began = time.monotonic()
    where = host.name if host else "this machine"
    with step(f"Asking {where}"):
        if host is None:
            completed = run(
                ["sh", "-s"], stdin=script(userspace), timeout_s=_ANSWER_TIMEOUT_S, check=False
            )
            boot = None
        else:
            with connect(
                host, timeout_s=_CONNECT_TIMEOUT_S, accept_new_key=accept_new_key
            ) as connection:
                completed = ask(connection, userspace)
                boot = _boot_facts(connection)
    facts = parse_facts(text_of(completed, where))
    document = judge(facts, wanted=wanted, host=host.name if host else None, boot=boot)
    return {**document, "seconds": round(time.monotonic() - began, 2)}


def _boot_facts(connection: Connection) -> BootFacts | None:
    """Return how a board boots; None where it has no Python to ask with."""
    try:
        return boot_facts.ask(connection)
    except InfrastructureError:
        return None


def _survey(facts: BootFacts, board: Board | None) -> Survey:
    """How a board boots today."""
    if board is None:
        return survey_of(facts, None)
    return survey_of(facts, uboot_of(board), trial=trial_of(board))


def ask(connection: Connection, userspace: str = DEPLOYED_USERSPACE) -> Completed:
    """Ask through an open connection."""
    return connection.run(
        ["sh", "-s"], stdin=script(userspace), timeout_s=_ANSWER_TIMEOUT_S, check=False
    )


def text_of(completed: Completed, where: str) -> str:
    """Return what the script printed.

    Raises:
        InfrastructureError: it printed nothing.
    """
    if not completed.stdout.strip():
        messages = completed.stderr.decode(errors="replace").strip()[-300:]
        raise InfrastructureError(
            f"{where} ended the doctor's script with exit code {completed.exit_code}: {messages}"
        )
    return completed.text


def judge(
    facts: Facts,
    *,
    wanted: Board | None = None,
    host: str | None = None,
    boot: BootFacts | None = None,
) -> DoctorDocument:
    """Return the document, without the time that it took. Pure.

    Args:
        boot: how the board boots; None: that was not seen.
    """
    subject = subject_of(facts, wanted=wanted, host=host)
    survey = _survey(boot, subject.board) if boot else None
    subject = replace(subject, way=survey.way if survey else None)
    checks = examine(subject)
    first = next((check for check in checks if check.status == "broken"), None)
    return {
        "host": host or "this machine",
        "board": subject.board.name if subject.board else None,
        "stack": stack(facts),
        "kernel": facts.kernel,
        "generation": facts.generation,
        "checks": [_record(check) for check in checks],
        "first_broken": first.name if first else None,
        "next": first.next if first else "",
        "verdict": "broken" if first else "healthy",
        "boot": survey.document() if survey else None,
    }


def _record(check: Check) -> CheckRecord:
    return {
        "name": check.name,
        "status": check.status,
        "found": check.found,
        "expected": check.expected,
        "next": check.next,
    }


def text(document: DoctorDocument) -> str:
    """Return the document as a table for 80 columns, and what to do."""
    rows = []
    for check in document["checks"]:
        found = check["found"]
        if check["status"] == "broken":
            found += f"; expected: {check['expected']}"
        rows.append((check["name"], check["status"], found))
    lines = [
        f"{document['host']}: board {document['board'] or 'unknown'}, Linux {document['kernel']}, "
        f"NPU driver {document['stack']}",
        "",
        table(("check", "", "found"), rows),
        "",
    ]
    if boot := document.get("boot"):
        lines += [
            *filled(f"boots by {boot['layout']}: {boot['layout_why']}", 80).splitlines(),
            *filled(
                f"a device tree is tried there by {boot['way'] or 'nothing'}: {boot['why']}", 80
            ).splitlines(),
            "",
        ]
    if document["first_broken"] is None:
        lines.append("healthy: every link that could be seen holds")
    else:
        lines += [f"first broken link: {document['first_broken']}", f"next: {document['next']}"]
    return "\n".join(lines)
