# SPDX-License-Identifier: MIT
"""The report: what is in it, that nothing in it comes from elsewhere, and that a browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from userspace.npu.model import tiny_model
from userspace.npu.report import files as report_files
from userspace.npu.report import history
from userspace.npu.report import html as report_html
from userspace.npu.report import svg as report_svg
from userspace.npu.report.junit import junit
from userspace.npu.report.report import text_of
from userspace.npu.validate.onboard.bmp import encode_bmp

pytestmark = pytest.mark.usefixtures("own_state")
NASTY = '</table><script>alert("x")</script>&\x07 \N{SNOWMAN}'
CHROMIUM = shutil.which("chromium")


def smoke(folder: Path, **changes: Any) -> Any:
    """A document as a smoke test leaves it: CPU, an NPU, one that failed, one that was not there."""
    picture = folder / "seven.bmp"
    picture.write_bytes(tiny_model.sample_bmp())
    top = [{"index": 7, "label": "seven", "score": 0.9}, {"index": 1, "label": NASTY, "score": 0.1}]

    def row(name: str, status: str, reason: str, median_ms: float | None) -> Any:
        ran = median_ms is not None
        middle_ms = median_ms or 0.0
        runs = [round(middle_ms * (1 + number / 100), 3) for number in range(8)]
        times = {"median": median_ms, "p95": runs[-1], "min": runs[0], "max": runs[-1], "n": 8}
        return {
            "delegate": name, "status": status, "reason": reason, "top": top if ran else [],
            "latency_ms": times if ran else None, "runs_ms": runs if ran else None,
            "first_ms": 30.0 if ran else None, "delegated_ops": 2 if name == "teflon" else None,
            "total_ops": 3, "driver": "etnaviv" if name == "teflon" else None, "max_abs_diff": 0.01,
            "delegated_nodes": [0, 1] if name == "teflon" else None,
        }  # fmt: skip

    return {
        "test": "label_image", "host": "desk", "board": "vim3", "note": "", "expected": None,
        "model": {"name": "tiny", "sha256": "a" * 64}, "runtime": "runtime 1.0",
        "image": {"name": "seven.bmp", "sha256": "b" * 64, "path": str(picture)},
        "machine": {"machine": "aarch64", "kernel": "6.12", "python": "3.13", "numpy": "2", "threads": 2},
        "conditions": {"mesa": "25.0.7", "governor": "performance", "temperature_c": 44.0},
        "operations": [
            {"index": index, "name": name, "output": [1, 8, 8, 4]}
            for index, name in enumerate(["CONV_2D", "CONV_2D", "SOFTMAX"])
        ],
        "results": [
            row("cpu", "pass", "", 20.0),
            row("teflon", "pass", "", 4.0),
            row("/lib/x.so", "fail", NASTY, 5.0),
            row("opencl", "skip", "no OpenCL device", None),
        ],
        "verdict": "fail",
        **changes,
    }  # fmt: skip


def findings() -> Any:
    checks = [
        {"name": "node", "status": "ok", "found": "/npu", "expected": "/npu", "next": ""},
        {"name": "status", "status": "broken", "found": NASTY, "expected": "okay", "next": "./inv deploy"},
        {"name": "clocks", "status": "unknown", "found": "?", "expected": "800", "next": ""},
    ]  # fmt: skip
    return {
        "host": "desk", "board": "vim3", "checks": checks, "first_broken": "status",
        "next": "./inv deploy --host desk", "verdict": "broken",
    }  # fmt: skip


def remember(document: Any, count: int) -> None:
    lines = []
    for number in range(count):
        entry: Any = history.entry_of(document, document["conditions"])
        for row in entry["results"]:
            if "latency_ms" in row:
                row["latency_ms"] = {"median": 4.0 + number % 3 / 100 + (number >= count - 3)}
        lines.append(json.dumps(entry))
    path = history.file_of("desk")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


class Page(HTMLParser):
    """Tags, their addresses and the text of a page; fails on a tag that is closed by another."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "img", "br", "!doctype"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data


def made(folder: Path, count: int = 20) -> tuple[Any, str]:
    document = smoke(folder)
    remember(document, count)
    target = folder / "report.html"
    result = report_files.write("desk", target, smoke=document, findings=findings())
    return result, target.read_text()


