# SPDX-License-Identifier: MIT
"""The power-cut test itself: does it see what is broken? Small disks, the real tools of FAT and ext4.

Real recordings of real deployments are judged in test_crash_virtual.py.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import run
from images.bundle.manifest import Bundle
from images.deploy.boot import slots, state
from images.disk import FAT_SIZE_BYTES, FAT_START_BYTES, ROOT_START_BYTES
from tests.support.fake_board import make_bundle
from virtual.crash.disk_state import OUR_PLACES, Medium
from virtual.crash.harness import crash_test
from virtual.crash.points import Point, Tally, judge_points, plan, trial_sectors
from virtual.crash.resume_cache import Known
from virtual.crash.root import Root
from virtual.crash.writelog import Write, WriteLog

pytestmark = [
    pytest.mark.skipif(shutil.which("mformat") is None, reason="mformat is not installed (mtools)"),
    pytest.mark.skipif(
        shutil.which("mkimage") is None, reason="mkimage is not installed (u-boot-tools)"
    ),
]

_ROOT_BYTES = 32 << 20
_MODULE = "modules/6.12.1-test/kernel/drivers/m3.ko"


@dataclass
class Disk:
    """A disk with two generations, OLD good; and a record of writes that a test makes."""

    folder: Path
    image: Path
    old: Bundle
    new: Bundle
    requests: list[tuple[int, bytes, int]] = field(default_factory=list)

    def write(self, at: int, data: bytes, *, flags: int = 0) -> None:
        self.requests.append((at, data, flags))

    def flush(self) -> None:
        self.requests.append((0, b"", 1))

    def state_at(self, name: str) -> int:
        """Where a state file's sector lies on the disk."""
        part = self.folder / "fat.img"
        shown = run(["mshowfat", "-i", part, f"::/npu-bsp/{name}"]).text
        match = re.search(r"<(\d+)", shown)
        assert match
        head = part.read_bytes()[:512]
        sector, cluster = int.from_bytes(head[11:13], "little"), head[13]
        reserved, tables = int.from_bytes(head[14:16], "little"), head[16]
        table = int.from_bytes(head[36:40], "little")
        data_at = (reserved + tables * table) * sector
        return FAT_START_BYTES + data_at + (int(match[1]) - 2) * cluster * sector

    def content_at(self, content: bytes) -> list[int]:
        """Where content lies on the disk (at the start of a block)."""
        with (
            self.image.open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole,
        ):
            found = [match.start() for match in re.finditer(re.escape(content), whole)]
        return [at for at in found if at % 512 == 0]

    def log(self) -> Path:
        """The record, as QEMU writes it."""
        parts = [
            struct.pack("<QQQI", 0x6A736677736872, 1, len(self.requests), 512).ljust(512, b"\0")
        ]
        for at, data, flags in self.requests:
            assert at % 512 == len(data) % 512 == 0
            head = struct.pack("<QQQQ", at // 512, len(data) // 512, flags, len(data))
            parts += [head.ljust(512, b"\0"), data]
        path = self.folder / "writes.log"
        path.write_bytes(b"".join(parts))
        return path

    def judge(self, points: list[Point] | None = None) -> Tally:
        log = self.log()
        if points is None:
            with WriteLog(log) as read:
                points = plan(read.writes, len(read.writes) + 1, seed=0)
        work = Path(tempfile.mkdtemp(dir=self.folder))
        tally = Tally()
        judge_points(log, self.image, work, points, tally, lambda: None)
        return tally


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    folder = tmp_path_factory.mktemp("disk")
    old = make_bundle(folder / "old")
    new = make_bundle(
        folder / "new",
        modules={f"kernel/drivers/m{n}.ko": b"new module %d " % n * 400 for n in range(20)},
        dtb_extra='status = "okay";',
    )
    fat, root = folder / "fat", folder / "root"
    fat.mkdir()
    root.mkdir()
    slots.lay_out(new, fat, root)
    slots.lay_out(old, fat, root)  # the last one is the good one
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(ROOT_START_BYTES + _ROOT_BYTES)
    part = folder / "fat.img"
    with part.open("wb") as file:
        file.truncate(FAT_SIZE_BYTES)
    sectors = str(FAT_SIZE_BYTES // 512)
    run(["mformat", "-i", part, "-F", "-T", sectors, "-h", "64", "-s", "32", "::"])
    run(["mcopy", "-i", part, "-s", "-Q", *sorted(str(path) for path in fat.iterdir()), "::"])
    run(
        ["dd", f"if={part}", f"of={image}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none"]
    )
    run(
        ["mke2fs", "-q", "-t", "ext4", "-b", "4096", "-F", "-d", root,
         "-E", f"offset={ROOT_START_BYTES}", image, f"{_ROOT_BYTES >> 10}k"]
    )  # fmt: skip
    return Disk(folder, image, old, new)


@pytest.fixture
def disk(made: Disk) -> Disk:
    return Disk(made.folder, made.image, made.old, made.new)


@pytest.mark.slow
def test_a_switch_of_whole_generations_boots_at_every_point(disk: Disk) -> None:
    good = state.render_good(state.Good(disk.new.generation, disk.old.generation))
    disk.write(disk.state_at("trial.env"), state.render_trial(disk.new.generation))
    disk.flush()
    disk.write(disk.state_at("trial.env"), state.SPENT)
    disk.flush()
    disk.write(disk.state_at("good-copy.env"), good)
    disk.flush()
    disk.write(disk.state_at("good.env"), good)
    tally = disk.judge()
    assert (tally.unbootable, tally.outside) == (0, 0), tally.failures
    assert tally.slots == {"good": 6, "trial": 2}


def test_one_torn_copy_boots_two_do_not(disk: Disk) -> None:
    for name in ("good.env", "good-copy.env"):
        disk.write(
            disk.state_at(name), b"npu_good=" + disk.new.generation.encode().ljust(503, b"\n")
        )
    tally = disk.judge()
    assert tally.unbootable == 1
    point, why = tally.failures[0]
    assert point == Point(2)
    assert "good.env" in why


@pytest.mark.slow
def test_a_generation_with_one_wrong_byte_is_found(disk: Disk) -> None:
    content = (disk.old.path / _MODULE).read_bytes()
    (at,) = disk.content_at(content)
    data = bytearray(content.ljust(4096, b"\0"))
    data[100] ^= 1
    disk.write(at, bytes(data))
    tally = disk.judge()
    assert [why for _, why in tally.failures] == [
        f"{_MODULE} of generation {disk.old.generation} has other content than sent"
    ]


@pytest.mark.slow
def test_a_write_that_is_taken_back_leaves_no_trace(disk: Disk) -> None:
    content = (disk.old.path / _MODULE).read_bytes()
    (at,) = disk.content_at(content)
    disk.write(at, bytes(4096))
    disk.write(disk.state_at("trial.env"), state.SPENT)
    tally = disk.judge(
        [Point(0), Point(0, more=(0,)), Point(0, more=(1,)), Point(0, torn=(0, 512))]
    )
    assert [str(point) for point, _ in tally.failures] == [
        "the first 0 writes and 1 of those up to the next flush",
        "the first 0 writes and 512 bytes of write 0",
    ]
    assert tally.kinds == {"prefix": 1, "reordered": 2, "torn": 1}


def test_a_kernel_that_was_written_by_half_is_found(disk: Disk) -> None:
    (at,) = disk.content_at((disk.old.path / "boot/board.dtb").read_bytes())
    disk.write(at, bytes(512))
    tally = disk.judge()
    assert tally.unbootable == 1
    assert "other content than sent" in tally.failures[0][1]


def test_a_trial_that_is_not_whole_is_found_although_the_good_one_is(disk: Disk) -> None:
    (at,) = disk.content_at((disk.new.path / _MODULE).read_bytes())
    disk.write(at, bytes(4096))
    assert disk.judge().unbootable == 0
    disk.write(disk.state_at("trial.env"), state.render_trial(disk.new.generation))
    tally = disk.judge()
    assert [point for point, _ in tally.failures] == [Point(2)]


def test_a_broken_root_file_system_is_found(disk: Disk) -> None:
    disk.write(ROOT_START_BYTES, bytes(4096))
    disk.write(ROOT_START_BYTES + 4096, bytes(8 * 4096))
    tally = disk.judge([Point(2)])
    assert tally.unbootable == 1
    assert "root file system" in tally.failures[0][1]


def test_recovery_replays_the_journal_and_is_taken_back(made: Disk, tmp_path: Path) -> None:
    medium = Medium(made.image, tmp_path)
    path = medium.root.path
    block = 7000
    new = tmp_path / "block"
    new.write_bytes(b"journalled" * 409 + b"123456")
    run(["debugfs", "-w", "-f", "/dev/stdin", path],
        stdin=f"journal_open\njournal_write -b {block} {new}\njournal_close\n".encode())  # fmt: skip
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with Root(medium.root).recovered(thorough=False) as problem:
        assert problem == ""
        assert medium.root.read(block) == new.read_bytes()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    medium.close()


_REQUESTS = st.lists(
    st.builds(
        Write,
        offset_bytes=st.integers(0, 100).map(lambda n: n * 512),
        at=st.just(0),
        size_bytes=st.integers(0, 8).map(lambda n: n * 512),
        flush=st.booleans(),
        fua=st.booleans(),
    ),
    max_size=40,
).map(tuple)


@settings(deadline=None)
@given(_REQUESTS, st.integers(1, 120), st.integers(0, 5))
def test_points_are_states_that_a_disk_may_be_left_in(
    writes: tuple[Write, ...], count: int, seed: int
) -> None:
    points = plan(writes, count, seed)
    assert points == plan(writes, count, seed)
    assert len(points) == len(set(points)) <= count
    assert [point.prefix for point in points] == sorted(point.prefix for point in points)
    if count > len(writes):
        assert {Point(n) for n in range(len(writes) + 1)} <= set(points)
    for point in points:
        if point.more:
            last = point.more[-1]
            assert not any(write.flush for write in writes[point.prefix + 1 : last + 1])
            lost = set(range(point.prefix, last)) - set(point.more)
            assert not any(writes[number].fua and writes[number].size_bytes for number in lost)
        if point.torn:
            number, size_bytes = point.torn
            assert number == point.prefix
            assert 0 < size_bytes < writes[number].size_bytes


def test_a_trial_that_names_its_own_sector_is_torn_within_it(disk: Disk) -> None:
    def trial(sector: int) -> bytes:
        return (b"setenv npu_trial x\nsetenv npu_sector %x\n" % sector).ljust(512, b"\0")

    at = ROOT_START_BYTES + 7 * 4096
    disk.write(at - 4096, bytes(4096) + trial(at // 512) + bytes(3584))  # armed
    disk.write(at + 4096, trial(at // 512))  # a copy elsewhere
    disk.write(at, bytes(512))  # spent
    with WriteLog(disk.log()) as log:
        sectors = trial_sectors(log)
        assert sectors == {at}
        points = plan(log.writes, 200, 1, OUR_PLACES, sectors)
    tears = [point.torn for point in points if point.torn and point.torn[1] % 512]
    assert {number for number, _ in tears} == {0, 2}
    assert all(4096 < size < 4608 if number == 0 else size < 512 for number, size in tears)


def test_a_record_that_is_none_or_cut_off_is_refused(disk: Disk, tmp_path: Path) -> None:
    disk.write(0, bytes(1024))
    whole = disk.log().read_bytes()
    for content, expected in (
        (b"x" * 600, "not a record of writes"),
        (whole[:-512], "cut off after 0"),
    ):
        path = tmp_path / "log"
        path.write_bytes(content)
        with pytest.raises(InfrastructureError, match=expected):
            WriteLog(path)


def test_an_unknown_variant_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="no-such") as caught:
        crash_test(points=1, boot=0, broken="no-such")
    assert "switch-first" in caught.value.hint


def test_what_was_judged_and_booted_is_known_to_the_next_run(tmp_path: Path) -> None:
    tally = Tally(evaluated=2, outside=1)
    tally.add(Point(3, (4, 5)), "good", "")
    tally.add(Point(3, torn=(3, 512)), "", "nothing boots")
    known = Known(tmp_path, 10, 1)
    assert known.judged() is None
    assert known.booted() == {}
    known.judge(tally, 1.5)
    known.boot(Point(3, (4, 5)), "")
    known.boot(Point(3, torn=(3, 512)), "no answer")
    again = Known(tmp_path, 10, 1)
    assert again.judged() == (tally, 1.5)
    again.judged()[0].merge(tally)  # type: ignore[index]  # counters still
    assert again.booted() == {Point(3, (4, 5)): "", Point(3, torn=(3, 512)): "no answer"}
    assert Known(tmp_path, 10, 2).judged() is None  # other points
    Known.forget(tmp_path)
    assert again.judged() is None
    assert again.booted() == {}
