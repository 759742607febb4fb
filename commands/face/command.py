# SPDX-License-Identifier: MIT
"""What all commands share: ``--json``, printing the result, errors as a person wants them, exit codes."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

from .flags import JSON

if TYPE_CHECKING:
    from invoke.parser.argument import Argument

    from bsp.base.errors import BspError
    from bsp.base.result import Result


def command(
    *,
    help: dict[str, str],
    name: str | None = None,
    positional: Sequence[str] = (),
    iterable: Sequence[str] = (),
) -> Callable[[Callable[..., Result]], Task[Any]]:
    """Make a function that returns a ``Result`` a command, which prints it and ends with its exit code.

    The command has a flag more than the function: ``--json``.
    """

    def decorate(body: Callable[..., Result]) -> Task[Any]:
        @functools.wraps(body)
        def run(context: Context, *arguments: Any, json: bool = False, **flags: Any) -> None:
            with errors_for_people(as_json=json):
                print_and_exit(body(context, *arguments, **flags), as_json=json)

        flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False)
        signature = inspect.signature(body)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined] # invoke reads it
            parameters=[*signature.parameters.values(), flag]
        )
        return _task(run, {**help, "json": JSON}, name, positional, iterable)

    return decorate


def session(
    *, help: dict[str, str], positional: Sequence[str] = ()
) -> Callable[[Callable[..., int]], Task[Any]]:
    """Make a function a command whose output is another program's; it returns the exit code."""

    def decorate(body: Callable[..., int]) -> Task[Any]:
        @functools.wraps(body)
        def run(*arguments: Any, **flags: Any) -> None:
            with errors_for_people(as_json=bool(flags.get("json"))):
                exit_code = body(*arguments, **flags)
                if exit_code:
                    raise Exit(code=exit_code)

        return _task(run, help, None, positional, ())

    return decorate


def _task(
    body: Callable[..., None],
    help: dict[str, str],
    name: str | None,
    positional: Sequence[str],
    iterable: Sequence[str],
) -> Task[Any]:
    options: dict[str, Any] = {"positional": list(positional)} if positional else {}
    if name:
        options["name"] = name
    task = invoke_task(
        body, klass=_Task, auto_shortflags=False, help=help, iterable=list(iterable), **options
    )
    return cast("Task[Any]", task)


class _Task(Task[Any]):
    """A task whose arguments can be asked for several times: Invoke takes their help away at the first."""

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:
        help = dict(self.help)
        try:
            return super().get_arguments(ignore_unknown_help)
        finally:
            self.help = help


def print_and_exit(result: Result, *, as_json: bool) -> None:
    """Print a result, and raise ``Exit`` where its exit code is not 0."""
    from bsp.base.output import print_error, print_json, print_text

    if as_json:
        print_json(result.document())
    elif text := result.text():
        print_text(text)
    complaint = result.complaint()
    if complaint:
        print_error(complaint.rstrip("\n"))
    if result.exit_code:
        raise Exit(code=result.exit_code)


@contextlib.contextmanager
def errors_for_people(*, as_json: bool) -> Any:
    """Print errors as ``error:`` and ``hint:`` (and as a document), and end with their exit code.

    A signal ends with 128 and its number, also that of a closed pipe, which nothing is said about.
    """
    _handle_signals()
    try:
        with _errors_printed(as_json=as_json):
            yield
    except KeyboardInterrupt as interrupt:
        from bsp.base.output import print_error
        from bsp.base.terminal.screen import screen

        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        if screen.reader_gone:
            number = signal.SIGPIPE
        if number != signal.SIGPIPE:
            print_error("interrupted")
        raise Exit(code=128 + number) from None


@contextlib.contextmanager
def _errors_printed(*, as_json: bool) -> Any:
    import traceback

    from bsp.base.errors import BspError, InfrastructureError
    from bsp.base.project import PROJECT

    try:
        yield
    except BspError as error:
        end(error, as_json=as_json)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "df shows which disk is full" if full else "NPU_BSP_DEBUG=1 shows where"
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            hint = _folder_hint(str(error.filename)) or hint
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else ""
        end(InfrastructureError(text or str(error), hint=hint), as_json=as_json)
    except Exit:
        raise
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.removeprefix(f'{PROJECT}/')}, line {where.lineno}"
        text = f"a fault of npu-bsp itself: {type(error).__name__}: {error} ({place})"
        hint = "please report it; NPU_BSP_DEBUG=1 prints the whole traceback"
        end(InfrastructureError(text, hint=hint), as_json=as_json)


def _folder_hint(file: str) -> str:
    """Say how another folder is named for a cache or a state that cannot be written to."""
    from pathlib import Path

    from bsp.base.cache import cache_dir, state_dir

    for folder, variable in ((cache_dir, "NPU_BSP_CACHE"), (state_dir, "NPU_BSP_STATE")):
        with contextlib.suppress(Exception):
            if Path(file).is_relative_to(folder()):
                return f"set {variable} to a folder that you can write to"
    return ""


def end(error: BspError, *, as_json: bool) -> NoReturn:
    """Print an error, and raise the ``Exit`` that ends the program with its exit code."""
    import traceback

    from bsp.base.errors import InfrastructureError
    from bsp.base.output import ReaderGoneError, print_error, print_json
    from bsp.base.project import PROJECT

    if os.environ.get("NPU_BSP_DEBUG"):
        traceback.print_exc()
    print_error(error.lines())
    missing = PROJECT / ".venv/.npu-bsp-missing"  # requirements/install.sh writes it
    if error.exit_code == InfrastructureError.exit_code and missing.exists():
        print_error(f"note: these Debian packages are not installed: {missing.read_text().strip()}")
    if as_json:
        document = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        try:
            print_json(document)
        except ReaderGoneError as gone:
            raise Exit(code=128 + gone.args[0]) from None
    raise Exit(code=error.exit_code) from error


def _handle_signals() -> None:
    """Have Ctrl-C, SIGTERM and a closed terminal end what was started, and clean up."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: no second one while cleaning up
        raise KeyboardInterrupt(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            with contextlib.suppress(ValueError):  # in a thread
                signal.signal(number, interrupt)
