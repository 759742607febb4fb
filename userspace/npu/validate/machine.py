# SPDX-License-Identifier: MIT
"""Where the runner runs: on this machine, or on a board over SSH."""

from __future__ import annotations

import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Protocol

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import Completed, run
from bsp.base.progress import step
from bsp.remote.ssh import Connection

from .models import File
from .records import RunnerDocument

RUNNER = Path(__file__).parent / "onboard" / "runner.py"
# What a deployment puts there (images/deploy/onboard).
DEPLOYED_USERSPACE = "/run/npu-bsp/current/userspace"
BOARD_CACHE = "/var/cache/npu-bsp"
_SHORT_TIMEOUT_S = 60
_DELEGATE = "mesa-teflon-delegate"
_SEND_TIMEOUT_S = 600
_PIECE_BYTES = 1 << 20
_PACK_LEVEL = 1  # of gzip, the fastest
# What the runner says went wrong before any delegate ran, and whose matter it is.
_USER_STAGES = ("arguments", "image", "model")

_ARGPARSE_REFUSES = 2

# $2: folder. Prints the folder to use.
_CHOOSE = """\
folder=$2
if ! mkdir -p "$folder" 2>/dev/null || ! test -w "$folder"; then
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/npu-bsp
    mkdir -p "$folder" || exit 1
fi
echo "$folder"
"""
# $1: SHA-256, $2: folder; exit code 0 when the file is there with that content, 7 when it is not.
_LOOK = f"""\
{_CHOOSE}
test -f "$folder/$1" || exit 7
echo "$1  $folder/$1" | sha256sum -c --status || exit 7
"""
# $1: SHA-256, $2: folder; the content comes on standard input.
_STORE = """\
set -e
part=$(mktemp "$2/.$1.XXXXXX")
trap 'rm -f "$part"' EXIT
cat >"$part"
echo "$1  $part" | sha256sum -c --status || exit 8
chmod 644 "$part"
sync "$part"
mv "$part" "$2/$1"
sync "$2"
"""
# $1: name, $2: folder; the same for a folder of that name.
_LOOK_FOR_FOLDER = f"""\
{_CHOOSE}
test -d "$folder/$1" || exit 7
"""
# $1: name, $2: folder; a tar archive comes on standard input.
_STORE_FOLDER = """\
set -e
part=$(mktemp -d "$2/.$1.XXXXXX")
trap 'rm -rf "$part"' EXIT
tar -x -z -f - -C "$part"
chmod 755 "$part"
sync
mv -T "$part" "$2/$1"
sync "$2"
"""


class Machine(Protocol):
    """Something that the runner can run on."""

    def place(self, file: File) -> str:
        """Make a file readable there, and return its path."""

    def run_runner(self, arguments: Sequence[str], *, timeout_s: float) -> RunnerDocument:
        """Run the runner and return its document.

        Raises:
            UserError: model, image or arguments are wrong.
            InfrastructureError: the runner, Python or the runtime do not work there.
        """


class ThisMachine:
    """Runs the runner here: with this Python, or with another one and a payload.

    Args:
        userspace: an unpacked payload; None takes the packages of this Python.
        python: command that starts Python.
    """

    def __init__(
        self, *, userspace: Path | None = None, python: Sequence[str | Path] = (sys.executable,)
    ) -> None:
        self._runner = userspace / "bin" / "runner.py" if userspace else RUNNER
        self._python = tuple(python)

    def place(self, file: File) -> str:
        """Return the file's own path."""
        return str(file.path)

    def run_runner(self, arguments: Sequence[str], *, timeout_s: float) -> RunnerDocument:
        """As in ``Machine``."""
        command = [*self._python, self._runner, *arguments]
        return document_of(run(command, timeout_s=timeout_s, check=False), "this machine")


