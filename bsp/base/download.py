# SPDX-License-Identifier: MIT
"""Files from the network, by address and SHA-256: nothing is used before its hash is right."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .cache import cache_dir, make_once
from .errors import InfrastructureError, UserError
from .progress import step
from .room import hint_of

_CHUNK_BYTES = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, sha256: str, *, timeout_s: float = 60) -> Path:
    """Return a cached, verified copy of ``url``.

    Raises:
        UserError: ``sha256`` is not a SHA-256.
        InfrastructureError: the address does not answer, or what came has another hash.
    """
    sha256 = sha256.lower()
    if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise UserError(
            f"{sha256!r} is not a SHA-256 (64 hexadecimal digits)", hint="sha256sum FILE prints one"
        )
    name = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "download"
    folder = cache_dir() / "downloads" / sha256[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(target: Path) -> None:
        import urllib.error  # late: they take a tenth of what a deployment imports
        import urllib.request

        digest = hashlib.sha256()
        got_bytes = 0
        with step(f"Downloading {name}") as progress:
            try:
                with (
                    urllib.request.urlopen(url, timeout=timeout_s) as answer,
                    target.open("wb") as file,
                ):
                    total_bytes = int(answer.headers.get("Content-Length") or 0)
                    while chunk := answer.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        file.write(chunk)
                        got_bytes += len(chunk)
                        progress.note(_amount(got_bytes, total_bytes))
            except (urllib.error.URLError, OSError, ValueError) as error:
                is_answer = isinstance(error, urllib.error.HTTPError)
                reason = error if is_answer else getattr(error, "reason", error)
                raise InfrastructureError(
                    f"cannot download {url}: {reason}",
                    hint=hint_of(
                        error, "check the address and the network, then run the same command again"
                    ),
                ) from error
        if total_bytes and got_bytes != total_bytes:
            raise InfrastructureError(
                f"{url} ended after {got_bytes} of {total_bytes} bytes",
                hint="run the same command again",
            )
        if digest.hexdigest() != sha256:
            raise InfrastructureError(
                f"{url} has another content than expected\n"
                f"  expected sha256 {sha256}\n  found    sha256 {digest.hexdigest()}",
                hint="check the address and the hash; nothing was kept",
            )

    return make_once(folder / name, fetch)


def _amount(got_bytes: int, total_bytes: int) -> str:
    if total_bytes:
        return f"{got_bytes / 1e6:.1f} of {total_bytes / 1e6:.1f} MB"
    return f"{got_bytes / 1e6:.1f} MB"
