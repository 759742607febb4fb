# SPDX-License-Identifier: MIT
"""boot.cmd in the distribution's own U-Boot, under QEMU: which generation boots, and is the trial spent?

The "kernels" are 64-byte Image headers with three instructions: one switches the machine off (a kernel
that lives), one resets it (a kernel that panics). So U-Boot itself is all that runs: seconds, not minutes.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bsp.base.packages.apt import Archive
from bsp.base.process import run
from images.deploy.boot import slots, state
from images.deploy.onboard.script_image import script_image, script_text
from tests.support.psci_kernel import LIVES, PANICS, kernel, run_u_boot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.network,
    pytest.mark.skipif(
        shutil.which("mkimage") is None, reason="mkimage is not installed (u-boot-tools)"
    ),
    pytest.mark.skipif(shutil.which("mformat") is None, reason="mformat is not installed (mtools)"),
]

OLD, NEW, OLDER = "0" * 11 + "1", "0" * 11 + "2", "0" * 11 + "3"
_PARTITION_START = 1 << 20
_DISK_BYTES = 40 << 20


@dataclass
class Disk:
    """A disk with a FAT partition as ``slots.lay_out`` makes it, with any of its files changed."""

    good: bytes = state.render_good(state.Good(OLD, OLDER))
    copy: bytes | None = None
    trial: bytes | None = state.SPENT
    kernels: dict[str, bytes] = field(
        default_factory=lambda: {OLD: kernel(LIVES), NEW: kernel(LIVES), OLDER: kernel(LIVES)}
    )
    without: tuple[str, ...] = ()
    kept: dict[str, bytes] = field(default_factory=dict)
    """What booted the board before it was taken over: path on the partition to content."""
    args: str = "console=ttyAMA0"
    initrd: bool = True
    show: bool = False
    """Have the script print the command line before it boots."""
    lacks: tuple[str, ...] = ()
    """Commands that U-Boot does not know when the script runs them."""
    first: str = ""
    """What runs before the script: variables that another U-Boot has, or has not."""

    def tree(self, folder: Path, dtb: Path, *, root: str = "") -> Path:
        """The files of the partition, in a folder; below ``root`` of it where U-Boot reads ext4."""
        top = folder / "partition"
        tree = top / root.lstrip("/")
        own = tree / "npu-bsp"
        (own / "files").mkdir(parents=True)
        script = slots.boot_script("virtual", root=root)
        if self.show:
            load = "if load ${npu_part} ${npu_at_kernel}"
            text = (script_text(script) or "").replace(load, f"printenv bootargs; {load}")
            script = script_image(text)
        if self.lacks or self.first:
            text = script_text(script) or ""
            for command in self.lacks:
                where = rf"(?m)^(\s*(?:if )?){re.escape(command)}(?=[ .])"
                text, count = re.subn(where, r"\1no-such-command", text)
                assert count, f"the script does not run {command}"
            script = script_image(self.first + text)
        (tree / "boot.scr").write_bytes(script)
        (own / "good.env").write_bytes(self.good)
        (own / "good-copy.env").write_bytes(self.good if self.copy is None else self.copy)
        if self.trial is not None:
            (own / "trial.env").write_bytes(self.trial)
        shutil.copy(dtb, own / "files" / "dtb")
        (own / "files" / "initrd").write_bytes(b"initrd" * 100)
        for generation, content in self.kernels.items():
            (own / "files" / f"kernel-{generation}").write_bytes(content)
            (own / generation).mkdir()
            (own / generation / "args.env").write_bytes(
                state.render_args(
                    f"{self.args} npu_bsp.generation={generation}",
                    kernel=f"/npu-bsp/files/kernel-{generation}",
                    initrd="/npu-bsp/files/initrd" if self.initrd else "",
                    dtb="/npu-bsp/files/dtb",
                )
            )
        for name in self.without:
            (own / name).unlink()
        for name, content in self.kept.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_bytes(content)
        return top

    def write(self, folder: Path, dtb: Path) -> Path:
        tree = self.tree(folder, dtb)
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(_DISK_BYTES)
        table = f"label: gpt\nstart={_PARTITION_START // 512}, type=U, attrs=LegacyBIOSBootable\n"
        run(["sfdisk", "--quiet", image], stdin=table.encode())
        at = f"{image}@@{_PARTITION_START}"
        run(["mformat", "-i", at, "-T", str((_DISK_BYTES - (2 << 20)) // 512), "-v", "NPU-BOOT"])
        run(["mcopy", "-s", "-i", at, *sorted(tree.iterdir()), "::"])
        return image


@dataclass
class Booted:
    """What the console said, and what was left on the partition."""

    console: str
    trial: bytes | None
    good: bytes
    """Both copies of the boot state."""

    @property
    def slots(self) -> list[tuple[str, str]]:
        return re.findall(r"npu-bsp: (trial|good|previous) generation ([0-9a-f]{12})", self.console)


@pytest.fixture(scope="module")
def dtb() -> Path:
    from bsp.catalog import load_board
    from bsp.qemu.base_dtb import base_dtb

    return base_dtb(load_board("virtual"))


def firmware(suite: str) -> Path:
    """U-Boot 2025.01 (trixie) or 2023.01 (bookworm), as Debian built them."""
    host = run(["dpkg", "--print-architecture"]).text.strip()
    root = Archive(suite, host).unpacked(["u-boot-qemu"])
    return root / "usr/lib/u-boot/qemu_arm64/u-boot.bin"


def boot(disk: Disk, folder: Path, dtb: Path, firmware: Path, *, memory_mib: int = 256) -> Booted:
    image = disk.write(folder, dtb)
    console = run_u_boot(firmware, image, folder, memory_mib=memory_mib)
    at = f"{image}@@{_PARTITION_START}"
    left = run(["mcopy", "-i", at, "::npu-bsp/trial.env", "-"], check=False)
    good, copy = (
        run(["mcopy", "-i", at, f"::npu-bsp/{name}.env", "-"]).stdout
        for name in ("good", "good-copy")
    )
    return Booted(console, left.stdout if left.exit_code == 0 else None, good + copy)


def torn(new: bytes, at: int, old: bytes = state.SPENT) -> bytes:
    return new[:at] + old[at:]


TRIAL = state.render_trial(NEW)
GOOD = state.render_good(state.Good(OLD, OLDER))
CASES = {
    "nothing to try": (Disk(), [("good", OLD)]),
    "a trial that lives": (Disk(trial=TRIAL), [("trial", NEW)]),
    "a trial that panics": (
        Disk(trial=TRIAL, kernels={**Disk().kernels, NEW: kernel(PANICS)}),
        [("trial", NEW), ("good", OLD)],
    ),
    "a trial that is not a kernel": (
        Disk(trial=TRIAL, kernels={**Disk().kernels, NEW: b"not a kernel" * 50}),
        [("trial", NEW), ("good", OLD)],
    ),
    "a trial whose kernel is missing": (
        Disk(trial=TRIAL, without=(f"files/kernel-{NEW}",)),
        [("trial", NEW), ("good", OLD)],
    ),
    "a trial of nothing": (
        Disk(trial=TRIAL, kernels={OLD: kernel(LIVES)}),
        [("trial", NEW), ("good", OLD)],
    ),
    "trial torn in its name": (Disk(trial=torn(TRIAL, 15)), [("good", OLD)]),
    "trial torn before its end": (Disk(trial=torn(TRIAL, 40)), [("good", OLD)]),
    "trial torn over another": (
        Disk(trial=torn(TRIAL, 22, state.render_trial(OLDER))), [("good", OLD)],
    ),
    "trial missing": (Disk(trial=None), [("good", OLD)]),
    "good torn": (Disk(good=torn(GOOD, 20), copy=GOOD, trial=TRIAL), [("trial", NEW)]),
    "good torn, nothing to try": (Disk(good=torn(GOOD, 50), copy=GOOD), [("good", OLD)]),
    "both copies torn": (
        Disk(good=torn(GOOD, 20), copy=torn(GOOD, 60), trial=TRIAL), [("trial", NEW)],
    ),
    "good's kernel missing": (
        Disk(without=(f"files/kernel-{OLD}",)), [("good", OLD), ("previous", OLDER)],
    ),
}  # fmt: skip

TOLD = {
    "a trial whose kernel is missing": "unloadable",
    "a trial of nothing": "unloadable",
    "a trial that is not a kernel": "unstarted",
    "trial torn in its name": "torn",
    "trial torn before its end": "torn",
    "trial torn over another": "torn",
}
"""What the generation that boots in place of the trial is told of it; of the other cases nothing."""

# The older U-Boot runs the same script; not every case has to be run there again.
ALSO_ON_OLDER = ("a trial that panics", "trial torn before its end", "good torn")
RUNS = [(case, "trixie") for case in CASES] + [(case, "bookworm") for case in ALSO_ON_OLDER]


@pytest.mark.parametrize(("case", "suite"), RUNS)
def test_the_script_picks(case: str, suite: str, tmp_path: Path, dtb: Path) -> None:
    disk, expected = CASES[case]
    disk = replace(disk, show=True)
    booted = boot(disk, tmp_path, dtb, firmware(suite))
    assert booted.slots == expected, booted.console
    # Boots are not counted: however often its power is cut, a good generation stays one.
    assert booted.good == disk.good + (disk.copy or disk.good)
    if disk.trial in (None, state.SPENT):
        assert booted.trial == disk.trial
    else:
        assert booted.trial == state.SPENT, "the trial was not spent"
    told = re.findall(r"npu_bsp\.(?:lacks|trial)=\S+", booted.console)
    assert set(told) == ({f"npu_bsp.trial={TOLD[case]}"} if case in TOLD else set())


# --- a board that was taken over: until it has a good generation, the old way is one reset away

OLD_WAY = {
    "old-kernel": kernel(LIVES),
    "old-initrd": b"initrd" * 100,
    "extlinux/before-npu-bsp.conf": b"default l0\nlabel l0\n kernel /old-kernel\n initrd /old-initrd\n"
    b" append root=LABEL=old\n",
}


def old_script(folder: Path) -> bytes:
    """A distribution's boot script: it takes the names that U-Boot's standard boot gives it."""
    lines = (
        'echo "old script on ${devtype} ${devnum}:${distro_bootpart}, bootargs ${bootargs}"\n'
        "load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} /old-kernel\n"
        "booti ${kernel_addr_r} - ${fdtcontroladdr}\n"
    )
    (folder / "old.cmd").write_text(lines)
    target = folder / "old.scr"
    run(["mkimage", "-A", "arm64", "-T", "script", "-d", folder / "old.cmd", target])
    return target.read_bytes()


# Debian's 2025.01 has no sysboot, its 2023.01 has it: two ways back to extlinux.
@pytest.mark.parametrize(
    ("way", "suite"), [("extlinux", "trixie"), ("script", "trixie"), ("extlinux", "bookworm")]
)
def test_a_first_trial_that_falls_ends_in_the_old_way(
    way: str, suite: str, tmp_path: Path, dtb: Path
) -> None:
    kept = dict(OLD_WAY)
    if way == "script":
        del kept["extlinux/before-npu-bsp.conf"]
        kept["boot-before-npu-bsp.scr"] = old_script(tmp_path)
    disk = Disk(
        good=state.SPENT,
        copy=state.SPENT,
        trial=TRIAL,
        kernels={NEW: kernel(PANICS)},
        kept=kept,
    )
    booted = boot(disk, tmp_path, dtb, firmware(suite))
    assert booted.slots == [("trial", NEW)], booted.console
    assert booted.trial == state.SPENT
    assert "npu-bsp: falling back on" in booted.console
    assert booted.console.count("Starting kernel") == 2
    if way == "script":
        assert "old script on virtio 0:1, bootargs \n" in booted.console.replace("\r", "")


def test_a_generation_without_a_ram_disk_boots(tmp_path: Path, dtb: Path) -> None:
    disk = Disk(initrd=False)
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == [("good", OLD)], booted.console
    assert "Starting kernel" in booted.console


def test_a_command_line_reaches_the_kernel_as_it_is(tmp_path: Path, dtb: Path) -> None:
    """Quotes, semicolons and dollars are not U-Boot's shell's to read."""
    line = 'console=ttyAMA0 dyndbg="file a.c +p; file b.c +p" x=$npu_good'
    shown = boot(Disk(args=line, show=True), tmp_path, dtb, firmware("trixie"))
    assert f"bootargs={line} npu_bsp.generation={OLD} npu_bsp.slot=good" in shown.console


# --- what a U-Boot lacks is told to what boots next, and no trial is taken that cannot be spent


def lacks_told(console: str) -> list[str]:
    return re.findall(r"^bootargs=.*npu_bsp\.lacks=(\S+)", console, re.MULTILINE)


@pytest.mark.parametrize("lacks", ["fatwrite", "itest", "mw"])
def test_what_u_boot_lacks_for_a_trial_is_told_to_the_good_generation(
    lacks: str, tmp_path: Path, dtb: Path
) -> None:
    disk = Disk(trial=TRIAL, lacks=(lacks,), show=True)
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == [("good", OLD)], booted.console
    assert booted.trial == TRIAL
    assert lacks_told(booted.console) == [lacks], booted.console


@pytest.mark.parametrize("trial", [TRIAL, state.SPENT])
@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_nothing_is_told_where_nothing_lacks(
    trial: bytes, suite: str, tmp_path: Path, dtb: Path
) -> None:
    booted = boot(Disk(trial=trial, show=True), tmp_path, dtb, firmware(suite))
    assert booted.slots == [("trial", NEW) if trial == TRIAL else ("good", OLD)]
    assert "bootargs=" in booted.console
    assert "npu_bsp.lacks" not in booted.console


def adopted(folder: Path, **changes: object) -> Disk:
    """A board whose first trial, or probe, is ahead: an old script boots it so far."""
    kept = {"boot-before-npu-bsp.scr": old_script(folder), "old-kernel": OLD_WAY["old-kernel"]}
    blank: dict[str, object] = {"good": state.SPENT, "copy": state.SPENT, "kept": kept}
    return Disk(**{**blank, **changes})  # type: ignore[arg-type]


def test_a_probe_is_spent_and_boots_what_booted_before(tmp_path: Path, dtb: Path) -> None:
    disk = adopted(tmp_path, trial=state.render_probe(), first="setenv bootargs as-before\n")
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == []
    assert booted.trial == state.SPENT
    assert "old script on virtio 0:1, bootargs as-before\n" in booted.console, booted.console
    assert booted.console.count("Starting kernel") == 1


def test_a_probe_tells_the_old_script_what_lacks(tmp_path: Path, dtb: Path) -> None:
    probe = state.render_probe()
    disk = adopted(tmp_path, trial=probe, lacks=("fatwrite", "mw"))
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == []
    assert booted.trial == probe
    assert re.search(r"old script on .*, bootargs +npu_bsp\.lacks=mw,fatwrite\n", booted.console)


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (("devtype", "devnum"), "devtype,devnum"),
        (("kernel_addr_r", "scriptaddr", "loadaddr"), "kernel_addr_r"),
        (("fdt_addr_r",), "fdt_addr_r"),
        ((), "load"),
    ],
)
def test_what_is_needed_to_load_anything_is_told(
    gone: tuple[str, ...], told: str, tmp_path: Path, dtb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a SoC whose addresses nobody has written down; the old way is not found then, either."""
    text = slots.BOOT_CMD.read_text().replace("# @ADDRESSES@", "setenv npu_at_kernel")
    (tmp_path / "boot.cmd").write_text(f"{text}\nprintenv bootargs\npoweroff\n")
    monkeypatch.setattr(slots, "BOOT_CMD", tmp_path / "boot.cmd")
    lines = ["setenv fdt_addr_r 0x4fe00000", *(f"setenv {name}" for name in gone), ""]
    lacks = () if gone else (told,)
    disk = Disk(trial=TRIAL, first="\n".join(lines), lacks=lacks)
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert lacks_told(booted.console) == [told], booted.console
    assert "Starting kernel" not in booted.console


