# SPDX-License-Identifier: MIT
"""Virtual boards up and down: from a profile to a machine that answers over SSH, and back."""

from __future__ import annotations

import datetime
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from bsp.base.cache import cache_dir, lock, state_dir
from bsp.base.errors import BspError, InfrastructureError, UserError
from bsp.base.output import table
from bsp.base.process import require_tool
from bsp.base.progress import say, step
from bsp.board import inventory, ssh
from bsp.board.inventory import Host
from bsp.kernel.prebuilt import prebuilt_kernel
from bsp.profile import Board, load_board
from images.disk import MIB, Disk, build_disk

from . import launch
from .base_dtb import base_dtb
from .emulator import u_boot
from .instance import Instance, Record, instances, start_ticks
from .machine import DirectBoot, Machine, machine_arguments, qemu_of

UP_TIMEOUT_S = 300.0
DOWN_TIMEOUT_S = 60.0

_POLL_S = 0.5
_GREETING_S = 5.0
_PORT_ATTEMPTS = 5
_FREE_MIB = 512


def up(
    board_name: str,
    *,
    name: str | None = None,
    port: int | None = None,
    kernel: str | None = None,
    dtb: Path | None = None,
    timeout_s: float = UP_TIMEOUT_S,
) -> dict[str, Any]:
    """Start a virtual board and wait until it answers over SSH; if it runs already, say so.

    Args:
        name: what to call it (default: the board's name); several may run under different names.
        port: port on 127.0.0.1 for SSH (default: a free one).
        kernel: series of the distribution's kernel (default: the profile's).
        dtb: device tree, for boards without a bootloader (default: built by build-dts).
        timeout_s: how long starting may take, without building the disk.

    Returns:
        ``name``, ``board``, ``address``, ``port``, ``already_up``, ``console_log``, ``seconds`` (from
        QEMU's start)...

    Raises:
        UserError: no such board, QEMU cannot be it, or the port is taken.
        InfrastructureError: QEMU did not start, or the board is not up within ``timeout_s``.
    """
    board = load_board(board_name)
    qemu = qemu_of(board)
    if dtb and qemu.bootloader:
        raise UserError(
            f"{board.name} boots through its bootloader, which takes the DTB from the disk",
            hint=f"./inv deploy --host {name or board.name} puts another one there",
        )
    instance = Instance(name or board.name)
    with lock(instance.lock):
        record = instance.record()
        if record and instance.running():
            return _already(instance, record, board, port)
        if record:
            say(f"{instance.name} was not taken down properly; starting it anew")
        inventory.unregister(instance.name)
        instance.forget()
        if port is not None and not launch.port_is_free(port):
            raise UserError(
                f"port {port} on 127.0.0.1 is taken", hint="--port N, or leave --port out"
            )
        series = kernel or board.kernel
        prebuilt = prebuilt_kernel(series)
        disk = build_disk(board, prebuilt, dtb or _default_dtb(board, series))
        started = time.monotonic()
        try:
            host = _start(instance, board, disk, port=port, kernel=prebuilt.release)
            with step(f"Booting {instance.name}"):
                _wait_until_up(instance, host, deadline=started + timeout_s, timeout_s=timeout_s)
        except BaseException:
            instance.keep_console_log()
            _discard(instance)
            raise
        seconds = time.monotonic() - started
        running = instance.record()
        assert running is not None
        return {**_describe(instance, running), "already_up": False, "seconds": round(seconds, 1)}


def plan_up(board_name: str, *, name: str | None = None) -> dict[str, Any]:
    """Say what ``up`` would do; change nothing.

    Raises:
        UserError: no such board, or QEMU cannot be it.
    """
    board = load_board(board_name)
    qemu = qemu_of(board)
    instance = Instance(name or board.name)
    would = ["nothing: it runs already"]
    if not instance.running():
        first = "U-Boot" if qemu.bootloader else "kernel and device tree, handed over"
        would = [
            f"build its disk, if it is not cached: Debian {board.userspace.distribution}, Linux "
            f"{board.kernel}",
            f"start QEMU: {' '.join(machine_arguments(board))} ({first})",
            "wait until it answers over SSH on a port of 127.0.0.1",
        ]
    return {"name": instance.name, "board": board.name, "dry_run": True, "would": would}


def down(name: str, *, timeout_s: float = DOWN_TIMEOUT_S, dry_run: bool = False) -> dict[str, Any]:
    """Shut a virtual board down and remove it: over SSH, and if that takes too long, through QEMU.

    Returns:
        ``name``, ``was_running``, ``clean`` (it switched itself off), ``dry_run``.

    Raises:
        UserError: there is no such virtual board.
    """
    instance = Instance(name)
    with lock(instance.lock):
        record = instance.record()
        if record is None:
            known = [each.name for each in instances()]
            raise UserError(
                f"there is no virtual board {name!r}",
                hint=f"running: {', '.join(known)}" if known else "none is running",
            )
        was_running, clean = instance.running(), False
        if dry_run:
            return {"name": name, "was_running": was_running, "clean": False, "dry_run": True}
        if was_running:
            with step(f"Shutting {name} down"):
                clean = _power_off(instance, timeout_s)
                if not clean:
                    say(f"{name} did not switch itself off within {timeout_s:g} s; ending QEMU")
        _discard(instance)
        return {"name": name, "was_running": was_running, "clean": clean, "dry_run": False}


def listed() -> list[dict[str, Any]]:
    """All virtual boards of this user."""
    found = []
    for instance in instances():
        record = instance.record()
        if record:
            found.append({**_describe(instance, record), "running": instance.running()})
    return found


