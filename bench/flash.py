# SPDX-License-Identifier: MIT
"""How long an image takes to build, and to get onto storage: against dd and mkfs, zstd and ssh.

    .venv/bin/python -m bench.flash [--rounds N] [--json] [--part build|loopback|whole|slow|whole-slow]...

Flash: an image of 2 GB, 30 % of it mapped (the files of a real root, so that it compresses as one does),
to a real SSH server on this machine. "Ideal" is what bmaptool does, through one pipe: the mapped bytes,
zstd -1, ssh, zstd -d, written and flushed; nothing is hashed and nothing is read back. Once over loopback,
where the processor is what counts, and once over a link of 100 Mbit/s, where the bytes are. Storage is a
file in memory. Image: the root file system is in the cache, the bundle is made; the peer writes as many
bytes with dd, flushes them, and makes the two file systems, empty.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from .measure import Arm, Timing, measure, report

from bsp.remote.inventory import Host  # isort: skip
from bsp.catalog import load_board
from images.bundle.assemble import bundle_for
from images.disk import bmap
from images.disk.image import FAT_SIZE_BYTES, ImageRequest, build_image
from images.disk.rootfs import root_tar
from images.flash.command import FlashRequest, flash
from tests.support import local_sshd

IMAGE_BYTES = 2 << 30
MAPPED = 0.30
LINK_BYTES_PER_S = 12.5e6
_STRETCH_BYTES = 24 << 20
_PARTS = ("build", "loopback", "whole", "slow", "whole-slow")


def make_image(image: Path) -> None:
    """2 GB, 30 % of it mapped, in stretches; the content is that of a root file system's tar."""
    content = root_tar().tar.read_bytes()
    want, at, taken = int(IMAGE_BYTES * MAPPED), 0, 0
    with image.open("wb") as file:
        while taken < want:
            size = min(_STRETCH_BYTES, want - taken)
            start = taken % (len(content) - size)
            file.seek(at)
            file.write(content[start : start + size])
            taken += size
            at += int(size / MAPPED) // bmap.BLOCK_BYTES * bmap.BLOCK_BYTES
        file.truncate(IMAGE_BYTES)
    bmap.write(bmap.map_file(image), bmap.hashed(image, bmap.stored(image)))


def shell(line: str) -> None:
    """Run a pipeline; all of it has to succeed."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], capture_output=True, check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{line[:80]}... failed: {done.stderr.decode()[-2000:]}")


# The peer's two ends: the mapped bytes in order, and back to where they belong.
_READ = """\
import os, sys
out = sys.stdout.buffer.fileno()
image = os.open(sys.argv[1], os.O_RDONLY)
for start, end in {spans}:
    while start < end:
        start += os.sendfile(out, image, start, min(end - start, 1 << 20))
"""
_WRITE = """\
import os, sys
device = os.open(sys.argv[1], os.O_WRONLY)
for start, end in {spans}:
    os.lseek(device, start, 0)
    while start < end:
        data = os.read(0, min(end - start, 1 << 20))
        assert data
        start += os.write(device, data)