def test_nothing_that_ran_is_no_success_in_any_form(tmp_path: Path) -> None:
    """CI counts "skipped" as green: what was asked for and could not run has to be a failure there."""
    document = smoke(tmp_path)
    for row in document["results"]:
        row["implied"] = row["delegate"] == "cpu"
        if row["delegate"] != "cpu":
            row |= {"status": "skip", "reason": f"no {row['delegate']}", "latency_ms": None}
    document["results"] = document["results"][:2]
    document["verdict"] = "skip"
    suite = ET.fromstring(junit(document, None, None).encode())[0]
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "1")
    (failure,) = suite.iter("failure")
    assert "nothing that was asked for could run" in (failure.get("message") or "")
    assert "teflon: no teflon" in (failure.get("message") or "")
    report_files.write("desk", tmp_path / "r.html", smoke=document, findings=None)
    assert "nothing was validated" in Page((tmp_path / "r.html").read_text()).text
    assert "verdict: skip: nothing that was asked" in text_of(document)


def test_the_page_has_everything_and_needs_nothing(tmp_path: Path) -> None:
    result, text = made(tmp_path)
    page = Page(text)
    for part in ("Results", "Latency and answer", "History", "Doctor", "Who ran what", "Versions"):
        assert part in page.text, part
    for part in ("2 of 3 (etnaviv)", "no OpenCL device", "seven", "25.0.7", "44.0 °C", "SOFTMAX"):
        assert part in page.text, part
    assert "5.00\N{MULTIPLICATION SIGN}" in page.text  # teflon against cpu
    assert "First broken link: status" in page.text
    assert "slower than the last ten by 25%" in page.text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("svg") == 1 + 2
    assert [link[:22] for link in page.links] == ["data:image/png;base64,"]
    assert not re.search(r"https?://|@import|url\(", text)
    assert NASTY.replace("\x07", "") not in text
    assert result["verdict"] == "fail"


def test_objects_are_drawn_over_the_picture(tmp_path: Path) -> None:
    document = smoke(tmp_path)
    box = [0.1, 0.2, 0.6, 1.4]  # boxes may reach over the edge
    document["results"][1]["detections"] = [
        {"index": 7, "label": "seven", "score": 0.9, "box": box}
    ]
    report_files.write("desk", tmp_path / "r.html", smoke=document, findings=None)
    text = (tmp_path / "r.html").read_text()
    Page(text)
    assert '<rect class="object k0" x="200" y="100" width="800" height="500"/>' in text


def test_json_and_junit_beside_it(tmp_path: Path) -> None:
    result, _ = made(tmp_path)
    whole = json.loads(Path(result["json"]).read_text())
    assert whole["smoke_test"]["host"] == whole["history"]["host"] == whole["doctor"]["host"]
    root = ET.parse(result["junit"]).getroot()
    suites = {suite.get("name"): suite for suite in root}
    assert list(suites) == ["label_image tiny", "doctor", "history"]
    counts = [
        (suite.get("tests"), suite.get("failures"), suite.get("skipped"))
        for suite in suites.values()
    ]
    assert counts == [("4", "1", "1"), ("3", "1", "1"), ("2", "2", "0")]
    failure = suites["label_image tiny"].find(".//failure")
    assert failure is not None
    assert failure.get("message") == NASTY.replace("\x07", "\N{REPLACEMENT CHARACTER}")


def test_each_part_may_be_missing(tmp_path: Path) -> None:
    bare = smoke(tmp_path, operations=[], conditions={}, image={"name": "gone", "sha256": ""})
    bare["results"] = bare["results"][-1:]
    for document, doctor in ((None, None), (bare, None), (None, findings())):
        result = report_files.write("desk", tmp_path / "r.html", smoke=document, findings=doctor)
        Page(Path(result["html"]).read_text())
    assert junit(None, None, None).count("testsuite ") == 0


def test_a_long_history_is_a_small_page(tmp_path: Path) -> None:
    _, text = made(tmp_path, 1000)
    assert "1000 runs" in text
    assert len(text.encode()) < 2_000_000


def test_a_report_later_is_of_the_newest_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no history of this machine"):
        report_files.report(None, tmp_path / "r.html", ask_doctor=False)
    document = smoke(tmp_path, host=history.THIS_MACHINE)
    report_files.remember(document)
    found = report_files.report(None, tmp_path / "r.html", ask_doctor=False)
    assert found["verdict"] == "fail"
    assert "no OpenCL device" in (tmp_path / "r.html").read_text()


