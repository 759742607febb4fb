# SPDX-License-Identifier: MIT
"""Which U-Boot ``like:BOARD`` stands for, and how one for QEMU is configured to be like it: pure.

What is made alike: the commands that boot scripts use, the address variables, what ``bootcmd`` runs, script
images, counting of boots. What is not: the drivers (the disk is QEMU's virtio), a watchdog, where variables
are stored (QEMU's flash, or nowhere where the board's has no place for them), network and USB (left out:
nothing is booted from there). Addresses keep their distance from where memory begins.
"""

from __future__ import annotations

from bsp.base.errors import UserError, nearest
from bsp.catalog import board_names, load_board
from bsp.uboot import UBoot, uboot_named, uboot_of, uboots

PREFIX = "like:"

# Commands that some boards' U-Boots lack, and the symbols that they are built by.
SYMBOLS = {
    "env import": "CMD_IMPORTENV",
    "setexpr": "CMD_SETEXPR",
    "ext4write": "CMD_EXT4_WRITE",
    "sysboot": "CMD_SYSBOOT",
    "cat": "CMD_CAT",
    "fdt apply": "OF_LIBFDT_OVERLAY",
}
# Commands that all known boards have, and a maker's own U-Boot may lack: said only where they are lacking.
RARELY_LACKING = {
    "cmp": "CMD_MEMORY",  # and with it mw, md...
    "itest": "CMD_ITEST",
    "fatwrite": "FAT_WRITE",
}
FDTFILE = "virtual.dtb"
"""The name of the board's device tree, as these U-Boots know it (``${fdtfile}``)."""

# hw/arm/virt.c: where QEMU's memory begins. Boards' memory begins at a multiple of 1 GiB too.
_MEMORY_START = 0x4000_0000
_GIB = 1 << 30
_WITHOUT = ("USB", "NVME_PCI", "SCSI", "AHCI", "DFU", "TPM", "E1000", "SEMIHOSTING", "CMD_SMBIOS",
            "CMD_BOOTEFI_SELFTEST", "CMD_BOOTEFI_HELLO", "MBEDTLS_LIB", "EFI_HTTP_BOOT", "CMD_VBE",
            "BOOTMETH_VBE", "EFI_SECURE_BOOT", "FIT_SIGNATURE", "TOOLS_MKEFICAPSULE")  # fmt: skip


def uboot_like(text: str) -> UBoot:
    """Return the U-Boot that ``like:BOARD`` stands for.

    Args:
        text: with the name of a configuration of U-Boot, or of a profile.

    Raises:
        UserError: there is none of that name, or it boots in a way that is not built here.
    """
    name = text.removeprefix(PREFIX)
    names = sorted({each for uboot in uboots() for each in (uboot.name, *uboot.also)})
    if not text.startswith(PREFIX) or not name:
        raise UserError(
            f"--uboot {text!r}: expected like:BOARD", hint="for example --uboot like:khadas-vim3"
        )
    uboot = uboot_named(name)
    if uboot is None and name in board_names():
        uboot = uboot_of(load_board(name))
        if uboot is None:
            raise UserError(
                f"upstream U-Boot has no configuration for the board {name}, so what its own can do is not "
                "known",
                hint=f"U-Boots that are known: {', '.join(names)}",
            )
    if uboot is None:
        raise UserError(
            f"no U-Boot is known that is called {name!r}{nearest(name, [*names, *board_names()])}",
            hint=f"a board's profile (./inv boards), or one of {', '.join(names)}",
        )
    if uboot.boots_by == "the maker's own":
        raise UserError(
            f"U-Boot's {uboot.name} boots by a command of its maker's, which is not built for QEMU",
            hint="choose another board; ./inv board NAME says how its U-Boot boots",
        )
    return uboot


