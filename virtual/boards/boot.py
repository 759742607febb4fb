# SPDX-License-Identifier: MIT
"""Starts a virtual board from its disk, up to an answer over SSH."""

from __future__ import annotations

import datetime
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import InfrastructureError
from bsp.base.project import PROJECT
from bsp.base.room import require_room
from bsp.profile import Board
from bsp.qemu.machine import WATCHDOG, WRITE_LOG, DirectBoot, Machine, qemu_of
from bsp.remote import inventory, ssh
from bsp.remote.inventory import Host
from images.disk import Disk
from images.disk.layout import MIB

from . import launch
from .disks import key_on_console
from .instance import Instance, Record, start_ticks
from .way import Way

_POLL_S = 0.5
_PORT_ATTEMPTS = 5
_FREE_MIB = 512
_WRITE_LOG_BYTES = 1 << 36  # sparse: more than any test writes


@dataclass(frozen=True)
class Devices:
    """Devices of a virtual board, besides its disk.

    Attributes:
        ssh_port: port on 127.0.0.1 for SSH; None for a free one.
        trace: file to write a trace of the virtual NPU's jobs to.
        log_writes: QEMU logs each write to the disk.
        extra_disk: a second disk; the board writes to the file itself.
        watchdog: a hardware watchdog that resets the board.
    """

    ssh_port: int | None = None
    trace: Path | None = None
    log_writes: bool = False
    extra_disk: Path | None = None
    watchdog: bool = False


def start(
    instance: Instance,
    board: Board,
    disk: Disk,
    *,
    kernel: str,
    devices: Devices = Devices(),
    way: Way | None = None,
) -> Host:
    """Start QEMU for a board on a copy of its disk; register it as a host.

    Args:
        way: U-Boot and disk layout; default: the distribution's U-Boot, our layout.

    Raises:
        InfrastructureError: the disk is full, or QEMU did not start.
    """
    way = way or Way()
    _prepare(instance.folder, disk, log_writes=devices.log_writes)
    ssh_port = _launch(_machine(instance.folder, board, disk, devices, way), instance.folder)
    pid = instance.pid()
    ticks = start_ticks(pid) if pid else None
    if pid is None or ticks is None:
        raise InfrastructureError(
            f"QEMU ended right after it was started; its console:\n{instance.last_console_lines()}"
        )
    instance.save(
        Record(
            name=instance.name,
            board=board.name,
            kernel=kernel,
            pid=pid,
            started_ticks=ticks,
            ssh_port=ssh_port,
            disk=str(disk.image),
            started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            layout=way.layout_name,
            uboot=way.uboot_name,
        )
    )
    return _register(instance, board, disk, ssh_port)


def _machine(folder: Path, board: Board, disk: Disk, devices: Devices, way: Way) -> Machine:
    if qemu_of(board).bootloader:
        first: Path | DirectBoot = way.firmware()
    else:
        first = DirectBoot(
            disk.boot / "kernel", disk.boot / "initrd", disk.boot / "board.dtb", disk.cmdline
        )
    return Machine(
        board,
        first,
        disk=folder / "disk.qcow2",
        extra_disk=devices.extra_disk,
        ssh_port=devices.ssh_port,
        log_writes=devices.log_writes,
        devices=WATCHDOG if devices.watchdog else (),
        dtb=disk.boot / "board.dtb" if way.layout else None,
        record=devices.trace,
    )


def _prepare(folder: Path, disk: Disk, *, log_writes: bool) -> None:
    """Write a folder with the disk overlay that the board writes to, and the key that logs in."""
    folder.mkdir(parents=True)
    require_room(
        folder.parent,
        _FREE_MIB * MIB,
        "a virtual board",
        hint="make room, or set NPU_BSP_STATE to another folder",
    )
    launch.overlay(disk.image, folder / "disk.qcow2")
    if log_writes:
        (folder / WRITE_LOG).touch()
        os.truncate(folder / WRITE_LOG, _WRITE_LOG_BYTES)
    shutil.copyfile(disk.identity_file, folder / "id_ed25519")
    (folder / "id_ed25519").chmod(0o600)


