# SPDX-License-Identifier: MIT
"""What building a board's root requires of this machine: arm64 programs and a user namespace.

All gaps are reported at once, each with the command for root: a user asks an administrator only once.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.packages import host_apt
from bsp.base.process import PACKAGE_OF_TOOL, ToolFailedError, find_tool, run

_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_SYSTEMD = Path("/run/systemd/system")
_INTERPRETER = "qemu-aarch64"
# man binfmt.d: the first folder wins.
_BINFMT_D = [Path(each) for each in ("/etc/binfmt.d", "/run/binfmt.d", "/usr/local/lib/binfmt.d",
                                     "/usr/lib/binfmt.d")]  # fmt: skip
_SUBIDS = (Path("/etc/subuid"), Path("/etc/subgid"))
_SUBIDS_NEEDED = 65536
_FIRST_SUBID = 100000
# (file, value that forbids user namespaces)
_NAMESPACE_SWITCHES = (
    (Path("/proc/sys/kernel/unprivileged_userns_clone"), "kernel.unprivileged_userns_clone=1"),
    (Path("/proc/sys/user/max_user_namespaces"), "user.max_user_namespaces=15000"),
)


@dataclass(frozen=True)
class Gap:
    """A missing requirement, and the command by which root meets it."""

    what: str
    command: str


def require_rights() -> None:
    """Check that this user can build a root; as root, enable arm64 programs.

    Raises:
        UserError: something is missing that only root can set up; the hint is one command for all of it.
        InfrastructureError: root cannot set it up either, as in a container.
    """
    missing = gaps()
    if not missing:
        return
    if os.geteuid() == 0:
        _set_up(missing)
        return
    listing = "; ".join(gap.what for gap in missing)
    commands = " && ".join(gap.command for gap in missing)
    raise UserError(
        f"cannot build a board's root file system before root has set this up: {listing}",
        hint=f"as root, once: {commands}",
    )


def gaps() -> list[Gap]:
    """Return the requirements that this machine does not meet for this user."""
    missing = []
    # mmdebstrap works out of its package; newuidmap has a right that only root gives it.
    needed = [] if host_apt.is_there() else ["mmdebstrap"]
    needed += [] if os.geteuid() == 0 else ["newuidmap"]
    packages = [PACKAGE_OF_TOOL[tool] for tool in needed if find_tool(tool) is None]
    foreign = os.uname().machine != "aarch64" and not _runs_foreign_programs()
    no_emulator = foreign and not _registrations() and find_tool("qemu-aarch64-static") is None
    if no_emulator:
        packages += ["qemu-user-static", "binfmt-support"]
    if packages:
        names = " ".join(packages)
        missing.append(Gap(f"not installed: {', '.join(packages)}",
                         f"apt-get install --yes --no-install-recommends {names}"))  # fmt: skip
    if os.geteuid() != 0:
        missing += _namespace_gaps()
    if foreign and not no_emulator:  # a new package registers itself
        missing.append(Gap("the kernel does not run arm64 programs yet", _registering()))
    return missing


def _namespace_gaps() -> list[Gap]:
    missing = []
    name = _user_name()
    flags = []
    for file, flag in zip(_SUBIDS, ("--add-subuids", "--add-subgids"), strict=True):
        start = _free_subid(file, name)
        if start is not None:
            flags.append(f"{flag} {start}-{start + _SUBIDS_NEEDED - 1}")
    if flags:
        missing.append(
            Gap(
                f"{name} has no {_SUBIDS_NEEDED} subordinate user and group ids",
                f"usermod {' '.join(flags)} {name}",
            )
        )
    for file, setting in _NAMESPACE_SWITCHES:
        try:
            forbidden = file.read_text().strip() == "0"
        except OSError:
            continue  # this kernel has no such switch
        if forbidden:
            missing.append(Gap("user namespaces are switched off", f"sysctl -w {setting}"))
    return missing


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _free_subid(file: Path, name: str) -> int | None:
    """Return where a range of ids for a user could begin; None if the user has one (man subuid)."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        lines = []
    after = _FIRST_SUBID
    for line in lines:
        owner, _, numbers = line.partition(":")
        first, _, count = numbers.partition(":")
        if not (first.isdigit() and count.isdigit()):
            continue
        if owner in (name, str(os.geteuid())) and int(count) >= _SUBIDS_NEEDED:
            return None
        after = max(after, int(first) + int(count))
    return after


# --- arm64 programs ----------------------------------------------------------------------------


def _runs_foreign_programs() -> bool:
    for entry in _BINFMT.glob("*aarch64*"):
        if "_be" in entry.name:
            continue
        try:
            if "enabled" in entry.read_text().splitlines():
                return True
        except OSError:
            continue
    return False


def _registrations() -> Path | None:
    """Return the file that describes qemu-user to systemd-binfmt: newer packages have only that."""
    for folder in _BINFMT_D:
        for name in (f"{_INTERPRETER}.conf", f"{_INTERPRETER}-static.conf"):
            if (folder / name).is_file():
                return folder / name
    return None


def _registering() -> str:
    """Return the shell command that makes the kernel run arm64 programs."""
    file = _registrations()
    if file and _SYSTEMD.exists():
        return "systemctl restart systemd-binfmt"
    mounted = "" if _register().exists() else f"mount -t binfmt_misc binfmt_misc {_BINFMT} && "
    if file:  # systemd-binfmt would do that, and systemd does not run here
        return f"{mounted}cat {file} > {_register()}"
    return f"{mounted}update-binfmts --enable {_INTERPRETER}"


def _register() -> Path:
    return _BINFMT / "register"


def _set_up(missing: list[Gap]) -> None:
    if any(gap.command.startswith("apt-get") for gap in missing):
        raise UserError(missing[0].what, hint=missing[0].command)
    command = missing[0].command
    try:
        run(["sh", "-c", command], timeout_s=60)
    except ToolFailedError as error:
        raise InfrastructureError(
            f"cannot make this machine run arm64 programs: {error.message}",
            hint=f"in a container: run it with --privileged, or run this on its host once: {command}",
        ) from error
    if not _runs_foreign_programs():
        raise InfrastructureError(
            f"the kernel does not run arm64 programs after: {command}",
            hint=f"look at: ls {_BINFMT}; cat {_BINFMT}/{_INTERPRETER}",
        )
