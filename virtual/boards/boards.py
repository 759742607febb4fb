# SPDX-License-Identifier: MIT
"""Virtual boards up and down: from a profile to a machine that answers over SSH, and back."""

from __future__ import annotations

import time
from pathlib import Path

from bsp.base.cache import cache_dir, lock
from bsp.base.errors import BspError, UserError
from bsp.base.process import require_tool
from bsp.base.progress import say, step
from bsp.base.trees import label
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel
from bsp.kernel.select import is_build, kernel_named
from bsp.profile import Board
from bsp.qemu.base_dtb import base_dtb
from bsp.qemu.machine import machine_arguments, qemu_of, start_command
from bsp.remote import inventory, ssh
from images.disk import Disk, build_disk
from images.disk.rootfs import require_possible
from virtual.layouts.disk import build_layout

from . import launch
from .boot import Devices, start, wait_until_up
from .disks import own_disk, prepare_extra
from .instance import Instance, Record, instances, start_ticks
from .results import Described, Down, Listed, Up, WouldUp
from .way import Way, way_named

UP_TIMEOUT_S = 300.0
DOWN_TIMEOUT_S = 60.0


def up(
    board_name: str,
    *,
    name: str | None = None,
    port: int | None = None,
    kernel: str | None = None,
    dtb: Path | None = None,
    record: Path | None = None,
    disk: Path | None = None,
    identity: Path | None = None,
    extra_disk: str | None = None,
    watchdog: bool = False,
    layout: str = "",
    uboot: str = "",
    timeout_s: float = UP_TIMEOUT_S,
) -> Up:
    """Start a virtual board and wait until it answers over SSH; if it runs already, report that.

    Args:
        name: its name (default: the board's); several may run under different names.
        port: port on 127.0.0.1 for SSH (default: a free one).
        kernel: series of the distribution's kernel (default: the profile's), or ``build:ID``.
        dtb: device tree, for boards without a bootloader (default: built by build-dts).
        record: file to write a trace of the virtual NPU's jobs to when the board is taken down.
        disk: an image to boot from; the board writes to a copy. Default: a disk that is built for it.
        identity: private key that logs in to ``disk`` (default: the one of its description).
        extra_disk: a second disk, ``FILE`` or ``FILE:SIZE``; the board writes to the file itself.
        watchdog: give the board a hardware watchdog that resets it.
        layout: name of another distribution's disk layout (virtual/layouts); default: ours.
        uboot: ``like:BOARD``, for a U-Boot with the abilities of that board's; default: the layout's.
        timeout_s: limit for starting and booting, without building the disk.

    Raises:
        UserError: there is no such board, QEMU has no such machine, or the port is taken.
        InfrastructureError: QEMU did not start, or the board is not up within ``timeout_s``.
    """
    board = load_board(board_name)
    way = way_named(board, layout, uboot)
    board = way.fitted(board)
    _refuse_contradictions(board, name or board.name, way, dtb, disk, kernel, watchdog=watchdog)
    if record is not None:
        record = _trace_file(record, board)
    own = own_disk(disk, identity, board) if disk else None
    extra = prepare_extra(extra_disk) if extra_disk else None
    instance = Instance(name or board.name)
    with lock(instance.lock):
        earlier = instance.record()
        if earlier and instance.running():
            other_devices = bool(own or extra or watchdog)
            other_way = bool(layout or uboot) and not way.is_of(earlier)
            _refuse_changes(
                instance, recorded=bool(record), other_devices=other_devices or other_way
            )
            return _already(instance, earlier, board, port)
        _clear(instance, was_up=earlier is not None)
        _refuse_taken(port)
        boot_disk, release = own or _built_disk(board, way, kernel, dtb)
        devices = Devices(ssh_port=port, trace=record, extra_disk=extra, watchdog=watchdog)
        return _boot(instance, board, boot_disk, release, devices, way, timeout_s=timeout_s)


def _clear(instance: Instance, *, was_up: bool) -> None:
    """Forget what an earlier start of a board left behind."""
    if was_up:
        say(f"{instance.name} was not taken down properly; starting it again")
    inventory.unregister(instance.name)
    instance.forget()


def _refuse_taken(port: int | None) -> None:
    if port is not None and not launch.port_is_free(port):
        raise UserError(f"port {port} on 127.0.0.1 is taken", hint="--port N, or leave --port out")


