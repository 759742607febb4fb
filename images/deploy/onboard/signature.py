# SPDX-License-Identifier: MIT
"""Who may put a generation here: the signers in /etc/npu-bsp/allowed-signers, checked with ssh-keygen.

A board without that file takes what comes over its root's SSH session; the first signed bundle brings the
file along, and from then on nothing else is taken.
"""

from __future__ import annotations

import os

from .board import Board
from .files import read, write_whole
from .frames import RefusedError

TYPE_CHECKING = False  # see frames.py
if TYPE_CHECKING:
    from .board import Record

SIGNERS = "etc/npu-bsp/allowed-signers"
_NAMESPACE = "npu-bsp-bundle"
_SIGNER = "npu-bsp"


def check(board: Board, content: bytes, request: Record) -> None:
    """Refuse a manifest that none of this board's signers signed."""
    signers = board.at(SIGNERS)
    if not os.path.exists(signers):
        return
    signature = request.get("signature") or ""
    if not signature:
        raise RefusedError(
            "signature: this board takes signed bundles only, and this one is not signed"
        )
    import shutil
    import subprocess
    import tempfile

    if shutil.which("ssh-keygen") is None:
        raise RefusedError(
            f"signature: /{SIGNERS} asks for signed bundles, and there is no ssh-keygen here to check them "
            "(apt-get install openssh-client)"
        )
    with tempfile.NamedTemporaryFile() as file:
        file.write(signature.encode())
        file.flush()

        def ask(*words: str) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(
                ["ssh-keygen", "-Y", *words, "-n", _NAMESPACE, "-s", file.name],
                input=content,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )

        if ask("verify", "-f", signers, "-I", _SIGNER).returncode == 0:
            return
        valid = ask("check-novalidate")
    if valid.returncode == 0:
        keys = [
            word for word in valid.stdout.decode(errors="replace").split() if word[:7] == "SHA256:"
        ]
        raise RefusedError(
            f"signature: the bundle is signed by a key that this board does not trust: {' '.join(keys)}"
        )
    raise RefusedError("signature: the manifest is not what was signed")


def keep(board: Board, folder: str, request: Record) -> bool:
    """Keep the signature beside the manifest; on a board without signers, take the sender's. True if so."""
    if not request.get("signature"):
        return False
    write_whole(f"{folder}/manifest.json.sig", request["signature"].encode())
    if read(board.at(SIGNERS)) or not request.get("signers"):
        return False
    write_whole(board.at(SIGNERS), request["signers"].encode())
    return True
