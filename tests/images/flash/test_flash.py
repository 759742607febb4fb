# SPDX-License-Identifier: MIT
"""Flash: plain files for devices, a real SSH server, a link that is cut; what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from bsp.catalog import load_board
from bsp.profile import Board, BoardIdentity
from bsp.remote.inventory import Host
from images.deploy.boot import slots
from images.deploy.transfer.agent import START, started_with
from images.disk import bmap
from images.disk.image import Description, description_file
from images.flash import plan
from images.flash.command import FlashRequest, flash
from images.flash.onboard import writer
from images.flash.onboard.writer import HEADER
from images.flash.source import read_source
from images.flash.stream import LocalLink, Sent, Session, VanishedError, chunks_of
from tests.support import local_sshd
from tests.support.descriptions import describe
from tests.support.relay import Relay

MIB = 1 << 20
needs_sshd = pytest.mark.skipif(local_sshd.find_sshd() is None, reason="not installed: sshd")


def _with_table(image: Path) -> None:
    """One partition, from 1 MiB to the end."""
    run(["sfdisk", "--quiet", image], stdin=b"label: dos\nstart=2048, type=83\n")


def _make_image(folder: Path, *, mib: int = 24) -> Path:
    """A sparse image: table, noise, text, zeros that count, holes; its end is not a multiple of a chunk."""
    image = folder / "disk.img"
    noise = random.Random(1)
    with image.open("wb") as file:
        for at in range(0, mib, 4):
            file.seek(at * MIB)
            file.write(noise.randbytes(MIB) + b"text " * 100_000)
        file.seek(2 * MIB)
        file.write(bytes(MIB))
        file.truncate(mib * MIB + 512)
    _with_table(image)
    bmap.write(bmap.map_file(image), bmap.hashed(image, bmap.stored(image)))
    return image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def device(tmp_path: Path, image: Path) -> Path:
    """A file in place of a device, full of somebody's old data."""
    path = tmp_path / "device"
    path.write_bytes(b"\xa5" * (image.stat().st_size + 4096))
    return path


def _request(image: Path, device: Path, tmp_path: Path, host: Host | None = None) -> FlashRequest:
    return FlashRequest(str(device), image, host=host, any_device=True, root=str(tmp_path))


def _holds(device: Path, image: Path) -> None:
    """Mapped blocks are the image's, all others are as they were."""
    there, own = device.read_bytes(), image.read_bytes()
    expected = bytearray(b"\xa5" * len(there))
    found = bmap.read(bmap.map_file(image))
    for each in found.ranges:
        start, end = found.span(each)
        expected[start:end] = own[start:end]
    assert there == bytes(expected)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local_sshd.LocalSshd]:
    server = local_sshd.start(tmp_path_factory.mktemp("sshd"))
    try:
        yield server
    finally:
        server.stop()


def test_a_local_device_gets_the_mapped_blocks_and_nothing_else(
    image: Path, device: Path, tmp_path: Path
) -> None:
    planned = flash(_request(image, device, tmp_path), dry_run=True)
    assert planned.outcome == "planned"
    assert device.read_bytes() == b"\xa5" * device.stat().st_size
    result = flash(_request(image, device, tmp_path), yes=True)
    _holds(device, image)
    assert result.verified_bytes == planned.plan["mapped_bytes"]
    assert not (tmp_path / "var/lib/npu-bsp/flash/device.json").exists()


