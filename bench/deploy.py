# SPDX-License-Identifier: MIT
"""How long a deployment takes: against tar through ssh, and against rsync, on the same real SSH server.

    .venv/bin/python -m bench.deploy [--rounds N] [--json]

The payload is the distribution's whole kernel package: image, modules and DTBs, 5,400 files and 180 MB.
Board and host are folders in memory, so that the disk is not what is measured. All arms use the same
server, cipher (AES-128-GCM) and key; what each delivered is compared with the source, outside the clock.
Every arm is a program of its own: the start-up of Python counts on our side, that of ssh on theirs.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import Arm, Timing, arguments, measure, report

from bsp.base.cache import remove  # isort: skip
from bsp.kernel.prebuilt import PrebuiltKernel, prebuilt_kernel
from bsp.profile import load_board
from images import bundle as bundles
from images.bundle import Bundle, Parts
from images.deploy import slots
from tests.fake_board import FakeBoard

ROOT = Path(__file__).parents[1]

# What `./inv deploy` does up to the reboot, or (for a bundle that runs already) to its end, with what ./inv
# imports; the board's root is a folder, which the command line has no flag for.
_OURS = """\
import pathlib, sys
import invoke.program, tasks
from bsp.board.inventory import Host
from bsp.board.ssh import connect
from images import bundle as bundles
from images.deploy import plan as planning
from images.deploy.deploy import Result, Target, deploy, prepare
from images.deploy.transfer import Agent, each_known
from pathlib import PosixPath

target = {target!r}
folder = pathlib.Path({bundle!r})
if {whole!r}:
    result = deploy(target, bundle=folder, board=None)
    assert result.outcome == "unchanged", result
else:
    with connect(target.host, timeout_s=30) as connection:
        with Agent(connection, root=target.root, timeout_s=60) as agent:
            bundle = bundles.load(folder)
            facts = agent.open(bundle.generation, fat_mount="/boot/firmware", lock=True)
            good = planning.check_layout(facts, host="bench", fat_mount="/boot/firmware")
            known = {{each.generation: each for each in each_known(agent, facts)}}
            plan = planning.plan_deploy(bundle.manifest, facts, good, known, host="bench")
            result = Result("bench", "virtual", None, bundle.generation, plan=plan)
            prepare(agent, plan, bundle, facts, result)
            assert result.sent.sent_files == {files!r}, result.sent.sent_files
"""


class Bench:
    """A board, three bundles, and the arms."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.first, self.second, self.tiny = make_bundles(work)
        self.board = FakeBoard(work / "board", self.tiny)
        self.store = self.board.root / slots.STORE
        self.host = self.board.host
        assert self.host.identity_file
        assert self.host.known_hosts
        self.ssh = [
            "ssh", "-F", "none", "-c", "aes128-gcm@openssh.com", "-p", str(self.host.port),
            "-i", str(self.host.identity_file), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.host.known_hosts}", "-o", "StrictHostKeyChecking=yes",
        ]  # fmt: skip
        self.peer = work / "peer"

    @property
    def remote(self) -> str:
        return f"{self.host.user}@127.0.0.1"

    # --- ours

    def ours(self, bundle: Bundle, *, files: int = 0, whole: bool = False) -> None:
        target = self.board.target()
        program = _OURS.format(target=target, bundle=str(bundle.path), files=files, whole=whole)
        run([sys.executable, "-c", program], cwd=ROOT)

    def forget(self, bundle: Bundle) -> None:
        remove(self.store / bundle.generation)
        remove(self.board.fat / "npu-bsp" / bundle.generation)
        kept = {slots.fat_path(e.sha256) for e in slots.boot_entries(self.tiny.manifest)}
        if (self.store / self.first.generation).exists():
            kept |= {slots.fat_path(e.sha256) for e in slots.boot_entries(self.first.manifest)}
        for path in (self.board.fat / "npu-bsp/files").iterdir():
            if f"/npu-bsp/files/{path.name}" not in kept:
                path.unlink()

    def delivered(self, bundle: Bundle) -> None:
        for entry in bundle.manifest.files:
            if slots.on_fat(entry):
                there = self.board.fat / slots.fat_path(entry.sha256).lstrip("/")
            else:
                there = self.store / bundle.generation / entry.path
            same(bundle.file(entry), there, entry.path)

    def install(self, bundle: Bundle) -> None:
        """Have a bundle be the one that runs."""
        slots.lay_out(bundle, self.board.fat, self.board.root)
        from tests.fake_boot import boot

        boot(self.board.root)

    # --- peers

    def tar(self) -> None:
        line = (
            f"tar -C {self.first.path} -cf - . | {' '.join(self.ssh)} {self.remote} "
            f"'cd {self.peer} && mkdir new && tar -C new -xf - && mv new first'"
        )
        run(["sh", "-c", line])

    def rsync_nothing(self) -> None:
        shell = " ".join(self.ssh)
        run(
            ["rsync", "-a", "-e", shell, f"{self.first.path}/", f"{self.remote}:{self.peer}/first/"]
        )

    def rsync_atomic(self) -> None:
        """A copy beside the old one, unchanged files hard-linked, put in place by a rename."""
        control = self.work / "control"
        shared = [*self.ssh, "-o", f"ControlPath={control}"]
        run([*shared, "-M", "-N", "-f", "-o", "ControlPersist=yes", self.remote])
        run([
            "rsync", "-a", "-e", " ".join(shared), f"--link-dest={self.peer}/first",
            f"{self.second.path}/", f"{self.remote}:{self.peer}/new/",
        ])  # fmt: skip
        run([*shared, self.remote, f"mv {self.peer}/new {self.peer}/second"])
        run([*shared, "-O", "exit", self.remote])

    def peer_has(self, name: str, bundle: Bundle) -> None:
        for entry in bundle.manifest.files:
            same(bundle.file(entry), self.peer / name / entry.path, entry.path)

    def close(self) -> None:
        self.board.close()