def _boot(
    instance: Instance,
    board: Board,
    disk: Disk,
    kernel: str,
    devices: Devices,
    way: Way,
    *,
    timeout_s: float,
) -> Up:
    """Start a virtual board and wait until it answers; remove it again where it does not."""
    started = time.monotonic()
    try:
        host = start(instance, board, disk, kernel=kernel, devices=devices, way=way)
        with step(f"Booting {instance.name}"):
            wait_until_up(instance, host, deadline=started + timeout_s, timeout_s=timeout_s)
    except BaseException:
        instance.keep_console_log()
        _discard(instance)
        raise
    seconds = time.monotonic() - started
    record = instance.record()
    if record is None:
        raise RuntimeError("the virtual board left no record")
    return Up(_describe(instance, record), already_up=False, seconds=seconds)


def _refuse_contradictions(
    board: Board,
    name: str,
    way: Way,
    dtb: Path | None,
    disk: Path | None,
    kernel: str | None,
    *,
    watchdog: bool,
) -> None:
    """Raise a UserError if arguments of ``up`` contradict each other."""
    qemu = qemu_of(board)
    if dtb and qemu.bootloader:
        raise UserError(
            f"{board.name} boots through its bootloader, which takes the DTB from the disk",
            hint=f"./inv deploy --host {name} puts another one there",
        )
    if watchdog and not qemu.machine.startswith("virt"):
        raise UserError(
            f"--watchdog is for machines with PCI, which {board.name} ({qemu.machine}) has not",
            hint="./inv virtual.up --watchdog",
        )
    if disk and kernel:
        raise UserError("--disk has its own kernel", hint="leave --kernel out")
    if disk and way.layout:
        raise UserError("--disk has its own layout", hint="leave --layout out")


def _refuse_changes(instance: Instance, *, recorded: bool, other_devices: bool) -> None:
    """Raise a UserError if a running board would have to be started with other devices."""
    if recorded:
        raise UserError(
            f"{instance.name} runs already, and is not recorded",
            hint=f"./inv virtual.down --name {instance.name}",
        )
    if other_devices:
        raise UserError(
            f"{instance.name} runs already, with the devices that it was started with",
            hint=f"./inv virtual.down --name {instance.name}, or --name OTHER",
        )


def _built_disk(board: Board, way: Way, kernel: str | None, dtb: Path | None) -> tuple[Disk, str]:
    """Return a disk that is built for the board, and the release of its kernel."""
    require_possible()  # checked before anything is fetched
    series = way.kernel(board, kernel or board.kernel)
    prebuilt = kernel_named(series)
    tree = dtb or _default_dtb(board, prebuilt, series)
    if way.layout:
        return build_layout(way.layout, board, prebuilt, tree), prebuilt.release
    return build_disk(board, prebuilt, tree), prebuilt.release


def plan_up(
    board_name: str, *, name: str | None = None, layout: str = "", uboot: str = ""
) -> WouldUp:
    """Return what ``up`` would do, and change nothing.

    Raises:
        UserError: there is no such board, or QEMU has no such machine.
    """
    board = load_board(board_name)
    way = way_named(board, layout, uboot)
    board = way.fitted(board)
    qemu = qemu_of(board)
    instance = Instance(name or board.name)
    actions = ["nothing: it runs already"]
    if not instance.running():
        first = (
            (way.uboot_name or "U-Boot")
            if qemu.bootloader
            else "kernel and device tree, handed over"
        )
        actions = [
            f"build its disk, if it is not cached: Debian {board.userspace.distribution}, Linux "
            f"{board.kernel}, as {way.layout_name}",
            f"start QEMU: {' '.join(machine_arguments(board))} ({first})",
            "wait until it answers over SSH on a port of 127.0.0.1",
        ]
    return WouldUp(instance.name, board.name, tuple(actions))


def down(name: str, *, timeout_s: float = DOWN_TIMEOUT_S, dry_run: bool = False) -> Down:
    """Shut a virtual board down over SSH, or end its QEMU if that takes too long, and remove it.

    Raises:
        UserError: there is no such virtual board.
    """
    instance = Instance(name)
    with lock(instance.lock):
        record = instance.record()
        if record is None:
            running = [each.name for each in instances()]
            raise UserError(
                f"there is no virtual board {name!r}",
                hint=f"running: {', '.join(running)}" if running else "none is running",
            )
        was_running, clean = instance.running(), False
        if dry_run:
            return Down(name, was_running, dry_run=True)
        if was_running:
            with step(f"Shutting {name} down"):
                began = time.monotonic()
                clean = _power_off(instance, timeout_s)
                if not clean:
                    waited_s = time.monotonic() - began
                    say(f"{name} is still running after {waited_s:.0f} s; ending QEMU")
        _discard(instance)
        return Down(name, was_running, clean)


