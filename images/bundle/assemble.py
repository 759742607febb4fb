# SPDX-License-Identifier: MIT
"""From a board's name to its bundle: device tree, kernel, initial RAM disk, userspace, in one step.

A bundle is kept in the cache under a hash of all that it is made from, so asking again costs only the
building of the device tree.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from bsp.base.cache import cache_dir, copy_folder, make_once, remove
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.dts.build import build_dts
from bsp.dts.inputs.identity import dtb_of_board
from bsp.kernel.packaged import PrebuiltKernel
from bsp.kernel.select import is_build, kernel_named
from bsp.profile import Board
from bsp.qemu.base_dtb import base_dtb
from images.bundle import lock, sbom, sign
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Parts
from images.deploy.boot.memory import check_fits
from images.disk import initrd
from userspace.npu.mesa.manifest import BuiltMesa
from userspace.payload.parts import PartRecord
from userspace.payload.payload import Payload, build_payload

# A change in any of these makes another bundle of the same inputs.
_SOURCES = (
    Path(bundles.__file__),
    Path(sbom.__file__),
    Path(__file__),
    *sorted(Path(initrd.__file__).parent.glob("[!_]*")),
    Path(initrd.__file__),
)
_KEPT_BUNDLES = 12

# Of a part of the payload, the type of its package URL.
_PACKAGE_KINDS = {"wheel": "pypi", "Debian package": "deb", "built from source": "generic"}


def bundle_for(
    board: Board,
    *,
    kernel: str | None = None,
    dtb: Path | None = None,
    userspace: bool = True,
    output: Path | None = None,
    key: Path | None = None,
    mesa: BuiltMesa | None = None,
    force_enable: bool = False,
) -> Bundle:
    """Return the bundle of a board, signed.

    Args:
        kernel: series of the distribution's kernel (``6.12``), or one that was built here
            (``build:FOLDER``, ``build:ID``); None for the profile's.
        dtb: a DTB to use as it is, in place of the one that build-dts makes.
        userspace: whether the NPU's userspace is part of it.
        output: a folder, not there yet, that gets a copy.
        key: private key to sign with; None for the user's own.
        mesa: a delegate that was built here, in place of the distribution's.
        force_enable: as for ``build_dts``.

    Raises:
        UserError: the kernel is not a series, the DTB is another board's, the profile has no ``[boot]``.
    """
    _refuse_beforehand(board, output, key)
    series = kernel or lock.locked_kernel(board) or board.kernel
    if not is_build(series) and not series.replace(".", "").isdigit():
        raise UserError(
            f"a bundle takes the distribution's kernel by its series, or one that was built here, found "
            f"{series!r}",
            hint="--kernel 6.12, or --kernel build:ID after ./inv build-kernel",
        )
    given_dtb = dtb_of_board(dtb, board) if dtb else None
    with lock.followed(board):
        prebuilt = kernel_named(series)
        with tempfile.TemporaryDirectory(prefix="npu-bsp-bundle-") as work:
            dtb_bytes = given_dtb or _dtb(
                board, prebuilt, series, Path(work), force_enable=force_enable
            )
            check_fits(board, prebuilt.image, dtb_bytes)
            payload = (
                build_payload(distribution=board.userspace.distribution, mesa=mesa)
                if userspace
                else None
            )
            bundle = _build_cached(board, prebuilt, dtb_bytes, payload)
    if output is None:
        sign.sign(bundle, key)
        return bundle
    copy_folder(bundle.path, output, finish=lambda copy: sign.sign(bundles.load(copy), key))
    return bundles.load(output)


def _refuse_beforehand(board: Board, output: Path | None, key: Path | None) -> None:
    """Refuse what would only fail after minutes of work."""
    if board.boot is None:
        raise UserError(
            f"the profile of {board.name} has no [boot]: nothing is deployed to it",
            hint="add [boot] to it, or choose another board: ./inv boards",
        )
    if output is not None and output.exists():
        raise UserError(f"{output} exists already", hint="give another folder, or remove it")
    if key is not None:
        sign.public_key(key)


def _dtb(
    board: Board, kernel: PrebuiltKernel, series: str, work: Path, *, force_enable: bool
) -> bytes:
    base = None
    if is_build(series):  # its source may carry patches that the distribution's does not have
        base = next(kernel.dtbs.glob(f"*/{board.dts}.dtb"), None)
        series = kernel.series
    if board.dts is None:
        base = base_dtb(board)
    with step(f"Building the device tree of {board.name}"):
        return build_dts(
            board, kernel=series, base_dtb=base, target_dir=work, force_enable=force_enable
        ).dtb.read_bytes()


def _build_cached(
    board: Board, kernel: PrebuiltKernel, dtb: bytes, payload: Payload | None
) -> Bundle:
    if not board.boot:
        raise RuntimeError(f"the profile of {board.name} has no [boot]")
    digest = hashlib.sha256()
    parts = [board.name, *board.compatible, board.boot.cmdline or "-", *board.boot.initrd_modules]
    parts += [kernel.package, kernel.version, payload.folder.name if payload else "-"]
    digest.update("\0".join(parts).encode() + b"\0" + dtb)
    for source in _SOURCES:
        digest.update(source.read_bytes())
    folder = cache_dir() / "bundles"
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path) -> None:
        if not board.boot:
            raise RuntimeError(f"the profile of {board.name} has no [boot]")
        with tempfile.TemporaryDirectory(prefix="parts-", dir=folder) as name:
            file = Path(name) / "board.dtb"
            file.write_bytes(dtb)
            with step("Building the initial RAM disk"):
                ram_disk = initrd.build_initrd(
                    kernel,
                    board.boot.initrd_modules,
                    init=initrd.ROOT_INIT,
                    target=Path(name) / "initrd",
                )
            bundles.assemble(
                Parts(
                    board=board,
                    kernel=kernel,
                    initrd=ram_disk,
                    dtb=file,
                    userspace=payload.folder if payload else None,
                    cmdline=board.boot.cmdline,
                    inputs=_inputs(payload),
                    sbom=sbom.document(board.name, _parts(kernel, payload)),
                ),
                target,
            )
        _drop_old(folder)

    return bundles.load(make_once(folder / f"{board.name}-{digest.hexdigest()[:16]}", make))


def _inputs(payload: Payload | None) -> dict[str, str]:
    """Return the names and versions of a bundle's inputs, except its kernel."""
    versions = {"busybox-static": initrd.busybox_version()}
    if payload is not None:
        versions["userspace"] = payload.folder.name
        versions.update(
            {str(part["name"]): str(part["version"]) for part in payload.manifest["parts"]}
        )
    return versions


