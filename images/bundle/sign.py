# SPDX-License-Identifier: MIT
"""Signatures of bundles, made by ``ssh-keygen -Y``, as deploying over SSH needs OpenSSH anyway.

``manifest.json`` is signed; it has the hash of every file, so that the signature covers them all. The key
and the list of trusted signers are files in OpenSSH's own formats in the user's configuration folder;
boards have the list at ``/etc/npu-bsp/allowed-signers``.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from bsp.base.cache import lock, write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import Completed, run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from images.bundle.manifest import Bundle, Entry

NAMESPACE = "npu-bsp-bundle"
"""Namespace of ssh-keygen(1): a signature made for another purpose (a git commit) is not accepted."""
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
    """Return the user's signing key (ed25519). The first use makes it, and trusts it on this machine.

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
                    new_key = Path(name) / "key"
                    run(
                        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", SIGNER, "-f", new_key]
                    )
                    new_key.with_name("key.pub").rename(folder / "signing-key.pub")
                    new_key.rename(key)
    allowed = allowed_signers_file()
    line = signers_line(public_key(key))
    if not allowed.exists() or not allowed.read_text(encoding="utf-8"):
        write_atomically(allowed, line.encode())
    return key


def allowed_signers_file() -> Path:
    """The keys whose bundles are trusted on this machine (``ssh-keygen(1)``, ALLOWED SIGNERS)."""
    return config_dir() / "allowed-signers"


def public_key(key: Path) -> str:
    """Return ``ssh-ed25519 AAAA...`` of a private key.

    Raises:
        UserError: there is no such key, or it is none.
    """
    if not key.is_file():
        raise UserError(f"there is no signing key {key}", hint="leave --key out to have one made")
    beside = key.with_name(key.name + ".pub")
    if beside.is_file():
        return " ".join(beside.read_text(encoding="utf-8").split()[:2])
    made = run(["ssh-keygen", "-y", "-f", key], check=False)
    if made.exit_code != 0:
        raise _unusable(key, made)
    return " ".join(made.text.split()[:2])


def _unusable(key: Path, answer: Completed) -> UserError:
    """Return the error for a key that ssh-keygen does not take."""
    if re.match(rb"(ssh|ecdsa|sk)-\S+ AAAA", key.read_bytes()[:100]):
        return UserError(
            f"{key} is a public key; a bundle is signed with the private one",
            hint=f"--key {key.with_suffix('')}",
        )
    said = answer.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return UserError(
        f"{key} cannot sign: {said.removeprefix('Enter passphrase: ') or 'ssh-keygen does not say why'}",
        hint="--key takes a private SSH key; one with a passphrase needs ssh-agent: ssh-add KEY",
    )


def signers_line(public: str) -> str:
    """Return the line of an allowed-signers file that trusts a public key for bundles."""
    return f'{SIGNER} namespaces="{NAMESPACE}" {public}\n'


def trust_root() -> str:
    """Return the allowed signers of a board that is prepared on this machine: this machine's own."""
    signing_key()
    return allowed_signers_file().read_text(encoding="utf-8")


def sign(bundle: Bundle, key: Path | None = None) -> Path:
    """Sign the manifest, unless this key has signed it already; return the path of the signature.

    Raises:
        UserError: there is no such key, or it cannot sign (a passphrase without an agent).
    """
    key = key or signing_key()
    public = public_key(key)
    target = bundle.path / SIGNATURE
    manifest = (bundle.path / "manifest.json").read_bytes()
    if target.exists() and _is_valid(manifest, target.read_bytes(), signers_line(public)):
        return target
    signed = run(
        ["ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", NAMESPACE],
        stdin=manifest,
        check=False,
    )
    if signed.exit_code != 0:
        raise _unusable(key, signed)
    write_atomically(target, signed.stdout)
    return target


def check_signature(bundle: Bundle) -> None:
    """Refuse a bundle without a valid signature by a key that this machine trusts.

    Raises:
        UserError: it is not signed, is signed by an unknown key, or its manifest was changed afterwards.
    """
    file = bundle.path / SIGNATURE
    resign = f"./inv bundle --sign {bundle.path}"
    if not file.is_file():
        raise UserError(
            f"{bundle.path} is not signed (it has no {SIGNATURE})",
            hint=f"if you made it: {resign}",
        )
    manifest, signature = (bundle.path / "manifest.json").read_bytes(), file.read_bytes()
    if _is_valid(manifest, signature, trust_root()):
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "sig"
        copy.write_bytes(signature)
        novalidate = run(
            ["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, "-s", copy],
            stdin=manifest, check=False,
        )  # fmt: skip
    if novalidate.exit_code == 0:
        fingerprint = next(
            (word for word in novalidate.text.split() if word.startswith("SHA256:")), "?"
        )
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
    """Compare files of a bundle with the hashes in its manifest.

    Args:
        entries: the files to read; None for all of them.

    Raises:
        UserError: a file is missing, or its content differs.
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

    to_read = list(bundle.manifest.files if entries is None else entries)
    # hashlib releases the GIL. The largest file comes first, so that it is not hashed alone at the end;
    # small files go to a thread in batches, as the handover of one takes longer than hashing it.
    to_read.sort(key=lambda entry: -entry.size_bytes)
    large = sum(entry.size_bytes >= _LARGE_BYTES for entry in to_read)
    batches = [[entry] for entry in to_read[:large]]
    batches += [to_read[at : at + _BATCH] for at in range(large, len(to_read), _BATCH)]

    def wrong_in(batch: list[Entry]) -> list[str]:
        return [name for entry in batch if (name := wrong(entry))]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        mismatches = sorted(name for names in pool.map(wrong_in, batches) for name in names)
    if mismatches:
        more = f" and {len(mismatches) - 3} more" if len(mismatches) > 3 else ""
        raise UserError(
            f"{folder}: not as the manifest says: {', '.join(mismatches[:3])}{more}",
            hint="get the bundle again, or make it again; do not deploy it",
        )


def verify(path: Path) -> Bundle:
    """Check a bundle's manifest, signature and files, and that it has no file that is not listed.

    Raises:
        UserError: the bundle differs from what was signed.
    """
    from images.bundle import manifest as bundles

    bundle = bundles.load(path)
    check_signature(bundle)
    listed = {entry.path for entry in bundle.manifest.files} | {"manifest.json", SIGNATURE}
    extra = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if (file.is_symlink() or not file.is_dir())
        and file.relative_to(path).as_posix() not in listed
    )
    if extra:
        raise UserError(
            f"{path} has files that its manifest does not list: {', '.join(extra[:3])}",
            hint="remove them, or make the bundle again",
        )
    check_content(bundle)
    return bundle


def _is_valid(manifest: bytes, signature: bytes, signers: str) -> bool:
    with tempfile.TemporaryDirectory() as name:
        allowed, sig = Path(name) / "allowed", Path(name) / "sig"
        allowed.write_text(signers, encoding="utf-8")
        sig.write_bytes(signature)
        verification = run(
            ["ssh-keygen", "-Y", "verify", "-f", allowed, "-I", SIGNER, "-n", NAMESPACE, "-s", sig],
            stdin=manifest, check=False,
        )  # fmt: skip
    return verification.exit_code == 0
