# SPDX-License-Identifier: MIT
"""What a deployment would do: a pure function of the bundle and of what the board says.

``--dry-run`` prints the very plan that would run. Planning again after it ran gives an empty plan.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from bsp.base.errors import UserError
from bsp.base.words import counted
from images.bundle.manifest import Manifest

from .boot import slots, state

_BLOCK_BYTES = 4096
FAT_RESERVE_BYTES = 1 << 20
_ROOT_RESERVE_BYTES = 16 << 20
KEEP = 2
"""Generations that stay on a board: the good one and the one before."""
_SHOWN = 5


class Space(msgspec.Struct, frozen=True):
    """Room on a file system."""

    bytes: int
    files: int


class Lease(msgspec.Struct, frozen=True):
    """Who deploys to the board now; see onboard/lease.py."""

    owner: str
    purpose: str
    age_s: float
    left_s: float


class RunningSystem(msgspec.Struct, frozen=True, kw_only=True):
    """What the board runs, and from which files; see ``survey`` in onboard/adopt.py.

    Attributes:
        kernel, initrd: the files; None where they were not found, ``none`` without a RAM disk.
        size_bytes: of both, unpacked.
        problems: why a file was not found.
        kind: of the file system that boot files would go to.
        rivals: what U-Boot takes before a boot script.
        script: whether a boot script of the distribution is there.
    """

    kernel: str | None
    initrd: str | None
    size_bytes: int
    problems: tuple[str, ...]
    release: str
    kind: str
    fat_mounts: tuple[str, ...]
    rivals: tuple[str, ...]
    script: bool


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What runs, with all files of a generation hashed; see ``Board.verify`` in onboard/board.py.

    Attributes:
        wrong: the first paths that are not as the manifest says; ``wrong_count``: of all.
        current: generation that ``/run/npu-bsp/current`` names.
        fdt, dtb: as in ``Facts``.
    """

    release: str
    wrong: tuple[str, ...]
    wrong_count: int
    current: str | None
    fdt: str | None
    dtb: str | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the board says of itself; see ``Board.facts`` in onboard/board.py.

    Attributes:
        generations: those that lie there, with the paths of their files that are not as they were made;
            where the wanted one is whole, the others were not looked at.
        resumable: files (ranges of indexes in the manifest) that an interrupted transfer of the wanted
            generation left whole.
        fdt: the running device tree; only where it was asked for, or the running generation is the wanted
            one, or none is wanted.
        dtb: the one that was sent for it.
        made: when each generation was made there, by the board's clock.
        manifests: SHA-256 of each generation's manifest; only after a thorough look, which also reads each
            file of ``generations`` and ``fat_files``.
        hash_bytes_per_s: how fast the board hashes; 0: it was not measured, the link being fast.
        rivals: what U-Boot takes before our boot script.
        adopted: the board was taken over, and what booted it before is kept.
        boot_kind: the file system that boot files lie on.
        boot_root: the folder of it that they lie in: nothing, or ``/boot``.
        boot_place: the folder of the running system that they lie in.
        root_uuid: of the root file system; empty: it is not known.
        root_modules: what the running kernel reaches it by, as far as that is modules.
        kept_by: what of the distribution's was told to keep a device tree.
        kept_of: the release of the kernel whose tree it keeps, where it keeps a whole one.
        lease: of another deployment that has the board.
        log: the last lines of what was done to it.
    """

    compatible: tuple[str, ...]
    model: str
    serial: str
    boot_id: str
    release: str
    cmdline: str
    running: str | None
    slot: str | None
    sectors: dict[str, str]
    boot_script: bool
    fat_mounted: bool
    writable: dict[str, bool]
    space: dict[str, Space]
    fat_files: dict[str, int]
    generations: dict[str, tuple[str, ...]]
    resumable: tuple[tuple[int, int], ...]
    leftovers: tuple[str, ...]
    codecs: tuple[str, ...]
    onboard: dict[str, str]
    fdt: str | None
    dtb: str | None
    made: dict[str, float] = {}
    manifests: dict[str, str] = {}
    hash_bytes_per_s: float = 0.0
    rivals: tuple[str, ...] = ()
    adopted: bool = False
    boot_kind: str = "vfat"
    boot_root: str = ""
    boot_place: str = ""
    kept_by: str = ""
    kept_of: str = ""
    root_uuid: str = ""
    root_modules: tuple[str, ...] = ()
    lease: Lease | None = None
    log: tuple[str, ...] = ()

    @property
    def good(self) -> state.Good | None:
        """The generation that boots."""
        return state.choose_good(self.sector("good"), self.sector("good-copy"))

    @property
    def trial(self) -> str | None:
        """The generation that is armed for the next boot."""
        return state.parse_trial(self.sector("trial"))

    def sector(self, name: str) -> bytes:
        """A state file's content."""
        return base64.b64decode(self.sectors.get(name, ""))