def test_a_board_that_only_has_a_reference_boards_string_is_refused(
    image: Path, tmp_path: Path
) -> None:
    evk = load_board("imx8mp-evk")
    described_image = tmp_path / image.name  # the other tests' image stays without a description
    shutil.copy(image, described_image)
    describe(described_image)
    vim3s = msgspec.json.decode(description_file(described_image).read_bytes(), type=Description)

    def describing(board: Board) -> Description:
        return msgspec.structs.replace(vim3s, board=board.name, compatible=board.compatible)

    described = describing(evk)
    wish = _wish(image, host="h", description=described)
    facts: Any = {
        **_facts(),
        "board": {"compatible": list(evk.compatible), "model": "Example carrier"},
    }
    with pytest.raises(UserError, match="its model is 'Example carrier'"):
        plan.check(wish, facts)
    plan.check(replace(wish, board=evk), facts)  # the user says that it is one
    facts["board"]["model"] = evk.identity.models[0]
    plan.check(wish, facts)
    # A carrier that still runs its maker's tree is known by its model.
    names = BoardIdentity(models=("Example carrier",), runs_as=evk.compatible[0])
    own = msgspec.structs.replace(
        evk, name="carrier", compatible=("acme,carrier", *evk.compatible), identity=names
    )
    described = describing(own)
    with pytest.raises(UserError, match="expected acme,carrier"):
        plan.check(replace(wish, description=described, board=own), facts)
    facts["board"]["model"] = "Example carrier"
    plan.check(replace(wish, description=described, board=own), facts)


