# SPDX-License-Identifier: MIT
"""Many boards at once: a fleet deployment against OpenSSH processes, 16 at a time, to the same SSH servers.

    .venv/bin/python -m bench.fleet [--rounds N] [--boards N] [--peers FOLDER] [--json]

Each board is a folder in memory behind a real OpenSSH server of its own. The payload is part of the
distribution's kernel package: the Image, the initial RAM disk's place taken by a part of it, and the
modules of one subsystem. Ours stops before the reboot (there is nothing to boot), but flushes and hashes;
it goes through the fleet's own scheduler without a canary, 16 boards at a time. The peer is `tar | ssh`
with aes128-gcm, unpacked beside and put in place by a rename. What is delivered is compared with the
source, outside the clock, on every eighth of the boards. Every arm is a program of its own, and its
processor time, with that of all that it starts on this side, is measured too.

``--peers`` names a virtual environment with ansible-core, pyinfra and fabric, to be measured beside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .deploy import ROOT, run, same
from .measure import Arm, Timing, measure, report

from bsp.base.cache import remove  # isort: skip
from bsp.catalog import load_board
from bsp.kernel.packaged import PrebuiltKernel, prebuilt_kernel
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle, Parts
from images.deploy.boot import slots
from tests.support.fake_board import make_bundle
from tests.support.fleet_boards import FleetBoards

JOBS = 16

_OURS = """\
import pathlib, runpy, sys
runpy.run_path("commands/face/start.py")
import tasks
from dataclasses import replace
from pathlib import PosixPath
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.deploy import plan as planning
from images.deploy.claim import Claim
from images.deploy.deploy import prepare
from images.deploy.deployment import Deployment
from images.deploy.session import Target, session
from images.deploy.fleet.fleet import deploy_fleet
from images.deploy.transfer.shared import Shared
from images.deploy.transfer.agent import each_known
from images.deploy.fleet.waves import Rules

shared = Shared()
targets = {{name: replace(each, shared=shared) for name, each in {targets!r}.items()}}
bundle = bundles.load(pathlib.Path({bundle!r}))
bundles.check(bundle)

def one(name):
    with session(targets[name]) as agent:
        facts = agent.open(bundle.generation, fat_mount="/boot/firmware", lock=True)
        good = planning.check_layout(facts, host=name, fat_mount="/boot/firmware")
        known = {{each.generation: each for each in each_known(agent, facts)}}
        plan = planning.plan_deploy(bundle.manifest, facts, good, known, host=name)
        result = Deployment(name, "virtual", None, bundle.generation, plan=plan, outcome="confirmed")
        prepare(agent, plan, bundle, facts, result)
        assert result.sent.sent_files == {files!r}, result.sent.sent_files
        return result