@dataclass(frozen=True)
class Discard:
    """Remove what is in the way: generations beyond good and previous, leftovers of broken transfers."""

    names: tuple[str, ...]
    keep: tuple[str, ...]

    def __str__(self) -> str:
        return f"remove {', '.join(self.names)}"


@dataclass(frozen=True)
class Send:
    """Send the files that the board lacks; all others are linked from what is there.

    Attributes:
        generation: what is built from them.
        indexes: of the files in the manifest.
        base: generation whose manifest the new one is sent as a difference to; None: there is none.
        bases: generations to link from.
    """

    generation: str
    indexes: tuple[int, ...]
    size_bytes: int
    base: str | None
    bases: tuple[str, ...]

    def __str__(self) -> str:
        shared = f"; the rest is shared with {', '.join(self.bases)}" if self.bases else ""
        return f"send {counted(len(self.indexes), 'file')}, {self.size_bytes / 1e6:.2f} MB{shared}"


@dataclass(frozen=True)
class Mend:
    """Make what was changed on the board as it was: from what is whole there, or was just sent.

    Attributes:
        generations: name to paths, of those that are kept beside the one that is deployed.
        onboard: files outside the generations.
    """

    generations: tuple[tuple[str, tuple[str, ...]], ...]
    onboard: tuple[str, ...]

    def __str__(self) -> str:
        changed = [f"{shown(paths)} of generation {name}" for name, paths in self.generations]
        changed += [shown(self.onboard)] if self.onboard else []
        return f"repair what was changed there: {'; '.join(changed)}"


@dataclass(frozen=True)
class TakeOver:
    """Make our boot script the one that boots; what booted the board so far becomes its fallback."""

    kept: tuple[str, ...]

    def __str__(self) -> str:
        kept = ", ".join(self.kept) or "what boots it now, elsewhere on its disk"
        return f"install npu-bsp's boot script; kept as its fallback: {kept}"


@dataclass(frozen=True)
class Probe:
    """Boot as before, and learn what the board's U-Boot can do: where nobody knows that."""

    def __str__(self) -> str:
        return (
            "reboot it once as before, through that script: its U-Boot is not known, and is asked what it "
            "can do; nothing is tried yet"
        )


@dataclass(frozen=True)
class Try:
    """Boot a generation once."""

    generation: str

    def __str__(self) -> str:
        return f"arm generation {self.generation} for one trial boot, and reboot"


@dataclass(frozen=True)
class Confirm:
    """Compare what runs with the manifest, over a new session, and make it the good generation.

    Attributes:
        keep: more generations that stay, beside it and the previous one.
    """

    generation: str
    previous: str | None
    keep: tuple[str, ...] = ()

    def __str__(self) -> str:
        before = f", {self.previous} the one before" if self.previous else ""
        return (
            f"confirm over a new session that generation {self.generation} runs (device tree, kernel, "
            f"modules); then it is the good one{before}"
        )


Step = Discard | Send | Mend | TakeOver | Probe | Try | Confirm


