# SPDX-License-Identifier: MIT
"""The ``bundle`` command: make, verify, sign or reproduce a bundle; each returns a document and a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.base.project import results_folder
from bsp.base.result import Answer
from bsp.base.words import counted
from bsp.catalog import load_board
from bsp.profile import Board
from images.bundle import manifest as bundles
from images.bundle import sign as signing
from images.bundle.manifest import Bundle
from userspace.npu.mesa.manifest import named_mesa


@dataclass(frozen=True)
class BundleFlags:
    """What a bundle is made of and signed with, as the flags say; empty: the flag was not given."""

    kernel: str = ""
    dtb: str = ""
    mesa: str = ""
    key: str = ""
    force_enable: bool = False

    def make(self, board: Board, output: Path | None = None) -> Bundle:
        """Make a board's bundle; without ``output`` in the cache."""
        from images.bundle.assemble import bundle_for  # late: not all commands need it

        return bundle_for(
            board,
            kernel=self.kernel or None,
            dtb=Path(self.dtb) if self.dtb else None,
            mesa=named_mesa(self.mesa),
            output=output,
            key=Path(self.key) if self.key else None,
            force_enable=self.force_enable,
        )


def make(board: str, flags: BundleFlags, *, output: str) -> Answer:
    """Make a board's bundle.

    Raises:
        UserError: no board is named; and whatever ``bundle_for`` raises.
    """
    from images.deploy import show

    bundle = flags.make(_profile(board), Path(output) if output else None)
    return Answer(show.bundle_document(bundle), show.bundle_text(bundle))


@dataclass(frozen=True)
class RaucFlags:
    """The flags that only ``--format rauc`` has."""

    cert: str = ""
    key: str = ""
    keyring: str = ""
    system: str = ""
    ssh_key: str = ""
    dry_run: bool = False


def check_format(chosen: str, rauc: RaucFlags, *, alone: bool) -> None:
    """Refuse an unknown format, and RAUC's flags without ``--format rauc``.

    Args:
        alone: ``--verify``, ``--sign`` or ``--reproduce`` was given.

    Raises:
        UserError: the flags do not fit together.
    """
    if chosen not in ("npu-bsp", "rauc"):
        raise UserError(f"--format is {chosen!r}, expected npu-bsp or rauc")
    if chosen == "rauc" and alone:
        raise UserError(
            "--verify, --sign and --reproduce do not apply to RAUC bundles",
            hint="rauc info --keyring=CERT FILE verifies a RAUC bundle",
        )
    if chosen != "rauc" and rauc != RaucFlags():
        raise UserError(
            "--rauc-..., --ssh-key and --dry-run are for RAUC bundles", hint="add --format rauc"
        )


def make_rauc(board: str, rauc_flags: RaucFlags, flags: BundleFlags, *, output: str) -> Answer:
    """Make a RAUC bundle for a board.

    Raises:
        UserError: no board is named; and whatever ``rauc.prepare`` and ``bundle_for`` raise.
    """
    from images.bundle import rauc

    profile = _profile(board)
    request = rauc.RaucRequest(
        profile,
        Path(output) if output else results_folder() / f"{profile.name}.raucb",
        rauc_flags.cert,
        rauc_flags.key,
        rauc_flags.keyring,
        rauc_flags.system,
        rauc_flags.ssh_key,
    )
    planned = rauc.plan(request)
    if rauc_flags.dry_run:
        return Answer(planned.document, planned.text())
    packed = rauc.make(request, rauc.prepare(request), flags.make(profile))
    return Answer(packed.document, packed.text())


def verify(folder: str) -> Answer:
    """Check a bundle's signature and every byte of its files.

    Raises:
        UserError: the bundle differs from what was signed.
    """
    with step("Reading the bundle"):
        bundle = signing.verify(Path(folder))
    manifest = bundle.manifest
    document = {
        "path": str(bundle.path),
        "verified": True,
        "format": manifest.format,
        "generation": manifest.generation,
        "build_id": manifest.generation,
        "board": manifest.board,
        "files": len(manifest.files),
        "bytes_total": manifest.total_bytes,
        "inputs": manifest.inputs,
    }
    text = (
        f"generation {manifest.generation} for {manifest.board}: signed by a key that is trusted here, "
        f"{counted(len(manifest.files), 'file')}, {manifest.total_bytes / 1e6:.0f} MB, "
        "no file differs from its manifest"
    )
    return Answer(document, text)


def sign(folder: str, key: str) -> Answer:
    """Sign a bundle after comparing each of its files with the manifest.

    Raises:
        UserError: a file is missing or differs, or there is no such key.
    """
    bundle = bundles.load(Path(folder))
    signing.check_content(bundle)
    path = signing.sign(bundle, Path(key) if key else None)
    document = {"path": str(bundle.path), "generation": bundle.generation, "signature": str(path)}
    return Answer(document, f"generation {bundle.generation} signed: {path}")


def reproduce(board: str, flags: BundleFlags) -> Answer:
    """Make a bundle twice and compare.

    Raises:
        ValidationError: the two differ.
    """
    from images.bundle.reproduce import reproduce as make_twice

    flag_values = {
        "--board": _profile(board).name,
        "--kernel": flags.kernel,
        "--key": flags.key,
        "--dtb": flags.dtb and str(Path(flags.dtb).absolute()),
        "--mesa": flags.mesa and str(Path(flags.mesa).absolute()),
    }
    arguments = [word for flag, value in flag_values.items() if value for word in (flag, value)]
    comparison = make_twice(arguments)
    text = (
        f"identical: generation {comparison['generation']}, {counted(comparison['files'], 'file')}, "
        f"{comparison['bytes_total'] / 1e6:.0f} MB"
    )
    return Answer({"board": board, **comparison}, text)


def _profile(board: str) -> Board:
    if not board:
        raise UserError("--board is missing", hint="./inv boards lists them")
    return load_board(board)
