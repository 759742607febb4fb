# SPDX-License-Identifier: MIT
"""How long a deployment takes: against tar through ssh, and against rsync, on the same real SSH server.

    .venv/bin/python -m bench.deploy [--rounds N] [--part fast|slow|kernel]... [--old-kernel DEB] [--json]

The payload is the distribution's whole kernel package: image, modules and DTBs, 5,400 files and 180 MB.
Board and host are folders in memory, so that the disk is not what is measured. All arms use the same
server, cipher (AES-128-GCM) and key; what each delivered is compared with the source, outside the clock.
Every arm is a program of its own: the start-up of Python counts on our side, that of ssh on theirs.

``slow`` is the same over a link of 100 Mbit/s and 20 ms (link.py), against tar over a bare TCP connection
too, and without scp, which waits for several round trips with each file: minutes.
``kernel`` has the board run another point release (``--old-kernel``: the vmlinuz of it) and sends the
present one over that link: Image, initial RAM disk and DTB, without the modules.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from . import link
from .link import slow_link
from .measure import Arm, Timing, measure, report

from bsp.base.cache import remove  # isort: skip
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel, prebuilt_kernel
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Parts
from images.deploy.boot import slots
from images.deploy.transfer import contents, delta
from tests.support.fake_board import FakeBoard

ROOT = Path(__file__).parents[1]

# What `./inv deploy` does up to the reboot, or (for a bundle that runs already) to its end, with what ./inv
# imports; the board's root is a folder, which the command line has no flag for.
_OURS = """\
import pathlib, runpy, sys
runpy.run_path("commands/face/start.py")
import tasks
from bsp.remote.inventory import Host
from bsp.remote.ssh import connect
from images.bundle import manifest as bundles
from images.deploy import plan as planning
from images.deploy.claim import Claim
from images.deploy.deploy import deploy, prepare
from images.deploy.deployment import Deployment
from images.deploy.session import Target
from images.deploy.transfer.agent import Agent, each_known
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
            result = Deployment("bench", "virtual", None, bundle.generation, plan=plan)
            prepare(agent, plan, bundle, facts, result)
            assert result.sent.sent_files == {files!r}, result.sent.sent_files
            print(f"{{result.sent.wire_bytes}} bytes, {{result.sent.patched_files}} patches")