def make_bundles(work: Path) -> tuple[Bundle, Bundle, Bundle]:
    """The whole kernel package; the same with one DTB and three modules changed; a small one."""
    from tests.fake_board import make_bundle

    kernel = prebuilt_kernel("6.12")
    parts = work / "parts"
    shutil.copytree(kernel.dtbs, parts / "userspace" / "dtbs")
    (parts / "initrd").write_bytes(b"initrd")
    board = load_board("virtual")
    dtb = parts / "userspace/dtbs/amlogic/meson-g12b-a311d-khadas-vim3.dtb"
    shutil.copytree(kernel.modules, parts / "modules", symlinks=True)
    changed = PrebuiltKernel(
        kernel.series, kernel.release, kernel.image, parts / "modules", kernel.dtbs, kernel.config,
        kernel.package, kernel.version,
    )  # fmt: skip

    def assemble(name: str) -> Bundle:
        made = Parts(board, changed, parts / "initrd", dtb, parts / "userspace", "console=ttyAMA0")
        return bundles.assemble(made, work / name)

    first = assemble("first")
    modules = sorted((parts / "modules/kernel/drivers/gpu").rglob("*.ko*"))[:3]
    for path in modules:
        content = path.read_bytes()
        path.unlink()  # it is a hard link into the first bundle
        path.write_bytes(content[:-64] + os.urandom(64))
    content = dtb.read_bytes()
    dtb.unlink()
    dtb.write_bytes(content + bytes(64))
    return first, assemble("second"), make_bundle(work / "tiny")


def same(source: Path, there: Path, name: str) -> None:
    if source.is_symlink():
        assert there.is_symlink(), f"{name} was not delivered"
        assert source.readlink() == there.readlink(), f"{name} was delivered wrong"
    else:
        assert filecmp.cmp(source, there, shallow=False), f"{name} was delivered wrong"


def run(argv: list[str], cwd: Path | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False, env={**os.environ})
    if done.returncode != 0:
        sys.exit(f"{argv[0]} failed: {done.stderr.decode()[-2000:]}")


def whole(bench: Bench, rounds: int) -> list[Timing]:
    """All files to a board that has none of them."""
    (bench.peer).mkdir(exist_ok=True)
    count = len({e.sha256 for e in bench.first.manifest.files if e.link is None})

    def clean() -> None:
        remove(bench.peer / "first")

    def check() -> None:
        bench.peer_has("first", bench.first)

    arms = [
        Arm("tar | ssh", bench.tar, clean, check=check),
        Arm("tar | ssh again (A/A)", bench.tar, clean, check=check),
        Arm(
            "deploy",
            lambda: bench.ours(bench.first, files=count),
            lambda: bench.forget(bench.first),
            1.3,
            lambda: bench.delivered(bench.first),
        ),
    ]
    return measure(arms, rounds=rounds)


def nothing(bench: Bench, rounds: int) -> list[Timing]:
    """All files are there already."""
    arms = [
        Arm("rsync -a", bench.rsync_nothing),
        Arm("rsync -a again (A/A)", bench.rsync_nothing),
        Arm("deploy", lambda: bench.ours(bench.first, whole=True), target=1.0),
    ]
    return measure(arms, rounds=rounds)


def small(bench: Bench, rounds: int) -> list[Timing]:
    """One DTB and three modules have changed."""

    def clean() -> None:
        remove(bench.peer / "second")

    def check() -> None:
        bench.peer_has("second", bench.second)

    # The DTB stands twice: as the board's own on the boot partition, and among all others.
    arms = [
        Arm("rsync --link-dest, mv", bench.rsync_atomic, clean, check=check),
        Arm("rsync --link-dest, mv again (A/A)", bench.rsync_atomic, clean, check=check),
        Arm(
            "deploy",
            lambda: bench.ours(bench.second, files=5),
            lambda: bench.forget(bench.second),
            0.6,
            lambda: bench.delivered(bench.second),
        ),
    ]
    return measure(arms, rounds=rounds)


def main() -> None:
    """Run the three comparisons and print them."""
    options = arguments("Times deployments.", rounds=9)
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-", dir=in_memory) as name:
        os.environ["NPU_BSP_STATE"] = f"{name}/state"
        bench = Bench(Path(name))
        with contextlib.closing(bench):
            count = len(bench.first.manifest.files)
            title = f"{count} files, {bench.first.manifest.total_bytes / 1e6:.0f} MB"
            results = {f"whole tree, {title}": whole(bench, options.rounds)}
            bench.install(bench.first)
            results["nothing to do"] = nothing(bench, options.rounds * 2)
            results["one DTB and three modules"] = small(bench, options.rounds * 2)
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
