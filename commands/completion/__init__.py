# SPDX-License-Identifier: MIT
"""Completion for shells: a script for each, and the names that it completes."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context

from bsp.base.result import Answer, Result

from ..face.command import command

_SHELLS = ("bash", "zsh", "fish")
_NAMES = ("boards", "hosts", "models", "npus")


@command(
    help={"what": f"a script for {', '.join(_SHELLS)}; or the names of {', '.join(_NAMES)}"},
    positional=["what"],
)
def completion(_: Context, what: str) -> Result:
    """Print a completion script for your shell, or names. Example: ./inv completion bash."""
    from bsp.base.errors import UserError

    if what in _SHELLS:
        script = (Path(__file__).parent / f"npu-bsp.{what}").read_text(encoding="utf-8")
        return Answer({"shell": what, "script": script}, script)
    if what in _NAMES:
        names = _names(what)
        return Answer(names, "\n".join(names))
    raise UserError(
        f"nothing to complete for {what!r}; expected one of {', '.join(_SHELLS + _NAMES)}",
        hint="source <(./inv completion bash)",
    )


def _names(kind: str) -> list[str]:
    if kind == "boards":
        from bsp.catalog import board_names

        return board_names()
    if kind == "hosts":
        from bsp.remote.inventory import host_names

        return host_names()
    if kind == "models":
        from userspace.npu.validate.models import catalogue

        return catalogue().names("model")
    from virtual.npu.identity import identity_names

    return [f"virtual:{name}" for name in identity_names()]
