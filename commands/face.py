# SPDX-License-Identifier: MIT
"""What all commands share: ``--json``, printing the result, errors as a person wants them, exit codes."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task
from invoke.tasks import task as invoke_task

from .flags import JSON

if TYPE_CHECKING:
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
    made = invoke_task(body, auto_shortflags=False, help=help, iterable=list(iterable), **options)
    return cast("Task[Any]", made)


def print_and_exit(result: Result, *, as_json: bool) -> None:
    """Print a result, and raise ``Exit`` where its exit code is not 0."""
    from bsp.base.output import print_json, print_text

    if as_json:
        print_json(result.document())
    elif text := result.text():
        print_text(text)
    sys.stderr.write(result.complaint())
    if result.exit_code:
        raise Exit(code=result.exit_code)


@contextlib.contextmanager
def errors_for_people(*, as_json: bool) -> Any:
    """Print errors as ``error:`` and ``hint:`` (and as a document), and end with their exit code."""
    from bsp.base.errors import BspError, InfrastructureError

    _handle_signals()
    try:
        yield
    except BspError as error:
        _end(error, as_json=as_json)
    except OSError as error:
        hint = "NPU_BSP_DEBUG=1 shows where; df shows whether a disk is full"
        _end(InfrastructureError(str(error), hint=hint), as_json=as_json)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write("interrupted\n")
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        raise Exit(code=128 + number) from None


def _end(error: BspError, *, as_json: bool) -> NoReturn:
    import traceback

    from bsp.base.output import print_json

    if os.environ.get("NPU_BSP_DEBUG"):
        traceback.print_exc()
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    if as_json:
        print_json({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
    raise Exit(code=error.exit_code) from error


def _handle_signals() -> None:
    """Have SIGTERM and a closed terminal clean up and end what was started, as Ctrl-C does."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once: no second one while cleaning up
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            with contextlib.suppress(ValueError):  # in a thread
                signal.signal(number, interrupt)
