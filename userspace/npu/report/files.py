# SPDX-License-Identifier: MIT
"""Makes a report of a host and writes it: HTML, JSON and JUnit XML beside each other."""

from __future__ import annotations

import datetime
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from bsp.base.cache import write_atomically
from bsp.base.errors import BspError, InfrastructureError, UserError
from bsp.base.output import json_text
from bsp.base.progress import say
from bsp.base.project import results_folder
from bsp.remote.inventory import Host

from ..doctor import doctor as examination
from ..doctor.records import DoctorDocument
from ..validate.records import SmokeDocument
from . import history, regression
from . import html as report_html
from .junit import junit

FORMAT = 1
_JSON, _JUNIT = ".json", ".xml"


def remember(document: SmokeDocument) -> None:
    """Keep a smoke test's whole document as the newest of its host, for reports made later."""
    content = json_text(document, indent=None).encode()
    write_atomically(_newest_file(document["host"]), content)


def newest(host: str) -> SmokeDocument | None:
    """Return the newest document of a host; None if there is none that can be read."""
    try:
        document: SmokeDocument = json.loads(_newest_file(host).read_bytes())
        (
            document["results"],
            document["model"]["name"],
            document["image"]["name"],
            document["machine"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return document


class WrittenReport(TypedDict):
    """The files of a report, and its verdict; None: nothing was measured."""

    host: str
    html: str
    json: str
    junit: str
    verdict: str | None


def report(
    host: Host | None,
    output: Path | None = None,
    *,
    ask_doctor: bool = True,
    accept_new_key: bool = False,
) -> WrittenReport:
    """Write a report of what is known of a host: its newest smoke test, its history, the doctor's findings.

    Raises:
        UserError: nothing was measured there yet, or the folder is not there.
    """
    name = host.name if host else history.THIS_MACHINE
    smoke = newest(name)
    if smoke is None:
        history.need(name)
    findings, note = None, "Not asked."
    if ask_doctor:
        findings, note = _findings(host, accept_new_key)
    target = output or _default_file(name)
    if output is None:
        target.parent.mkdir(exist_ok=True)
    return write(name, target, smoke=smoke, findings=findings, note=note)


def _default_file(host: str) -> Path:
    """``build/report-HOST.html`` in the project, in characters that need no quoting anywhere."""
    safe = re.sub(r"[^A-Za-z0-9_.@-]+", "-", host).strip("-.") or "host"
    return results_folder() / f"report-{safe}.html"


def _findings(host: Host | None, accept_new_key: bool) -> tuple[DoctorDocument | None, str]:
    try:
        return examination.doctor(host, accept_new_key=accept_new_key), ""
    except BspError as error:
        say(f"the report has no doctor's findings: {error.message.splitlines()[0]}")
        return None, f"Could not be asked: {error.message.splitlines()[0]}"


def write(
    name: str,
    target: Path,
    *,
    smoke: SmokeDocument | None,
    findings: DoctorDocument | None,
    note: str = "",
) -> WrittenReport:
    """Write the three files; as ``report``."""
    _check_page(target, "--output")
    past = history.read(name)
    judged = regression.document(past) if past.entries else None
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = report_html.page(
        smoke,
        judged,
        _medians(past),
        findings,
        doctor_note=note,
        picture=_picture(smoke),
        made=now,
    )
    whole = {"format": FORMAT, "smoke_test": smoke, "history": judged, "doctor": findings}
    files = {
        "html": (target, page),
        "json": (target.with_suffix(_JSON), json_text(whole) + "\n"),
        "junit": (target.with_suffix(_JUNIT), junit(smoke, judged, findings)),
    }
    for path, content in files.values():
        write_atomically(path, content.encode())
    words = [(smoke or {}).get("verdict"), (findings or {}).get("verdict")]
    return {
        "host": name,
        "html": str(target),
        "json": str(files["json"][0]),
        "junit": str(files["junit"][0]),
        "verdict": "fail" if {"fail", "broken"} & set(words) else (smoke or {}).get("verdict"),
    }


@dataclass(frozen=True)
class ReportTargets:
    """Files that a smoke test writes: an HTML report, JUnit XML."""

    report: Path | None
    junit: Path | None

    @staticmethod
    def of(report: str, junit: str) -> ReportTargets:
        """Return the targets from the command line's words; "": not asked for.

        Raises:
            UserError: a folder is not there (said before the test runs, not after).
        """
        targets = ReportTargets(Path(report) if report else None, Path(junit) if junit else None)
        if targets.report:
            _check_page(targets.report, "--report")
        if targets.junit:
            _check_folder(targets.junit, "--junit")
        return targets


def after_run(
    document: SmokeDocument, host: Host | None, targets: ReportTargets
) -> BspError | None:
    """Write the files that were asked for after a smoke test.

    Returns:
        why one of them could not be written; the results count all the same, and are to be printed.
    """
    try:
        _write_targets(document, host, targets)
    except BspError as error:
        return error
    except OSError as error:
        return InfrastructureError(
            f"cannot write {error.filename}: {error.strerror}",
            hint="./inv report writes files of the newest run, without running anything",
        )
    return None


def _write_targets(document: SmokeDocument, host: Host | None, targets: ReportTargets) -> None:
    if targets.report:
        emulated = "npu" in document
        findings, note = (None, "An emulated NPU.") if emulated else _findings(host, False)
        written = write(
            document["host"], targets.report, smoke=document, findings=findings, note=note
        )
        say(f"report: {written['html']}, {written['json']}, {written['junit']}")
    if targets.junit:
        write_atomically(targets.junit, junit(document, None, None).encode())


def _check_page(path: Path, flag: str) -> None:
    """Refuse a page beside which the report's JSON and JUnit files have no place."""
    _check_folder(path, flag)
    if path.suffix in (_JSON, _JUNIT) or (path.exists() and not path.is_file()):
        raise UserError(
            f"{flag} {path}: expected the name of an HTML file; {_JSON} and {_JUNIT} go beside it",
            hint=f"{flag} report.html",
        )


def _check_folder(path: Path, flag: str) -> None:
    folder = path.absolute().parent
    if not folder.is_dir() or path.is_dir():
        raise UserError(
            f"{flag} {path}: there is no folder {folder}"
            if not folder.is_dir()
            else f"{flag} {path} is a folder, expected a file",
            hint=f"{flag} FILE",
        )
    if (path.is_file() or not path.exists()) and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"{flag} {path}: nothing can be written to the folder {folder}",
            hint=f"{flag} takes a file in a folder of yours",
        )


def text(written: WrittenReport) -> str:
    """Say what was written."""
    files = (written["html"], written["json"], written["junit"])
    return "\n".join([f"{written['host']}: {written['verdict']}", *files])


def _medians(past: history.History) -> dict[str, list[float]]:
    # In the order of regression.document, whose series the numbers belong to.
    return {
        f"{test} {model} {delegate} {number}": [point["ms"] for point in points]
        for number, ((test, model, delegate, _), points) in enumerate(
            regression.series_of(past).items()
        )
    }


def _picture(smoke: SmokeDocument | None) -> bytes | None:
    path = (smoke or {}).get("image", {}).get("path")
    try:
        return report_html.png_of(Path(path)) if path else None
    except OSError:
        return None


def _newest_file(host: str) -> Path:
    return history.file_of(host).with_suffix(".newest.json")