def text_of(found: dict[str, Any]) -> str:
    """Say what ``up`` did, and what to type next."""
    name = found["name"]
    state = "is up already" if found["already_up"] else f"is up after {found['seconds']:.1f} s"
    option = "" if name == "virtual" else f" --name {name}"
    return (
        f"{name} {state}: {found['board']}, Linux {found['kernel']}, "
        f"SSH on {found['address']}:{found['port']}\n"
        f"log in:    ./inv virtual.ssh{option}\n"
        f"console:   {found['console_log']}\n"
        f"take down: ./inv virtual.down{option}"
    )


def text_of_down(found: dict[str, Any]) -> str:
    """Say what ``down`` did."""
    if found["dry_run"]:
        return f"would shut {found['name']} down and remove it"
    if not found["was_running"]:
        return f"{found['name']} did not run any more; removed what it had left"
    return f"{found['name']} is down" + ("" if found["clean"] else " (QEMU was ended)")


def text_of_list(found: list[dict[str, Any]]) -> str:
    """Return the table of virtual boards."""
    rows = [
        (
            each["name"],
            each["board"],
            each["kernel"],
            str(each["port"]),
            "up" if each["running"] else "gone",
        )
        for each in found
    ]
    return table(("name", "board", "kernel", "port", "state"), rows) if rows else "none is up"


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
    return UserError(
        f"the virtual board {name!r} does not run", hint=f"./inv virtual.up --name {name}"
    )


def _already(instance: Instance, record: Record, board: Board, port: int | None) -> dict[str, Any]:
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
    return {**_describe(instance, record), "already_up": True, "seconds": 0.0}


def _describe(instance: Instance, record: Record) -> dict[str, Any]:
    return {
        "name": instance.name,
        "board": record.board,
        "kernel": record.kernel,
        "address": "127.0.0.1",
        "port": record.ssh_port,
        "pid": record.pid,
        "console_log": str(instance.console_log),
    }


def _default_dtb(board: Board, series: str) -> Path:
    """The device tree that the board is born with."""
    if board.dts is None:
        return base_dtb(board)
    from bsp.dts.build import build_dts

    target = cache_dir() / "dtbs" / board.name / series
    return build_dts(board, kernel=series, base_dtb=None, target_dir=target).dtb


def _start(instance: Instance, board: Board, disk: Disk, *, port: int | None, kernel: str) -> Host:
    folder = instance.folder
    folder.mkdir(parents=True)
    free_mib = shutil.disk_usage(folder).free // MIB
    if free_mib < _FREE_MIB:
        raise InfrastructureError(
            f"not enough room for a virtual board: {free_mib} MiB free in {folder.parent}, "
            f"{_FREE_MIB} MiB needed",
            hint="make room, or set NPU_BSP_STATE to another folder",
        )
    launch.overlay(disk.image, folder / "disk.qcow2")
    shutil.copyfile(disk.identity_file, folder / "id_ed25519")
    (folder / "id_ed25519").chmod(0o600)
    if qemu_of(board).bootloader:
        start: Path | DirectBoot = u_boot()
    else:
        start = DirectBoot(
            disk.boot / "kernel", disk.boot / "initrd", disk.boot / "board.dtb", disk.cmdline
        )
    for attempt in range(_PORT_ATTEMPTS):
        ssh_port = port or launch.free_port()
        machine = Machine(board, start, disk=folder / "disk.qcow2", ssh_port=ssh_port)
        try:
            launch.start(machine, folder)
            break
        except InfrastructureError as error:
            # Somebody else took the free port between our looking and QEMU's listening.
            lost = port is None and "host forwarding" in error.message
            if not lost or attempt == _PORT_ATTEMPTS - 1:
                raise
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
        )
    )
    host = Host(
        name=instance.name,
        address="127.0.0.1",
        port=ssh_port,
        user="root",
        identity_file=folder / "id_ed25519",
        known_hosts=folder / "known_hosts",
        power=_reset_command(instance),
        board=board.name,
        console_log=instance.console_log,
    )
    (folder / "known_hosts").write_text(f"{host.key_name} {disk.host_key}\n")
    inventory.register(host)
    return host


def _reset_command(instance: Instance) -> tuple[str, ...]:
    """The reset button as a command that works in any folder and environment."""
    project = Path(__file__).parents[2]
    return (
        "env", f"PYTHONPATH={project}", f"NPU_BSP_STATE={state_dir()}", sys.executable,
        "-m", "images.virtual.reset", instance.name,
    )  # fmt: skip


def _wait_until_up(instance: Instance, host: Host, *, deadline: float, timeout_s: float) -> None:
    while time.monotonic() < deadline:
        if not instance.running():
            raise InfrastructureError(
                f"QEMU of {instance.name} ended while the board booted; its console:\n"
                f"{instance.last_console_lines()}"
            )
        # QEMU accepts connections from the start; the greeting is the board's.
        if _greets(host.address, host.port):
            with ssh.wait_until_up(host, timeout_s=max(deadline - time.monotonic(), 1)):
                return
        time.sleep(_POLL_S)
    raise InfrastructureError(
        f"{instance.name} was not up within {timeout_s:g} s; the end of its console:\n"
        f"{instance.last_console_lines()}",
        hint=f"--timeout SECONDS on a slow or busy machine; the whole console: {instance.kept_log}",
    )


def _greets(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=_GREETING_S) as sock:
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


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
    """End QEMU and remove all that the board left here."""
    inventory.unregister(instance.name)
    record = instance.record()
    if record is None:
        # QEMU may have started without having been written down.
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
    """Whether a process was started in the folder of a virtual board (QEMU names its disk there)."""
    try:
        return str(folder / "disk.qcow2").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
