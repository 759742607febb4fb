# SPDX-License-Identifier: MIT
"""How a board boots today, and how a deployment would be tried there: from facts alone. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ..base.output import table
from ..uboot import Trial, UBoot
from .facts import BootFacts
from .keeping import Keeper, keeper_of, keeps_overlay
from .layout import Layout, layout_of
from .loader_entries import devicetree_of, entries, overlays_of, running_entry
from .owners import Owner, owner_of
from .problems import booted_entry, env_value, notes, problems, script_settings
from .scripts import runs_scripts
from .ways import Way, ways


@dataclass(frozen=True)
class Survey:
    """What was found, and what follows from it.

    Attributes:
        distribution: as it calls itself.
        kernel, initrd: the files that run, where they were looked for; else what is known of them.
        dtb: what names the device tree, and its file.
        overlays: device-tree overlays that the boot files name.
        owner: an A/B system that decides what boots; None: there is none that is known.
        way: the way of trial that would be taken; empty: none.
        why: of that way, or why there is none.
        ways: all of them, each with its reason.
        problems: why nothing may be changed there.
        keeper: what of the distribution's can be told to keep a device tree.
    """

    distribution: str
    layout: Layout
    uboot: str
    kernel: str
    initrd: str
    dtb: str
    overlays: tuple[str, ...]
    cmdline: str
    environment: str
    owner: Owner | None
    way: str
    why: str
    ways: tuple[Way, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    room: dict[str, int]
    partitions: tuple[str, ...]
    watchdogs: tuple[str, ...]
    kexec: str
    need_bytes: int = 0
    runs_scripts: str = ""
    keeper: Keeper = ""
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def keeps_overlay(self) -> bool:
        """Whether what keeps a device tree there keeps an overlay of what was changed, not a whole one."""
        return keeps_overlay(self.keeper, self.overlays)

    def document(self) -> dict[str, Any]:
        """The survey as JSON."""
        place = self.layout
        return {
            "distribution": self.distribution,
            "layout": place.name,
            "layout_why": place.why,
            "first_read": place.first,
            "boot_partition": place.mount.device if place.mount else None,
            "boot_file_system": place.mount.kind if place.mount else None,
            "partitions": list(self.partitions),
            "uboot": self.uboot,
            "kernel": self.kernel,
            "initrd": self.initrd,
            "dtb": self.dtb,
            "overlays": list(self.overlays),
            "cmdline": self.cmdline,
            "environment": self.environment,
            "variables": self.variables,
            "ab_system": self.owner._asdict() if self.owner else None,
            "watchdogs": list(self.watchdogs),
            "kexec": self.kexec,
            "runs_scripts": self.runs_scripts,
            "keeper": self.keeper,
            "room_bytes": self.room,
            "need_bytes": self.need_bytes,
            "way": self.way,
            "why": self.why,
            "ways": [each._asdict() for each in self.ways],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def _kept_by(self) -> str:
        """What ``deploy --try --persist`` would have keep a tree."""
        if not self.keeper:
            return "nothing that is known keeps a device tree there"
        kind = "an overlay" if self.keeps_overlay else "a whole tree"
        return f"{self.keeper} can keep {kind}: --try --persist"

    def text(self) -> str:
        """The survey as people read it."""
        room = ", ".join(
            f"{size / 1e6:.0f} MB at {place}" for place, size in sorted(self.room.items())
        )
        rows = [
            ("system", self.distribution),
            ("boots by", f"{self.layout.name}: {self.layout.why}"),
            *(
                ("" if number else "partitions", each)
                for number, each in enumerate(self.partitions)
            ),
            ("U-Boot", self.uboot),
            ("", f"runs boot scripts: {self.runs_scripts or 'not known'}"),
            ("kernel", self.kernel),
            ("RAM disk", self.initrd),
            ("device tree", self.dtb),
            ("overlays", ", ".join(self.overlays) or "none"),
            ("kept by", self._kept_by()),
            ("command line", self.cmdline),
            ("environment", self.environment),
            ("A/B system", f"{self.owner.system} ({self.owner.mark})" if self.owner else "none"),
            ("room", room or "not known"),
            ("watchdog", ", ".join(self.watchdogs) or "none"),
            ("kexec", self.kexec),
            ("way of trial", f"{self.way or 'none'}: {self.why}"),
            *(("", f"{each.name}: {each.why}") for each in self.ways if each.name != self.way),
            *(("problem", each) for each in self.problems),
            *(("note", each) for each in self.notes),
        ]
        return table(("how it boots", ""), rows)


def survey_of(
    facts: BootFacts,
    uboot: UBoot | None,
    *,
    kernel: str = "",
    initrd: str = "",
    need_bytes: int = 0,
    trial: Trial | None = None,
) -> Survey:
    """Return the survey of a board.

    Args:
        uboot: what upstream's configuration for it can do; None: there is none.
        kernel, initrd: the files that run, where somebody looked for them.
        need_bytes: what a generation of what runs takes on the boot partition, unpacked.
        trial: what is known of how its U-Boot tries deployments; None: nothing.
    """
    layout = layout_of(facts)
    owner = owner_of(facts)
    against = tuple(problems(facts, layout))
    trial = trial or Trial("asked", "nothing is known of it")
    assured = uboot is None and trial.way == "fat"
    candidates = tuple(ways(facts, layout, uboot, need_bytes, assured=assured))
    chosen, why = _choose(candidates, owner, against)
    initrd_bytes = facts.chosen.initrd_bytes
    ramdisk = (
        f"handed over by the bootloader, {initrd_bytes / 1e6:.1f} MB"
        if initrd_bytes
        else "the bootloader passed none"
    )
    return Survey(
        distribution=_distribution(facts),
        layout=layout,
        uboot=_uboot(facts, uboot),
        kernel=kernel or f"Linux {facts.release}",
        initrd=initrd or ramdisk,
        dtb=_dtb(facts, layout),
        overlays=tuple(_overlays(facts, layout)),
        cmdline=facts.cmdline,
        environment=_environment(facts, uboot),
        owner=owner,
        way=chosen,
        why=why,
        ways=candidates,
        problems=against,
        notes=tuple(notes(facts, layout)),
        room=dict(facts.space),
        partitions=tuple(_partitions(facts)),
        watchdogs=tuple(
            f"{each.identity or each.name} ({each.state or 'unknown'})" for each in facts.watchdogs
        ),
        kexec=next(each.why for each in candidates if each.name == "kexec"),
        need_bytes=need_bytes,
        runs_scripts=runs_scripts(facts, layout, trial),
        # What both copies of a system read is not for us to change.
        keeper="" if owner else keeper_of(facts, layout),
        variables=_interesting(facts.variables or {}),
    )


def _choose(
    candidates: tuple[Way, ...], owner: Owner | None, against: tuple[str, ...]
) -> tuple[str, str]:
    if owner is not None:
        return "", f"{owner.system} decides what boots there ({owner.mark}): {owner.instead}"
    if against:
        kexec = next((each for each in candidates if each.name == "kexec" and each.works), None)
        if kexec:
            return "kexec", f"{kexec.why}; the disk is to be left alone: {against[0]}"
        return "", against[0]
    works = next((each for each in candidates if each.works), None)
    if works:
        return works.name, works.why
    return "", "; ".join(f"{each.name}: {each.why}" for each in candidates)


def _distribution(facts: BootFacts) -> str:
    files = ("/etc/os-release", "/usr/lib/os-release")
    name = next((text for file in files if (text := facts.setting(file, "PRETTY_NAME"))), "")
    armbian = facts.setting("/etc/armbian-release", "VERSION")
    if armbian and "armbian" not in name.lower():
        return f"Armbian {armbian} ({name})" if name else f"Armbian {armbian}"
    return name or "unknown"


def _uboot(facts: BootFacts, uboot: UBoot | None) -> str:
    if facts.chosen.barebox:
        return f"barebox {facts.chosen.barebox}"
    versions = " or ".join(each.removeprefix("U-Boot ") for each in facts.bootloader_versions)
    on_disk = f"{versions}, by its text on the disk" if versions else "its version is not told"
    version = facts.chosen.uboot or on_disk
    upstream = (
        f"; upstream's {uboot.name} lacks {', '.join(uboot.lacks) or 'nothing'}" if uboot else ""
    )
    return f"{version}{upstream}"


def _dtb(facts: BootFacts, layout: Layout) -> str:
    folder = layout.first.rpartition("/")[0]
    if settings := script_settings(facts, layout):
        file = env_value(facts.files.get(settings, ""), "fdtfile")
        name = settings.rpartition("/")[2]
        return f"{file} (fdtfile of {name})" if file else "as U-Boot's variable fdtfile says"
    text = facts.files.get(layout.first, "")
    if layout.name.startswith("extlinux"):
        entry = booted_entry(text)
        named = re.findall(r"(?im)^\s*(?:fdt|devicetree)\s+(\S+)", entry)
        folders = re.findall(r"(?im)^\s*(?:fdtdir|devicetreedir)\s+(\S+)", entry)
        if named:
            return f"{named[0]} (fdt of extlinux.conf)"
        return f"by U-Boot's fdtfile, in {folders[0]} (fdtdir)" if folders else "U-Boot's own"
    if layout.name == "yocto":
        named = [name for name in facts.folders.get(folder, ()) if name.endswith(".dtb")]
        return f"one of {', '.join(named)}, by U-Boot's fdtfile" if named else "U-Boot's own"
    if named_by_entry := devicetree_of(_loader_entry(facts, layout)):
        return f"{named_by_entry} (devicetree of its entry)"
    if layout.name == "systemd-boot" and entries(facts) and not running_entry(facts):
        return "as the entry says that was booted; which one that is cannot be told"
    if layout.name in ("grub-efi", "systemd-boot"):
        configs = [
            text for path, text in facts.files.items() if path.endswith(("grub.cfg", "custom.cfg"))
        ]
        named = [
            name for text in configs for name in re.findall(r"(?im)^\s*devicetree\s+(\S+)", text)
        ]
        return (
            f"{named[0]} (devicetree of its menu)" if named else "U-Boot's own, handed over by EFI"
        )
    variable = (facts.variables or {}).get("fdtfile", "")
    return f"{variable} (fdtfile)" if variable else "as its boot script says"


def _overlays(facts: BootFacts, layout: Layout) -> list[str]:
    folder = layout.first.rpartition("/")[0]
    if settings := script_settings(facts, layout):
        text = facts.files.get(settings, "")
        return env_value(text, "overlays").split() + env_value(text, "user_overlays").split()
    if layout.name == "toradex":
        return env_value(facts.files.get(f"{folder}/overlays.txt", ""), "fdt_overlays").split()
    if layout.name.startswith("extlinux"):
        text = facts.files.get(layout.first, "")
        pattern = r"(?im)^\s*(?:fdtoverlays|devicetree-overlay)\s+(.*)$"
        lines = re.findall(pattern, booted_entry(text))
        return lines[0].replace(",", " ").split() if lines else []
    return overlays_of(_loader_entry(facts, layout))


def _loader_entry(facts: BootFacts, layout: Layout) -> str:
    """The running kernel's entry below loader/entries, where something reads those; else ""."""
    reads = layout.name in ("grub-efi", "systemd-boot") or bool(facts.chosen.barebox)
    return running_entry(facts) if reads else ""