def memory_mib(uboot: UBoot, least_mib: int) -> int:
    """Return how much memory a machine needs for the addresses of a U-Boot to lie in it."""
    highest = max(addresses(uboot).values(), default=0)
    need = (highest + (256 << 20) - _MEMORY_START) >> 20
    return max(least_mib, -(-need // 1024) * 1024)


def addresses(uboot: UBoot) -> dict[str, int]:
    """Return its address variables, moved to where QEMU's memory begins."""
    start = uboot.addresses["kernel_addr_r"] // _GIB * _GIB
    return {name: value - start + _MEMORY_START for name, value in uboot.addresses.items()}


def symbols(uboot: UBoot) -> dict[str, bool]:
    """Return what a configuration must have, and must not have, to be like a board's."""
    wanted = {symbol: command not in uboot.lacks for command, symbol in SYMBOLS.items()}
    rare = (symbol for command, symbol in RARELY_LACKING.items() if command in uboot.lacks)
    wanted.update(dict.fromkeys(rare, False))
    wanted["LEGACY_IMAGE_FORMAT"] = uboot.legacy_scripts
    wanted["DISTRO_DEFAULTS"] = _is_distro(uboot)
    wanted["BOOTCOUNT_LIMIT"] = uboot.bootcount
    wanted["ENV_IS_NOWHERE"] = uboot.environment == ("nowhere",)
    return wanted


def fragment(uboot: UBoot) -> str:
    """Return the configuration that goes over ``qemu_arm64_defconfig``."""
    lines = [f"# CONFIG_{symbol} is not set" for symbol in _WITHOUT]
    lines += ["CONFIG_NO_NET=y", "CONFIG_BOOTDELAY=0", "CONFIG_USE_BOOTCOMMAND=y"]
    lines += [f'CONFIG_BOOTCOMMAND="{_bootcmd(uboot)}"']
    lines += [f"CONFIG_SYS_LOAD_ADDR={addresses(uboot)['kernel_addr_r']:#x}"]
    for symbol, there in symbols(uboot).items():
        lines.append(f"CONFIG_{symbol}=y" if there else f"# CONFIG_{symbol} is not set")
    if uboot.bootcount:
        lines += ["CONFIG_BOOTCOUNT_ENV=y"]
    if uboot.environment == ("nowhere",):
        lines += ["# CONFIG_ENV_IS_IN_FLASH is not set"]
    return "\n".join(lines) + "\n"


def environment(uboot: UBoot) -> str:
    """Return its variables, in the form of U-Boot's ``board/*/*.env``."""
    lines = [f"{name}={value:#010x}" for name, value in sorted(addresses(uboot).items())]
    lines += [f"fdtfile={FDTFILE}", "console=ttyAMA0"]
    if not _is_distro(uboot):
        lines.append("boot_targets=virtio")
    if uboot.image_by_name:
        # As NXP's configurations do, after the scan: kernel and device tree by name from partition 1.
        lines += [
            "image=Image",
            "bsp_bootcmd=echo Running BSP bootcmd ...;",
            "\tsetenv bootargs console=${console} root=/dev/vda2 rootwait rw panic=10;",
            "\tif load virtio 0:1 ${loadaddr} ${image}; then",
            "\t\tif load virtio 0:1 ${fdt_addr_r} ${fdtfile}; then",
            "\t\t\tbooti ${loadaddr} - ${fdt_addr_r};",
            "\t\tfi;",
            "\tfi;",
        ]
    return "\n".join(lines) + "\n"


def header(uboot: UBoot) -> str:
    """Return the board's C header: the memory, and what U-Boot's own distro_bootcmd scans."""
    lines = [
        "#ifndef __CONFIG_H",
        "#define __CONFIG_H",
        f"#define CFG_SYS_SDRAM_BASE {_MEMORY_START:#x}",
    ]
    if _is_distro(uboot):
        lines += [
            "#define BOOT_TARGET_DEVICES(func) func(VIRTIO, virtio, 0)",
            "#include <config_distro_bootcmd.h>",
            "#define CFG_EXTRA_ENV_SETTINGS BOOTENV",
        ]
    return "\n".join([*lines, "#endif"]) + "\n"


def _is_distro(uboot: UBoot) -> bool:
    return uboot.boots_by == "distro_bootcmd"


def _bootcmd(uboot: UBoot) -> str:
    command = "run distro_bootcmd" if _is_distro(uboot) else "bootflow scan -lb"
    return f"{command}; run bsp_bootcmd" if uboot.image_by_name else command