@pytest.mark.parametrize("lacks", [(), ("fatwrite",)])
def test_what_lacks_is_told_to_an_old_extlinux_conf(
    lacks: tuple[str, ...], tmp_path: Path, dtb: Path
) -> None:
    """By U-Boot's sysboot, which Debian's 2023.01 has: it begins bootargs anew with the append line."""
    conf = OLD_WAY["extlinux/before-npu-bsp.conf"]
    told = conf.replace(b"root=LABEL=old", b"root=LABEL=old${npu_told}")
    assert told != conf
    kept = {**OLD_WAY, "extlinux/told-npu-bsp.conf": told}
    disk = adopted(tmp_path, trial=state.render_probe(), kept=kept, lacks=lacks)
    booted = boot(disk, tmp_path, dtb, firmware("bookworm"))
    assert booted.console.count("Starting kernel") == 1, booted.console
    appended = re.findall(r"^append: (.*)$", booted.console, re.MULTILINE)
    assert appended == [f"root=LABEL=old{' npu_bsp.lacks=fatwrite' if lacks else ''}"]


def test_a_script_that_is_not_run_by_the_standard_boot_finds_its_partition(
    tmp_path: Path, dtb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variables of NXP's commands; QEMU's disk is not an mmc."""
    (tmp_path / "boot.cmd").write_text(
        slots.BOOT_CMD.read_text().replace("setenv devtype mmc", "setenv devtype virtio")
    )
    monkeypatch.setattr(slots, "BOOT_CMD", tmp_path / "boot.cmd")
    nxp = (
        "setenv devtype\nsetenv devnum\nsetenv distro_bootpart\nsetenv mmcdev 0\nsetenv mmcpart 1\n"
    )
    booted = boot(Disk(first=nxp, show=True), tmp_path, dtb, firmware("trixie"))
    assert booted.slots == [("good", OLD)], booted.console
    assert "npu_bsp.lacks" not in booted.console


@pytest.mark.parametrize("initrd", [True, False])
@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_a_u_boot_that_has_no_booti_says_so(
    suite: str, initrd: bool, tmp_path: Path, dtb: Path
) -> None:
    """It reads as a trial that crashed otherwise."""
    first = "setenv fdtaddr 1234\n"
    disk = adopted(tmp_path, trial=TRIAL, lacks=("booti",), initrd=initrd, first=first)
    booted = boot(disk, tmp_path, dtb, firmware(suite))
    assert booted.slots == [("trial", NEW)]
    assert booted.trial == state.SPENT
    assert re.search(r"old script on .*, bootargs +npu_bsp\.trial=unstarted\n", booted.console)
    assert booted.console.count("Starting kernel") == 1


# As the environments of NXP's, Variscite's and others' boards: bsp_bootcmd of an i.MX 93 EVK.
BY_NAME = """setenv mmcdev 0
setenv mmcpart 1
setenv mmcroot '/dev/mmcblk1p2 rootwait rw'
setenv mmcargs 'setenv bootargs console=ttyAMA0 root=${mmcroot}'
setenv loadimage 'load virtio ${mmcdev}:${mmcpart} ${kernel_addr_r} Image'
setenv mmcboot 'run mmcargs; printenv bootargs; booti ${kernel_addr_r} - ${fdtcontroladdr}'
"""


@pytest.mark.parametrize("lacks", [(), ("fatwrite",)])
def test_where_a_boot_script_takes_the_place_of_image_the_old_way_is_image(
    lacks: tuple[str, ...], tmp_path: Path, dtb: Path
) -> None:
    """NXP's commands load Image only where there is no boot.scr: after ours nothing would boot."""
    kept = {"Image": kernel(LIVES)}
    probe = state.render_probe() if lacks else state.SPENT
    disk = adopted(tmp_path, kept=kept, first=BY_NAME, trial=probe, lacks=lacks)
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == []
    assert booted.console.count("Starting kernel") == 1, booted.console
    told = " npu_bsp.lacks=fatwrite" if lacks else ""
    assert f"root=/dev/mmcblk1p2 rootwait rw{told}\n" in booted.console.replace("\r", "")


def test_a_u_boot_that_does_not_name_the_partition(tmp_path: Path, dtb: Path) -> None:
    """As `bootflow scan` of 2022 and early 2023; a trial is spent there as anywhere."""
    disk = Disk(first="setenv distro_bootpart\n", trial=TRIAL, show=True)
    booted = boot(disk, tmp_path, dtb, firmware("trixie"))
    assert booted.slots == [("trial", NEW)], booted.console
    assert booted.trial == state.SPENT
    assert "npu_bsp.lacks" not in booted.console


def test_a_u_boot_that_writes_elsewhere_is_told(
    tmp_path: Path, dtb: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 2018.11 the path was a name in FAT's root folder: it said that it wrote, trial.env stayed."""
    text = slots.BOOT_CMD.read_text()
    wrong = text.replace("${npu_root}/npu-bsp/trial.env 200", "/npu-bsp-trial.env 200")
    assert wrong != text
    (tmp_path / "boot.cmd").write_text(wrong)
    monkeypatch.setattr(slots, "BOOT_CMD", tmp_path / "boot.cmd")
    booted = boot(Disk(trial=TRIAL, show=True), tmp_path, dtb, firmware("trixie"))
    assert booted.slots == [("good", OLD)], booted.console
    assert booted.trial == TRIAL
    assert lacks_told(booted.console) == ["fatwrite"]