@pytest.mark.slow
@needs_sshd
def test_a_flash_goes_on_where_the_link_was_cut(
    image: Path,
    device: Path,
    tmp_path: Path,
    sshd: local_sshd.LocalSshd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resumed_at = []
    send = Session.send

    def note(session: Session, *args: Any, done: int, **rest: Any) -> Any:
        resumed_at.append(done)
        return send(session, *args, done=done, **rest)

    monkeypatch.setattr(Session, "send", note)
    with Relay(sshd.port, cut_after_bytes=(3 * MIB, 7 * MIB)) as relay:
        known = tmp_path / "known_hosts"
        key = (sshd.folder / "known_hosts").read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{relay.port} {key}")
        host = replace(sshd.host, port=relay.port, known_hosts=known)
        result = flash(_request(image, device, tmp_path, host), yes=True)
        assert relay.cuts == 2
    _holds(device, image)
    assert result.reconnects == 2
    assert result.verified_bytes == result.plan["mapped_bytes"]
    # What had arrived is not sent again, also when the new connection comes before it was all checked. How
    # much lies in the buffers of a link that is cut is not for us to say.
    first, second, third = resumed_at
    assert first == 0 < second < third < result.chunks


@pytest.mark.slow
@needs_sshd
def test_another_run_goes_on_where_an_earlier_one_was_ended(
    image: Path, device: Path, tmp_path: Path, sshd: local_sshd.LocalSshd, monkeypatch: Any
) -> None:
    monkeypatch.setattr("images.flash.command.RETRY_S", 0.0)
    with Relay(sshd.port, cut_after_bytes=4 * MIB) as relay:
        known = tmp_path / "known_hosts"
        key = (sshd.folder / "known_hosts").read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{relay.port} {key}")
        host = replace(sshd.host, port=relay.port, known_hosts=known)
        with pytest.raises(InfrastructureError, match="became unreachable"):
            flash(_request(image, device, tmp_path, host), yes=True)
    state = tmp_path / "var/lib/npu-bsp/flash/device.json"
    deadline = time.monotonic() + 5
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    kept = json.loads(state.read_text())["chunks"]
    assert kept > 0
    result = flash(_request(image, device, tmp_path, sshd.host), yes=True)
    assert result.chunks_sent == result.chunks - kept
    _holds(device, image)


def test_what_was_changed_since_an_interrupted_flash_is_written_again(
    image: Path, device: Path, tmp_path: Path
) -> None:
    result = flash(_request(image, device, tmp_path), yes=True)
    from images.flash.onboard.writer import Device

    with device.open("r+b") as file:
        file.seek(100)
        file.write(b"somebody")
    state = tmp_path / "var/lib/npu-bsp/flash/device.json"
    identity = Device("", str(device)).identity()
    state.write_text(
        json.dumps({"image": read_source(image).identity, "device": identity, "chunks": 5})
    )
    again = flash(_request(image, device, tmp_path), yes=True)
    assert again.chunks_sent == result.chunks - 5 + 1
    _holds(device, image)


def test_a_second_flash_at_the_same_time_is_refused(
    image: Path, device: Path, tmp_path: Path
) -> None:
    with Session(LocalLink(), root=str(tmp_path), timeout_s=10) as session:
        session.open(str(device), image="other", token="other", lock=True)
        before = device.read_bytes()
        with pytest.raises(UserError, match="another flash is writing"):
            flash(_request(image, device, tmp_path), yes=True)
        assert device.read_bytes() == before
    flash(_request(image, device, tmp_path), yes=True)


def test_an_image_that_is_not_what_its_map_says_is_refused(device: Path, tmp_path: Path) -> None:
    image = _make_image(tmp_path, mib=8)
    with image.open("r+b") as file:
        file.seek(4 * MIB + 10)
        file.write(b"!")
    with pytest.raises(UserError, match=f"at bytes {4 * MIB}-"):
        flash(_request(image, device, tmp_path), yes=True)
    with image.open("r+b") as file:
        file.truncate(7 * MIB)
    with pytest.raises(UserError, match="truncated"):
        flash(_request(image, device, tmp_path), yes=True)


def test_a_truncated_image_without_a_map_is_found_by_its_partition_table(
    device: Path, tmp_path: Path
) -> None:
    import uuid

    from images.disk.layout import Layout, make_empty

    image = tmp_path / "gpt.img"
    make_empty(image, Layout(64 * MIB, MIB, 8 * MIB, seed=uuid.uuid4()))
    read_source(image)
    with image.open("r+b") as file:
        file.truncate(40 * MIB)
    with pytest.raises(UserError, match="truncated"):
        read_source(image)


def test_nothing_is_overwritten_without_being_asked_for(
    image: Path, device: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no terminal") as raised:
        flash(_request(image, device, tmp_path))
    assert "--yes" in raised.value.hint
    with pytest.raises(UserError, match="not a block device"):
        flash(replace(_request(image, device, tmp_path), any_device=False), yes=True)
    with pytest.raises(UserError, match="no device"):
        flash(_request(image, tmp_path / "nothing", tmp_path), yes=True)
    with device.open("r+b") as file:
        file.truncate(MIB)
    with pytest.raises(UserError, match="too small"):
        flash(_request(image, device, tmp_path), yes=True)


def test_a_device_that_fails_is_one_error(image: Path, device: Path, tmp_path: Path) -> None:
    """A file that cannot grow stands for a device that takes no more: the write itself fails."""
    import resource

    device.write_bytes(b"")
    with device.open("r+b") as file:
        file.truncate(image.stat().st_size + 4096)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6 * MIB, hard))
    try:
        with pytest.raises(InfrastructureError, match="cannot be written to") as raised:
            flash(_request(image, device, tmp_path), yes=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert len(raised.value.message.splitlines()) == 1


def test_a_device_that_vanishes_is_one_error(image: Path, device: Path, tmp_path: Path) -> None:
    """It answers ``open``, and is gone when the writing begins."""
    source = read_source(image)
    with Session(LocalLink(), root=str(tmp_path), timeout_s=10) as session:
        session.open(str(device), image="x", token="x", lock=True)
        device.unlink()
        with pytest.raises(VanishedError):
            session.send(
                source, range(len(chunks_of(source.map))), done=0, compress=False,
                sent=Sent(), digests={}, progress=lambda _: None,
            )  # fmt: skip


def _facts(**device: Any) -> Any:
    usual = {
        "path": "/dev/sdx", "is_block": True, "is_partition": False, "size_bytes": 1 << 40,
        "read_only": False, "removable": True, "model": "Card", "partitions": [], "mounted": [],
        "holds_root": False, "swap": False, "holders": [], "sector_bytes": 512,
    }  # fmt: skip
    return {
        "device": {**usual, **device},
        "board": {"compatible": ["khadas,vim3", "amlogic,a311d"], "model": "VIM3"},
        "done_chunks": 0,
    }


def _wish(image: Path, **changes: Any) -> plan.WriteRequest:
    found = bmap.read(bmap.map_file(image))
    return replace(plan.WriteRequest("/dev/sdx", None, found, None, None, False), **changes)


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        ({"holds_root": True, "mounted": ["/"]}, "root file system"),
        ({"mounted": ["/media/a", "/media/b"]}, "mounted: /media/a, /media/b"),
        ({"swap": True}, "swap"),
        ({"holders": ["dm-0"]}, "dm-0"),
        ({"read_only": True}, "read-only"),
        ({"is_partition": True}, "partition"),
        ({"removable": False}, "cannot be removed"),
        ({"size_bytes": MIB}, "too small"),
        ({"is_block": False, "holders": ["/dev/loop3"]}, "used by /dev/loop3 .a loop device"),
    ],
)
def test_a_device_that_must_not_be_written_to_is_refused(
    image: Path, device: dict[str, Any], problem: str
) -> None:
    plan.check(_wish(image), _facts())
    with pytest.raises(UserError, match=problem):
        plan.check(_wish(image), _facts(**device))
    # What is in use stays refused, whatever was asked for.
    if "removable" not in device:
        with pytest.raises(UserError, match=problem):
            plan.check(_wish(image, any_device=True), _facts(**device))


