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
from userspace.npu.mesa.manifest import named_mesa


def make(
    board: str,
    *,
    kernel: str,
    dtb: str,
    output: str,
    key: str,
    mesa: str = "",
    force_enable: bool = False,
) -> Answer:
    """Make a board's bundle.

    Raises:
        UserError: no board is named; and whatever ``bundle_for`` raises.
    """
    from images.bundle.assemble import bundle_for
    from images.deploy import show

    bundle = bundle_for(
        _profile(board),
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        mesa=named_mesa(mesa),
        output=Path(output) if output else None,
        key=Path(key) if key else None,
        force_enable=force_enable,
    )
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


def make_rauc(
    board: str,
    flags: RaucFlags,
    *,
    kernel: str,
    dtb: str,
    output: str,
    key: str,
    mesa: str = "",
    force_enable: bool = False,
) -> Answer:
    """Make a RAUC bundle for a board.

    Raises:
        UserError: no board is named; and whatever ``rauc.prepare`` and ``bundle_for`` raise.
    """
    from images.bundle import rauc

    profile = _profile(board)
    request = rauc.RaucRequest(
        profile,
        Path(output) if output else results_folder() / f"{profile.name}.raucb",
        flags.cert,
        flags.key,
        flags.keyring,
        flags.system,
        flags.ssh_key,
    )
    planned = rauc.plan(request)
    if flags.dry_run:
        return Answer(planned.document, planned.text())
    prepared = rauc.prepare(request)
    from images.bundle.assemble import bundle_for

    packed = rauc.make(
        request,
        prepared,
        bundle_for(
            profile,
            kernel=kernel or None,
            dtb=Path(dtb) if dtb else None,
            mesa=named_mesa(mesa),
            key=Path(key) if key else None,
            force_enable=force_enable,
        ),
    )
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


def reproduce(board: str, *, kernel: str, dtb: str, key: str, mesa: str = "") -> Answer:
    """Make a bundle twice and compare.

    Raises:
        ValidationError: the two differ.
    """
    from images.bundle.reproduce import reproduce as make_twice

    flags = {"--board": _profile(board).name, "--kernel": kernel, "--key": key}
    arguments = [word for flag, value in flags.items() if value for word in (flag, value)]
    if dtb:
        arguments += ["--dtb", str(Path(dtb).absolute())]
    if mesa:
        arguments += ["--mesa", str(Path(mesa).absolute())]
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
