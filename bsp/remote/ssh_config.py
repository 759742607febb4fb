# SPDX-License-Identifier: MIT
"""What OpenSSH's own configuration says of a host: ``ssh -G`` is asked, so that we do as ``ssh`` does.

``ssh`` answers for any name, also for one that is a typing error. Whether a name is *known* is therefore a
rule of ours: a ``Host`` line, or the ``host`` or ``originalhost`` of a ``Match`` line, has a pattern with a
letter or digit in it that the name matches. It may stand in the configuration file itself or in a file
that it includes for this name. Where ``Match exec`` stands there, a name is known as well of which
``ssh -G`` says what it does not say of any name.
"""

from __future__ import annotations

import glob
import itertools
import os
import pwd
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run

from .known_hosts_command import command_words

SYSTEM_FILE = Path("/etc/ssh/ssh_config")
_ANSWER_S = 20.0
_NOT_SET = "/npu-bsp/not-set"
_NOBODY = "npu-bsp-knows-no-such-host"
# What ssh takes as a name on its command line, and a Match exec may give to a shell.
_PLAIN_NAME = re.compile(r"[\w.:%][\w.:%+-]*")


@dataclass(frozen=True)
class SshAnswer:
    """What the configuration says of one host; None where it does not say it.

    Attributes:
        address: ``HostName``, or the name that was asked for.
        user: ``User``, or the default that was asked with.
        identity_files: ``IdentityFile``, in order, tokens expanded; whether they exist was not looked at.
        certificate_files: ``CertificateFile``, likewise.
        known_hosts: the files of ``UserKnownHostsFile``; of which there is one at least.
        system_known_hosts: those of ``GlobalKnownHostsFile``, which may be none.
        proxy_command: ``ProxyCommand``, tokens expanded; never beside ``proxy_jump``.
        revoked_host_keys: ``RevokedHostKeys``.
        identities_only: ``IdentitiesOnly``.
        known_hosts_command: ``KnownHostsCommand``, as words; tokens that the key exchange has are left.
        hash_known_hosts: ``HashKnownHosts``.
        proxy_hands_on: ``ProxyUseFdpass``.
        identity_agent: ``IdentityAgent``: a socket, or ``none``; None: that of SSH_AUTH_SOCK.
    """

    address: str
    user: str
    port: int
    identity_files: tuple[Path, ...] = ()
    certificate_files: tuple[Path, ...] = ()
    known_hosts: tuple[Path, ...] | None = None
    system_known_hosts: tuple[Path, ...] | None = None
    host_key_alias: str | None = None
    proxy_jump: str | None = None
    proxy_command: str | None = None
    revoked_host_keys: Path | None = None
    identities_only: bool = False
    identity_agent: str | None = None
    known_hosts_command: tuple[str, ...] = ()
    hash_known_hosts: bool = False
    proxy_hands_on: bool = False


def ssh_config_file() -> Path:
    """The user's OpenSSH configuration: ``$NPU_BSP_SSH_CONFIG`` or ``~/.ssh/config``."""
    own = os.environ.get("NPU_BSP_SSH_CONFIG")
    return Path(own) if own else Path.home() / ".ssh" / "config"


def config_files() -> list[Path]:
    """The configuration files that there are: the user's, then (as with ``ssh -F``) the system's or not."""
    files = [ssh_config_file()]
    if not os.environ.get("NPU_BSP_SSH_CONFIG"):
        files.append(SYSTEM_FILE)
    return [file.absolute() for file in files if file.is_file()]


# --- is this name known? -------------------------------------------------------------------------


def named_in_ssh_config(name: str) -> bool:
    """Whether the configuration names this host; a pattern without a letter or digit (``*``) does not."""
    seen: set[Path] = set()
    if any(True for file in config_files() for _ in _naming(file, name, seen)):
        return True
    return any(_has_exec(file) for file in seen) and _is_singled_out(name)


def _has_exec(file: Path) -> bool:
    return any(
        keyword == "match" and any(word.lower() in ("exec", "!exec") for word in words)
        for keyword, words in _directives(file)
    )


