# SPDX-License-Identifier: MIT
"""Invoke's program as this project has it: its help, errors in words, the exit codes of the README."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from invoke import __version__
from invoke.exceptions import Exit, ParseError
from invoke.parser import Parser, ParseResult
from invoke.program import Program as InvokeProgram
from invoke.terminals import pty_size

from bsp.base.errors import UserError, nearest

from . import help_text, usage
from .command import end

_WIDEST = 110  # longer lines are hard to read


class Program(InvokeProgram):
    """``invoke``, where ``--help`` is always help, and what is typed wrong ends with exit code 2."""

    _our_parser: Parser | None = None

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        """Run a command line; where nobody reads what it prints, end quietly, as other programs do."""
        try:
            try:
                super().run(argv, exit)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except OSError as error:
            from bsp.base.output import give_up_stdout

            sys.exit(give_up_stdout(error))

    def parse_core(self, argv: list[str] | None) -> None:
        """Parse Invoke's own flags, which stand before the task."""
        with self._errors_in_words():
            super().parse_core(argv)

    def parse_collection(self) -> None:
        """Load the tasks; for ``--help`` alone too, which Invoke would answer without them."""
        help_alone = self.args.help.value is True
        if help_alone:
            self.args.help.set_value(None, cast=False)
        with self._errors_in_words():
            super().parse_collection()
        if help_alone:
            self.args.help.set_value(True, cast=False)

    def parse_tasks(self) -> None:
        """Parse tasks and their flags."""
        self.parser = self._make_parser()
        words, contexts = self.core.unparsed, self.parser.contexts
        topic = usage.help_asked(words, contexts)
        if topic:
            self.args.help.value = topic
            self.tasks = ParseResult()
            return
        with self._errors_in_words():
            examples = {name: help_text.split(self._doc(name))[1] for name in contexts}
            usage.check(words, contexts, self.initial_context, examples)
            if not self.args.complete.value:  # which gets the line to complete there
                usage.check_remainder(self.core.remainder, words, contexts)
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        """Print what ``--help``, ``--list`` and their like ask for."""
        topic = self.args.help.value
        with self._errors_in_words():
            if isinstance(topic, str) and topic not in self.parser.contexts:
                raise usage.no_task(topic, self.parser.contexts)
            group, groups = self.args.list.value, list(self.collection.collections)
            if isinstance(group, str) and group not in groups:
                raise UserError(
                    f"no group of tasks {group!r}{nearest(group, groups)}",
                    hint="./inv --list names all tasks",
                )
            super().parse_cleanup()

    def no_tasks_given(self) -> None:
        """Print where to begin, and the tasks."""
        self._print_overview()
        raise Exit

    def print_help(self) -> None:
        """Print where to begin, the tasks, and Invoke's own flags."""
        self._print_overview()
        print("\nFlags before the task:\n")  # noqa: T201 # as Invoke does
        self.print_columns(self.initial_context.help_tuples())

    def print_task_help(self, name: str) -> None:
        """Print what a task does, an example, its flags."""
        arguments = list(self.parser.contexts[name].args.values())
        print(help_text.task_help(name, self._doc(name), arguments, _width()))  # noqa: T201

    def print_columns(self, tuples: Sequence[tuple[str, str | None]]) -> None:
        """Print names and explanations, without breaking words."""
        print("\n".join(help_text.columns(tuples, _width())) + "\n")  # noqa: T201

    def _make_parser(self) -> Parser:
        # Once: making it takes the help texts away from the tasks, and time.
        if self._our_parser is None:
            self._our_parser = super()._make_parser()
        return self._our_parser

    def _print_overview(self) -> None:
        named = [(name, self._doc(name)) for name in sorted(self.collection.task_names)]
        print(help_text.overview(named, _width()))  # noqa: T201

    def _doc(self, name: str) -> str:
        return self.collection[name].__doc__ or ""

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        as_json = "--json" in self.argv
        try:
            yield
        except UserError as error:
            end(error, as_json=as_json)
        except ValueError as error:  # of Invoke's own flags
            end(
                UserError(f"not a whole number: {error}", hint="./inv --help explains the flags"),
                as_json=as_json,
            )
        except ParseError as error:
            flag = re.match(r"Flag <Argument: (\S+) .* needed value", str(error))
            text = f"--{flag[1]} needs a value" if flag else str(error)
            end(UserError(text, hint="./inv --help explains the flags"), as_json=as_json)
        except Exit as error:
            if error.message:
                end(UserError(error.message, hint="./inv --list names all tasks"), as_json=as_json)
            raise


def _width() -> int:
    return min(int(pty_size()[0]), _WIDEST)


def program() -> Program:
    """Return the program of ``./inv``."""
    return Program(
        name="Invoke", binary="./inv", binary_names=["invoke", "inv"], version=__version__
    )


def adopt() -> None:
    """Have ``invoke``, typed in place of ``./inv``, be this program from the loading of the tasks on."""
    main: Any = sys.modules.get("invoke.main")
    if main is not None and type(main.program) is InvokeProgram:
        main.program.__class__ = Program