"""


class Bench:
    """A board, three bundles, and the arms.

    Attributes:
        host: how ours reaches the board; ``ssh`` is how the others do.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.first, self.second, self.tiny = make_bundles(work)
        self.board = FakeBoard(work / "board", self.tiny)
        self.store = self.board.root / slots.STORE
        self.host = self.board.host
        assert self.host.identity_file
        assert self.host.known_hosts
        self.ssh = self._ssh(self.host.port)
        self.peer = work / "peer"

    def _ssh(self, port: int) -> list[str]:
        return [
            "ssh", "-F", "none", "-c", "aes128-gcm@openssh.com", "-p", str(port),
            "-i", str(self.host.identity_file), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={self.host.known_hosts}", "-o", "StrictHostKeyChecking=yes",
        ]  # fmt: skip

    @contextlib.contextmanager
    def over(self, port: int) -> Iterator[None]:
        """Reach the board through another port: that of a relay."""
        before = self.host, self.ssh
        known_hosts = self.work / f"known-{port}"
        assert self.host.known_hosts
        key = self.host.known_hosts.read_text().partition(" ")[2]
        known_hosts.write_text(f"[127.0.0.1]:{port} {key}")
        self.host = replace(self.host, port=port, known_hosts=known_hosts)
        self.ssh = self._ssh(port)
        try:
            yield
        finally:
            self.host, self.ssh = before

    @property
    def remote(self) -> str:
        return f"{self.host.user}@127.0.0.1"

    # --- ours

    def ours(self, bundle: Bundle, *, files: int = 0, whole: bool = False) -> None:
        target = replace(self.board.target(), host=self.host)
        program = _OURS.format(target=target, bundle=str(bundle.path), files=files, whole=whole)
        self.said = run([sys.executable, "-c", program], cwd=ROOT)

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
        from tests.support.fake_boot import boot

        boot(self.board.root)

    # --- peers

    def tar(self) -> None:
        line = (
            f"tar -C {self.first.path} -cf - . | {' '.join(self.ssh)} {self.remote} "
            f"'cd {self.peer} && mkdir new && tar -C new -xf - && mv new first'"
        )
        run(["sh", "-c", line])

    @contextlib.contextmanager
    def listening(self) -> Iterator[int]:
        """Port where tar's stream is unpacked that comes over a bare TCP connection."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=self._take, args=(server,), daemon=True).start()
            yield int(server.getsockname()[1])

    def _take(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection:
                    (self.peer / "new").mkdir()
                    subprocess.run(
                        ["tar", "-C", str(self.peer / "new"), "-xf", "-"],
                        stdin=connection.fileno(), check=True,
                    )  # fmt: skip
                    (self.peer / "new").rename(self.peer / "first")
                    connection.sendall(b".")

    def plain(self, port: int) -> None:
        """tar over a bare TCP connection: nothing is encrypted, nobody is asked who they are."""
        with socket.create_connection(("127.0.0.1", port)) as connection:
            subprocess.run(
                ["tar", "-C", str(self.first.path), "-cf", "-", "."],
                stdout=connection.fileno(), check=True,
            )  # fmt: skip
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b"."

    def scp(self) -> None:
        words = [word if word != "-p" else "-P" for word in self.ssh[1:]]
        run(["scp", "-q", "-r", *words, str(self.first.path), f"{self.remote}:{self.peer}/new"])
        run([*self.ssh, self.remote, f"mv {self.peer}/new {self.peer}/first"])

    def rsync_whole(self, *more: str, source: Bundle | None = None) -> None:
        """Beside the old one, then put in place by a rename."""
        source = source or self.first
        run([
            "rsync", "-a", *more, "-e", " ".join(self.ssh), f"{source.path}/",
            f"{self.remote}:{self.peer}/new/",
        ])  # fmt: skip
        run([*self.ssh, self.remote, f"mv {self.peer}/new {self.peer}/first"])

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
    from tests.support.fake_board import make_bundle

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


def run(argv: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False, env={**os.environ})
    if done.returncode != 0:
        sys.exit(f"{argv[0]} failed: {done.stderr.decode()[-2000:]}")
    return done.stdout.decode().strip()


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
        Arm("scp -r, mv", bench.scp, clean, check=check),
        Arm("rsync -a, mv", bench.rsync_whole, clean, check=check),
        Arm(
            "deploy",
            lambda: bench.ours(bench.first, files=count),
            lambda: bench.forget(bench.first),
            1.15,
            lambda: bench.delivered(bench.first),
        ),
    ]
    return measure(arms, rounds=rounds)


def nothing(bench: Bench, rounds: int) -> list[Timing]:
    """All files are there already."""
    arms = [
        Arm("rsync -a", bench.rsync_nothing),
        Arm("rsync -a again (A/A)", bench.rsync_nothing),
        Arm("deploy", lambda: bench.ours(bench.first, whole=True), target=0.9),
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
            0.45,
            lambda: bench.delivered(bench.second),
        ),
    ]
    return measure(arms, rounds=rounds)


def slow_whole(bench: Bench, rounds: int) -> list[Timing]:
    """All files to a board that has none, 100 Mbit/s and 20 ms away."""
    bench.peer.mkdir(exist_ok=True)
    count = len({e.sha256 for e in bench.first.manifest.files if e.link is None})

    def clean() -> None:
        remove(bench.peer / "first")

    def check() -> None:
        bench.peer_has("first", bench.first)

    with (
        slow_link(bench.board.host.port) as port,
        bench.over(port),
        bench.listening() as listener,
        slow_link(listener) as plain_port,
    ):
        arms = [
            Arm("tar over TCP", lambda: bench.plain(plain_port), clean, check=check),
            Arm("tar over TCP again (A/A)", lambda: bench.plain(plain_port), clean, check=check),
            Arm("tar | ssh", bench.tar, clean, check=check),
            Arm("rsync -a, mv", bench.rsync_whole, clean, check=check),
            Arm(
                "deploy",
                lambda: bench.ours(bench.first, files=count),
                lambda: bench.forget(bench.first),
                1.05,
                lambda: bench.delivered(bench.first),
            ),
        ]
        return measure(arms, rounds=rounds, warm_up=1 if rounds > 1 else 0)


def slow_kernel(bench: Bench, old_image: Path, rounds: int) -> list[Timing]:
    """A point release of the kernel to a board that runs the one before."""
    kernel = prebuilt_kernel("6.12")
    board = load_board("virtual")
    modules = bench.work / "no-modules"
    modules.mkdir()
    (modules / "modules.dep").write_bytes(b"")
    images = {"old": old_image, "new": kernel.image}

    def assemble(name: str) -> Bundle:
        few = replace(kernel, image=images[name], modules=modules)
        dtb = kernel.dtbs / "amlogic/meson-g12b-a311d-khadas-vim3.dtb"
        (bench.work / "initrd").write_bytes(b"initrd")
        parts = Parts(board, few, bench.work / "initrd", dtb, None, "console=ttyAMA0")
        return bundles.assemble(parts, bench.work / f"kernel-{name}")

    old, new = assemble("old"), assemble("new")
    bench.install(old)
    os.environ["NPU_BSP_CACHE"] = str(bench.work / "cache")  # the user's own is left alone
    contents.keep(old)  # as after a deployment from here
    remove(bench.peer)
    (bench.peer / "old").mkdir(parents=True)
    run(["cp", "-a", f"{old.path}/.", str(bench.peer / "old")])

    def clean() -> None:
        remove(bench.peer / "first")

    def forget() -> None:
        bench.forget(new)
        slots.lay_out(old, bench.board.fat, bench.board.root, whole=False)

    def check() -> None:
        bench.peer_has("first", new)

    with slow_link(bench.board.host.port) as port, bench.over(port):
        delta.remember_rate(bench.host, link.BYTES_PER_S)  # as after the deployment before
        delta_arm = ("--no-whole-file", f"--copy-dest={bench.peer}/old")
        arms = [
            Arm("rsync with a delta, mv",
                lambda: bench.rsync_whole(*delta_arm, source=new), clean, check=check),
            Arm("the same again (A/A)",
                lambda: bench.rsync_whole(*delta_arm, source=new), clean, check=check),
            Arm("rsync -z with a delta, mv",
                lambda: bench.rsync_whole("-z", *delta_arm, source=new), clean, check=check),
            Arm("deploy, patches", lambda: bench.ours(new, files=1), forget, 0.5,
                lambda: bench.delivered(new)),
        ]  # fmt: skip
        timings = measure(arms, rounds=rounds)
    sys.stderr.write(f"on the wire: {bench.said}\n")
    assert bench.said.endswith("1 patches"), bench.said
    return timings


def main() -> None:
    """Run the comparisons and print them."""
    parser = argparse.ArgumentParser(description="Times deployments.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--part", action="append", choices=("fast", "slow", "kernel"))
    parser.add_argument("--old-kernel", type=Path, help="vmlinuz of another point release")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    parts = options.part or ["fast"]
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-", dir=in_memory) as name:
        os.environ["NPU_BSP_STATE"] = f"{name}/state"
        results: dict[str, list[Timing]] = {}
        bench = Bench(Path(name))
        with contextlib.closing(bench):
            count = len(bench.first.manifest.files)
            title = f"{count} files, {bench.first.manifest.total_bytes / 1e6:.0f} MB"
            if "slow" in parts:
                results[f"whole tree over 100 Mbit/s, 20 ms, {title}"] = slow_whole(
                    bench, options.rounds
                )
            if "kernel" in parts:
                if not options.old_kernel:
                    sys.exit("--part kernel needs --old-kernel")
                results["a point release of the kernel over 100 Mbit/s, 20 ms"] = slow_kernel(
                    bench, options.old_kernel, options.rounds
                )
            if "fast" in parts:
                results[f"whole tree, {title}"] = whole(bench, options.rounds)
                bench.install(bench.first)
                results["nothing to do"] = nothing(bench, options.rounds * 2)
                results["one DTB and three modules"] = small(bench, options.rounds * 2)
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