@pytest.mark.parametrize(("image_has", "device_has"), [(4096, 512), (512, 4096)])
def test_a_table_that_the_device_would_not_find(
    image: Path, image_has: int, device_has: int
) -> None:
    """A GPT lies in the second sector, and counts in sectors; of a plain file nobody knows them."""
    wish = _wish(image, sector_bytes=image_has, any_device=True)
    for fitting in (image_has, 0):
        plan.check(wish, _facts(sector_bytes=fitting))
    with pytest.raises(UserError, match=f"sectors of {image_has} bytes, .* of {device_has}"):
        plan.check(wish, _facts(sector_bytes=device_has))


# As QEMU locks its disks: OFD locks of single bytes (block/file-posix.c).
_LOCKING = """
import fcntl, os, struct, sys, time
handle = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(handle, 37, struct.pack("@hhqqi", fcntl.F_RDLCK, 0, 100, 1, 0))
print("locked", flush=True)
time.sleep(60)
"""


def test_a_file_that_is_a_running_machines_disk_is_left_alone(
    image: Path, device: Path, tmp_path: Path
) -> None:
    before = device.read_bytes()
    locking = subprocess.Popen(
        [sys.executable, "-c", _LOCKING, device], stdout=subprocess.PIPE, text=True
    )
    try:
        assert locking.stdout
        assert locking.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="used by a program that has locked it"):
            flash(_request(image, device, tmp_path), yes=True)
    finally:
        locking.kill()
        locking.wait()
    assert device.read_bytes() == before
    assert flash(_request(image, device, tmp_path), yes=True).outcome == "written"


def test_a_file_behind_a_loop_device_is_left_alone(
    image: Path, device: Path, tmp_path: Path
) -> None:
    made = run(["losetup", "--find", "--show", device], check=False)
    if made.exit_code:
        pytest.skip("not permitted: losetup")
    try:
        with pytest.raises(UserError, match=f"used by {made.text.strip()} "):
            flash(_request(image, device, tmp_path), yes=True)
    finally:
        run(["losetup", "--detach", made.text.strip()])