def _is_singled_out(name: str) -> bool:
    """Whether ``Match exec`` knows a name: ssh says of it what it does not say of any other."""

    def answer(name: str) -> str:
        settings = ask_ssh(name, default_user="npu-bsp")
        return str(settings).replace(name, "%n")

    try:
        return answer(name) != answer(_NOBODY)
    except (UserError, InfrastructureError):
        return False  # ssh says what is wrong with its configuration when the name is used


def names_in_ssh_config() -> set[str]:
    """The names that the configuration and the files that it includes spell out."""
    seen: set[Path] = set()
    every = {word for file in config_files() for word in _naming(file, None, seen)}
    return {word for word in every if not re.search(r"[*?!]", word)}


def _naming(file: Path, name: str | None, seen: set[Path]) -> Iterator[str]:
    """Yield the patterns that name a host, in a file and those it includes; None: those of any host."""
    if file in seen:  # ssh itself refuses files that include each other, and says so
        return
    seen.add(file)
    active = True
    for keyword, words in _directives(file):
        if keyword == "host":
            active = name is None or _matches(words, name)
            yield from _telling(words, name) if active else ()
        elif keyword == "match":
            lists, others = _hosts_of_match(words)
            active = name is None or (
                all(_matches(each, name.lower()) for each in lists)
                and not any(_matches(each, name.lower()) for each in others)
            )
            for patterns in lists if active else ():
                yield from _telling(patterns, name.lower() if name else None)
        elif keyword == "include" and active:
            for each in _included(file, words):
                yield from _naming(each, name, seen)


def _telling(patterns: list[str], name: str | None) -> Iterator[str]:
    for pattern in patterns:
        if pattern.startswith("!") or not re.search(r"[A-Za-z0-9]", pattern):
            continue
        if name is None or _pattern(pattern).fullmatch(name):
            yield pattern


def _matches(patterns: list[str], name: str) -> bool:
    """As ssh_config(5), PATTERNS: one matches, and none with a ``!`` does."""
    hit = False
    for pattern in patterns:
        if _pattern(pattern.removeprefix("!")).fullmatch(name):
            if pattern.startswith("!"):
                return False
            hit = True
    return hit


def _pattern(text: str) -> re.Pattern[str]:
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(letter, re.escape(letter)) for letter in text))


