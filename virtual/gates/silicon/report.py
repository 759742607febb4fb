# SPDX-License-Identifier: MIT
"""How much the virtual NPUs agree with silicon, counted and in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsp.base.output import table

from ...npu.shim.host import PREFIX
from .lists import UNJUDGED, Lists
from .run import Outcome
from .suites import SiliconTest

AGREE, DISAGREE = "agree", "disagree"
_MOST_SHOWN = 20


def agreement(
    tests: Sequence[SiliconTest],
    outcomes: Mapping[tuple[str, str], Outcome],
    lists: Mapping[str, Lists],
    *,
    by: Callable[[SiliconTest], str],
    key: str,
) -> list[dict[str, Any]]:
    """Return, for each NPU and kind of test, how many verdicts agree with the list's.

    Args:
        by: the kind of a test; key: its name in the document.
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for npu, listed in lists.items():
        for test in tests:
            row = counts.setdefault((npu, by(test)), {AGREE: 0, DISAGREE: 0, UNJUDGED: 0})
            silicon = listed.verdict(test.name)
            if silicon == UNJUDGED:
                row[UNJUDGED] += 1
            else:
                row[AGREE if silicon == outcomes[npu, test.name].verdict else DISAGREE] += 1
    return [{"npu": PREFIX + npu, key: kind, **row} for (npu, kind), row in counts.items()]


def text_of(document: Mapping[str, Any]) -> str:
    """Return the document for people."""
    package, source = document["package"], document["source"]
    rows = [
        (
            row["npu"].removeprefix(PREFIX),
            row["group"],
            *(str(row[count]) for count in (AGREE, DISAGREE, UNJUDGED)),
        )
        for row in document["agreement"]
    ]
    lines = [
        f"Mesa {package['version']} ({package['origin']}) on virtual NPUs: the tests of Mesa",
        f"{source['version']}, beside the lists from boards ({', '.join(document['lists'].values())}):",
        "",
        table(("npu", "tests", "agree", "disagree", "unjudged"), rows),
    ]
    disagreements = document["disagreements"]
    for each in disagreements[:_MOST_SHOWN]:
        lines += ["", f"{each['npu'].removeprefix(PREFIX)} {each['test']}"]
        lines.append(f"  silicon: {each['silicon']}; virtual: {each['virtual']}")
        lines += _wrapped(f"why: {each['why'] or 'not explained'}")
        if each["evidence"]:
            lines += _wrapped(f"seen: {each['evidence']}")
    if len(disagreements) > _MOST_SHOWN:
        lines += ["", f"and {len(disagreements) - _MOST_SHOWN} more; --json has them all"]
    lines += [
        "",
        f"Disagreements that nothing explains: {document['unexplained']}",
        "unjudged: skipped on the board, or its result there changes from run to run.",
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