rules = Rules(canary=0, wave_size=1000, jobs={jobs})
report = deploy_fleet(dict.fromkeys(targets, bundle.generation), one, rules, fresh=True)
assert report.exit_code == 0, report.document()
"""


class Bench:
    """The boards, the bundle, and the arms."""

    def __init__(self, work: Path, count: int) -> None:
        self.work = work
        self.bundle = _bundle(work)
        self.fleet = FleetBoards(work / "fleet", make_bundle(work / "tiny"), count)

    def peer(self, name: str) -> Path:
        return self.fleet.boards[name].folder / "peer"

    def ssh(self, name: str) -> list[str]:
        host = self.fleet.boards[name].host
        assert host.identity_file
        assert host.known_hosts
        return [
            "ssh", "-F", "none", "-c", "aes128-gcm@openssh.com", "-p", str(host.port),
            "-i", str(host.identity_file), "-o", "IdentitiesOnly=yes",
            "-o", f"UserKnownHostsFile={host.known_hosts}", "-o", "StrictHostKeyChecking=yes",
        ]  # fmt: skip

    # --- arms

    def ours(self) -> None:
        targets = {
            name: replace(target, shared=None) for name, target in self.fleet.targets().items()
        }
        files = len({e.sha256 for e in self.bundle.manifest.files if e.link is None})
        program = _OURS.format(
            targets=targets, bundle=str(self.bundle.path), files=files, jobs=JOBS
        )
        run([sys.executable, "-c", program], cwd=ROOT)

    def forget(self) -> None:
        for board in self.fleet.boards.values():
            remove(board.root / slots.STORE / self.bundle.generation)
            for entry in slots.boot_entries(self.bundle.manifest):
                (board.fat / slots.fat_path(entry.sha256).lstrip("/")).unlink(missing_ok=True)
        for name in self.fleet.names:
            remove(self.peer(name))

    def delivered(self) -> None:
        for name in self.fleet.names[:: max(len(self.fleet.names) // 8, 1)]:
            board = self.fleet.boards[name]
            for entry in self.bundle.manifest.files:
                there = (
                    board.fat / slots.fat_path(entry.sha256).lstrip("/")
                    if slots.on_fat(entry)
                    else board.root / slots.STORE / self.bundle.generation / entry.path
                )
                same(self.bundle.file(entry), there, entry.path)

    def many(self, line: Callable[[str], str]) -> None:
        """One shell line for each board, 16 at a time, as xargs does it."""
        lines = "\0".join(line(name) for name in self.fleet.names)
        done = subprocess.run(
            ["xargs", "-0", "-P", str(JOBS), "-n", "1", "sh", "-ec"],
            input=lines.encode(), capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.stderr.decode()[-2000:])

    def tar(self, *, squeeze: bool = False) -> None:
        pack, unpack = ("zstd -1 -q |", "zstd -dq |") if squeeze else ("", "")

        def line(name: str) -> str:
            host, peer = self.fleet.boards[name].host, self.peer(name)
            return (
                f"tar -C {self.bundle.path} -cf - . | {pack} {' '.join(self.ssh(name))} "
                f"{host.user}@127.0.0.1 'mkdir -p {peer}/new && cd {peer} && "
                f"{unpack} tar -C new -xf - && mv new done'"
            )

        self.many(line)

    def rsync(self) -> None:
        def line(name: str) -> str:
            host, peer = self.fleet.boards[name].host, self.peer(name)
            shell = " ".join(self.ssh(name))
            return (
                f"rsync -a --mkpath -e '{shell}' {self.bundle.path}/ {host.user}@127.0.0.1:{peer}/new/ && "
                f"{shell} {host.user}@127.0.0.1 mv {peer}/new {peer}/done"
            )

        self.many(line)

    def peer_delivered(self) -> None:
        for name in self.fleet.names[:: max(len(self.fleet.names) // 8, 1)]:
            for entry in self.bundle.manifest.files:
                same(self.bundle.file(entry), self.peer(name) / "done" / entry.path, entry.path)

    # --- tools that manage many machines

    def ansible(self, environment: Path) -> None:
        """The archive is made beforehand, which is in their favour; unpacked by a module of theirs."""
        inventory = self.work / "ansible.ini"
        lines = []
        for name in self.fleet.names:
            host = self.fleet.boards[name].host
            lines.append(
                f"{name} ansible_host=127.0.0.1 ansible_port={host.port} ansible_user={host.user} "
                f"ansible_ssh_private_key_file={host.identity_file} peer={self.peer(name)} "
                f"ansible_ssh_common_args='-F none -o UserKnownHostsFile={host.known_hosts} "
                "-o StrictHostKeyChecking=yes'"
            )
        inventory.write_text("[all]\n" + "\n".join(lines) + "\n")
        book = self.work / "book.yml"
        book.write_text(
            "- hosts: all\n  gather_facts: false\n  tasks:\n"
            "  - file: {path: '{{ peer }}/done', state: directory}\n"
            f"  - unarchive: {{src: {self.archive()}, dest: '{{{{ peer }}}}/done'}}\n"
        )
        run_in(
            [str(environment / "bin/ansible-playbook"), "-f", str(JOBS), "-i", str(inventory), str(book)],
            {
                "ANSIBLE_PIPELINING": "1",
                "HOME": str(self.work),
                "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            },
        )  # fmt: skip

    def fabric(self, environment: Path) -> None:
        hosts = [
            (each.host.port, each.host.user, str(each.host.identity_file), str(self.peer(name)))
            for name, each in self.fleet.boards.items()
        ]
        program = (
            "from concurrent.futures import ThreadPoolExecutor\nfrom fabric import Connection\n"
            "def one(h):\n    port, user, key, peer = h\n"
            "    with Connection('127.0.0.1', user=user, port=port,"
            " connect_kwargs={'key_filename': key, 'allow_agent': False}) as c:\n"
            "        c.run(f'mkdir -p {peer}/done', hide=True)\n"
            f"        c.put({str(self.archive())!r}, peer + '/a.tar')\n"
            "        c.run(f'tar -C {peer}/done -xf {peer}/a.tar && rm {peer}/a.tar', hide=True)\n"
            f"with ThreadPoolExecutor({JOBS}) as pool: list(pool.map(one, {hosts!r}))\n"
        )
        run_in([str(environment / "bin/python"), "-c", program], {"HOME": str(self.work)})

    def archive(self) -> Path:
        tar_file = self.work / "payload.tar"
        if not tar_file.exists():
            run(["tar", "-C", str(self.bundle.path), "-cf", str(tar_file), "."])
        return tar_file

    def close(self) -> None:
        self.fleet.close()


def run_in(argv: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(argv, env={**os.environ, **environment}, capture_output=True, check=False)
    if done.returncode:
        sys.exit((done.stdout + done.stderr).decode()[-3000:])


def _bundle(work: Path) -> Bundle:
    """About 50 MB in a few hundred files."""
    kernel = prebuilt_kernel("6.12")
    parts = work / "parts"
    modules = parts / "modules"
    source = kernel.modules / "kernel/drivers/gpu"
    shutil.copytree(source, modules / "kernel/drivers/gpu", symlinks=True)
    shutil.copyfile(kernel.modules / "modules.dep", modules / "modules.dep")
    (parts / "initrd").write_bytes(kernel.image.read_bytes()[: 4 << 20])
    dtb = kernel.dtbs / "amlogic/meson-g12b-a311d-khadas-vim3.dtb"
    some = PrebuiltKernel(
        kernel.series, kernel.release, kernel.image, modules, kernel.dtbs, kernel.config,
        kernel.package, kernel.version,
    )  # fmt: skip
    parts_of_bundle = Parts(
        load_board("virtual"), some, parts / "initrd", dtb, None, "console=ttyAMA0"
    )  # fmt: skip
    return bundles.assemble(parts_of_bundle, work / "bundle")


def arms(bench: Bench, peers: Path | None, *, more: bool) -> list[Arm]:
    def arm(
        name: str,
        do: Callable[[], None],
        target: float | None = None,
        check: Callable[[], None] = bench.peer_delivered,
    ) -> Arm:
        return Arm(name, do, bench.forget, target, check)

    measured_arms = [
        arm("tar | ssh, 16 at a time", bench.tar),
        arm("tar | ssh again (A/A)", bench.tar),
        arm("deploy to a fleet", bench.ours, 0.8, bench.delivered),
    ]
    if more:
        measured_arms += [
            arm("tar | zstd -1 | ssh", lambda: bench.tar(squeeze=True)),
            arm("rsync -a, mv", bench.rsync),
        ]
    if peers:
        measured_arms += [
            arm("ansible unarchive", lambda: bench.ansible(peers)),
            arm("fabric put, tar", lambda: bench.fabric(peers)),
        ]
    return measured_arms


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description="Times deployments to many boards.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--boards", type=int, default=64)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--more", action="store_true", help="rsync and zstd beside")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="npu-bsp-bench-", dir=in_memory) as name:
        os.environ["NPU_BSP_STATE"] = f"{name}/state"
        began = time.monotonic()
        bench = Bench(Path(name), options.boards)
        try:
            size = bench.bundle.manifest.total_bytes / 1e6
            title = f"{options.boards} boards, {len(bench.bundle.manifest.files)} files, {size:.0f} MB each"
            sys.stderr.write(f"{title}; made in {time.monotonic() - began:.0f} s\n")
            timings: list[Timing] = measure(
                arms(bench, options.peers, more=options.more), rounds=options.rounds, warm_up=0
            )
        finally:
            bench.close()
    report({title: timings}, as_json=options.json)


if __name__ == "__main__":
    main()
