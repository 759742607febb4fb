# SPDX-License-Identifier: MIT
"""Checks of what surrounds the NPU: boot script, container, displays. Pure."""

from __future__ import annotations

from bsp.boot_survey.told import explained, lacks_in

from .check import Outcome, broken, ok, unknown
from .subject import Subject
from .system import BootFile

LIBRARY = "/usr/lib/teflon/libteflon.so"
"""Where programs look for the delegate; Frigate and others look nowhere else."""
# Groups whose members may open any GPU: desktops are in them, or are given the nodes by udev.
_SHARED_GROUPS = ("render", "video")
# Between systemd's 70-uaccess.rules, which marks what a desktop's user gets, and 73-seat-late.rules.
_RULES = "/etc/udev/rules.d/72-npu.rules"
# By the path in sysfs of etnaviv's device: a node's number depends on which driver came first.
_RENDER_RULE = (
    'SUBSYSTEM=="drm", DEVPATH=="/devices/platform/etnaviv/*", KERNEL=="renderD*", '
    'GROUP="npu", MODE="0660", TAG-="uaccess"'
)
_CARD_RULE = (
    'SUBSYSTEM=="drm", DEVPATH=="/devices/platform/etnaviv/*", KERNEL=="card*", '
    'ENV{ID_SEAT}="seat-npu"'
)


# How other containers get a device: lxc.container.conf(5), systemd-nspawn(1), Kubernetes' manual.
_RUN_LINES = {
    "lxc": "in the container's configuration: lxc.cgroup2.devices.allow = c 226:* rwm, and "
    "lxc.mount.entry = {node} {place} none bind,create=file "
    "(incus config device add NAME npu unix-char source={node})",
    "systemd-nspawn": "systemd-nspawn --bind={node} --property='DeviceAllow={node} rw' ...",
    "kubernetes": "in the pod: a hostPath volume for {node}, securityContext.supplementalGroups with the "
    "number of its group (stat -c %g {node}), and privileged: true or a device plugin",
    "flatpak": "flatpak run --device=dri ...",
}


def run_line(subject: Subject, *, image: str = "IMAGE") -> str:
    """Return how a container is started that sees the NPU; for the board, outside of the container."""
    node = subject.node.path if subject.node else ""
    if not node:
        node = "/dev/dri/renderD128" if subject.driver == "etnaviv" else "/dev/accel/accel0"
    kind = subject.facts.system.container
    other = _RUN_LINES.get(kind)
    if other and image == "IMAGE":
        return other.format(node=node, place=node.removeprefix("/"))
    tool = "podman" if kind == "podman" else "docker"
    return f'{tool} run --device {node} --group-add "$(stat -c %g {node})" {image}'


def container(subject: Subject) -> Outcome:
    """Whether a container was given what the NPU needs: the device, its group, the library's path."""
    facts = subject.facts
    kind = facts.system.container
    expected = f"the NPU's device, its group, and {LIBRARY}"
    if not kind:
        return ok("not in a container", "the board itself, or all that the NPU needs")
    node, missing = subject.node, []
    line = run_line(subject)
    if node is None:
        missing.append("no NPU is seen from here")
    elif node.mode == "absent":
        missing.append(f"{node.path} was not given to it (--device)")
    elif node.access != "rw":
        missing.append(f"its user may not open {node.path} (--group-add)")
    if LIBRARY not in facts.libraries and not (facts.payload and facts.libraries):
        others = (*facts.libraries, *facts.system.elsewhere)
        where = f", only {others[0]}" if others else ""
        missing.append(f"{LIBRARY} is not in it{where}")
        if node is not None and not others:
            line = line.replace(" IMAGE", " --volume /usr/lib/teflon:/usr/lib/teflon:ro IMAGE")
        elif node is not None and node.access == "rw":
            line = f"mkdir -p /usr/lib/teflon && ln -s {others[0]} {LIBRARY}"
    if node is None:
        return unknown(f"{kind}: {'; '.join(missing)}", expected)
    if missing:
        return broken(f"{kind}: {'; '.join(missing)}", expected, line)
    return ok(f"{kind}: device, group and library are there", expected)