def test_times_of_an_emulated_board_are_called_so_beside_each_speed_up(tmp_path: Path) -> None:
    def told(**changes: Any) -> tuple[str, str]:
        document = smoke(tmp_path, **changes)
        page = report_html.page(
            document, None, {}, None, doctor_note="", picture=None, made="today"
        )
        return Page(page).text, text_of(document).splitlines()[-1]

    page, line = told(emulated=True)
    assert "against cpu, emulated" in page
    assert "5.00" in page
    assert "an emulated board; its times say nothing about hardware" in page
    assert line == "times in ms (emulated: they say nothing about a board); verdict: fail"
    assert "an emulated NPU" in told(npu={"findings": []})[0]  # as documents of before have it
    for changes in ({}, {"emulated": False}):
        page, line = told(**changes)
        assert "emulated" not in page + line


@pytest.mark.parametrize(
    ("host", "file"),
    [
        ("this machine", "report-this-machine.html"),
        ("lab:board=vim3", "report-lab-board-vim3.html"),
        ("root@10.0.0.7:2222", "report-root@10.0.0.7-2222.html"),
        ("../x", "report-x.html"),
    ],
)
def test_the_file_needs_no_quoting_and_lies_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report_files._default_file(host) == PROJECT / "build" / file
    monkeypatch.chdir(PROJECT)
    assert report_files._default_file(host) == Path("build") / file


def test_folders_are_looked_for_before_the_test_runs(tmp_path: Path) -> None:
    for flags in ((f"{tmp_path}/no/r.html", ""), ("", f"{tmp_path}/no/j.xml"), (str(tmp_path), "")):
        with pytest.raises(UserError, match="folder"):
            report_files.ReportTargets.of(*flags)


def test_folders_that_cannot_be_written_to_are_refused_before_the_test_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="nothing can be written to the folder"):
        report_files.ReportTargets.of("", str(tmp_path / "j.xml"))
    report_files.ReportTargets.of("", "/dev/null")


def test_results_are_not_lost_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    document = smoke(tmp_path)
    targets = report_files.ReportTargets.of("", "/dev/full")
    unwritten = report_files.after_run(document, None, targets)
    assert unwritten is not None
    assert unwritten.exit_code == 3
    assert unwritten.lines().startswith("error: cannot write /dev/full: No space left")
    assert report_files.after_run(document, None, report_files.ReportTargets.of("", "")) is None


@pytest.mark.parametrize("name", ["report.json", "junit.xml", "/dev/null"])
def test_a_page_has_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    """JSON and JUnit go beside it: report.json would be written over, /dev get files."""
    with pytest.raises(UserError, match="expected the name of an HTML file"):
        report_files.ReportTargets.of(str(tmp_path / name), "")
    report_files.ReportTargets.of(str(tmp_path / "report"), str(tmp_path / name))


def test_plots_of_odd_numbers() -> None:
    assert report_svg.distributions([("x", [], None)]) == ""
    assert report_svg.distributions([("x", [0.0], None)]) == ""
    assert "median 3.00 ms" in report_svg.distributions([("x", [3.0], 900.0)])
    assert "1 run" in report_svg.series("x", [3.0], baseline=3.0, spread=0.01, kind=0)
    assert report_svg.series("x", [], baseline=0, spread=0, kind=0) == ""


def test_pictures_of_odd_sizes_become_small_pngs(tmp_path: Path) -> None:
    file = tmp_path / "picture.bmp"
    file.write_bytes(b"no picture")
    assert report_html.png_of(file) is None
    for height, width, expected in ((1, 1, (1, 1)), (1000, 3, (1, 333)), (961, 500, (166, 320))):
        pixels = np.full((height, width, 3), 200, np.uint8)
        file.write_bytes(encode_bmp(pixels))
        png = report_html.png_of(file)
        assert png
        assert struct.unpack_from(">II", png, 16) == expected


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1100])
def test_a_browser_shows_it(tmp_path: Path, width: int) -> None:
    _, text = made(tmp_path)
    # The page's own width, where it would have to be scrolled sideways, shows in its title.
    probe = "<script>document.title=[document.documentElement.scrollWidth,innerWidth]</script>"
    (tmp_path / "probe.html").write_text(text + probe)
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
            f"--user-data-dir={tmp_path}/profile", "--dump-dom", f"file://{tmp_path}/probe.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )  # fmt: skip
    found = re.search(r"<title>(\d+),(\d+)</title>", done.stdout)
    assert found, done.stdout[:500]
    needed, there = int(found[1]), int(found[2])
    assert there >= 390
    assert needed <= there, f"the page needs {needed} of {there} pixels"
