# SPDX-License-Identifier: MIT
"""What of the documentation a program makes: the pages of commands and formats, and the check of links.

``python -m docs.make`` is ``./inv docs``.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bsp.base.cache import write_atomically
from bsp.base.errors import ValidationError
from bsp.base.output import print_json, print_text
from bsp.base.project import PROJECT
from commands import collection
from commands.face import help_text

from .formats import formats_page

ROOT = PROJECT
COMMANDS = ROOT / "docs/commands.md"
FORMATS = ROOT / "docs/formats.md"

_HEAD = """\
# All commands

Made from the commands themselves by `./inv docs`; `./inv TASK --help` says the same.
How to name boards is in [hosts.md](hosts.md), what exit codes mean in the [README](../README.md).
"""
_WIDTH = 100
_LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#([^)\s]*))?\)")
_CODE = re.compile(r"^```.*?^```|^ {4}.*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def make(namespace: Any, *, check: bool) -> list[str]:
    """Write the pages that are made, where they are not as the code says, and check all links.

    Args:
        namespace: the root collection of tasks.
        check: write nothing; a page that would change is an error.

    Returns:
        The files that were written.

    Raises:
        ValidationError: a link leads nowhere, or with ``check`` the page is out of date.
    """
    pages = {COMMANDS: commands_page(namespace), FORMATS: formats_page()}
    stale = [page for page, text in pages.items() if not page.exists() or page.read_text() != text]
    names = [str(page.relative_to(ROOT)) for page in stale]
    if stale and check:
        raise ValidationError(f"out of date: {', '.join(names)}", hint="./inv docs writes it anew")
    for page in stale:
        write_atomically(page, pages[page].encode())
    broken = list(broken_links(ROOT))
    if broken:
        raise ValidationError("links that lead nowhere:\n" + "\n".join(broken))
    return names


def commands_page(namespace: Any) -> str:
    """The page of all commands, in Markdown."""
    parts = [_HEAD]
    for name in sorted(namespace.task_names):
        task = namespace[name]
        what, example = help_text.split(task.__doc__ or "")
        parts.append(f"## {name}\n\n{textwrap.fill(what, _WIDTH)}\n")
        if example:
            parts.append(f"    {example}\n")
        rows = [_argument(argument, example) for argument in arguments(task)]
        if rows:
            parts.append("| flag | what it is |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def arguments(task: Any) -> list[Any]:
    """The arguments of a task; asking Invoke itself takes their help texts away from the task."""
    kept = dict(task.help)
    try:
        return list(task.get_arguments())
    finally:
        task.help = kept


def _argument(argument: Any, example: str) -> str:
    text = help_text.explained(argument).replace("|", "\\|")
    return f"| `{help_text.spelled(argument, example, ' ')}` | {text} |"


def broken_links(root: Path) -> Iterator[str]:
    """Relative links in the Markdown files that lead to no file, or to no heading of it."""
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("bench/*.md")]
    for page in sorted(pages):
        for target, heading in _LINK.findall(_CODE.sub("", page.read_text())):
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / target).resolve()
            where = f"{page.relative_to(root)}: {target}"
            if not path.exists():
                yield where
            elif heading and heading not in _headings(path):
                yield f"{where}#{heading}"


def _headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def main() -> None:
    """Write the page, check the links, and say what was written."""
    parser = argparse.ArgumentParser(description="Writes docs/commands.md, checks all links.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if it would change"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    try:
        written = make(collection(), check=options.check)
    except ValidationError as error:
        sys.stderr.write(
            f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else "")
        )
        sys.exit(error.exit_code)
    if options.json:
        print_json({"written": written})
    else:
        print_text(f"written: {', '.join(written)}" if written else "everything is up to date")


if __name__ == "__main__":
    main()
