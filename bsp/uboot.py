# SPDX-License-Identifier: MIT
"""What a board's U-Boot can do, as far as its upstream configuration says: ``bsp/uboots/NAME.toml``.

The files are of upstream U-Boot's own configurations. A board may run another one: a vendor's fork, or one
that its distribution changed; so these are expectations, and what counts is what the board itself says.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from .base.errors import UserError
from .profile import Board
from .profile_errors import explain

UBOOTS_DIR = Path(__file__).parent / "uboots"
FORMAT = 1

BootsBy = Literal["distro_bootcmd", "bootflow scan", "the maker's own"]


class UBoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One upstream configuration of U-Boot, or several that are alike in all that counts here.

    Attributes:
        format: of the file.
        name: the configuration, without ``_defconfig``.
        source: U-Boot's version and the files that these facts come from.
        also: further configurations that are alike.
        device_trees: stems of the kernel's device trees of the boards that it is for.
        boots_by: what its ``bootcmd`` runs.
        bootcmd: that command, where it is the maker's own.
        image_by_name: whether ``bootcmd`` goes on, where nothing was found, with ``Image`` and
            ``${fdtfile}`` of the first partition.
        lacks: commands that it is built without, of those that boot scripts use.
        environment: where it keeps its variables: mmc, spi, fat, flash, nowhere.
        bootcount: whether it counts boots.
        watchdog_at_boot: whether it starts the watchdog before it starts a kernel.
        legacy_scripts: whether ``source`` takes script images of mkimage (``boot.scr``).
        addresses: the address variables that it sets, such as ``kernel_addr_r``.
    """

    format: int
    name: str
    source: str
    also: tuple[str, ...] = ()
    device_trees: tuple[str, ...]
    boots_by: BootsBy
    bootcmd: str = ""
    image_by_name: bool = False
    lacks: tuple[str, ...]
    environment: tuple[str, ...]
    bootcount: bool
    watchdog_at_boot: bool
    legacy_scripts: bool
    addresses: dict[str, int]


class Trial(NamedTuple):
    """How a deployment can be tried once on a board.

    Attributes:
        way: ``fat`` (a boot script on the FAT partition that U-Boot scans), ``asked`` (the board has to say
            whether its U-Boot runs one) or ``none``.
        why: in words.
    """

    way: Literal["fat", "asked", "none"]
    why: str


def trial_of(board: Board) -> Trial:
    """Return how a deployment is tried on a board, by what is known of its U-Boot."""
    virtual = board.qemu is not None and board.dts is None
    if virtual:
        return Trial("fat", "U-Boot of the distribution runs /boot.scr on its FAT partition")
    uboot = uboot_of(board)
    if uboot is None:
        return Trial("asked", "upstream U-Boot has no configuration for this board")
    if not uboot.legacy_scripts:
        return Trial("none", f"U-Boot's {uboot.name} runs no script images (boot.scr)")
    if uboot.boots_by == "the maker's own":
        return Trial("asked", f"U-Boot's {uboot.name} boots by a command of its maker's")
    return Trial("fat", f"U-Boot's {uboot.name} runs /boot.scr ({uboot.boots_by})")


@functools.cache
def uboots() -> tuple[UBoot, ...]:
    """Return all that are known.

    Raises:
        UserError: a file is broken.
    """
    return tuple(_read(path) for path in sorted(UBOOTS_DIR.glob("*.toml")))


def uboot_of(board: Board) -> UBoot | None:
    """Return the upstream U-Boot of a board; None where no configuration of upstream is for it."""
    return next((each for each in uboots() if board.dts in each.device_trees), None)


def uboot_named(name: str) -> UBoot | None:
    """Return the U-Boot with a configuration of that name."""
    return next((each for each in uboots() if name in (each.name, *each.also)), None)


def _read(path: Path) -> UBoot:
    text = path.read_text(encoding="utf-8")
    try:
        uboot = msgspec.convert(tomllib.loads(text), UBoot, strict=True)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {explain(str(error), UBoot, text)[1]}") from error
    if uboot.format != FORMAT:
        raise UserError(f"{path}: format is {uboot.format}, this version reads format {FORMAT}")
    if path.stem != uboot.name:
        raise UserError(f"{path}: name is {uboot.name!r}, expected that of the file")
    return uboot
