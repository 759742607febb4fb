# SPDX-License-Identifier: MIT
"""Flags that do not go together."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import UserError


def refuse_flags(values: Mapping[str, object], why: str) -> None:
    """Refuse flags that another flag rules out, where they were given.

    Args:
        values: by the flags' names, without the dashes; what is empty was not given.
        why: what the other flag does, for the error.

    Raises:
        UserError: one was given; the hint names all that were.
    """
    given = [f"--{name}" for name, value in values.items() if value]
    if given:
        names = " and ".join(filter(None, [", ".join(given[:-1]), given[-1]]))
        raise UserError(why, hint=f"leave {names} out")
