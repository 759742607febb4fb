# SPDX-License-Identifier: MIT
"""What is not as it was asked for: what gave way, what nobody can ask for, and what is wrong.

The last fragment to name an option wins, and with it what follows from it. A fragment that names one member
of a choice names the choice, so an earlier fragment's member gives way. A line marked ``Prefer:`` also does
where a later fragment names something that it depends on, and where that makes something a module, what
depends on it is one too. Nobody can ask for a symbol without a prompt: a whole ``.config`` or ``defconfig``
is not held to them, and no fragment is to what the compiler decides. Such a file may be of another kernel:
what this one does not have is listed, and stops nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .compare import Difference
from .fragments import Asked
from .vendor_symbols import is_vendors_own, vendor_lines
from .whole_config import BY_ITSELF, Kind

if TYPE_CHECKING:
    from .kconfig import Reasons  # late: kconfiglib is for where something differs

_NEAREST = 20  # looking for a like name takes a tenth of a second


@dataclass(frozen=True)
class GaveWay:
    """A symbol that is not as asked, as a later fragment wants something else.

    Attributes:
        to: what that fragment named.
    """

    asked: Asked
    to: Asked

    def text(self) -> str:
        """A line for people."""
        mine, other = self.asked, self.to
        return f"{mine.symbol}={mine.value} ({mine.where}) to {other.symbol}={other.value} ({other.where})"

    def document(self) -> dict[str, str]:
        """The same as JSON."""
        return {
            "symbol": self.asked.symbol,
            "asked": self.asked.value,
            "where": self.asked.where,
            "to": self.to.symbol,
            "to_value": self.to.value,
            "to_where": self.to.where,
        }


@dataclass(frozen=True)
class Judged:
    """Differences, by what they mean.

    Attributes:
        not_had: what only a whole configuration or a preference asks for, and this kernel does not have or
            does not allow.
        left_out: what nobody can ask for.
    """

    wrong: tuple[Difference, ...] = ()
    not_had: tuple[Difference, ...] = ()
    gave_way: tuple[GaveWay, ...] = ()
    left_out: tuple[Asked, ...] = ()


def judge(
    mismatches: Sequence[Difference],
    asked: Mapping[str, Asked],
    reasons: Reasons | None,
    *,
    release: str,
    known_names: Callable[[], Collection[str]],
    foreign_names: Callable[[], Mapping[str, str]] = dict,
) -> Judged:
    """Say of each difference what it means, and why, of those that are wrong or not available.

    Args:
        reasons: the tree's Kconfig files; None: they cannot be read, or there are none.
        release: of the kernel, for people.
        known_names: all symbols of the tree; asked only where one is missing.
        foreign_names: symbols of other architectures, each with one of them.
    """
    wrong: list[Difference] = []
    not_had: list[Difference] = []
    gave_way: list[GaveWay] = []
    left_out: list[Asked] = []
    unknown = 0
    for each in mismatches:
        other = _later(each, asked, reasons)
        if other is not None:
            gave_way.append(GaveWay(each.asked, other))
            continue
        if is_nobodys(each.asked, reasons):
            left_out.append(each.asked)
            continue
        symbol = each.asked.symbol
        why = reasons.of(symbol, each.asked.value) if reasons else ()
        if not why and not each.got and symbol not in known_names():
            unknown += 1
            machine = foreign_names().get(symbol)
            why = (
                (f"arm64 has no such symbol in this kernel ({release}), {machine} has",)
                if machine
                else (
                    f"this kernel ({release}) has no such symbol",
                    *_like(symbol, known_names, unknown),
                )
            )
        optional = each.asked.may_be_missing or each.asked.preferred_only
        (not_had if optional else wrong).append(replace(each, reasons=why))
    return Judged(tuple(wrong), tuple(not_had), tuple(gave_way), tuple(left_out))


def overruled(asked: Mapping[str, Asked]) -> tuple[GaveWay, ...]:
    """Return the lines that a later line for the same symbol takes back."""
    return tuple(GaveWay(each.overruled, each) for each in asked.values() if each.overruled)


def off_without_name(
    asked: Mapping[str, Asked], got: Mapping[str, str], known_names: Callable[[], Collection[str]]
) -> Iterator[str]:
    """Say which symbols a fragment switches off that this kernel does not have: the name may be wrong.

    Args:
        got: the configuration, which names all symbols that can be switched on.
        known_names: all symbols of the tree; looked for only where one is not in the configuration.
    """
    off = [each for each in asked.values() if each.value == "n" and each.kind is Kind.FRAGMENT]
    absent = [each for each in off if each.symbol not in got]
    nameless = [each for each in absent if each.symbol not in known_names()]
    for number, each in enumerate(nameless):
        near: list[str] = []
        if each.symbol.upper() in known_names():
            near = [each.symbol.upper()]
        elif number < _NEAREST:
            near = difflib.get_close_matches(each.symbol, known_names(), n=1, cutoff=0.8)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        yield f"{each.symbol} ({each.where}) is no symbol of this kernel{meant}"


def _like(symbol: str, known_names: Callable[[], Collection[str]], number: int) -> Iterator[str]:
    """Whose symbol an unknown one is, and which one is meant perhaps."""
    vendor = vendor_lines(symbol)
    yield from vendor
    if is_vendors_own(symbol):
        return
    if symbol.upper() in known_names():
        yield f"did you mean {symbol.upper()!r}?"
        return
    if number > _NEAREST:
        return
    near = difflib.get_close_matches(symbol, known_names(), n=1, cutoff=0.9 if vendor else 0.6)
    if near:
        yield f"did you mean {near[0]!r}?"


def _later(
    difference: Difference, asked: Mapping[str, Asked], reasons: Reasons | None
) -> Asked | None:
    """What a later fragment names instead of this symbol, or against it."""
    mine = difference.asked
    later = {name: each for name, each in asked.items() if each.rank > mine.rank}
    if not later:
        return None
    if reasons is None:
        return next(iter(later.values())) if mine.preferred_only else None
    for name in sorted(reasons.choice_of(mine.symbol) & later.keys()):
        if later[name].value == "y":
            return later[name]
    only_a_module = (mine.value, difference.got) == ("y", "m")
    if not mine.preferred_only and not only_a_module:
        return None
    bearing = [later[name] for name in reasons.bearing_on(mine.symbol) if name in later]
    if only_a_module:
        return next((each for each in bearing if each.value == "m"), None)
    # What is off first, as that is what keeps something from being on; of those the nearest.
    return min(bearing, key=lambda each: each.value != "n", default=None)


def is_nobodys(asked: Asked, reasons: Reasons | None = None) -> bool:
    """Whether a difference says nothing, as nobody can ask for that symbol."""
    name, is_whole = asked.symbol, asked.kind is not Kind.FRAGMENT
    if reasons is None or not reasons.is_known(name):
        return is_whole and BY_ITSELF.fullmatch(name) is not None
    if reasons.has_prompt(name):
        return False
    return is_whole or reasons.is_fact(name)
