# SPDX-License-Identifier: MIT
"""A model's report as a page: self-contained, escaped, advice first, coloured by who runs what."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from tests.support.models.rule_cases import cases
from userspace.npu.model.report import files
from userspace.npu.model.report.page import page, who_runs
from userspace.npu.model.report.report import Facts, report
from userspace.npu.model.tflite_file import Tensor, softmax, write_model
from userspace.npu.model.trial.run import RIGHT, WRONG, OperationRun, Run
from virtual.gates.build import build
from virtual.gates.cases import Case


class _Reader(HTMLParser):
    """Collects what a page would load, and sees that tags are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]
        if tag in ("script", "link", "iframe"):
            self.loads.append(tag)
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def read(content: str) -> _Reader:
    reader = _Reader()
    reader.feed(content)
    reader.close()
    assert not reader.open
    assert "url(" not in content
    return reader


def facts_of(folder: Path, content: bytes) -> Facts:
    file = folder / "model.tflite"
    file.write_bytes(content)
    return report(file)


@pytest.mark.parametrize("name", ["conv", "softmax", "conv tanh", "conv int8"])
def test_a_page_is_whole_and_loads_nothing(name: str, tmp_path: Path) -> None:
    reader = read(page(facts_of(tmp_path, cases()[name][0]), made="today"))
    assert reader.loads == []
    assert reader.titles[:2] == ["What to do", "Who runs what"]


def test_what_a_file_names_is_escaped(tmp_path: Path) -> None:
    tensors = [
        Tensor("<script>x</script>&", (1, 4), "uint8", 0.1, 0),
        Tensor("b", (1, 4), "uint8", 0.1, 0),
    ]
    model = write_model(tensors, [softmax(0, 1)], inputs=[0], outputs=[1], description="x")
    content = page(facts_of(tmp_path, model), made="today")
    assert "&lt;script&gt;" in content
    assert read(content).loads == []


def test_a_run_decides_who_is_shown_to_compute_wrongly(tmp_path: Path) -> None:
    facts = facts_of(tmp_path, build(Case("conv", 8, 8, 8, 8, dtype="int8")).model)
    version = facts.versions[0]
    assert who_runs(facts, version, "a311d", 0) == "wrongly"  # known
    for status, kind in ((RIGHT, "npu"), (WRONG, "wrongly")):
        operation = OperationRun(0, "CONV_2D", status, read_bytes=10, written_bytes=30)
        run = Run(
            "a311d", version.mesa, status, operations=(operation,), read_bytes=10, written_bytes=30
        )
        shown = replace(facts, runs=(run,))
        assert who_runs(shown, version, "a311d", 0) == kind
        content = page(shown, made="today")
        assert f'<li class="{kind}"' in content
        assert "40 · 100 %" in content


def test_the_file_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    assert files.target("") is None
    with pytest.raises(UserError, match="is a folder"):
        files.target(str(tmp_path))
    with pytest.raises(UserError, match="there is no folder"):
        files.target(str(tmp_path / "none" / "a.html"))
    place = files.target(str(tmp_path / "a.html"))
    assert place
    files.write(facts_of(tmp_path, cases()["conv"][0]), place)
    read(place.read_text(encoding="utf-8"))
