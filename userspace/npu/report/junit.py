# SPDX-License-Identifier: MIT
"""Results as JUnit XML, as CI systems read it: rows, checks and series as test cases. Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from ..doctor.records import DoctorDocument
from ..validate.records import SmokeDocument
from .regression import HistoryDocument

# What XML 1.0 cannot hold, whatever a board prints.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(
    smoke: SmokeDocument | None,
    history: HistoryDocument | None,
    doctor: DoctorDocument | None,
) -> str:
    """Return the XML document: a test suite each for smoke test, doctor and history, as far as given."""
    suites = []
    if smoke:
        cases = [
            (
                row["delegate"],
                {"fail": "failure", "skip": "skipped"}.get(row["status"], ""),
                row["reason"],
                (row["latency_ms"]["median"] if row["latency_ms"] else 0) / 1000,
            )
            for row in smoke["results"]
        ]
        if smoke["verdict"] == "skip":
            # A suite whose only results are "skipped" and the reference's own is green in CI; this is not.
            reasons = "; ".join(
                f"{row['delegate']}: {row['reason']}"
                for row in smoke["results"]
                if row["status"] == "skip"
            )
            cases.append(
                ("verdict", "failure", f"nothing that was asked for could run: {reasons}", 0)
            )
        suites.append((f"{smoke['test']} {smoke['model']['name']}", smoke["host"], cases))
    if doctor:
        cases = [
            (
                check["name"],
                {"broken": "failure", "unknown": "skipped"}.get(check["status"], ""),
                f"found: {check['found']}; expected: {check['expected']}; next: {check['next']}",
                0.0,
            )
            for check in doctor["checks"]
        ]
        suites.append(("doctor", doctor["host"], cases))
    if history:
        cases = [
            (
                f"{each['model']} {each['delegate']}",
                {"slower": "failure", "too few": "skipped"}.get(each["verdict"], ""),
                each["text"],
                each["latest_ms"] / 1000,
            )
            for each in history["series"]
        ]
        suites.append(("history", history["host"], cases))
    return _document(suites)


def _document(suites: list[tuple[str, str, list[tuple[str, str, str, float]]]]) -> str:
    root = ET.Element("testsuites", name="npu-bsp")
    for name, host, cases in suites:
        outcomes = [outcome for _, outcome, _, _ in cases]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_text(name),
            hostname=_text(host),
            tests=str(len(cases)),
            failures=str(outcomes.count("failure")),
            errors="0",
            skipped=str(outcomes.count("skipped")),
            time=f"{sum(seconds for *_, seconds in cases):.6f}",
        )
        for title, outcome, message, seconds in cases:
            case = ET.SubElement(
                suite,
                "testcase",
                classname=_text(f"{name}.{host}"),
                name=_text(title),
                time=f"{seconds:.6f}",
            )
            if outcome:
                ET.SubElement(case, outcome, message=_text(message))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _text(value: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value)
