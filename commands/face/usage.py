# SPDX-License-Identifier: MIT
"""Checks the words of a command line before Invoke parses them: is help asked for, what is wrong?

Invoke's own errors name its classes, and it takes ``--help`` for the value of whatever is missing.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bsp.base.errors import UserError, nearest

Contexts = Mapping[str, Any]
"""Invoke's ``ParserContext`` of each task, by name."""

_HELP = ("--help", "-h")
_LAUNCHERS = ("--yes",)
"""Flags of the script ``inv``, which takes them only as its first word."""


@dataclass
class Call:
    """A task and the words that are meant for it, as far as they have been read."""

    task: str
    context: Any
    given: dict[str, str | None] = field(default_factory=dict)  # by the argument's name
    waiting: str = ""  # the flag whose value comes next
    help: bool = False

    @property
    def missing(self) -> list[Any]:
        """The arguments that have to be given and were not, or are empty."""
        return [a for a in self.context.positional_args if not self.given.get(a.name)]


def help_asked(words: list[str], contexts: Contexts) -> str:
    """Return the task whose help these words ask for, or an empty string.

    ``--help`` and ``-h`` are never taken for values, so that they help whatever else is missing or wrong.
    """
    task = ""
    for word in _until_dashes(words):
        if word in _HELP:
            return task
        if not task and word in contexts:
            task = word
    return ""


def check(words: list[str], contexts: Contexts, core: Any, examples: Mapping[str, str]) -> None:
    """Read the words of tasks and their flags as Invoke will.

    Args:
        words: what follows Invoke's own flags: tasks, each with its flags.
        contexts: of all tasks.
        core: Invoke's own context, whose flags may stand behind tasks too.
        examples: an example for each task.

    Raises:
        UserError: Invoke could not parse them, or would take them for something else.
    """
    reader = _Reader(words, contexts, core, examples)
    for word in _until_dashes(words):
        reader.read(word)
    reader.end_of_call()


def check_remainder(remainder: str, words: list[str], contexts: Contexts) -> None:
    """Refuse what follows ``--``: Invoke would drop it without a word.

    Raises:
        UserError: there is something.
    """
    if not remainder:
        return
    task = next((word for word in reversed(words) if word in contexts), "")
    takes_command = bool(task) and "--command" in contexts[task].flags
    raise UserError(
        f"{task or './inv'} takes nothing after --, found {remainder!r}",
        hint=f"--command '{remainder}'" if takes_command else _help_hint(task),
    )


def no_task(word: str, contexts: Contexts) -> UserError:
    """The error for what is not a task's name."""
    guess = nearest(word.lower().replace("_", "-"), list(contexts), cutoff=0.6)
    return UserError(f"no task {word!r}{guess}", hint="./inv --list names all tasks")


def flag_of(argument: Any, example: str) -> str:
    """How an argument is written: ``--host``, or ``NAME`` for what the example gives without a flag."""
    name = str(max((name.replace("_", "-") for name in argument.names), key=len))
    bare = argument.positional and f"--{name}" not in example
    return name.upper() if bare else f"--{name}"


def _until_dashes(words: list[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        yield word


class _Reader:
    def __init__(
        self, words: list[str], contexts: Contexts, core: Any, examples: Mapping[str, str]
    ) -> None:
        self._words = words
        self._contexts = contexts
        self._core = core
        self._examples = examples
        self._call: Call | None = None
        self._is_value_of_core = False

    def read(self, word: str) -> None:
        call = self._call
        if self._is_value_of_core:
            self._is_value_of_core = False
        elif call and call.waiting:
            self._value(call, call.waiting, word)
        elif re.match(r"-[^\d]", word):
            self._flag(word)
        elif call and call.missing:
            self._set(call, call.missing[0], word)
        elif word in self._contexts:
            self.end_of_call()
            self._call = Call(word, self._contexts[word])
        elif call is None:
            raise no_task(word, self._contexts)
        else:
            raise UserError(
                f"{call.task} takes no {word!r} without a flag, and no task has that name",
                hint=_help_hint(call.task),
            )

    def end_of_call(self) -> None:
        call = self._call
        if call is None:
            return
        example = self._examples.get(call.task, "")
        if call.waiting:
            raise self._missing(call, f"{call.waiting} needs a value")
        if call.missing:
            names = " and ".join(flag_of(argument, example) for argument in call.missing)
            verb = "are" if len(call.missing) > 1 else "is"
            raise self._missing(call, f"{names} {verb} missing")

    def _flag(self, word: str) -> None:
        call = self._call
        name, equals, value = word.partition("=")
        context = call.context if call else self._core
        name = context.inverse_flags.get(name, name)
        if name not in context.flags and name in self._core.flags:
            own = self._core.flags[name]
            self._is_value_of_core = own.takes_value and not own.optional and not equals
            return
        if name not in context.flags:
            raise self._unknown(call, name, context)
        if call is None:
            return
        argument = context.flags[name]
        if argument.name in call.given and argument.kind is not list:
            raise self._wrong(call, f"{name} is given twice")
        if not argument.takes_value:
            if equals:
                raise self._wrong(call, f"{name} takes no value, found {value!r}")
            call.given[argument.name] = "yes"
        elif equals:
            self._set(call, argument, value)
        else:
            call.waiting = name

    def _value(self, call: Call, flag: str, word: str) -> None:
        call.waiting = ""
        if re.match(r"--[a-z]", word):
            raise self._wrong(
                call, f"{flag} needs a value, found {word!r}",
                hint=f"a value that begins with -- is written as {flag}={word}",
            )  # fmt: skip
        self._set(call, call.context.flags[flag], word)

    def _set(self, call: Call, argument: Any, word: str) -> None:
        call.given[argument.name] = word
        if argument.kind not in (int, float):
            return
        try:
            good = math.isfinite(argument.kind(word))
        except ValueError:
            good = False
        if not good:
            expected = "a whole number" if argument.kind is int else "a number"
            flag = flag_of(argument, self._examples.get(call.task, ""))
            raise self._wrong(call, f"{flag} takes {expected}, found {word!r}")

    def _unknown(self, call: Call | None, name: str, context: Any) -> UserError:
        if name in _LAUNCHERS:
            rest = [word for word in self._words if word.partition("=")[0] != name]
            return UserError(
                f"{name} is a flag of ./inv itself: it stands before the task",
                hint=shlex.join(["./inv", name, *rest]),
            )
        if call is None:
            return UserError(
                f"{name!r} stands before the task; a task's flags come after it",
                hint=f"./inv TASK {name}; ./inv --list names all tasks",
            )
        flags = [flag[2:] for flag in context.flags if flag.startswith("--")]
        guess = nearest(name.lstrip("-").replace("_", "-").lower(), flags, cutoff=0.6)
        guess = guess.replace("mean '", "mean '--")
        return UserError(f"{call.task} has no flag {name!r}{guess}", hint=_help_hint(call.task))

    def _missing(self, call: Call, text: str) -> UserError:
        example = self._examples.get(call.task)
        shown = f". Example: {example}" if example else ""
        return UserError(f"{text}{shown}", hint=_help_hint(call.task))

    def _wrong(self, call: Call, text: str, hint: str = "") -> UserError:
        return UserError(f"{call.task}: {text}", hint=hint or _help_hint(call.task))


def _help_hint(task: str) -> str:
    """Where what is typed is explained; of no task (""), by ./inv's own help."""
    return f"./inv {task} --help explains it" if task else "./inv --help explains it"
