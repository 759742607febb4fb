# SPDX-License-Identifier: MIT
"""What is not as it was asked for: what gave way, what nobody can ask for, and what is wrong.

The last fragment to name an option wins, and with it what follows from it. A fragment that names one member
of a choice names the choice, so an earlier fragment's member gives way. Where a later fragment makes
something a module, what depends on it is one too. A line marked ``Prefer:`` gives way to later fragments
and to the kernel. Nobody can ask for a symbol without a prompt: a whole ``.config`` or ``defconfig`` is not
held to them, and no fragment is to what the compiler decides.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .config import Difference
from .fragments import Asked
from .vendor_symbols import is_vendors_own, vendor_lines
from .whole_config import BY_ITSELF, Kind

if TYPE_CHECKING:
    from .kconfig import Reasons  # late: kconfiglib is for where something differs

_NEAREST = 20  # looking for a like name takes a tenth of a second


@dataclass(frozen=True)
class GaveWay:
    """A symbol that is not as asked, as a later fragment or (if it is only preferred) the kernel has it so.

    Attributes:
        to: what that fragment named; None: it is the kernel.
        reasons: why the kernel has it otherwise.
    """

    asked: Asked
    to: Asked | None
    reasons: tuple[str, ...] = ()

    def text(self) -> str:
        """A line for people."""
        mine, other = self.asked, self.to
        line = f"{mine.symbol}={mine.value} ({mine.where})"
        if other is None:
            return (
                f"{line}, which is only preferred: {self.reasons[0] if self.reasons else 'dropped'}"
            )
        return f"{line} to {other.symbol}={other.value} ({other.where})"

    def document(self) -> dict[str, object]:
        """The same as JSON."""
        to = self.to
        return {
            "symbol": self.asked.symbol,
            "asked": self.asked.value,
            "where": self.asked.where,
            "to": to.symbol if to else None,
            "to_value": to.value if to else None,
            "to_where": to.where if to else None,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class Judged:
    """Differences, by what they mean; ``left_out`` are those that nobody can ask for."""

    wrong: tuple[Difference, ...] = ()
    gave_way: tuple[GaveWay, ...] = ()
    left_out: tuple[Asked, ...] = ()

    def to_json(self) -> str:
        """Return it in a form that ``from_json`` reads."""
        return json.dumps(
            {
                "wrong": [[each.asked.symbol, each.got, each.reasons] for each in self.wrong],
                "gave_way": [
                    [each.asked.symbol, each.to.symbol if each.to else None, each.reasons]
                    for each in self.gave_way
                ],
                "left_out": [each.symbol for each in self.left_out],
            }
        )

    @classmethod
    def from_json(cls, text: str, asked: Mapping[str, Asked]) -> Judged:
        """Return what was judged before, of the same fragments.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        data = json.loads(text)
        return cls(
            tuple(Difference(asked[name], got, tuple(why)) for name, got, why in data["wrong"]),
            tuple(
                GaveWay(asked[name], asked[to] if to else None, tuple(why))
                for name, to, why in data["gave_way"]
            ),
            tuple(asked[name] for name in data["left_out"]),
        )


def judge(
    found: Sequence[Difference],
    asked: Mapping[str, Asked],
    reasons: Reasons | None,
    *,
    release: str,
    known_names: Callable[[], Collection[str]],
) -> Judged:
    """Say of each difference what it means, and of those that are wrong why.

    Args:
        reasons: the tree's Kconfig files; None: they cannot be read, or there are none.
        release: of the kernel, for people.
        known_names: all symbols of the tree; asked only where one is missing.
    """
    wrong: list[Difference] = []
    gave_way: list[GaveWay] = []
    left_out: list[Asked] = []
    unknown = 0
    for each in found:
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
            why = (
                f"this kernel ({release}) has no such symbol",
                *_like(symbol, known_names, unknown),
            )
        if each.asked.preferred_only:
            gave_way.append(GaveWay(each.asked, None, why))
        else:
            wrong.append(replace(each, reasons=why))
    return Judged(tuple(wrong), tuple(gave_way), tuple(left_out))


def _like(symbol: str, known_names: Callable[[], Collection[str]], number: int) -> Iterator[str]:
    """Whose symbol an unknown one is, and which one is meant perhaps."""
    vendor = vendor_lines(symbol)
    yield from vendor
    if is_vendors_own(symbol) or number > _NEAREST:
        return
    near = difflib.get_close_matches(symbol, known_names(), n=1, cutoff=0.9 if vendor else 0.5)
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