@dataclass(frozen=True)
class Plan:
    """The steps of one deployment, in order; none if the board runs the bundle already."""

    generation: str
    running: str | None
    steps: tuple[Step, ...]

    @property
    def send(self) -> Send | None:
        """The step that sends, if there is one."""
        return next((step for step in self.steps if isinstance(step, Send)), None)

    def __str__(self) -> str:
        if not self.steps:
            return f"generation {self.generation} runs there and is the good one: nothing to do"
        lines = [f"{number}. {step}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([f"from {self.running or 'no generation'} to {self.generation}", *lines])


def is_downgrade(running: str, wanted: str) -> bool:
    """Whether a kernel release is older than the one that runs: by its numbers, not by who built it."""
    versions = [re.match(r"\d+(?:\.\d+)*", release) for release in (wanted, running)]
    new, old = ([int(part) for part in match[0].split(".")] if match else [] for match in versions)
    return new < old


def check_layout(facts: Facts, *, host: str, fat_mount: str) -> state.Good:
    """Refuse a board that does not boot through our script; return its good generation.

    Raises:
        UserError: the boot partition is not there, not ours, or not writable.
    """
    hint = (
        f"./inv deploy --host {host} --adopt takes a board over that boots in another way, with a way "
        "back (docs/in-place.md)"
    )
    if facts.kept_by:
        hint = (
            f"{facts.kept_by} keeps a device tree of npu-bsp's there, for each kernel that it installs "
            f"(deploy --undo takes it back). For a kernel of npu-bsp's beside that: {hint}"
        )
    if not facts.fat_mounted:
        raise UserError(f"{host} has no boot partition mounted at {fat_mount}", hint=hint)
    good = facts.good
    if not facts.boot_script or good is None:
        lacks = (
            "the boot script boot.scr of npu-bsp"
            if not facts.boot_script
            else "a readable good.env"
        )
        raise UserError(
            f"{host} does not boot through npu-bsp: its boot partition {fat_mount} lacks {lacks}. Kernel "
            "and device tree cannot be replaced there with a way back",
            hint=hint,
        )
    if facts.rivals:
        raise UserError(
            f"{fat_mount} on {host} has {' and '.join(facts.rivals)} (of a kernel update?), which U-Boot "
            "takes before npu-bsp's boot script: what is deployed would not boot",
            hint=hint,
        )
    check_writable(facts, host=host, fat_mount=fat_mount)
    return good


def check_writable(facts: Facts, *, host: str, fat_mount: str) -> None:
    """Refuse a board whose file systems cannot be written to.

    Raises:
        UserError: one cannot.
    """
    for place, path in (("fat", fat_mount), ("root", "/var/lib")):
        if not facts.writable[place]:
            raise UserError(
                f"{path} on {host} is mounted read-only, or the SSH user may not write there",
                hint="log in as root; after a file system error: fsck, then reboot the board",
            )


def plan_deploy(
    manifest: Manifest,
    facts: Facts,
    good: state.Good,
    manifests: Mapping[str, Manifest],
    *,
    host: str,
    keep: int = KEEP,
    onboard: tuple[str, ...] = (),
) -> Plan:
    """Return the steps that bring ``manifest`` onto the board and make it the good generation.

    Args:
        manifests: manifests of generations on the board; one that is missing here is not linked from.
        keep: how many generations stay when it is confirmed: it, the one before, the newest others.
        onboard: files outside the generations that a thorough look found changed.

    Raises:
        UserError: there is not enough room.
    """
    wanted = manifest.generation
    needed = {good.good, *filter(None, (good.previous, facts.running))} & set(facts.generations)
    previous = _previous(good, wanted)
    lasting = _newest(facts, keep - len({wanted, previous} - {None}), without={wanted, previous})
    needed |= set(lasting)
    whole = facts.generations.get(wanted) == ()
    # Kept as well until the trial has been decided, if it is whole.
    present = needed | {wanted} if whole else needed
    surplus = {name for name in facts.generations if name not in present and name != wanted}
    steps: list[Step] = []
    unneeded = (*sorted(surplus), *facts.leftovers)
    if unneeded:
        steps.append(Discard(unneeded, tuple(sorted(present | (needed & {wanted})))))
    if not whole:
        usable = {name: each for name, each in manifests.items() if name not in surplus}
        steps.append(_plan_send(manifest, facts, good, usable))
        _check_space(manifest, steps[-1], facts, host=host)
    changed = tuple(
        (name, facts.generations[name])
        for name in sorted(needed - {wanted})
        if facts.manifests and facts.generations[name]
    )
    if changed or onboard:
        steps.append(Mend(changed, onboard))
    if facts.running != wanted:
        steps.append(Try(wanted))
    if facts.running != wanted or good.good != wanted:
        steps.append(Confirm(wanted, previous, lasting))
    return Plan(wanted, facts.running, tuple(steps))


def plan_rollback(facts: Facts, good: state.Good, *, host: str, to: str | None = None) -> Plan:
    """Return the steps that bring the generation before the good one back.

    Args:
        to: another generation that is kept there.

    Raises:
        UserError: there is none, or it is no longer whole.
    """
    wanted = to or good.previous
    if wanted is None:
        undo = f"./inv deploy --host {host} --undo has it boot as it did before npu-bsp"
        raise UserError(
            f"{host} has no generation before {good.good} to go back to",
            hint=undo if facts.adopted else "",
        )
    if wanted == good.good:
        raise UserError(
            f"{wanted} is the good generation of {host} already",
            hint=f"there are: {', '.join(sorted(facts.generations))}",
        )
    damaged = facts.generations.get(wanted)
    if damaged is None or damaged:
        what = "is not there" if damaged is None else f"is damaged ({', '.join(damaged[:3])})"
        raise UserError(
            f"generation {wanted}, {'the one before, ' if not to else ''}{what} on {host}",
            hint="deploy its bundle again: ./inv deploy --bundle F"
            + (f". There are: {', '.join(sorted(facts.generations))}" if to else ""),
        )
    steps: list[Step] = [] if facts.running == wanted else [Try(wanted)]
    others = tuple(sorted(set(facts.generations) - {wanted, good.good}))
    return Plan(wanted, facts.running, (*steps, Confirm(wanted, good.good, others)))


def _newest(facts: Facts, count: int, *, without: set[str | None]) -> tuple[str, ...]:
    """The newest generations on the board, at most ``count``."""
    others = [name for name in facts.generations if name not in without]
    others.sort(key=lambda name: (facts.made.get(name, 0), name), reverse=True)
    return tuple(others[: max(count, 0)])


def shown(paths: tuple[str, ...]) -> str:
    """Some paths in words: the first few, and how many more."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _previous(good: state.Good, wanted: str) -> str | None:
    return good.good if good.good != wanted else good.previous


def _plan_send(
    manifest: Manifest, facts: Facts, good: state.Good, manifests: Mapping[str, Manifest]
) -> Send:
    order = [facts.running, good.good, good.previous, *sorted(facts.generations)]
    bases = [
        name for name in dict.fromkeys(order) if name in facts.generations and name in manifests
    ]
    have: set[tuple[str, int]] = set()
    for name in bases:
        damaged = set(facts.generations[name])
        have.update(
            (entry.sha256, entry.mode)
            for entry in manifests[name].files
            if entry.link is None and not slots.on_fat(entry) and entry.path not in damaged
        )
    resumed = {index for first, last in facts.resumable for index in range(first, last + 1)}
    send: list[int] = []
    for index, entry in enumerate(manifest.files):
        if entry.link is not None or index in resumed:
            continue
        if slots.on_fat(entry):
            name = slots.fat_path(entry.sha256).rpartition("/")[2]
            if facts.fat_files.get(name) != entry.size_bytes and not _coming(
                manifest, send, entry.sha256
            ):
                send.append(index)
        elif (entry.sha256, entry.mode) not in have:
            send.append(index)
            have.add((entry.sha256, entry.mode))  # a second copy is linked to the first
    return Send(
        manifest.generation,
        tuple(send),
        sum(manifest.files[index].size_bytes for index in send),
        bases[0] if bases else None,
        tuple(bases),
    )


def _coming(manifest: Manifest, send: list[int], sha256: str) -> bool:
    return any(manifest.files[index].sha256 == sha256 for index in send)


def _check_space(manifest: Manifest, step: Step, facts: Facts, *, host: str) -> None:
    if not isinstance(step, Send):
        raise RuntimeError(f"not a step that sends: {step}")
    need = {"fat": FAT_RESERVE_BYTES, "root": _ROOT_RESERVE_BYTES}
    files = {"fat": 0, "root": len(manifest.files) // 8}  # folders of the hard-linked tree
    for index in step.indexes:
        entry = manifest.files[index]
        place = "fat" if slots.on_fat(entry) else "root"
        need[place] += -(-entry.size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        files[place] += 1
    for place, name in (("fat", "boot partition"), ("root", "root file system")):
        space = facts.space[place]
        if space.bytes < need[place] or space.files < files[place]:
            raise UserError(
                f"the {name} of {host} is full: this needs {need[place] / 1e6:.0f} MB and {files[place]} "
                f"files, there is room for {space.bytes / 1e6:.0f} MB and {space.files} files",
                hint="remove what does not belong there; --keep says how many generations "
                "npu-bsp keeps. Nothing was written",
            )
