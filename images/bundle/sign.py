# SPDX-License-Identifier: MIT
"""Signatures of bundles, with ``ssh-keygen -Y``: who deploys over SSH has all it takes already.

What is signed is ``manifest.json``; it has the hash of every file, so a signature covers them all. Keys
and trusted signers are files of OpenSSH's own formats in the user's configuration folder; the boards have
the second one at ``/etc/npu-bsp/allowed-signers``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bsp.base.cache import lock, write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from images.bundle.manifest import Bundle, Entry

NAMESPACE = "npu-bsp-bundle"
"""What the key signs for: a signature made for something else (a git commit) is not accepted."""
SIGNER = "npu-bsp"
SIGNATURE = "manifest.json.sig"
BOARD_SIGNERS = "etc/npu-bsp/allowed-signers"

_LARGE_BYTES = 1 << 20
_BATCH = 64


def config_dir() -> Path:
    """The user's configuration: ``$NPU_BSP_CONFIG``, or ``npu-bsp`` in the XDG configuration folder."""
    own = os.environ.get("NPU_BSP_CONFIG")
    if own:
        return Path(own).absolute()
    xdg = os.environ.get("XDG_CONFIG_HOME")
    return (Path(xdg) if xdg else Path.home() / ".config") / "npu-bsp"


def signing_key() -> Path:
    """Return the user's signing key (ed25519), made on first use; it is trusted here from then on.

    Raises:
        InfrastructureError: the configuration folder cannot be written to.
    """
    folder = config_dir()
    key = folder / "signing-key"
    if not key.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InfrastructureError(
                f"cannot make the folder {folder}: {error.strerror}",
                hint="set NPU_BSP_CONFIG to a folder that you can write to",
            ) from error
        with lock(folder / "signing-key.lock"):
            if not key.exists():
                with tempfile.TemporaryDirectory(dir=folder) as name:
                    made = Path(name) / "key"
                    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", SIGNER, "-f", made])
                    made.with_name("key.pub").rename(folder / "signing-key.pub")
                    made.rename(key)
    allowed = allowed_signers_file()
    line = signers_line(public_key(key))
    known = allowed.read_text(encoding="utf-8") if allowed.exists() else ""
    if not known:
        write_atomically(allowed, line.encode())
    return key


def allowed_signers_file() -> Path:
    """The keys whose bundles are trusted on this machine (``ssh-keygen(1)``, ALLOWED SIGNERS)."""
    return config_dir() / "allowed-signers"


def public_key(key: Path) -> str:
    """Return ``ssh-ed25519 AAAA...`` of a private key.

    Raises:
        UserError: there is no such key.
    """
    beside = key.with_name(key.name + ".pub")
    if not key.is_file():
        raise UserError(f"there is no signing key {key}", hint="leave --key out to have one made")
    if beside.is_file():
        return " ".join(beside.read_text(encoding="utf-8").split()[:2])
    return " ".join(run(["ssh-keygen", "-y", "-f", key]).text.split()[:2])


def signers_line(public: str) -> str:
    """Return the line of an allowed-signers file that trusts a public key for bundles."""
    return f'{SIGNER} namespaces="{NAMESPACE}" {public}\n'


def trust_root() -> str:
    """What a board that is prepared on this machine trusts: this machine's signers."""
    signing_key()
    return allowed_signers_file().read_text(encoding="utf-8")


def sign(bundle: Bundle, key: Path | None = None) -> Path:
    """Write the signature beside the manifest, unless this key's is there; return its path.

    Raises:
        UserError: there is no such key.
        ToolFailedError: the key cannot sign (a passphrase without an agent).
    """
    key = key or signing_key()
    public = public_key(key)
    target = bundle.path / SIGNATURE
    manifest = (bundle.path / "manifest.json").read_bytes()
    if target.exists() and _verified(manifest, target.read_bytes(), signers_line(public)):
        return target
    done = run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", NAMESPACE],
        stdin=manifest,
        hint="a key with a passphrase needs ssh-agent: ssh-add KEY",
    )
    write_atomically(target, done.stdout)
    return target


