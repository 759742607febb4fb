# SPDX-License-Identifier: MIT
"""Why a symbol is not as it was asked for, from the kernel's Kconfig files.

kconfiglib is here because the kernel's own tools say only that a symbol is gone, not why. It is read for
explanations alone: what the configuration *is* comes from the kernel's own ``make``. kconfiglib stopped
before three additions to the language; they are put into its words while the files are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kconfiglib  # type: ignore[import-untyped]

_DEPENDS_IF = re.compile(r"^(\s*depends on )([^#]+?) if ([^#]+)$")
_BEGINS = re.compile(r"\s*(?:menu)?config\s+(\w+)")
_FACT = re.compile(r"\s*(?:def_bool|def_tristate|default)\b.*\$\(")
_DEPTH = 6
_FOUND_OUT = "what the compiler and its tools can do here decides it"
_VALUES = {0: "n", 1: "m", 2: "y"}


class _Kconfig(kconfiglib.Kconfig):  # type: ignore[misc]
    """kconfiglib, reading today's Kconfig files.

    Attributes:
        facts: names of the symbols whose value the compiler or a tool gives: ``def_bool $(cc-option,...)``.
    """

    def __init__(self, *words: Any, **named: Any) -> None:
        self.facts: set[str] = set()
        self._reading = ""
        super().__init__(*words, **named)

    def _tokenize(self, line: str) -> Any:
        begun = _BEGINS.match(line)
        if begun:
            self._reading = begun[1]
        elif line.strip() == "choice":
            self._reading = ""
        elif _FACT.match(line):
            self.facts.add(self._reading)
        return super()._tokenize(modernised(line))


def modernised(line: str) -> str:
    """Return a line of a Kconfig file in the words that kconfiglib knows."""
    word = line.strip()
    if word == "modules":  # since 5.18; before: option modules
        return "\toption modules\n"
    if word == "transitional":  # since 6.18: a symbol that only old configurations set
        return "\n"
    match = _DEPENDS_IF.match(line.rstrip("\n"))  # since 7.0
    if match:
        return f"{match.group(1)}({match.group(2)}) || !({match.group(3)})\n"
    return line


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Reasons:
    """The Kconfig files of a kernel tree with one configuration."""

    def __init__(self, tree: Path, config: Path, variables: Mapping[str, str]) -> None:
        """Read them; a second or several.

        Args:
            variables: what the kernel's Makefile exports to Kconfig: ``ARCH``, ``CC``...

        Raises:
            kconfiglib.KconfigError: they are in words that kconfiglib does not know.
        """
        with _environment({"srctree": str(tree), "CONFIG_": "CONFIG_", **variables}):
            self._kconfig = _Kconfig(str(tree / "Kconfig"), warn=False, suppress_traceback=False)
            self._kconfig.load_config(str(config))

    def of(self, name: str, value: str) -> tuple[str, ...]:
        """Return why a symbol does not have the value that was asked for."""
        symbol = self._kconfig.syms.get(name)
        if symbol is None or not symbol.nodes:
            return ()
        if not _has_prompt(symbol):
            return (_without_prompt(symbol), *_selected_by(symbol))
        mistyped = _mistyped(symbol, value)
        if mistyped:
            return (mistyped,)
        if value == "n":
            return tuple(_why_on(symbol))
        if value == "m" and symbol.str_value == "y" and self._has_no_modules():
            return ("MODULES is n, so that what would be a module is built in",)
        wanted = {"y": 2, "m": 1}.get(value, 2)
        lines = _unmet(symbol.direct_dep, wanted, 0, {name})
        if lines:
            return tuple(dict.fromkeys(lines))
        if symbol.choice is not None and symbol.choice.selection is not None:
            return (f"one of several: {symbol.choice.selection.name} was chosen",)
        prompts = [
            line
            for each in symbol.nodes
            if each.prompt
            for line in _unmet(each.prompt[1], wanted, 0, {name})
        ]
        if prompts:
            return tuple(dict.fromkeys(prompts))
        if symbol.orig_type in (kconfiglib.INT, kconfiglib.HEX):
            for low, high, condition in symbol.ranges:
                if kconfiglib.expr_value(condition):
                    return (f"it has to be between {low.str_value} and {high.str_value}",)
        return tuple(_selected_by(symbol))

    def _has_no_modules(self) -> bool:
        modules = self._kconfig.modules
        return bool(modules.nodes) and kconfiglib.expr_value(modules) == 0

    def is_known(self, name: str) -> bool:
        """Whether this kernel has a symbol of that name."""
        symbol = self._kconfig.syms.get(name)
        return symbol is not None and bool(symbol.nodes)

    def has_prompt(self, name: str) -> bool:
        """Whether anybody can ask for a symbol that this kernel has."""
        return _has_prompt(self._kconfig.syms[name])

    def is_fact(self, name: str) -> bool:
        """Whether the compiler or a tool gives a symbol its value."""
        return name in self._kconfig.facts

    def choice_of(self, name: str) -> set[str]:
        """Return the other members of the choice that a symbol belongs to."""
        symbol = self._kconfig.syms.get(name)
        if symbol is None or symbol.choice is None:
            return set()
        return {each.name for each in symbol.choice.syms} - {name}

    def bearing_on(self, name: str) -> list[str]:
        """Return the symbols that decide whether a symbol may be on, the nearest first."""
        symbol = self._kconfig.syms.get(name)
        names: list[str] = _selectors(symbol) if symbol is not None else []
        seen = {symbol}
        waiting = [symbol] if symbol is not None else []
        for each in waiting:
            conditions = [each.direct_dep, *(node.prompt[1] for node in each.nodes if node.prompt)]
            if isinstance(each, kconfiglib.Symbol) and each.nodes and not _has_prompt(each):
                conditions.append(each.rev_dep)
            items = {member for part in conditions for member in kconfiglib.expr_items(part)}
            for item in sorted(items - seen, key=lambda item: item.name or ""):
                seen.add(item)
                waiting.append(item)
                if item.nodes and item.name:
                    names.append(item.name)
        return names


def _mistyped(symbol: Any, value: str) -> str | None:
    """Say what values a symbol takes where the one that was asked for is none of them."""
    kind, name = symbol.orig_type, symbol.name
    is_switch = value in _VALUES.values()
    if kind == kconfiglib.BOOL and value == "m":
        return f"it is on or off, never a module: CONFIG_{name}=y"
    if kind in (kconfiglib.BOOL, kconfiglib.TRISTATE) and not is_switch:
        return f"it takes {'y or n' if kind == kconfiglib.BOOL else 'y, m or n'}, without quotes"
    if kind == kconfiglib.INT and not re.fullmatch(r"-?\d+", value):
        return f"it is a number, without quotes: CONFIG_{name}={symbol.str_value or 1}"
    if kind == kconfiglib.HEX and not re.fullmatch(r"0[xX][0-9a-fA-F]+", value):
        return f"it is a hexadecimal number: CONFIG_{name}={symbol.str_value or '0x1'}"
    if kind == kconfiglib.STRING and not re.fullmatch(r'"([^"\\]|\\.)*"', value):
        return f'it is a text in double quotes; a quote in it is written \\": CONFIG_{name}="text"'
    return None


def _has_prompt(symbol: Any) -> bool:
    return any(node.prompt for node in symbol.nodes)


def _without_prompt(symbol: Any) -> str:
    """Where the value of a symbol comes from that nobody can ask for."""
    node = symbol.nodes[0]
    where = f"it has no prompt ({node.filename}:{node.linenr}), so nobody can ask for it"
    if symbol.name in symbol.kconfig.facts:
        return f"{where}: {_FOUND_OUT}"
    selecting = _selectors(symbol)
    sources = []
    if selecting:
        more = f" and {len(selecting) - 6} others" if len(selecting) > 6 else ""
        sources.append(
            f"it is on where another symbol selects it: {', '.join(selecting[:6])}{more}"
        )
    if symbol.defaults:
        value, condition = symbol.defaults[0]
        text = kconfiglib.expr_str(value)
        if condition is not symbol.kconfig.y:
            text += f" if {kconfiglib.expr_str(condition)}"
        sources.append(f"its value is a default ({text})")
    return f"{where}: {'; '.join(sources) or 'it has no default, and nothing selects it'}"


def _why_on(symbol: Any) -> Iterator[str]:
    """Why a symbol is on that was asked to be off."""
    selected = list(_selected_by(symbol))
    yield from selected
    if selected:
        return
    if symbol.choice is not None:
        others = [each.name for each in symbol.choice.syms if each is not symbol]
        yield f"it is what its choice falls back on; ask for another: {', '.join(others[:8])}"
        return
    for node in symbol.nodes:
        if node.prompt:
            lines = _unmet(node.prompt[1], 2, 1, {symbol.name})
            if lines:
                yield "a default sets it, and it can be changed only where its prompt is shown:"
                yield from lines


def _selectors(symbol: Any) -> list[str]:
    """Names of the symbols that may select it."""
    names = []
    for term in kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR):
        first = kconfiglib.split_expr(term, kconfiglib.AND)[0]
        if isinstance(first, kconfiglib.Symbol) and first.nodes:
            names.append(first.name)
    return names


def _selected_by(symbol: Any) -> Iterator[str]:
    for term in kconfiglib.split_expr(symbol.rev_dep, kconfiglib.OR):
        if kconfiglib.expr_value(term):
            yield f"selected by {kconfiglib.expr_str(term)}"


def _unmet(expression: Any, wanted: int, depth: int, seen: set[str]) -> list[str]:
    """Return which terms of an expression keep it below ``wanted``, and what they depend on in turn."""
    if kconfiglib.expr_value(expression) >= wanted:
        return []
    indent = "  " * depth
    if isinstance(expression, tuple) and expression[0] is kconfiglib.AND:
        return [
            line
            for part in (expression[1], expression[2])
            for line in _unmet(part, wanted, depth, seen)
        ]
    if isinstance(expression, tuple) and expression[0] is kconfiglib.OR:
        every = kconfiglib.split_expr(expression, kconfiglib.OR)
        parts = [part for part in every if _is_possible(part)] or every
        if len(parts) == 1:
            return _unmet(parts[0], wanted, depth, seen)
        either = [f"{indent}depends on one of: {' || '.join(map(kconfiglib.expr_str, parts))}"]
        if len(parts) <= 3 and depth < _DEPTH:
            for part in parts:
                either += _unmet(part, wanted, depth + 1, seen)
        return either
    if isinstance(expression, tuple) and expression[0] is kconfiglib.NOT:
        return [f"{indent}depends on {kconfiglib.expr_str(expression)}: it must be off"]
    if isinstance(expression, kconfiglib.Symbol):
        return _unmet_symbol(expression, wanted, depth, seen)
    return [f"{indent}depends on {kconfiglib.expr_str(expression)}{_values_in(expression)}"]


def _values_in(expression: Any) -> str:
    """The values of what a comparison compares."""
    symbols = [item for item in kconfiglib.expr_items(expression) if item.nodes]
    if not symbols:
        return ", which is never so with this machine and compiler"
    values = ", ".join(f"{item.name} is {item.str_value or 'empty'}" for item in symbols)
    facts = any(item.name in item.kconfig.facts for item in symbols)
    return f" ({values}{f': {_FOUND_OUT}' if facts else ''})"


def _is_possible(expression: Any) -> bool:
    """Whether a term names a symbol of this architecture, and not the one for test builds."""
    if isinstance(expression, kconfiglib.Symbol):
        return bool(expression.nodes) and expression.name != "COMPILE_TEST"
    return True


def _unmet_symbol(symbol: Any, wanted: int, depth: int, seen: set[str]) -> list[str]:
    indent = "  " * depth
    if not symbol.nodes:
        if symbol.name in _VALUES.values():
            return [
                f"{indent}depends on a condition that is never met with this machine and compiler"
            ]
        return [f"{indent}depends on {symbol.name}, which this kernel does not have"]
    node = symbol.nodes[0]
    at_most = " (it limits this to a module)" if symbol.tri_value == 1 and wanted == 2 else ""
    found_out = f": {_FOUND_OUT}" if symbol.name in symbol.kconfig.facts else ""
    lines = [
        f"{indent}depends on {symbol.name}, which is {symbol.str_value}{at_most} "
        f"({node.filename}:{node.linenr}){found_out}"
    ]
    if symbol.name in seen or depth >= _DEPTH:
        return lines
    seen.add(symbol.name)
    deeper = _unmet(symbol.direct_dep, wanted, depth + 1, seen)
    if not deeper and all(each.prompt is None for each in symbol.nodes):
        selecting = _selectors(symbol)
        if selecting:
            lines.append(
                f"{indent}  it is on where one of these selects it: {', '.join(selecting[:8])}"
            )
    return lines + deeper