def _launch(machine: Machine, folder: Path) -> int:
    """Start QEMU and return the port of SSH: the requested one, or a free one."""
    for attempt in range(_PORT_ATTEMPTS):
        ssh_port = machine.ssh_port or launch.free_port()
        try:
            launch.start(replace(machine, ssh_port=ssh_port), folder)
            break
        except InfrastructureError as error:
            # Another process took the free port before QEMU listened on it.
            lost = not machine.ssh_port and "host forwarding" in error.message
            if not lost or attempt == _PORT_ATTEMPTS - 1:
                raise
    return ssh_port


def _register(instance: Instance, board: Board, disk: Disk, ssh_port: int) -> Host:
    """Add the board to the inventory of virtual boards, with its host key if that is known."""
    host = Host(
        name=instance.name,
        address="127.0.0.1",
        port=ssh_port,
        user="root",
        identity_file=instance.folder / "id_ed25519",
        known_hosts=instance.folder / "known_hosts",
        power=_reset_command(instance),
        board=board.name,
        console_log=instance.console_log,
    )
    if disk.host_key:
        (instance.folder / "known_hosts").write_text(f"{host.key_name} {disk.host_key}\n")
    inventory.register(host)
    return host


def _reset_command(instance: Instance) -> tuple[str, ...]:
    """Return the command that presses the reset button, from any folder and environment."""
    return (
        "env", f"PYTHONPATH={PROJECT}", f"NPU_BSP_STATE={state_dir()}", sys.executable,
        "-m", "virtual.boards.reset", instance.name,
    )  # fmt: skip


def wait_until_up(instance: Instance, host: Host, *, deadline: float, timeout_s: float) -> None:
    """Wait until the board answers over SSH.

    Args:
        deadline: on the monotonic clock, in seconds; ``timeout_s`` is what it was made of.

    Raises:
        InfrastructureError: it does not answer in time, its boot loader gave up, or its QEMU ended.
    """
    while (left_s := deadline - time.monotonic()) > 0:
        if not instance.running():
            raise InfrastructureError(
                f"QEMU of {instance.name} ended while the board booted; its console:\n"
                f"{instance.last_console_lines()}"
            )
        if instance.at_bootloader_prompt():
            raise InfrastructureError(
                f"the boot loader of {instance.name} found nothing that boots and stopped at its prompt; "
                f"the end of its console:\n{instance.last_console_lines()}",
                hint=f"the whole console: {instance.kept_log}",
            )
        # QEMU accepts connections from the start; the greeting is the board's.
        if _greets(host, timeout_s - left_s) and _key_is_known(instance, host):
            with ssh.wait_until_up(host, timeout_s=max(deadline - time.monotonic(), 1)):
                return
        time.sleep(_POLL_S)
    raise InfrastructureError(
        f"{instance.name} was not up within {timeout_s:g} s; the end of its console:\n"
        f"{instance.last_console_lines()}",
        hint=f"--timeout SECONDS on a slow or busy machine; the whole console: {instance.kept_log}",
    )


def _key_is_known(instance: Instance, host: Host) -> bool:
    """Return whether the host key is known; the console shows a key that the board made itself."""
    if not host.known_hosts:
        raise RuntimeError("the host has no file of known keys")
    if not host.known_hosts.exists():
        key = key_on_console(instance.console_log)
        if key is None:
            return False
        write_atomically(host.known_hosts, f"{host.key_name} {key}\n".encode())
    return True


def _greets(host: Host, waited_s: float) -> bool:
    limit_s = ssh.answer_limit_s(waited_s)
    try:
        with socket.create_connection((host.address, host.port), timeout=limit_s) as sock:
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False