def boot_script(subject: Subject) -> Outcome:
    """Whether a boot script is present that something newer has replaced.

    U-Boot looks at the bootable partitions in their order, and in each for extlinux.conf before boot.scr
    (boot/bootflow.c, include/config_distro_bootcmd.h).
    """
    facts = subject.facts
    files = facts.system.boot_files
    expected = "one file says what boots"
    if not files and facts.system.container:
        return unknown("a container does not see the board's boot files", expected)
    if not files:
        return ok("no boot script and no extlinux.conf is visible", expected)
    lacks = explained(lacks_in(facts.cmdline))
    told = f"; deployments cannot be tried there: {lacks}" if lacks else ""
    if subject.is_ours:
        return ok(f"npu-bsp's boot script has booted it{told}", expected)
    configurations = [file for file in files if not file.is_script]
    extlinux_booted = any(_appended(line, facts.cmdline) for line in facts.system.extlinux)
    for script in (file for file in files if file.is_script):
        where = f"{script.path}{f' (partition {script.partition})' if script.partition else ''}"
        if extlinux_booted and configurations:
            whose = "npu-bsp's" if script.ours else "another's"
            return broken(
                f"{configurations[0].path} has booted it, and {where} is {whose} boot script",
                expected,
                subject.there(f"mv {script.path} {script.path}.old")
                if not script.ours
                else subject.deploy,
            )
        newer = [file for file in files if _takes_the_place(file, script)]
        if newer:
            return broken(
                f"{where} is older than {newer[0].path}, and U-Boot looks there first",
                expected,
                subject.there(f"ls -l {script.path} {newer[0].path}"),
            )
    return ok(f"{files[0].path}{told}", expected)


def _takes_the_place(file: BootFile, script: BootFile) -> bool:
    """Whether a file is newer than a script that U-Boot meets before it."""
    return (
        file.path != script.path
        and file.changed_s > script.changed_s
        and file.disk == script.disk
        and 0 < script.partition < file.partition
    )


def _appended(line: str, cmdline: str) -> bool:
    """Whether the kernel was started with all words of an ``append`` line."""
    words = [word for word in line.split() if "${" not in word]
    return bool(words) and set(words) <= set(cmdline.split())


def displays(subject: Subject) -> Outcome:
    """Whether the NPU's device node has the usual owner, and whether a desktop may use it as its GPU.

    For a display without a GPU of its own, Mesa renders on the first render node of a platform device that
    it knows and can open (src/loader/loader.c, loader_open_render_node_platform_device). It knows etnaviv,
    and an NPU draws nothing.
    """
    facts, system, node = subject.facts, subject.facts.system, subject.node
    expected = "no desktop takes the NPU for a GPU"
    owners = "; ".join(
        f"{each.driver}: {each.path}{_by(system.stable(each.path), each.path)}"
        for each in facts.render_nodes
    )
    if node is None:
        return unknown(owners or "there is no device node", expected)
    if subject.driver != "etnaviv":
        return ok(owners, expected)  # /dev/accel: no desktop looks there
    if _draws(subject):
        return ok(f"{owners}: the same device has a GPU", expected)
    screens = [card for card in system.cards if card.has_display and card.driver != "etnaviv"]
    if not screens or not system.displays:
        first = min((each.path for each in facts.render_nodes if "/dri/" in each.path), default="")
        others = any(each.driver != "etnaviv" for each in facts.render_nodes)
        note = ": who takes the first node takes the NPU" if others and first == node.path else ""
        return ok(owners + note, expected)
    if node.group not in _SHARED_GROUPS and node.mode.isdigit() and node.mode[-1] == "0":
        return ok(f"{owners}, for the group {node.group} alone", expected)
    return broken(
        f"{owners}; {system.displays[0]} may draw {screens[0].path} ({screens[0].driver}) with the NPU",
        expected,
        subject.there(
            f"groupadd -f npu && printf '%s\\n' '{_RENDER_RULE}' '{_CARD_RULE}' >{_RULES} "
            "&& udevadm control --reload && udevadm trigger"
        ),
    )


def _draws(subject: Subject) -> bool:
    """Whether etnaviv has a GPU as well: i.MX 8M Plus has all cores behind one node."""
    cores = [
        core
        for device in (subject.facts.python or {}).get("devices") or []
        for core in device["cores"]
    ]
    bound = [device for device in subject.facts.devices if device.driver.startswith("etnaviv")]
    return any(not core["npu"] for core in cores) or len(bound) > 1


def _by(stable: str, path: str) -> str:
    return "" if stable == path else f" ({stable.partition('by-path/')[2]})"
