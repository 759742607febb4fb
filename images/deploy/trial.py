# SPDX-License-Identifier: MIT
"""The trial boot, seen from the host: wait, confirm, or see the old generation come back.

There are four ways out of a trial. It comes up and is as sent: confirmed. It comes up and is not, or it
falls (panic, watchdog) and resets: the old generation runs again, rolled back. It hangs: the host's power
command resets it, rolled back. Nothing answers in the end: unknown.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from bsp.base.errors import BspError, UserError
from bsp.base.process import run
from bsp.base.progress import say, step
from bsp.boot_survey.told import explained, lacks_in, untaken_in
from bsp.remote.inventory import Host
from bsp.remote.ssh import (
    AuthenticationError,
    Connection,
    ConnectionLostError,
    UnreachableError,
    answers,
    connect,
)

from .checks import running_tree
from .plan import Facts, Verified
from .session import Spare, Target
from .transfer.agent import decompress_fdt

_ATTEMPT_S = 30.0  # a key exchange takes seconds on a board that is just coming up
_POWER_COMMAND_S = 60.0
_CONSOLE_LINES = 15


@dataclass(frozen=True)
class Boot:
    """One boot of the board, as a new session found it.

    Attributes:
        uboot_lacks: what the boot script missed in U-Boot.
        untaken: why it took no trial, in words; empty: it does not say.
    """

    boot_id: str
    generation: str | None
    uboot_lacks: tuple[str, ...] = ()
    untaken: str = ""


def wait_for_boot(
    host: Host, *, other_than: str, timeout_s: float, root: str, spare: Spare | None = None
) -> Boot | None:
    """Wait for a boot that is not ``other_than`` (a boot id); None if there is none in time.

    Args:
        spare: takes the connection that it was seen over; None: that is closed.

    Raises:
        UserError: something answers, and it is not the board: its host key is another.
    """
    # AuthenticationError: systemd keeps ordinary users out until the boot is done.
    not_yet = (AuthenticationError,)
    with contextlib.suppress(UnreachableError):
        for connection in answers(host, timeout_s=timeout_s, not_yet=not_yet):
            with contextlib.ExitStack() as stack:
                stack.enter_context(connection)
                boot = _boot_over(connection, root, timeout_s=_ATTEMPT_S)
                if boot is not None and boot.boot_id != other_than:
                    if spare is not None:
                        spare.put(connection)
                        stack.pop_all()
                    return boot
    return None


def next_boot(target: Target, *, other_than: str, timeout_s: float | None = None) -> Boot | None:
    """Wait for a boot as ``wait_for_boot``; the next session goes on over the connection that saw it.

    Args:
        timeout_s: None: what the target allows a trial.
    """
    return wait_for_boot(
        target.host,
        other_than=other_than,
        timeout_s=target.timeout_s if timeout_s is None else timeout_s,
        root=target.root,
        spare=target.spare,
    )


def probe(host: Host, *, timeout_s: float, root: str) -> Boot | None:
    """Ask which boot and generation runs; None if the board does not answer.

    Raises:
        UserError: something answers, and it is not the board: its host key is another.
    """
    try:
        with connect(host, timeout_s=timeout_s) as connection:
            return _boot_over(connection, root, timeout_s=timeout_s)
    except (UnreachableError, AuthenticationError):
        return None


def _boot_over(connection: Connection, root: str, *, timeout_s: float) -> Boot | None:
    """Ask over an open connection; None if that breaks."""
    files = [f"{root}/proc/sys/kernel/random/boot_id", f"{root}/proc/cmdline"]
    try:
        output = connection.run(["cat", *files], timeout_s=timeout_s).text
    except ConnectionLostError:
        return None
    boot_id, _, cmdline = output.partition("\n")
    return Boot(boot_id.strip(), generation_in(cmdline), lacks_in(cmdline), untaken_in(cmdline))


def generation_in(cmdline: str) -> str | None:
    """The generation that a kernel command line names."""
    options = dict(word.partition("=")[::2] for word in cmdline.split())
    return options.get("npu_bsp.generation")


def why_not_taken(boot: Boot, *, armed: bool) -> str:
    """Say why U-Boot did not boot a trial; empty: nothing says that it did not.

    Args:
        boot: what it booted in place of the trial.
        armed: the trial is still as it was armed.
    """
    if boot.untaken or (boot.uboot_lacks and armed):
        why = filter(None, [explained(boot.uboot_lacks), boot.untaken])
        return f"it was not tried: {'; '.join(why)}"
    if not armed:
        return ""
    return (
        "it was not tried, and its mark, trial.env, is as it was armed: U-Boot does not run npu-bsp's boot "
        "script, or lacks a command that this needs, and what boots the board does not hand on which; "
        "U-Boot's console says so"
    )


def reset_by_power(host: Host) -> bool:
    """Run the host's power command; False if there is none, or it fails."""
    if not host.power:
        return False
    with step(f"Resetting {host.name} with its power command"):
        try:
            run(host.power, timeout_s=_POWER_COMMAND_S)
        except BspError as error:
            say(error.message)
            return False
    return True


def problems(facts: Facts, verified: Verified, *, release: str, generation: str) -> list[str]:
    """Compare what runs with what was sent; return the differences."""
    problems_found: list[str] = []
    if facts.running != generation:
        problems_found.append(f"generation {facts.running} runs, expected {generation}")
    if verified.release != release:
        problems_found.append(f"kernel {verified.release} runs, expected {release}")
    if verified.current != generation:
        problems_found.append(
            f"/run/npu-bsp/current is generation {verified.current}, expected {generation}: "
            "npu-bsp-activate.service did not run"
        )
    if verified.wrong:
        shown = ", ".join(verified.wrong[:5])
        problems_found.append(f"{verified.wrong_count} files are not as the manifest says: {shown}")
    problems_found += tree_problems(verified.dtb, verified.fdt)
    return problems_found


def tree_problems(sent: str | None, running: str | None) -> list[str]:
    """Return how the running device tree differs from the one sent; both as the agent packs them."""
    return differences_from(decompress_fdt(sent), running)


def differences_from(expected: bytes | None, running: str | None) -> list[str]:
    """Return how the running device tree, as the agent packs it, differs from the expected one."""
    running_tree_blob = decompress_fdt(running)
    if expected is None or running_tree_blob is None:
        what = "the DTB on the boot partition" if expected is None else "/sys/firmware/fdt"
        return [f"{what} cannot be read: the running device tree cannot be compared"]
    try:
        differences = running_tree.compare(expected, running_tree_blob)
    except UserError as error:
        return [f"device tree: {error.message}"]
    shown = [f"device tree: {difference}" for difference in differences[:5]]
    if len(differences) > len(shown):
        shown.append(f"device tree: {len(differences) - len(shown)} more differences")
    return shown


def console_tail(host: Host, *, since_bytes: int) -> str:
    """The last lines that the board's console printed since a deployment began; empty if unknown."""
    if host.console_log is None or not host.console_log.exists():
        return ""
    with host.console_log.open("rb") as file:
        file.seek(since_bytes)
        text = file.read().decode(errors="replace")
    lines = ["".join(ch for ch in line if ch.isprintable()) for line in text.splitlines()]
    # What the trial said last stands before the boot loader's next start.
    starts = [number for number, line in enumerate(lines) if line.startswith("U-Boot ")]
    end = starts[1] if len(starts) > 1 else len(lines)
    return "\n".join(line for line in lines[max(end - _CONSOLE_LINES, 0) : end] if line.strip())


def console_size(host: Host) -> int:
    """How much the console log holds now."""
    return host.console_log.stat().st_size if host.console_log and host.console_log.exists() else 0
