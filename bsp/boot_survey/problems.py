# SPDX-License-Identifier: MIT
"""What about a board's set-up makes changing how it boots unsafe, or worth knowing first. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .facts import BootFacts
from .firmware import own_bootcmd
from .layout import Layout, unseen_before

_NOT_BELOW_BOOT = ("btrfs", "f2fs", "xfs", "zfs", "erofs", "squashfs", "overlay")


def problems(facts: BootFacts, layout: Layout) -> list[str]:
    """Return why nothing may be written to how this board boots; empty: nothing was found against it."""
    return [
        *_file_systems(facts, layout),
        *_disks(facts, layout),
        *_armbian(facts, layout),
        *_system(facts),
    ]


def _file_systems(facts: BootFacts, layout: Layout) -> Iterator[str]:
    mount, partition = layout.mount, layout.partition
    if mount is None:
        boot = facts.mount_of("/boot")
        if boot is not None and boot.kind in _NOT_BELOW_BOOT:
            yield f"/boot is on {boot.kind} ({boot.device})"
        return
    if mount.kind in _NOT_BELOW_BOOT:
        yield f"{layout.first} is on {mount.kind} ({mount.device}), whose blocks do not keep their places"
    if partition is not None and partition.on:
        what = partition.stack or "a device that is stacked"
        yield f"{layout.first} is on {what}: {mount.device} consists of {', '.join(partition.on)}"
    places = list(dict.fromkeys(each.place for each in facts.mounts if each.device == mount.device))
    if len(places) > 1 and "/" not in places:
        yield f"{mount.device} is mounted at {' and '.join(places)}: at one place only, please"
    if not mount.writable:
        yield f"{mount.place} ({mount.device}) is mounted read-only, or its file system had an error"
    if facts.space.get(mount.place, 1) <= 0:
        yield f"{mount.place} ({mount.device}) is full"


def _system(facts: BootFacts) -> Iterator[str]:
    """What a generation needs of the system that boots it: its services, and places that last."""
    if facts.systemd is False:
        yield "systemd does not run this system: npu-bsp's services, which watch a trial, would not start"
    for place, why in facts.unkept.items():
        yield f"{place} is {why}: what a deployment writes there would not be there after a reboot"


def _disks(facts: BootFacts, layout: Layout) -> Iterator[str]:
    for each in unseen_before(facts, layout):
        yield (
            f"U-Boot looks at {each.name} ({each.kind}) before {layout.first}, and {each.name} is not "
            "mounted: mount it, so that what lies there is seen"
        )
    root = facts.mount_of("/")
    root_partition = facts.partition(root.device) if root else None
    ours = layout.partition
    if (
        ours
        and root_partition
        and ours.disk
        and root_partition.disk
        and ours.disk != root_partition.disk
    ):
        yield (
            f"{layout.first} is on the disk {ours.disk} and the root file system on {root_partition.disk}: "
            "which of them U-Boot started from is not known"
        )
    copies = [
        each.name
        for each in facts.partitions
        if ours and ours.partuuid and each.partuuid == ours.partuuid and each.disk != ours.disk
    ]
    if ours and copies:
        yield (
            f"{' and '.join(copies)} has the identifier of {ours.name}, as a copy of a disk has: which of "
            "them U-Boot started from is not known"
        )
        return
    marked = sorted({each.disk for each in facts.partitions if each.bootable})
    if len(marked) > 1 and not _is_said(facts, layout):
        yield (
            f"the disks {' and '.join(marked)} both have a partition that is marked as bootable: which one "
            "U-Boot started from is not known"
        )


def _is_said(facts: BootFacts, layout: Layout) -> bool:
    """Whether the boot script says that it was this partition, and no copy of it has the same identifier.

    ``ubootpart=`` is Armbian's word for it, ``partuuid=`` DietPi's.
    """
    ubootpart = re.search(r"(?:^|\s)(?:ubootpart|partuuid)=(\S+)", facts.cmdline)
    wanted = ubootpart[1].lower().strip('"') if ubootpart else ""
    if sum(each.partuuid.lower() == wanted for each in facts.partitions) > 1:
        return False
    return bool(ubootpart and layout.partition and layout.partition.partuuid.lower() == wanted)


def _armbian(facts: BootFacts, layout: Layout) -> Iterator[str]:
    if layout.name != "armbian":
        return
    folder = layout.first.rpartition("/")[0]
    file = env_value(facts.files.get(f"{folder}/armbianEnv.txt", ""), "fdtfile")
    if file and not any(path.endswith(f"/{file}") for path in facts.there):
        yield f"fdtfile={file} of {folder}/armbianEnv.txt is not below {folder}/dtb: it is elsewhere"


def env_value(text: str, name: str) -> str:
    """Return a value in a text of ``name=value`` lines, as U-Boot imports it: the last one counts."""
    values = re.findall(rf"(?m)^{re.escape(name)}=(.*?)\r?$", text)
    return values[-1] if values else ""


def script_settings(facts: BootFacts, layout: Layout) -> str:
    """Return the path of the text that a boot script like Armbian's imports; "" if there is not one.

    armbianEnv.txt, orangepiEnv.txt, dietpiEnv.txt...
    """
    folder = layout.first.rpartition("/")[0]
    if layout.name == "armbian":
        return f"{folder}/armbianEnv.txt"
    beside = [path for path in facts.files if path.rpartition("/")[0] == folder]
    texts = [path for path in beside if re.search(r"/(?!uEnv)\w+Env\.txt$", path)]
    return texts[0] if layout.name.startswith("script") and len(texts) == 1 else ""


def booted_entry(text: str) -> str:
    """Return the lines of an extlinux.conf that count: of its default label, else of its first one."""
    entries = _entries(text)
    default = default_label(text)
    counts = next((lines for label, lines in entries if label == default), "")
    return counts or (entries[0][1] if entries else text)


def default_label(text: str) -> str:
    """Return the label that an extlinux.conf boots; "" if it names none, and the first one counts.

    The last one that is named counts, in whichever of three ways (U-Boot boot/pxe_utils.c).
    """
    label = default = ""
    for line in text.splitlines():
        if named := re.fullmatch(r"(?i)\s*label\s+(\S.*?)\s*", line):
            label = named[1]
        elif named := re.fullmatch(r"(?i)\s*(?:default|ontimeout)\s+(\S.*?)\s*", line):
            default = named[1]
        elif re.fullmatch(r"(?i)\s*menu\s+default\s*", line):
            default = label
    return default


def _entries(text: str) -> list[tuple[str, str]]:
    """The labels of an extlinux.conf, whole lines, and what follows each."""
    parts = re.split(r"(?im)^[ \t]*label[ \t]+(\S.*)$", text)
    return [(label.strip(), lines) for label, lines in zip(parts[1::2], parts[2::2], strict=True)]


def notes(facts: BootFacts, layout: Layout) -> list[str]:
    """Return what is worth knowing, and is no reason to stop."""
    return [*_extlinux(facts, layout), *_bootcmd(facts), *_watchdogs(facts), *_unmounted(facts)]


def _extlinux(facts: BootFacts, layout: Layout) -> Iterator[str]:
    text = facts.files.get(layout.first, "") if layout.name.startswith("extlinux") else ""
    labels = [label for label, _ in _entries(text)]
    default = default_label(text)
    if len(labels) > 1:
        yield f"{layout.first} has {len(labels)} labels; it boots {default or labels[0]}"
    if default and labels and default not in labels:
        yield f"{layout.first}: its default {default} is none of its labels"
    if re.search(r"(?im)^\s*include\s", text):
        yield f"{layout.first} includes other files, which are not looked into"
    if "\r\n" in text:
        yield f"{layout.first} has Windows line ends"


def _bootcmd(facts: BootFacts) -> Iterator[str]:
    if bootcmd := own_bootcmd(facts):
        yield f"U-Boot boots by a command of its maker's or of yours: {bootcmd[:120]}"


def _watchdogs(facts: BootFacts) -> Iterator[str]:
    for each in facts.watchdogs:
        if each.state == "active":
            yield f"the watchdog {each.identity or each.name} runs already ({each.timeout} s)"


def _unmounted(facts: BootFacts) -> Iterator[str]:
    mounted = {each.device for each in facts.mounts}
    for each in facts.partitions:
        if each.kind == "vfat" and each.name not in mounted:
            yield f"{each.name} is FAT and is not mounted: what lies there was not looked at"