def _environment(facts: BootFacts, uboot: UBoot | None) -> str:
    if facts.variables is not None:
        return f"{len(facts.variables)} variables, read where /etc/fw_env.config says"
    if uboot is None:
        return "not seen (no /etc/fw_env.config that fits)"
    return f"not seen; upstream's {uboot.name} keeps it in: {', '.join(uboot.environment) or 'nowhere'}"


def _interesting(variables: dict[str, str]) -> dict[str, str]:
    names = re.compile(
        r"boot(cmd|_targets|delay|limit|count|_order)|upgrade_available|fdt_?file|.*addr(_r)?|BOOT_.*|mender.*|"
        r"fdt_overlays|board(_name)?"
    )
    return {name: value for name, value in sorted(variables.items()) if names.fullmatch(name)}


def _partitions(facts: BootFacts) -> list[str]:
    lines = []
    for each in facts.partitions:
        places = [mount.place for mount in facts.mounts if mount.device == each.name]
        mark = ", marked as bootable" if each.bootable else ""
        stack = f", {each.stack or 'stacked'} on {' '.join(each.on)}" if each.on else ""
        where = f" at {', '.join(places)}" if places else ""
        kind = each.kind or "unknown content"
        lines.append(
            f"{each.name}: {kind}, {each.size_bytes / 1e6:.0f} MB ({each.table}){mark}{stack}{where}"
        )
    return lines
