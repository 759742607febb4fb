# SPDX-License-Identifier: MIT
"""The face: each task parses its flags, calls one function and prints what came back.

Everything is imported inside the tasks: ``invoke --list`` must stay as fast as an empty file.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import invoke
from invoke import Collection, Context

_JSON = "print one JSON document on stdout"
_BOARD = "board profile (./inv boards lists them)"
_KERNEL = "kernel source: 6.12, tarball:URL#sha256=..., git:URL@ref or path:DIR"
_HOST = "inventory name, name from ~/.ssh/config, or user@address[:port]"


def task(*arguments: Any, **options: Any) -> Any:
    """As ``invoke.task``, without automatic short flags, and with errors as a person wants them."""

    def decorate(body: Callable[..., Any]) -> Any:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            from bsp.base.errors import BspError
            from bsp.base.output import print_json

            try:
                return body(*args, **kwargs)
            except BspError as error:
                if os.environ.get("NPU_BSP_DEBUG"):
                    raise
                sys.stderr.write(f"error: {error.message}\n")
                if error.hint:
                    sys.stderr.write(f"hint: {error.hint}\n")
                if kwargs.get("json"):
                    print_json(
                        {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
                    )
                raise invoke.Exit(code=error.exit_code) from error
            except OSError as error:
                if os.environ.get("NPU_BSP_DEBUG"):
                    raise
                sys.stderr.write(f"error: {error}\n")
                sys.stderr.write(
                    "hint: NPU_BSP_DEBUG=1 shows where; a full disk is freed with df\n"
                )
                raise invoke.Exit(code=3) from error
            except KeyboardInterrupt:
                sys.stderr.write("interrupted\n")
                raise invoke.Exit(code=130) from None

        return invoke.task(guarded, auto_shortflags=False, **options)

    if len(arguments) == 1 and callable(arguments[0]) and not options:
        return decorate(arguments[0])
    return decorate


# --- boards ----------------------------------------------------------------------------------


@task(help={"json": _JSON})
def boards(_: Context, json: bool = False) -> None:
    """List the board profiles. Example: ./inv boards."""
    from bsp import describe
    from bsp.base.output import print_json, print_text

    rows = describe.all_boards()
    if json:
        print_json(rows)
    else:
        print_text(describe.boards_table(rows))


@task(help={"name": _BOARD, "json": _JSON}, positional=["name"])
def board(_: Context, name: str, json: bool = False) -> None:
    """Explain one board and its NPU. Example: ./inv board vim3."""
    from bsp import describe
    from bsp.base.output import print_json, print_text

    if json:
        print_json(describe.one_board(name))
    else:
        print_text(describe.board_text(name))


# --- developers ------------------------------------------------------------------------------


@task(
    help={
        "fast": "only the fast tier (under 2 minutes)",
        "select": "only tests whose names match (pytest -k)",
        "durations": "list the N slowest tests",
    }
)
def test(context: Context, fast: bool = False, select: str = "", durations: int = 0) -> None:
    """Run the tests. Example: ./inv test --fast."""
    flags = [*(["-m", "not slow"] if fast else []), *(["-k", select] if select else [])]
    _tool(context, "pytest", *flags, *([f"--durations={durations}"] if durations else []))


@task
def lint(context: Context) -> None:
    """Check style and types with ruff and mypy. Example: ./inv lint."""
    _tool(context, "ruff", "check", ".")
    _tool(context, "ruff", "format", "--check", ".")
    _tool(context, "mypy")


def _tool(context: Context, module: str, *arguments: str) -> None:
    """Run a developer's tool of our virtual environment in the project folder."""
    import shlex
    from pathlib import Path

    with context.cd(str(Path(__file__).parent)):
        command = shlex.join([sys.executable, "-m", module, *arguments])
        result = context.run(command, warn=True, in_stream=False)
    if result.exited:
        raise invoke.Exit(code=result.exited)


namespace = Collection(boards, board, lint, test)