def listed() -> Listed:
    """Return all virtual boards of this user."""
    return Listed(
        tuple(
            (_describe(instance, record), instance.running())
            for instance in instances()
            if (record := instance.record())
        )
    )


def ssh_command(name: str, remote: str = "") -> list[str]:
    """Return the ``ssh`` command line that logs in to a virtual board, with its pinned host key.

    Args:
        remote: command to run there; a shell if empty.

    Raises:
        UserError: it does not run.
    """
    if not Instance(name).running():
        raise _not_running(name)
    host = inventory.resolve(name)
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": str(host.known_hosts),
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    words = [require_tool("ssh"), "-F", "none", "-i", str(host.identity_file), "-p", str(host.port)]
    for key, value in options.items():
        words += ["-o", f'{key}="{value}"' if " " in value else f"{key}={value}"]
    return [*words, f"{host.user}@{host.address}", *([remote] if remote else [])]


def reset(name: str) -> None:
    """Press the virtual board's reset button.

    Raises:
        UserError: it does not run.
    """
    instance = Instance(name)
    if not instance.running():
        raise _not_running(name)
    instance.command("system_reset")


def _not_running(name: str) -> UserError:
    record = Instance(name).record()
    return UserError(
        f"the virtual board {name!r} does not run",
        hint=start_command(name, record.board if record else ""),
    )


def _trace_file(path: Path, board: Board) -> Path:
    if board.qemu is None or board.qemu.npu is None:
        raise UserError(
            f"{board.name} has no virtual NPU to record", hint="--board virtual-a311d has one"
        )
    path = path.absolute()
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to record into")
    return path


def _already(instance: Instance, record: Record, board: Board, port: int | None) -> Up:
    if record.board != board.name:
        raise UserError(
            f"{instance.name} runs already, as a {record.board}",
            hint=f"--name OTHER, or ./inv virtual.down --name {instance.name}",
        )
    if port not in (None, record.ssh_port):
        raise UserError(
            f"{instance.name} runs already, on port {record.ssh_port}",
            hint=f"--name OTHER, or ./inv virtual.down --name {instance.name}",
        )
    say(f"{instance.name} is up already, on port {record.ssh_port}")
    return Up(_describe(instance, record), already_up=True)


def _describe(instance: Instance, record: Record) -> Described:
    return Described(
        name=instance.name,
        board=record.board,
        kernel=record.kernel,
        address="127.0.0.1",
        port=record.ssh_port,
        pid=record.pid,
        layout=record.layout,
        uboot=record.uboot or None,
        console_log=str(instance.console_log),
    )


def _default_dtb(board: Board, kernel: PrebuiltKernel, series: str) -> Path:
    """Return the device tree of the board's factory generation."""
    if board.dts is None:
        return base_dtb(board)
    from bsp.dts.build import build_dts

    target = cache_dir() / "dtbs" / board.name / label(series)
    if is_build(series):
        base = next(kernel.dtbs.glob(f"*/{board.dts}.dtb"), None)
        return build_dts(board, kernel=kernel.series, base_dtb=base, target_dir=target).dtb
    return build_dts(board, kernel=series, base_dtb=None, target_dir=target).dtb


def _power_off(instance: Instance, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    try:
        host = inventory.resolve(instance.name)
        with ssh.connect(host, timeout_s=min(20.0, timeout_s)) as connection:
            connection.run(["systemctl", "poweroff", "--no-block"], timeout_s=20, check=False)
    except BspError as error:
        say(f"{instance.name} does not answer over SSH: {error.message.splitlines()[0]}")
        return False
    return instance.wait_until_gone(timeout_s=deadline - time.monotonic())


def _discard(instance: Instance) -> None:
    """End QEMU and remove everything that the board left on this machine."""
    inventory.unregister(instance.name)
    record = instance.record()
    if record is None:
        # QEMU may have started before its record was written.
        pid = instance.pid()
        ticks = start_ticks(pid) if pid else None
        if pid and ticks is not None and _is_ours(pid, instance.folder):
            instance.save(
                Record(name=instance.name, board="", kernel="", pid=pid, started_ticks=ticks,
                       ssh_port=0, disk="", started="")
            )  # fmt: skip
    instance.kill()
    instance.forget()


def _is_ours(pid: int, folder: Path) -> bool:
    """Return whether a process is a virtual board's QEMU: its arguments name the disk in the folder."""
    try:
        return str(folder / "disk.qcow2").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
