# SPDX-License-Identifier: MIT
"""Host keys that a command of the user's prints (``KnownHostsCommand``), asked as ``ssh`` asks it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run

if TYPE_CHECKING:
    import paramiko

_ANSWER_S = 20.0
_LATE = "HIKtf"
"""Tokens whose values are known only when the command is asked."""


def command_words(text: str, tokens: Mapping[str, str]) -> tuple[str, ...]:
    """Return the words of a command, with all tokens expanded but those of the key exchange.

    Args:
        text: the value of ``KnownHostsCommand``: no shell reads it (ssh_config(5)).
        tokens: letters and their values.

    Raises:
        UserError: it cannot be split into words, has no absolute path, or a token that is not known here.
    """
    hint = "ssh_config(5), KnownHostsCommand, and TOKENS"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"KnownHostsCommand {text!r}: {error}", hint=hint) from error
    if not words or not words[0].startswith("/"):
        raise UserError(
            f"KnownHostsCommand {text!r}: expected the absolute path of a program", hint=hint
        )
    strange = {letter for letter in re.findall(r"%(.)", text) if letter not in {*tokens, *_LATE}}
    if strange:
        listed = ", ".join(f"%{letter}" for letter in sorted(strange))
        raise UserError(f"KnownHostsCommand {text!r}: {listed} is not expanded here", hint=hint)

    def value(match: re.Match[str]) -> str:
        letter = match[1]
        return match[0] if letter in _LATE else tokens[letter].replace("%", "%%")

    return tuple(re.sub(r"%(.)", value, word) for word in words)


def printed_lines(
    words: Sequence[str], *, name: str, reason: str, key: paramiko.PKey | None
) -> list[str]:
    """Run a command, and return the lines that it prints, in the format of known_hosts.

    Args:
        words: as :func:`command_words` returned them.
        name: the name that the key is looked for under.
        reason: ``ORDER`` before the server shows a key, ``HOSTNAME`` for the key that it has shown.

    Raises:
        UserError: it failed: ``ssh`` ends the connection then, too.
    """
    late = {
        "H": name,
        "I": reason,
        "K": key.get_base64() if key else "NONE",
        "t": key.get_name() if key else "NONE",
        "f": key.fingerprint if key else "NONE",
        "%": "%",
    }
    expanded = [re.sub(r"%(.)", lambda match: late[match[1]], word) for word in words]
    hint = f"this command is asked for host keys: {shlex.join(expanded)}"
    try:
        done = run(expanded, timeout_s=_ANSWER_S, check=False)
    except InfrastructureError as error:
        raise UserError(f"KnownHostsCommand: {error.message}", hint=hint) from error
    if done.exit_code != 0:
        complaint = done.stderr.decode(errors="replace").strip()
        raise UserError(
            f"KnownHostsCommand failed with exit code {done.exit_code}, so no host key is trusted"
            + (f": {complaint}" if complaint else ""),
            hint=hint,
        )
    return done.text.splitlines()