class BoardMachine:
    """Runs the payload's runner on a board, through an open connection.

    Args:
        userspace: folder of the payload on the board.
        cache: folder on the board for models and images.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        name: str,
        userspace: str = DEPLOYED_USERSPACE,
        cache: str = BOARD_CACHE,
    ) -> None:
        self._connection = connection
        self._name = name
        self._cache = cache
        self._runner = f"{userspace}/bin/runner.py"
        self._manifest = f"{userspace}/manifest.json"
        test = connection.run(["test", "-f", self._runner], timeout_s=_SHORT_TIMEOUT_S, check=False)
        if test.exit_code != 0:
            raise UserError(
                f"{name} has no userspace of npu-bsp: {self._runner} is not there",
                hint=f"./inv deploy --host {name}",
            )

    def mesa(self) -> str:
        """Return the version of the deployed userspace's delegate; "" where it does not say."""
        manifest = self._connection.run(
            ["cat", self._manifest], timeout_s=_SHORT_TIMEOUT_S, check=False
        )
        try:
            parts = json.loads(manifest.stdout)["parts"]
            return next((str(each["version"]) for each in parts if each["name"] == _DELEGATE), "")
        except (ValueError, KeyError, TypeError):
            return ""

    def place(self, file: File) -> str:
        """Send the file, if the board does not have it already, and return its path there."""
        size_bytes = file.path.stat().st_size
        return self._stored(
            _LOOK, _STORE, file.sha256, file.name, lambda: (_pieces(file.path), size_bytes)
        )

    def place_folder(self, folder: Path) -> str:
        """Send a folder whose name tells its content, if the board lacks it; return its path there."""

        def packed() -> tuple[Iterable[bytes], int]:
            content = BytesIO()
            with (
                step(f"Packing {folder.name}"),
                tarfile.open(fileobj=content, mode="w:gz", compresslevel=_PACK_LEVEL) as archive,
            ):
                archive.add(folder, arcname=".")
            return [content.getvalue()], content.tell()

        return self._stored(_LOOK_FOR_FOLDER, _STORE_FOLDER, folder.name, folder.name, packed)

    def _stored(
        self,
        look: str,
        store: str,
        key: str,
        name: str,
        content_of: Callable[[], tuple[Iterable[bytes], int]],
    ) -> str:
        """Look for a key on the board, send its content if it is not there, and return its path."""
        answer = self._connection.run(
            ["sh", "-c", look, "sh", key, self._cache], timeout_s=_SHORT_TIMEOUT_S, check=False
        )
        folder = answer.text.strip()
        if answer.exit_code not in (0, 7) or not folder:
            raise InfrastructureError(
                f"{self._name} has no folder to put {name} into: "
                f"{answer.stderr.decode(errors='replace').strip()}"
            )
        if answer.exit_code == 7:
            content, size_bytes = content_of()
            with step(f"Sending {name} ({size_bytes / 1e6:.1f} MB)"):
                self._connection.run(
                    ["sh", "-c", store, "sh", key, folder], stdin=content, timeout_s=_SEND_TIMEOUT_S
                )
        return f"{folder}/{key}"

    def run_runner(self, arguments: Sequence[str], *, timeout_s: float) -> RunnerDocument:
        """As in ``Machine``."""
        command = ["python3", self._runner, *arguments]
        completed = self._connection.run(command, timeout_s=timeout_s, check=False)
        if completed.exit_code == 127:
            raise UserError(
                f"{self._name} has no python3", hint="on the board: apt-get install python3"
            )
        return document_of(completed, self._name)


def _pieces(path: Path) -> Iterator[bytes]:
    """Read a file, which may be larger than the memory that is wanted for it."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def document_of(completed: Completed, where: str) -> RunnerDocument:
    """Return the runner's document, or raise what it says went wrong before any delegate ran."""
    stderr = completed.stderr.decode(errors="replace").strip()
    if completed.exit_code == _ARGPARSE_REFUSES and "unrecognized arguments" in stderr:
        words = stderr.rpartition("unrecognized arguments: ")[2]
        raise UserError(
            f"the userspace on {where} is older than this command: it does not know {words}",
            hint="./inv deploy --host NAME",
        )
    try:
        document: RunnerDocument = json.loads(completed.stdout)
    except ValueError:
        last_lines = "\n".join(stderr.splitlines()[-8:])
        raise InfrastructureError(
            f"the runner ended on {where} with exit code {completed.exit_code} and no result"
            f"\n{last_lines}".rstrip()
        ) from None
    if "error" in document:
        stage, message = document["error"]["stage"], document["error"]["message"]
        hint = document["error"].get("hint", "")  # older payloads give none
        if stage in _USER_STAGES:
            raise UserError(
                message, hint=hint or (f"give another {stage}" if stage != "arguments" else "")
            )
        raise InfrastructureError(f"on {where}: {message}", hint=hint)
    return document