def _hosts_of_match(words: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """The pattern lists of ``host`` and ``originalhost`` on a Match line, and those of ``!host``.

    The rest is ssh's to judge.
    """
    # `host vim3`, `host=vim3` and `host = vim3` are the same.
    parts = [part for word in words for part in re.split("(?i:(?<=host)=)", word, maxsplit=1)]
    parts = [part.removeprefix("=") for part in parts if part not in ("", "=")]
    lists: list[list[str]] = []
    others: list[list[str]] = []
    for criterion, patterns in itertools.pairwise(parts):
        if criterion.lower().removeprefix("!") in ("host", "originalhost"):
            which = others if criterion.startswith("!") else lists
            which.append([each.lower() for each in patterns.split(",") if each])
    return lists, others


def _directives(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The lines of a configuration file: the keyword in small letters, and its arguments."""
    try:
        # ssh does not read a file that begins with a mark; here it is read, so that ssh can say so.
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return  # ssh says what is wrong with it
    for line in lines:
        match = re.match(r"\s*\"?(\w+)\"?(?:\s*=\s*|\s+)(.*)", line)
        if match:
            yield match[1].lower(), _split(match[2])


def _split(text: str) -> list[str]:
    """The arguments of a line: what is quoted in one piece, a comment at the end left out."""
    words = []
    for word in re.findall(r"(?:\"[^\"]*\"|'[^']*'|[^\s\"'])+", text):
        if word.startswith("#"):
            break
        words.append(re.sub(r"\"([^\"]*)\"|'([^']*)'", r"\1\2", word))
    return words


def _included(file: Path, words: list[str]) -> Iterator[Path]:
    """The files of an Include line, as ssh finds them: relative ones in ``~/.ssh`` or ``/etc/ssh``."""
    folder = SYSTEM_FILE.parent if file.is_relative_to(SYSTEM_FILE.parent) else Path.home() / ".ssh"
    for word in words:
        path = folder / Path(_expand_environment(word)).expanduser()
        for each in sorted(glob.glob(str(path))):  # noqa: PTH207  # the pattern is absolute
            if Path(each).is_file():
                yield Path(each)


def _expand_environment(text: str) -> str:
    return re.sub(
        r"\$\{(\w+)\}", lambda match: os.environ.get(match[1], match[0]), text, flags=re.ASCII
    )


# --- asking ssh ----------------------------------------------------------------------------------


def ask_ssh(name: str, *, user: str = "", port: int = 0, default_user: str) -> SshAnswer | None:
    """Return what the configuration says of a host; None where there is no configuration.

    ``ssh -G`` connects to nothing. It runs the commands of ``Match exec`` lines, as any ``ssh NAME`` does.

    Args:
        name: host name or address.
        user: the user that was given; empty: the configuration decides.
        port: likewise; 0: the configuration decides.
        default_user: the user where nobody names one.

    Raises:
        UserError: the configuration cannot be read, or the name is none that ssh takes.
    """
    files = config_files()
    if not files:
        return None
    if not _PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a host name that ssh takes: expected letters, digits and . : % _ -",
            hint="write --host user@address[:port]",
        )
    with tempfile.TemporaryDirectory(prefix="npu-bsp-ssh-") as folder:
        # The user's files as they are: ssh looks at who may write to them. The system's are copied, as
        # relative Include lines in them are meant for /etc/ssh.
        copied = [file for file in files if file == SYSTEM_FILE or _is_elsewhere()]
        copies = _copies(copied, Path(folder))
        lines = [f'Include "{glob.escape(str(copies.get(file, file)))}"' for file in files]
        # ssh takes the first value that it meets, so these are what it has where nobody says otherwise.
        # By them its built-in defaults are told from what was configured.
        lines += [f'User "{default_user}"', f"IdentityFile {_NOT_SET}"]
        lines += [f"UserKnownHostsFile {_NOT_SET}", f"GlobalKnownHostsFile {_NOT_SET}"]
        config = Path(folder) / "asked"
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = ["ssh", "-F", str(config), "-G", "-T"]
        words += ["-l", user] if user else []
        words += ["-p", str(port)] if port else []
        done = run([*words, name], timeout_s=_ANSWER_S, check=False, hint=_hint(name))
        problem = done.stderr.decode(errors="replace").strip()
        for original, copy in copies.items():
            problem = problem.replace(str(copy), str(original))
    if done.exit_code != 0:
        raise UserError(
            f"ssh -G does not say how to reach {name!r} (it reads {', '.join(map(str, files))}):\n"
            + (problem or f"exit code {done.exit_code}"),
            hint=_hint(name),
        )
    return _parsed(name, done.text, user)


def _hint(name: str) -> str:
    own = os.environ.get("NPU_BSP_SSH_CONFIG")
    words = ["ssh", *(["-F", own] if own else []), "-G", name]
    return f"put ssh's configuration right; this shows what it makes of it: {shlex.join(words)}"


def _is_elsewhere() -> bool:
    """Whether ``$HOME`` is another folder than the account's, which is the one that ssh goes by."""
    try:
        return Path.home().resolve() != Path(pwd.getpwuid(os.getuid()).pw_dir).resolve()
    except KeyError:
        return False  # ssh ends with an error that says so


def _copies(files: list[Path], folder: Path) -> dict[Path, Path]:
    """Copies of configuration files, in which Include lines lead to copies too, by ``$HOME``."""
    copies: dict[Path, Path] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file in copies:
            continue
        copies[file] = folder / str(len(copies))
        waiting += [
            each
            for keyword, words in _directives(file)
            if keyword == "include"
            for each in _included(file, words)
        ]
    for file, copy in copies.items():
        lines = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            match = re.match(r"\s*include(?:\s*=\s*|\s+)(.*)", line, re.IGNORECASE)
            if match:
                included = [str(copies[each]) for each in _included(file, _split(match[1]))]
                line = f"Include {' '.join(included)}" if included else ""
            lines.append(line)
        copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
        shutil.copymode(file, copy)
    return copies


def _parsed(name: str, text: str, given_user: str) -> SshAnswer:
    """Take the answer of ``ssh -G`` apart; ``text`` has a keyword and its value on each line."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        keyword, _, value = line.partition(" ")
        values.setdefault(keyword, []).append(value)

    def one(keyword: str) -> str | None:
        value = values.get(keyword, [""])[0]
        return None if not value or value.lower() == "none" else value

    address = one("hostname") or name
    user = given_user or one("user") or ""
    port = int(one("port") or 22)
    tokens = {
        "d": str(Path.home()), "h": address, "i": str(os.getuid()), "k": one("hostkeyalias") or name,
        "n": name, "p": str(port), "r": user, "u": pwd.getpwuid(os.getuid()).pw_name, "%": "%",
    }  # fmt: skip

    node = socket.gethostname()
    local = {"l": node, "L": node.partition(".")[0]}
    keys_from = one("knownhostscommand")

    def paths(keyword: str) -> tuple[Path, ...]:
        every = (
            Path(_expand(value, tokens)).expanduser()
            for value in values.get(keyword, ())
            if value.lower() != "none" and value != _NOT_SET
        )
        return tuple(dict.fromkeys(every))

    revoked = one("revokedhostkeys")

    def files(keyword: str) -> tuple[Path, ...] | None:
        """Several in one line, of which each may have blanks in its name; None where nobody names any."""
        words = (one(keyword) or "").split()
        if words == [_NOT_SET]:
            return None
        every: list[Path] = []
        while words:
            for count in range(len(words), 0, -1):
                file = Path(_expand(" ".join(words[:count]), tokens)).expanduser()
                if count == 1 or file.exists():
                    break
            every.append(file)
            del words[:count]
        return tuple(every)

    known_hosts = files("userknownhostsfile")
    return SshAnswer(
        address,
        user,
        port,
        paths("identityfile"),
        paths("certificatefile"),
        known_hosts if known_hosts != () else (Path(os.devnull),),  # "none": nothing is remembered
        files("globalknownhostsfile"),
        one("hostkeyalias"),
        one("proxyjump"),
        _proxy_command(one("proxycommand"), tokens),
        Path(_expand(revoked, tokens)).expanduser() if revoked else None,
        one("identitiesonly") == "yes",
        _agent(values.get("identityagent", [""])[0], tokens),
        command_words(keys_from, local | tokens) if keys_from else (),
        one("hashknownhosts") == "yes",
        one("proxyusefdpass") == "yes",
    )


def _proxy_command(text: str | None, tokens: dict[str, str]) -> str | None:
    """Expand a ``ProxyCommand``, which a shell reads: no value may hold what a shell acts on."""
    if text is None:
        return None
    for token in set(re.findall(r"%(.)", text)) & {"h", "n", "p", "r"}:
        if not _PLAIN_NAME.fullmatch(tokens[token]):
            raise UserError(
                f"{tokens[token]!r} cannot stand for %{token} in the ProxyCommand: expected letters, "
                "digits and . : % _ + -",
                hint="write --host user@address[:port]",
            )
    accepted = {token: tokens[token] for token in "hnpr%"}
    return re.sub(r"%(.)", lambda match: accepted.get(match[1], match[0]), text)


def _agent(value: str, tokens: dict[str, str]) -> str | None:
    """The socket that ``IdentityAgent`` names, ``none``, or None for that of the environment."""
    if value in ("", "SSH_AUTH_SOCK"):
        return None
    if value.lower() == "none":
        return "none"
    if value.startswith("$") and not value.startswith("${"):
        return os.environ.get(value[1:]) or "none"
    return str(Path(_expand(value, tokens)).expanduser())


def _expand(text: str, tokens: dict[str, str]) -> str:
    """Put values in place of ``%h`` and its like, and of ``${NAME}``."""
    expanded = re.sub(r"%(.)", lambda match: tokens.get(match[1], match[0]), text)
    return _expand_environment(expanded)
