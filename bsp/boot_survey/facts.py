# SPDX-License-Identifier: MIT
"""What a board says of how it boots: the records of ``collect.py``, and asking a board for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..base.errors import InfrastructureError
from ..remote.ssh import Connection

_COLLECT = Path(__file__).parent / "collect.py"
_ANSWER_S = 60.0


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A file system that is mounted; ``device`` is a name below /dev, such as ``mmcblk1p1``."""

    device: str
    place: str
    kind: str
    options: str = "rw"
    writable: bool = True


class Partition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition, or a device that is stacked on others (LVM, RAID, verity).

    Attributes:
        kind: of the file system in it, by its magic number; empty: none that is known.
        bootable: whether the partition table marks it as the one that a bootloader looks at.
        on: what a stacked device is made of.
        stack: what stacks it: LVM, CRYPT, dm-verity, RAID...
    """

    name: str
    disk: str = ""
    number: int = 0
    start_bytes: int = 0
    size_bytes: int = 0
    kind: str = ""
    table: str = ""
    bootable: bool = False
    removable: bool = False
    partuuid: str = ""
    on: tuple[str, ...] = ()
    stack: str = ""


class Watchdog(msgspec.Struct, frozen=True, kw_only=True):
    """A watchdog, as /sys/class/watchdog has it."""

    name: str
    identity: str = ""
    state: str = ""
    timeout: str = ""
    nowayout: str = ""


class Kexec(msgspec.Struct, frozen=True, kw_only=True):
    """What the running kernel says of kexec.

    Attributes:
        load: whether it has the call (CONFIG_KEXEC); None: it has kexec, of which kind is not known.
        disabled: whether it was switched off until the next boot (kernel.kexec_load_disabled).
        lockdown: ``none``, ``integrity``, ``confidentiality``; empty: there is no lockdown.
        wide_addresses: whether it runs with 52-bit addresses; None: that cannot be seen.
    """

    load: bool | None = False
    disabled: bool = False
    lockdown: str = ""
    wide_addresses: bool | None = None


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """What the bootloader left in ``/chosen``.

    Attributes:
        initrd_bytes: the size of the RAM disk that it handed over; None: none, or it did not say.
        uboot: U-Boot's version, where it says so.
    """

    initrd_bytes: int | None = None
    uboot: str = ""
    barebox: str = ""


class BootFacts(msgspec.Struct, frozen=True, kw_only=True):
    """How a board boots, as far as its running system shows it.

    Attributes:
        folders: the names in folders that a bootloader may look at.
        files: the texts of small files there.
        settings: the texts of files below /etc that say who makes the boot files.
        there: of the paths that those files name, the ones that exist.
        unkept: places that a deployment writes to, and why that would not last: read-only, in memory.
        variables: U-Boot's; None: they cannot be seen.
        bootloader_words: words of U-Boot's that say that it runs boot scripts, found on the disk.
        bootloader_versions: of the U-Boots that were found there.
        bootloader_loads_image: whether its text has ``loadimage`` and ``mmcboot``, as NXP's has.
        firmware: who made the EFI firmware, as its SMBIOS table says; empty: there is none.
        systemd: whether systemd runs it; None: that cannot be seen.
        programs: of those that look after booting, the ones that are installed.
        cores: the CPU's parts, as /proc/cpuinfo has them.
        space: free bytes, by place.
    """

    compatible: tuple[str, ...] = ()
    model: str = ""
    release: str = ""
    banner: str = ""
    cmdline: str = ""
    chosen: Chosen = Chosen()
    efi: bool = False
    mounts: tuple[Mount, ...] = ()
    partitions: tuple[Partition, ...] = ()
    folders: dict[str, tuple[str, ...]] = {}
    files: dict[str, str] = {}
    there: tuple[str, ...] = ()
    unkept: dict[str, str] = {}
    settings: dict[str, str] = {}
    variables: dict[str, str] | None = None
    bootloader_words: tuple[str, ...] = ()
    bootloader_versions: tuple[str, ...] = ()
    bootloader_loads_image: bool = False
    firmware: str = ""
    systemd: bool | None = None
    programs: tuple[str, ...] = ()
    ostree: bool = False
    watchdogs: tuple[Watchdog, ...] = ()
    kexec: Kexec = Kexec()
    cores: tuple[str, ...] = ()
    space: dict[str, int] = {}

    def mount_of(self, path: str) -> Mount | None:
        """Return the file system that a path lies on; the topmost one where several are mounted."""
        fitting = [each for each in self.mounts if _is_below(path, each.place)]
        return max(reversed(fitting), key=lambda each: len(each.place), default=None)

    def partition(self, name: str) -> Partition | None:
        """Return the partition of that name."""
        return next((each for each in self.partitions if each.name == name), None)

    def setting(self, file: str, name: str) -> str:
        """Return a value in a file of ``NAME=value`` lines; empty if it is not there."""
        for line in self.settings.get(file, "").splitlines():
            key, equals, value = line.partition("=")
            if equals and key.strip() == name:
                return value.strip().strip("\"'")
        return ""


def _is_below(path: str, place: str) -> bool:
    return place == "/" or path == place or path.startswith(f"{place.rstrip('/')}/")


def facts_of(document: Any) -> BootFacts:
    """Return the facts in what ``collect.py`` printed.

    Raises:
        InfrastructureError: it is something else.
    """
    try:
        return msgspec.convert(document, BootFacts)
    except msgspec.ValidationError as error:
        raise InfrastructureError(
            f"what the board says of how it boots is broken: {error}"
        ) from error


def ask(connection: Connection, *, root: str = "") -> BootFacts:
    """Ask a board, through an open connection. Nothing is written there.

    Args:
        root: prefix of all paths on the board; for the tests.

    Raises:
        InfrastructureError: it has no Python, or did not answer.
    """
    start = ["sudo", "-n", "/usr/bin/python3"] if connection.host.sudo else ["python3"]
    # As docs/operators.md allows it to users who may not do more.
    read = "import sys; exec(compile(sys.stdin.read(), 'collect.py', 'exec'))"
    done = connection.run(
        [*start, "-I", "-S", "-c", read, root],
        stdin=_COLLECT.read_bytes(),
        timeout_s=_ANSWER_S,
        check=False,
    )
    try:
        return facts_of(msgspec.json.decode(done.stdout))
    except msgspec.DecodeError:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-300:]
        raise InfrastructureError(
            f"{connection.host.name} does not say how it boots (exit code {done.exit_code}): {last_line}",
            hint="it needs python3",
        ) from None
