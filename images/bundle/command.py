# SPDX-License-Identifier: MIT
"""``bundle`` as it is typed: made, verified, signed or made twice; a document and a text each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.base.project import results_folder
from bsp.base.result import Answer
from bsp.base.words import counted
from bsp.profile import Board, load_board
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
        UserError: no board is named, or as ``bundle_for``.
    """
    from images.bundle.assemble import bundle_for
    from images.deploy import show

    made = bundle_for(
        _profile(board),
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        mesa=named_mesa(mesa),
        output=Path(output) if output else None,
        key=Path(key) if key else None,
        force_enable=force_enable,
    )
    return Answer(show.bundle_document(made), show.bundle_text(made))


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
    """Refuse a format that there is not, and flags of RAUC's without it.

    Args:
        alone: what was asked for is about a bundle of ours.

    Raises:
        UserError: as said.
    """
    if chosen not in ("npu-bsp", "rauc"):
        raise UserError(f"--format is {chosen!r}, expected npu-bsp or rauc")
    if chosen == "rauc" and alone:
        raise UserError(
            "--verify, --sign and --reproduce are for bundles of this project's own",
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
    """Make a board's bundle as one for RAUC.

    Raises:
        UserError: no board is named; or as ``rauc.prepare``, ``bundle_for``.
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

    made = rauc.make(
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
    return Answer(made.document, made.text())


def verify(folder: str) -> Answer:
    """Check a bundle: every byte of it.

    Raises:
        UserError: something is not as it was signed.
    """
    with step("Reading the bundle"):
        found = signing.verify(Path(folder))
    manifest = found.manifest
    document = {
        "path": str(found.path),
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
        f"generation {manifest.generation} for {manifest.board}: signed by who is trusted here, "
        f"{counted(len(manifest.files), 'file')}, {manifest.total_bytes / 1e6:.0f} MB, "
        "all as they were signed"
    )
    return Answer(document, text)


def sign(folder: str, key: str) -> Answer:
    """Sign a bundle, after every file of it was compared with its manifest.

    Raises:
        UserError: it is not whole, or there is no such key.
    """
    found = bundles.load(Path(folder))
    signing.check_content(found)
    path = signing.sign(found, Path(key) if key else None)
    document = {"path": str(found.path), "generation": found.generation, "signature": str(path)}
    return Answer(document, f"generation {found.generation} signed: {path}")


def reproduce(board: str, *, kernel: str, dtb: str, key: str, mesa: str = "") -> Answer:
    """Make a bundle twice and compare.

    Raises:
        ValidationError: the two differ.
    """
    from images.bundle.reproduce import reproduce as make_twice

    flags = {"--board": _profile(board).name, "--kernel": kernel, "--key": key}
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    if dtb:
        words += ["--dtb", str(Path(dtb).absolute())]
    if mesa:
        words += ["--mesa", str(Path(mesa).absolute())]
    found = make_twice(words)
    text = (
        f"identical: generation {found['generation']}, {counted(found['files'], 'file')}, "
        f"{found['bytes_total'] / 1e6:.0f} MB"
    )
    return Answer({"board": board, **found}, text)


def _profile(board: str) -> Board:
    if not board:
        raise UserError("which board? --board is missing", hint="./inv boards lists them")
    return load_board(board)
