# SPDX-License-Identifier: MIT
"""Which NPUs and which versions of Mesa a report is about: what ``--npu`` and ``--mesa`` name."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bsp.base.errors import UserError, nearest
from bsp.catalog import load_soc, soc_names

from .faults import known_faults
from .prediction import Rules, all_rules, rules_for


def npus_of(words: str) -> dict[str, str]:
    """Return the driver of each NPU that is named by its SoC, ``virtual:`` before it or not.

    Without names: those whose known faults were looked for.

    Raises:
        UserError: one is not known, or there are no rules for its driver.
    """
    with_rules = {rules.driver for rules in all_rules()}
    drivers = {}
    for word in _words(words) or known_faults.NPUS:
        name = word.lower().removeprefix("virtual:")
        supported = [each for each in soc_names() if _driver(each) in with_rules]
        if name not in supported:
            raise UserError(
                f"nothing is known of the NPU {word!r}{nearest(name, supported)}: there are rules for the "
                f"drivers {', '.join(sorted(with_rules))}",
                hint=f"--npu takes names of SoCs with commas: {', '.join(supported)}",
            )
        drivers[name] = _driver(name)
    return drivers


def rules_of(words: str, drivers: Iterable[str]) -> list[tuple[str, Rules]]:
    """Return the versions of Mesa that are named, with the rules of each driver that has some.

    Without names: those that the rules were compared with, or, where they were not, where they begin.

    Raises:
        UserError: no driver has rules for one of them.
    """
    versions = []
    names = list(dict.fromkeys(drivers))
    for driver in names:
        for name in _words(words) or _usual(driver):
            rules = rules_for(driver, name)
            if rules and (name, rules) not in versions:
                versions.append((name, rules))
    for name in _words(words):
        if not any(version == name for version, _ in versions):
            raise _no_rules(name, names)
    return versions


def others(words: str, drivers: Iterable[str]) -> list[tuple[str, Rules]]:
    """Return the newest of these versions for each driver that nobody asked about."""
    named_drivers, newest_versions = set(drivers), []
    for driver in dict.fromkeys(rules.driver for rules in all_rules()):
        names = [name for name in _words(words) or _usual(driver) if rules_for(driver, name)]
        newest = max(names, key=_order, default=None)
        rules = rules_for(driver, newest) if newest else None
        if driver not in named_drivers and newest and rules:
            newest_versions.append((newest, rules))
    return newest_versions


def _usual(driver: str) -> list[str]:
    mine = [rules for rules in all_rules() if rules.driver == driver]
    compared = [name for rules in mine for name in rules.compared]
    return compared or [mine[-1].since]


def _no_rules(name: str, drivers: list[str]) -> UserError:
    ranges = ", ".join(
        f"{each.driver} {each.since} to before {each.before}"
        for each in all_rules()
        if each.driver in drivers
    )
    return UserError(
        f"there are no rules for {' and '.join(drivers)} in Mesa {name!r}, only for {ranges}",
        hint="--mesa 25.0.7 is Debian trixie's, --mesa 26.2.6 sid's",
    )


def _driver(soc: str) -> str:
    npu = load_soc(soc).npu
    return npu.driver if npu else ""


def _order(mesa: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", mesa)]


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
