# SPDX-License-Identifier: MIT
"""The documentation that is made by a program: the page of commands, and links."""

from __future__ import annotations

from pathlib import Path

from docs.formats import formats_page
from docs.make import COMMANDS, FORMATS, ROOT, arguments, broken_links, commands_page

from ..support.faults import missing


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    import tasks

    assert COMMANDS.read_text() == commands_page(tasks.namespace), "./inv docs writes it anew"


def test_the_page_of_formats_is_what_the_records_say() -> None:
    assert FORMATS.read_text() == formats_page(), "./inv docs writes it anew"


def test_each_key_of_a_format_says_what_it_means() -> None:
    rows = [line.split(" | ") for line in formats_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row[0] for row in rows if not row[3].strip(" |")] == []


def test_each_command_has_an_example_and_explains_each_flag() -> None:
    import tasks

    for name in tasks.namespace.task_names:
        task = tasks.namespace[name]
        assert f"Example: ./inv {name}" in " ".join((task.__doc__ or "").split()), name
        for argument in arguments(task):
            assert argument.help, f"{name}: {argument.names}"


def test_all_links_lead_somewhere() -> None:
    assert list(broken_links(ROOT)) == []


def test_the_table_of_faults_has_a_row_for_each() -> None:
    lacking = missing((ROOT / "docs/faults.md").read_text())
    assert lacking == [], "./inv faults writes docs/faults.md anew"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(
        "[a](docs/there.md) [b](docs/gone.md) [c](docs/there.md#a-heading) [d](docs/there.md#none)\n"
        "`[not](a/link)` [web](https://example.org/x)\n\n    [code](no/link)\n"
    )
    (tmp_path / "docs/there.md").write_text("# A heading\n")
    assert list(broken_links(tmp_path)) == [
        "README.md: docs/gone.md",
        "README.md: docs/there.md#none",
    ]