def test_a_block_map_of_an_older_version_is_named(
    image: Path, device: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.img"
    shutil.copyfile(image, own)
    bmap.map_file(own).write_text('<?xml version="1.0" ?>\n<bmap version="1.3">\n</bmap>\n')
    with pytest.raises(UserError, match=r"a block map of version 1\.3; this version reads 2\.0"):
        flash(_request(own, device, tmp_path), yes=True)


def test_the_wrong_board_is_refused(image: Path) -> None:
    vim3, virtual = load_board("vim3"), load_board("virtual")
    plan.check(_wish(image, host="h", board=vim3), _facts())
    with pytest.raises(UserError, match="expected linux,dummy-virt, h is khadas,vim3"):
        plan.check(_wish(image, host="h", board=virtual), _facts())


@pytest.mark.slow
@needs_sshd
def test_the_board_is_compared_with_what_the_image_is_for(
    image: Path, device: Path, tmp_path: Path, sshd: local_sshd.LocalSshd
) -> None:
    own = tmp_path / "own.img"
    own.write_bytes(image.read_bytes())
    describe(own)
    folder = tmp_path / "proc/device-tree"
    folder.mkdir(parents=True)
    (folder / "compatible").write_bytes(b"linux,dummy-virt\0")
    before = device.read_bytes()
    with pytest.raises(UserError, match="expected khadas,vim3, local is linux,dummy-virt"):
        flash(_request(own, device, tmp_path, sshd.host), yes=True)
    assert device.read_bytes() == before
    (folder / "compatible").write_bytes(b"khadas,vim3\0amlogic,a311d\0")
    flash(_request(own, device, tmp_path, sshd.host), yes=True)


def test_ctrl_c_leaves_a_state_to_go_on_from(image: Path, device: Path, tmp_path: Path) -> None:
    """The link ends in the middle: what was found whole is kept."""
    source = read_source(image)
    with Session(LocalLink(), root=str(tmp_path), timeout_s=10) as session:
        session.open(str(device), image=source.identity, token="x", lock=True)
        stop = threading.Event()

        class StoppedError(Exception):
            pass

        def indexes() -> Iterator[int]:
            for index in range(len(chunks_of(source.map))):
                if index == 9:
                    stop.set()
                    raise StoppedError
                yield index

        with pytest.raises(StoppedError):
            session.send(
                source, indexes(), done=0, compress=False, sent=Sent(), digests={},
                progress=lambda _: None,
            )  # fmt: skip
    result = flash(_request(image, device, tmp_path), yes=True)
    assert stop.is_set()
    assert 0 < result.chunks_sent < result.chunks
    _holds(device, image)


def test_a_writer_that_gives_way_keeps_what_it_has(
    image: Path, device: Path, tmp_path: Path
) -> None:
    """A new connection comes before the old one's writer has noticed that its link is cut."""
    source = read_source(image)
    chunks = chunks_of(source.map)
    start = {"root": str(tmp_path), "device": str(device), "image": source.identity}
    ranges = [[each.first, each.last] for each in source.map.ranges]
    requests = [
        {"do": "open", **start, "token": "a", "lock": True},
        {"do": "write", "ranges": ranges, "image_bytes": source.map.image_bytes, "done": 0},
    ]
    modules = [
        ("frames", (slots.ONBOARD_DIR / "frames.py").read_text()),
        ("writer", Path(writer.__file__).read_text()),
    ]
    with subprocess.Popen(
        [sys.executable, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin
        process.stdin.write(started_with(modules))
        for request in requests:
            process.stdin.write(json.dumps(request).encode() + b"\n")
        with image.open("rb") as file:
            for index, (offset, length) in enumerate(chunks[:3]):
                file.seek(offset)
                data = file.read(length)
                digest = hashlib.sha256(data).digest()
                process.stdin.write(HEADER.pack(b"R", index, length, digest) + data)
        process.stdin.flush()
        third = chunks[2][0]
        deadline = time.monotonic() + 60
        with device.open("rb") as file, image.open("rb") as own:
            while os.pread(file.fileno(), 64, third) != os.pread(own.fileno(), 64, third):
                assert time.monotonic() < deadline
                time.sleep(0.02)
        with Session(LocalLink(), root=str(tmp_path), timeout_s=60) as session:
            facts = session.open(str(device), image=source.identity, token="a", lock=True)
        assert process.wait(timeout=10) == 0
    assert facts["done_chunks"] >= 2


@pytest.mark.slow
@needs_sshd
def test_a_compressed_image_goes_on_too_where_the_link_was_cut(
    image: Path, device: Path, tmp_path: Path, sshd: local_sshd.LocalSshd
) -> None:
    packed = tmp_path / "disk.img.gz"
    packed.write_bytes(gzip.compress(image.read_bytes(), 1))
    with Relay(sshd.port, cut_after_bytes=(3 * MIB,)) as relay:
        known = tmp_path / "known_hosts"
        key = (sshd.folder / "known_hosts").read_text().split(" ", 1)[1]
        known.write_text(f"[127.0.0.1]:{relay.port} {key}")
        host = replace(sshd.host, port=relay.port, known_hosts=known)
        result = flash(_request(packed, device, tmp_path, host), yes=True)
    assert result.reconnects == 1
    own = image.read_bytes()  # no map beside it: all of it
    assert device.read_bytes() == own + b"\xa5" * 4096
