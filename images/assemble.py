# SPDX-License-Identifier: MIT
"""From a profile to a bundle: builds or fetches each part, then assembles them.

What is in the cache is taken from there; a bundle is kept under what it was made of, so that the second
deployment of the same thing does not even hash it again.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import cache_dir, make_once
from bsp.base.download import sha256_of
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.dts.build import build_dts
from bsp.kernel.distribution import all_series
from bsp.kernel.prebuilt import prebuilt_kernel
from bsp.profile import Board
from images import bundle as bundles
from images.bundle import Bundle, Parts, assemble
from images.initrd import ROOT_INIT, build_initrd
from userspace.payload import build_payload

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Choice:
    """What a bundle is to be made of, where the profile's choice is not wanted.

    Attributes:
        kernel: series of the distribution's kernel, or a source for the device tree.
        dtb: device tree to take as it is.
        without_userspace: leave the NPU's userspace out.
    """

    kernel: str | None = None
    dtb: Path | None = None
    without_userspace: bool = False


def bundle_for(board: Board, choice: Choice | None = None) -> Bundle:
    """Return the bundle for a board, kept in the cache.

    Raises:
        UserError: the profile has no ``[boot]``, or the DTB is not there.
        InfrastructureError: a part cannot be had.
    """
    choice = choice or Choice()
    if board.boot is None:
        raise UserError(
            f"the profile of {board.name} has no [boot]: a bundle needs to know how the board boots",
            hint=f"add [boot] to bsp/boards/{board.name}.toml",
        )
    source = choice.kernel or board.kernel
    # A device tree from any source goes with the distribution's kernel of the profile's series.
    kernel = prebuilt_kernel(source if source in all_series() else board.kernel)
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bundle-") as name:
        work = Path(name)
        dtb, origin = _device_tree(board, choice, work)
        with step("Making the initial RAM disk"):
            initrd = build_initrd(
                kernel, board.boot.initrd_modules, init=ROOT_INIT, target=work / "initrd"
            )
        payload = None
        if not choice.without_userspace:
            payload = build_payload(
                distribution=board.userspace.distribution, python=None, target=None
            )
        inputs = {"device-tree": origin}
        if payload:
            inputs["userspace"] = f"{payload.manifest['distribution']} {payload.folder.name}"
        parts = Parts(
            board=board,
            kernel=kernel,
            initrd=initrd,
            dtb=dtb,
            userspace=payload.folder if payload else None,
            cmdline=board.boot.cmdline,
            inputs=inputs,
        )
        folder = cache_dir() / "bundles"
        folder.mkdir(parents=True, exist_ok=True)
        kept = make_once(
            folder / f"{board.name}-{_key(parts)}", lambda target: _make(parts, target)
        )
    return bundles.load(kept)


def _device_tree(board: Board, choice: Choice, work: Path) -> tuple[Path, str]:
    """Return the DTB for the bundle, and what it was made of."""
    if choice.dtb:
        if not choice.dtb.is_file():
            raise UserError(f"there is no DTB {choice.dtb}", hint="./inv build-dts makes one")
        return choice.dtb, choice.dtb.name
    base = None
    if board.dts is None:
        from images.virtual.base_dtb import base_dtb

        base = base_dtb(board)
    kernel = choice.kernel if base is None else None
    built = build_dts(board, kernel=kernel, base_dtb=base, target_dir=work)
    return built.dtb, "QEMU" if base else built.origin


def _make(parts: Parts, target: Path) -> None:
    assemble(parts, target)


def _key(parts: Parts) -> str:
    """A hash of all that goes into a bundle: a change in any of it makes another one."""
    words = [
        parts.board.name,
        *parts.board.compatible,
        str(parts.cmdline),
        f"{parts.kernel.package} {parts.kernel.version}",
        sha256_of(parts.initrd),
        sha256_of(parts.dtb),
        parts.userspace.name if parts.userspace else "",
        sha256_of(_HERE / "bundle.py"),
    ]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