def check_signature(bundle: Bundle) -> None:
    """Refuse a bundle that nobody signed whom this machine trusts.

    Raises:
        UserError: it is not signed, by an unknown key, or its manifest was changed since.
    """
    file = bundle.path / SIGNATURE
    resign = f"./inv bundle --sign {bundle.path}"
    if not file.is_file():
        raise UserError(
            f"{bundle.path} is not signed (it has no {SIGNATURE})",
            hint=f"if you made it: {resign}",
        )
    manifest, signature = (bundle.path / "manifest.json").read_bytes(), file.read_bytes()
    if _verified(manifest, signature, trust_root()):
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "sig"
        copy.write_bytes(signature)
        known = run(
            ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", copy],
            stdin=manifest, check=False,
        )  # fmt: skip
    if known.exit_code == 0:
        fingerprint = next((word for word in known.text.split() if word.startswith("SHA256:")), "?")
        raise UserError(
            f"{bundle.path} is signed by a key that is not trusted here: {fingerprint}",
            hint=f"compare it with its owner's (ssh-keygen -lf KEY.pub), then add the key to "
            f'{allowed_signers_file()}: {SIGNER} namespaces="{NAMESPACE}" ssh-ed25519 AAAA...',
        )
    raise UserError(
        f"{bundle.path}: the manifest is not what was signed",
        hint="get the bundle again, or make it again; do not deploy it",
    )


def check_content(bundle: Bundle, entries: Iterable[Entry] | None = None) -> None:
    """Read files of a bundle, and refuse it where one is not as the manifest says.

    Args:
        entries: None: all of them.

    Raises:
        UserError: a file is missing, or has another content.
    """
    folder = str(bundle.path)

    def wrong(entry: Entry) -> str:
        path = f"{folder}/{entry.path}"
        try:
            if entry.link is not None:
                return "" if str(Path(path).readlink()) == entry.link else entry.path
            if Path(path).is_symlink():
                return entry.path
            with open(path, "rb") as file:  # thousands of files
                digest = hashlib.file_digest(file, "sha256")
        except OSError:
            return entry.path
        return "" if digest.hexdigest() == entry.sha256 else entry.path

    chosen = list(bundle.manifest.files if entries is None else entries)
    # hashlib lets other threads run; the largest first, so that no core waits for it at the end, and the
    # small ones many at a time, as handing one over takes longer than hashing it.
    chosen.sort(key=lambda entry: -entry.size_bytes)
    large = sum(entry.size_bytes >= _LARGE_BYTES for entry in chosen)
    batches = [[entry] for entry in chosen[:large]]
    batches += [chosen[at : at + _BATCH] for at in range(large, len(chosen), _BATCH)]

    def wrong_in(batch: list[Entry]) -> list[str]:
        return [name for entry in batch if (name := wrong(entry))]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = sorted(name for names in pool.map(wrong_in, batches) for name in names)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"{folder}: not as the manifest says: {', '.join(found[:3])}{more}",
            hint="get the bundle again, or make it again; do not deploy it",
        )


def verify(path: Path) -> Bundle:
    """Check all of a bundle: manifest, signature, each file, and that there is nothing else in it.

    Raises:
        UserError: something is not as it was signed.
    """
    from images.bundle import manifest as bundles

    found = bundles.load(path)
    check_signature(found)
    listed = {entry.path for entry in found.manifest.files} | {"manifest.json", SIGNATURE}
    extra = sorted(
        each.relative_to(path).as_posix()
        for each in path.rglob("*")
        if (each.is_symlink() or not each.is_dir())
        and each.relative_to(path).as_posix() not in listed
    )
    if extra:
        raise UserError(
            f"{path} has files that its manifest does not list: {', '.join(extra[:3])}",
            hint="remove them, or make the bundle again",
        )
    check_content(found)
    return found


def _verified(manifest: bytes, signature: bytes, signers: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        allowed, sig = Path(name) / "allowed", Path(name) / "sig"
        allowed.write_text(signers, encoding="utf-8")
        sig.write_bytes(signature)
        done = run(
            ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", SIGNER, "-n", NAMESPACE, "-s", sig],
            stdin=manifest, check=False,
        )  # fmt: skip
    return done.exit_code == 0