os.fsync(device)
"""


class Bench:
    """An image, a server, a file for a device, and the arms."""

    def __init__(self, work: Path, image: Path, host: Host, device: Path) -> None:
        self.image, self.host, self.device, self.work = image, host, device, work
        block_map = bmap.read(bmap.map_file(image))
        spans = [block_map.span(each) for each in block_map.ranges]
        for name, text in (("read.py", _READ), ("write.py", _WRITE)):
            (work / name).write_text(text.format(spans=spans))
        assert host.identity_file
        assert host.known_hosts
        self.ssh = (
            f"ssh -F none -c aes128-gcm@openssh.com -p {host.port} -i {host.identity_file} "
            f"-o IdentitiesOnly=yes -o UserKnownHostsFile={host.known_hosts} {host.user}@127.0.0.1"
        )

    def fresh(self) -> None:
        """The device as it is before: of the right size, and nothing of it written."""
        with self.device.open("wb") as file:
            file.truncate(IMAGE_BYTES)

    def ideal(self) -> None:
        there = f"zstd -dcq | python3 {self.work}/write.py {self.device}"
        shell(f"python3 {self.work}/read.py {self.image} | zstd -1cq | {self.ssh} '{there}'")

    def whole(self) -> None:
        there = f"dd of={self.device} bs=1M conv=notrunc,fsync status=none iflag=fullblock"
        shell(f"dd if={self.image} bs=1M status=none | {self.ssh} '{there}'")

    def ours(self) -> None:
        flash(
            FlashRequest(
                str(self.device),
                self.image,
                host=self.host,
                any_device=True,
                raw=True,
                root=str(self.work),
            ),
            yes=True,
        )

    def delivered(self) -> None:
        shell(f"cmp {self.image} {self.device}")


def over(host: Host, work: Path, image: Path, device: Path, rounds: int) -> list[Timing]:
    """The mapped bytes: the ideal, itself again, and ours."""
    bench = Bench(work, image, host, device)
    arms = [
        Arm("ideal: mapped | zstd -1 | ssh", bench.ideal, bench.fresh, check=bench.delivered),
        Arm("ideal again (A/A)", bench.ideal, bench.fresh, check=bench.delivered),
        Arm("flash", bench.ours, bench.fresh, 1.1, bench.delivered),
    ]
    return measure(arms, rounds=rounds, warm_up=0)


def against_whole(host: Host, work: Path, image: Path, device: Path, rounds: int) -> list[Timing]:
    """All bytes with dd through ssh, against ours; the ratio is theirs to ours."""
    bench = Bench(work, image, host, device)
    arms = [
        Arm("flash", bench.ours, bench.fresh, check=bench.delivered),
        Arm("flash again (A/A)", bench.ours, bench.fresh, check=bench.delivered),
        Arm("dd | ssh", bench.whole, bench.fresh, -2.5, bench.delivered),
    ]
    return measure(arms, rounds=rounds, warm_up=0)


def building(work: Path, rounds: int) -> list[Timing]:
    """Image assembly against writing as many bytes and making the file systems."""
    board = load_board("virtual")
    bundle = bundle_for(board)
    key = local_sshd.make_key(work / "user").with_name("user.pub")
    output = work / "built.img"
    request = ImageRequest(board=board, bundle=bundle.path, ssh_key=key, output=output)
    mapped = build_image(request).description.mapped_bytes or 0
    peer = work / "peer.img"

    request_bytes = output.stat().st_size
    shell(f"dd if={root_tar().tar} of={work}/bytes bs=1M status=none")

    def same_bytes() -> None:
        root_kib = (request_bytes - FAT_SIZE_BYTES) // 1024 - (32 << 10)
        times = -(-mapped // (work / "bytes").stat().st_size)
        shell(
            f"rm -f {peer}*; for i in $(seq {times}); do cat {work}/bytes; done | "
            f"dd of={peer} bs=1M count={mapped >> 20} iflag=fullblock conv=fsync status=none; "
            f"mkfs.ext4 -q -F {peer}.ext4 {root_kib}k && "
            f"truncate -s {FAT_SIZE_BYTES} {peer}.fat && mformat -i {peer}.fat -F :: && "
            f"sync {peer}.fat {peer}.ext4"
        )

    arms = [
        Arm("dd + mkfs", same_bytes),
        Arm("dd + mkfs again (A/A)", same_bytes),
        Arm("build-image, nothing changed", lambda: build_image(request), target=2.5),
        Arm("build-image, no image there", lambda: build_image(request), output.unlink),
    ]
    return measure(arms, rounds=rounds, warm_up=0)


_RELAY = """\
import sys
from tests.support.relay import Relay
with Relay({port}, bytes_per_s={rate}) as relay:
    print(relay.port, flush=True)
    sys.stdin.read()
"""


def slow_link(stack: ExitStack, port: int) -> int:
    """Start a relay in a process of its own, so that it takes nothing from ours; return its port."""
    program = _RELAY.format(port=port, rate=LINK_BYTES_PER_S)
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    stack.callback(process.stdin.close)
    return int(process.stdout.readline())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each arm is run")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.add_argument("--part", action="append", choices=_PARTS, help="only this; several times")
    options = parser.parse_args()
    options.part = options.part or _PARTS
    return options


def main() -> None:
    """Measure, and print the tables."""
    options = _options()
    results = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="npu-bsp-bench-")))
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # storage that costs nothing
        shm = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        image, device = work / "two-gb.img", shm / "device"
        if "build" in options.part:
            results["build-image, root file system cached"] = building(work, options.rounds)
        make_image(image)
        sshd = local_sshd.start(work / "sshd")
        stack.callback(sshd.stop)
        if "loopback" in options.part:
            results["flash over loopback"] = over(sshd.host, work, image, device, options.rounds)
        if "whole" in options.part:
            results["flash against the whole, over loopback"] = against_whole(
                sshd.host, work, image, device, options.rounds
            )
        if {"slow", "whole-slow"} & set(options.part):
            port = slow_link(stack, sshd.port)
            known_hosts = work / "known_hosts"
            key = (sshd.folder / "known_hosts").read_text().split(" ", 1)[1]
            known_hosts.write_text(f"[127.0.0.1]:{port} {key}")
            slow = replace(sshd.host, port=port, known_hosts=known_hosts)
            if "slow" in options.part:
                rounds = min(options.rounds, 3)
                results["flash over 100 Mbit/s"] = over(slow, work, image, device, rounds)
            if "whole-slow" in options.part:  # three minutes a round
                results["flash against the whole, over 100 Mbit/s"] = against_whole(
                    slow, work, image, device, min(options.rounds, 2)
                )
    report(results, as_json=options.json)


if __name__ == "__main__":
    main()