def _parts(kernel: PrebuiltKernel, payload: Payload | None) -> list[sbom.Part]:
    ours = kernel.package.startswith("npu-bsp-")
    parts = [
        sbom.Part(
            "linux" if ours else kernel.package,
            kernel.release if ours else kernel.version,
            "generic" if ours else "deb",
            "GPL-2.0-only WITH Linux-syscall-note",
            source=f"built from {kernel.package}" if ours else "Debian source package linux",
        ),
        sbom.Part(
            "busybox-static",
            initrd.busybox_version(),
            "deb",
            "GPL-2.0-only",
            source="Debian source package busybox; in boot/initrd",
        ),
    ]
    for part in payload.manifest["parts"] if payload else []:
        parts.append(
            sbom.Part(
                str(part["name"]),
                str(part["version"]),
                _PACKAGE_KINDS[part["kind"]],
                str(part["licence"]),
                str(part.get("sha256", "")),
                _where_from(part),
            )
        )
    return parts


def _where_from(part: PartRecord) -> str:
    """Describe the file that a part of the payload came as; if built here, also its source and patches."""
    text = f"userspace/, {part['kind']} {part['file']}"
    if "origin" in part:
        text += f", from {part['origin']}, build {part['build_id']}"
    if part.get("patches"):
        text += "; patches: " + ", ".join(patch["name"] for patch in part["patches"])
    return text


def _drop_old(folder: Path) -> None:
    """Remove all but the newest bundles."""
    bundles_kept = [path for path in folder.iterdir() if (path / "manifest.json").exists()]
    for path in sorted(bundles_kept, key=lambda path: path.stat().st_mtime)[:-_KEPT_BUNDLES]:
        remove(path)
