# SPDX-License-Identifier: MIT
"""Whether a board that boots in its own way can be adopted with a way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bsp.base.errors import UserError
from bsp.boot_survey.survey import Survey
from bsp.boot_survey.told import lacks_in
from bsp.profile import Board
from images.bundle import manifest as bundles

from .. import plan as planning
from ..boot.command_line import refuse_slot_words
from ..plan import Facts, RunningSystem


@dataclass(frozen=True)
class BeforeAdoption:
    """A board that boots in its own way: what it runs, and how it boots.

    Attributes:
        host: its name.
        board: its profile.
        fat_mount: where the files lie that U-Boot reads.
    """

    host: str
    board: Board
    fat_mount: str
    facts: Facts
    system: RunningSystem
    how: Survey

    @property
    def kept(self) -> tuple[str, ...]:
        """The files that make way for our boot script, which falls back on them."""
        return (*self.system.rivals, *(["boot.scr"] if self.system.script else []))

    @property
    def is_on_ext(self) -> bool:
        """Whether its boot files are found by FIEMAP, on ext4."""
        return self.how.way == "raw"


def refuse_unadoptable(before: BeforeAdoption) -> None:
    """Refuse boards that cannot be adopted with a way back.

    Raises:
        UserError: says why, and what to do; nothing was changed.
    """
    _refuse_system(before.how, before.host)
    _refuse_unknown_script(before.how, before.system.rivals, before.host)
    _refuse_lacking(before)


def needed_bytes(system: RunningSystem) -> int:
    """Return the room that a generation of what runs takes on the boot partition: unpacked files, a DTB."""
    return system.size_bytes + planning.FAT_RESERVE_BYTES + bundles.DTB_MAX_BYTES


def _refuse_system(how: Survey, host: str) -> None:
    """Refuse systems that choose what boots themselves (A/B updates), and layouts that must not be changed.

    Raises:
        UserError: says which system, or what is wrong with the set-up.
    """
    if how.owner is not None:
        raise UserError(
            f"{how.owner.system} decides what {host} boots ({how.owner.mark}); npu-bsp leaves that alone",
            hint=how.owner.instead,
        )
    refuse_slot_words(how.cmdline)
    if how.problems:
        raise UserError(
            f"{host} is not taken over: {'; '.join(how.problems)}",
            hint="nothing was changed; ./inv deploy --adopt --dry-run shows how it boots today",
        )


def _refuse_unknown_script(how: Survey, rivals: Sequence[str], host: str) -> None:
    """Refuse to rename what boots a board, as long as it is not known that its U-Boot runs scripts at all.

    Raises:
        UserError: it is not known, and extlinux.conf would have to make way.
    """
    if rivals and not how.runs_scripts:
        raise UserError(
            f"{how.layout.first or rivals[0]} boots {host} and would have to make way for our script: "
            "whether its U-Boot runs boot scripts is not known, and if not, nothing would boot it",
            hint="on its console, at U-Boot's prompt: `printenv boot_scripts` or `bootmeth list`. If it "
            "runs scripts, `extlinux.conf` may become a boot.scr of your own first; nothing was changed",
        )


def _refuse_lacking(before: BeforeAdoption) -> None:
    """Refuse boards that lack what a trial takes.

    Raises:
        UserError: says what is missing, and what to do.
    """
    facts, system, host, how = before.facts, before.system, before.host, before.how
    why_not = {each.name: each.why for each in how.ways}
    raw = why_not["raw"]
    if lacks_in(how.cmdline) and how.way not in ("fat", "raw"):
        on_ext = how.layout.mount is not None and not how.layout.is_fat
        raise UserError(
            f"no trial can be taken on {host}: {raw if on_ext else why_not['fat']}",
            hint=f"./inv deploy --host {host} --try needs nothing of U-Boot; after a change of U-Boot, "
            "reboot once",
        )
    others = ", ".join(system.fat_mounts)
    if how.way != "raw" and (not facts.fat_mounted or system.kind != "vfat"):
        state_of = "nothing is mounted there" if not facts.fat_mounted else f"it is {system.kind}"
        raise UserError(
            f"{host} has no FAT partition at {before.fat_mount} ({state_of}), and no ext4 that serves "
            f"({raw}). A trial boot is marked as spent by U-Boot; without that a device tree that "
            "hangs would be tried again and again",
            hint=(
                f"FAT is mounted at {others}: say so with boot.fat_mount in the profile"
                if others
                else f"./inv deploy --host {host} --try: a device tree by kexec, the disk left alone; or "
                "a FAT partition that U-Boot looks at first, mounted there; or start from an image: "
                "./inv build-image"
            ),
        )
    planning.check_writable(facts, host=host, fat_mount=before.fat_mount)
    if system.problems:
        raise UserError(
            f"what {host} runs (Linux {system.release}) cannot be made a generation: "
            + ";\n".join(system.problems),
            hint=f"mount the partition that it was booted from, or leave one of the files there. {host} is "
            "as it was; a whole bundle needs none of this: ./inv bundle, docs/deploy.md",
        )
    need = needed_bytes(system)
    if facts.space["fat"].bytes < need:
        raise UserError(
            f"the boot partition {before.fat_mount} of {host} has room for "
            f"{facts.space['fat'].bytes / 1e6:.0f} MB; kernel and RAM disk take {need / 1e6:.0f} MB",
            hint="remove old kernels there (apt autoremove), or use a larger partition",
        )
    if how.way not in ("fat", "raw"):
        raise UserError(
            f"no trial can be taken on {host}: {'; '.join(dict.fromkeys((why_not['fat'], raw)))}",
            hint=f"./inv deploy --host {host} --try needs nothing of what boots it (kexec); "
            "--adopt --dry-run says whether that works. Nothing was changed",
        )
    place = facts.boot_place
    reads = how.layout.mount.place if how.layout.mount and how.layout.is_fat else place
    if how.way == "fat" and reads != place:
        raise UserError(
            f"U-Boot reads {how.layout.first} on {host}, and npu-bsp's files would go to {place}",
            hint=f'fat_mount = "{reads}" below [boot] of the profile; nothing was changed',
        )
