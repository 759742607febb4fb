# SPDX-License-Identifier: MIT
"""Nothing that is received or unpacked gets out of the folder that it is put into.

The board's half of a deployment, as it runs there, and each place where this machine unpacks something,
are fed archives that try: absolute paths, ``..``, links to elsewhere and files behind them, devices.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base import trees
from bsp.base.errors import BspError, UserError
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle
from images.deploy.boot import slots
from images.deploy.claim import Claim
from images.deploy.onboard import agent, frames
from tests.support.fake_board import FakeBoard, make_bundle
from userspace.payload import wheels
from virtual.gates import packages

GENERATION = "0123456789ab"
OTHER = "ba9876543210"
# From GENERATION.partial, seven times up is the folder that the board's root lies in: never the machine's.
UP = "../" * 7


def content_of(path: Path) -> dict[str, tuple[int, bytes | str]]:
    """All below a folder: kind and permissions, and content or where a link points."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for folder, directories, files in os.walk(path):
        for name in (*directories, *files):
            each = Path(folder, name)
            status = each.lstat()
            what: bytes | str = b""
            if stat.S_ISLNK(status.st_mode):
                what = str(each.readlink())
            elif stat.S_ISREG(status.st_mode):
                what = each.read_bytes()
            found[str(each)] = (status.st_mode, what)
    return found


def stage_request(manifest: bytes, indexes: list[int]) -> dict[str, Any]:
    """Ask the board to take a generation with this manifest, and content for the files of these numbers."""
    return {
        "do": "stage",
        "generation": GENERATION,
        "base": None,
        "bases": [OTHER],
        "manifest": [[-1, 1]],
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "send": [[index, index] for index in indexes],
        "args": {"script": "", "text": ""},
        "onboard": [],
        "onboard_links": {},
    }


class Board:
    """A root with a generation that must not change, beside things that must not change either."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "board"
        self.canary = top / "canary"
        self.good = self.root / slots.STORE / OTHER
        self.secret = self.good / "modules/m.ko"
        for folder in (
            self.canary / "sub",
            self.secret.parent,
            self.root / "boot/firmware/npu-bsp/files",
            self.root / "etc",
            self.root / "run",
        ):
            folder.mkdir(parents=True)
        (self.canary / "file").write_bytes(b"canary")
        (self.root / "etc/shadow").write_bytes(b"shadow")
        self.secret.write_bytes(b"module")
        os.utime(self.secret, (slots.MTIME_S, slots.MTIME_S))
        entry = {
            "path": "modules/m.ko",
            "sha256": hashlib.sha256(b"module").hexdigest(),
            "size_bytes": 6,
        }
        (self.good / "manifest.json").write_text(
            json.dumps({"generation": OTHER, "files": [entry]})
        )
        self.before = self.outside()

    def outside(self) -> dict[str, tuple[int, bytes | str]]:
        """All but what a deployment may write: its own generation and boot files."""
        mine = (
            f"{self.root}/run/",
            f"{self.root}/var/lib/npu-bsp/l",
            f"{self.root}/{slots.STORE}/{GENERATION}",
            f"{self.root}/boot/firmware/npu-bsp/",
        )
        return {
            path: what for path, what in content_of(self.top).items() if not path.startswith(mine)
        }

    def serve(self, request: dict[str, Any], stream: bytes) -> list[dict[str, Any]]:
        first = {
            "do": "open",
            "root": str(self.root),
            "fat": "/boot/firmware",
            "lock": Claim().request("test"),
            "far": False,
            "generation": None,
            "onboard": [],
        }
        lines = b"".join(json.dumps(each).encode() + b"\n" for each in (first, request))
        sink = io.BytesIO()
        agent.serve(io.BytesIO(lines + stream), sink)
        return [json.loads(line) for line in sink.getvalue().splitlines()]

    def stage(self, entries: list[dict[str, Any]], contents: dict[int, bytes]) -> dict[str, Any]:
        """Send a manifest with these files, and content for some of them."""
        manifest = json.dumps({"generation": GENERATION, "files": entries}).encode()
        request = stage_request(manifest, sorted(contents))
        parts = [frame(b"R", manifest), frame(b"E")]
        for index, content in contents.items():
            parts += [
                frame(b"F", index.to_bytes(4, "big")),
                *([frame(b"R", content)] if content else []),
            ]
        answers = self.serve(request, b"".join([*parts, frame(b"E")]))
        assert len(answers) == 2
        return answers[1]


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return frames.HEADER.pack(kind, len(payload)) + payload


@contextmanager
def a_board() -> Iterator[Board]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as top:
        yield Board(Path(top))


def regular(path: str, content: bytes = b"evil", **more: Any) -> dict[str, Any]:
    return {
        "path": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        **more,
    }


HOSTILE: dict[str, list[dict[str, Any]]] = {
    "absolute": [regular("/etc/shadow")],
    "dots": [regular(f"modules/../{UP}canary/file")],
    "dots first": [regular("../evil")],
    "behind a link": [
        {"path": "userspace/a", "link": "../../../../../../etc"},
        regular("userspace/a/shadow"),
    ],
    "behind a link inside": [{"path": "a", "link": "b"}, regular("a/m.ko")],
    "absolute link": [{"path": "a", "link": "/"}],
    "link up": [{"path": "userspace/a", "link": "../../x"}],
    "link to itself": [{"path": "userspace/a", "link": "../.."}],
    "boot file that is a link": [{"path": "boot/kernel", "link": "x"}],
    "name of a boot file": [{**regular("boot/kernel"), "sha256": f"../../../../../{'e' * 60}"}],
    "over the manifest": [regular("manifest.json")],
    "over the manifest's other name": [{"path": "manifest.json.partial", "link": "modules/m.ko"}],
    "set-user-ID": [regular("userspace/su", mode=0o4755)],
    "device": [regular("userspace/null", mode=stat.S_IFCHR | 0o666)],
    "twice": [regular("a"), regular("a")],
    "no text": [{**regular("a"), "path": ["a"]}],
    "newline": [regular("a\n/b")],
    "no numbers": [{**regular("a"), "size_bytes": "4"}],
    "no files": [],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_refused_by_the_board_before_anything_is_written(case: str) -> None:
    entries: Any = HOSTILE[case] or "none"
    with a_board() as board:
        answer = board.stage(entries, dict.fromkeys(range(len(HOSTILE[case])), b"evil"))
        assert not answer["ok"], answer
        assert "manifest" in answer["error"]
        assert content_of(board.root / slots.STORE).keys() == {
            path for path in board.before if path.startswith(f"{board.root}/{slots.STORE}/")
        }
        assert board.outside() == board.before


@pytest.mark.parametrize("case", [case for case in HOSTILE if case != "no files"])
def test_a_hostile_bundle_is_refused_by_the_host(
    case: str, factory: Bundle, tmp_path: Path
) -> None:
    document = json.loads((factory.path / "manifest.json").read_text())
    document["files"] += HOSTILE[case]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UserError):
        bundles.load(tmp_path)


def test_a_link_left_by_another_manifest_of_that_name_is_not_followed() -> None:
    """Generations are named by 48 bits: two manifests of one name can be made."""
    with a_board() as board:
        partial = board.root / slots.STORE / f"{GENERATION}.partial"
        partial.mkdir()
        (partial / "userspace").symlink_to(board.canary)
        assert board.stage(
            [regular("userspace/sub/x"), regular("userspace/file")], {0: b"evil", 1: b"evil"}
        ) == {
            "ok": True,
            "need": [],
            "pinned": False,
        }
        assert board.outside() == board.before
        assert (board.root / slots.STORE / GENERATION / "userspace/file").read_bytes() == b"evil"


@pytest.mark.parametrize(
    "change",
    [
        {"generation": "../../../etc"},
        {"generation": "../0123456789"},
        {"bases": ["../../../../etc"]},
        {"base": "../x"},
        {"onboard": [{"target": "etc/shadow", "content": "x", "mode": 0o644}]},
        {
            "onboard": [
                {
                    "target": "usr/local/lib/npu-bsp/../../../../etc/shadow",
                    "content": "",
                    "mode": 0o644,
                }
            ]
        },
        {"onboard_links": {"etc/systemd/system/x.target.wants/npu-bsp-x.service": "/etc/shadow"}},
        {"onboard_links": {"etc/npu-bsp-x.service": "../npu-bsp-x.service"}},
        {"manifest": [["a", 1]]},
        {"do": "discard", "keep": ["../x"], "resume": None},
        {"do": "verify", "generation": "../x"},
        {"do": "mend", "generations": {"../x": []}},
        {"do": "restore-manifest", "generation": "../x", "manifest": ""},
        {"do": "arm"},
        {"do": ["stage"]},
    ],
)
def test_a_hostile_request_is_refused(change: dict[str, Any]) -> None:
    manifest = json.dumps({"generation": GENERATION, "files": []}).encode()
    request: dict[str, Any] = {
        "do": "stage",
        "generation": GENERATION,
        "base": None,
        "bases": [],
        "manifest": [[-1, 1]],
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "send": [],
        "args": {"script": "", "text": ""},
        "onboard": [],
        "onboard_links": {},
    }
    stream = frame(b"R", manifest) + frame(b"E") + frame(b"E")
    with a_board() as board:
        assert board.serve(request, stream)[-1]["ok"]  # as it is, it is taken
    with a_board() as board:
        answers = board.serve({**request, **change}, stream)
        assert not answers[-1]["ok"], answers
        assert board.outside() == board.before


_PARTS = st.sampled_from(
    [
        "a",
        "b",
        "etc",
        "canary",
        "file",
        "sub",
        "..",
        ".",
        "",
        "modules",
        "boot",
        "m.ko",
        "kernel",
        "manifest.json",
        "shadow",
        "\0",
        "a" * 300,
    ]
)
_PATHS = st.one_of(
    st.lists(_PARTS, min_size=1, max_size=5).map("/".join),
    st.sampled_from([f"{UP}canary/file", f"boot/{UP}canary/x", "userspace/x/y"]),
)
_LINKS = st.one_of(_PATHS, st.sampled_from([UP, f"{UP}canary", "..", "../..", "/tmp", "."]))
_ENTRIES = st.lists(
    st.one_of(
        _PATHS.map(regular),
        st.builds(lambda path, link: {"path": path, "link": link}, _PATHS, _LINKS),
        st.builds(
            lambda path, name: {**regular(path), "sha256": name}, _PATHS, st.text(max_size=70)
        ),
    ),
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(first=_ENTRIES, then=_ENTRIES)
def test_no_manifest_gets_out(first: list[dict[str, Any]], then: list[dict[str, Any]]) -> None:
    """Two, one after the other: the first may leave something for the second to go through."""
    with a_board() as board:
        for entries in (first, then):
            board.stage(
                entries,
                {index: b"evil" for index, entry in enumerate(entries) if "link" not in entry},
            )
        assert board.outside() == board.before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damaged_stream_gets_out_or_ends_the_agent(data: st.DataObject) -> None:
    """A stream that was sound, with bytes changed: what comes back is an answer, or the wait for more."""
    entries = [regular("modules/a.ko", b"module a"), {"path": "modules/l", "link": "a.ko"}]
    manifest = json.dumps({"generation": GENERATION, "files": entries}).encode()
    request = stage_request(manifest, [0])
    stream = bytearray(
        json.dumps(request).encode()
        + b"\n"
        + frame(b"R", manifest)
        + frame(b"E")
        + frame(b"F", bytes(4))
        + frame(b"R", b"module a")
        + frame(b"E")
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    line, _, rest = bytes(stream).partition(b"\n")
    try:
        request = json.loads(line)
        assert isinstance(request, dict)
        assert request.get("do") == "stage"  # no requests of other kinds by chance
    except (ValueError, AssertionError):
        return
    with a_board() as board:
        answers = board.serve(request, rest)
        assert all(set(answer) >= {"ok"} for answer in answers)
        assert board.outside() == board.before


# --- what this machine unpacks -----------------------------------------------------------------------


def tar_of(members: list[tuple[str, str]]) -> bytes:
    """Names, and what they are: ``file``, ``device``, ``pipe``, or where a link points."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, what in members:
            info = tarfile.TarInfo(name)
            if what == "file":
                info.size = 4
                archive.addfile(info, io.BytesIO(b"evil"))
                continue
            info.type = {"device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}.get(
                what, tarfile.SYMTYPE
            )
            info.devmajor, info.devminor = 1, 3
            if what.startswith("hard:"):
                info.type, what = tarfile.LNKTYPE, what[5:]
            info.linkname = what if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(info)
    return target.getvalue()


def unpack_kernel(tarball: bytes, top: Path) -> Path:
    (top / "x.tar").write_bytes(tarball)
    trees.unpack(top / "x.tar", top / "target", None, "kernel source")
    return top / "target"


def deb_of(content: bytes) -> bytes:
    """An arm64 package, deb(5), with this tar archive as its files."""
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w") as archive:
        text = (
            b"Package: mesa-teflon-delegate\nVersion: 1\nArchitecture: arm64\n"
            b"Maintainer: x\nDescription: x\n"
        )
        info = tarfile.TarInfo("./control")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    parts = [
        (b"debian-binary", b"2.0\n"),
        (b"control.tar", control.getvalue()),
        (b"data.tar", content),
    ]
    packed = b"!<arch>\n"
    for name, data in parts:
        packed += b"%-16s%-12d%-6d%-6d%-8s%-10d`\n" % (name, 0, 0, 0, b"100644", len(data))
        packed += data + b"\n" * (len(data) % 2)
    return packed


def unpack_package(tarball: bytes, top: Path) -> Path:
    from bsp.base.process import run

    (top / "x.deb").write_bytes(deb_of(tarball))
    (top / "target").mkdir()
    run(["dpkg-deb", "--extract", top / "x.deb", top / "target"])
    return top / "target"


_TAR_PATHS = st.lists(st.sampled_from(["a", "b", "l", "..", "sub"]), min_size=1, max_size=4).map(
    "/".join
)


@pytest.mark.parametrize("unpack", [unpack_kernel, unpack_package])
def test_no_tar_archive_gets_out(unpack: Callable[[bytes, Path], Path]) -> None:
    @settings(max_examples=40, deadline=None)
    @given(
        members=st.lists(
            st.tuples(
                st.one_of(_TAR_PATHS, st.sampled_from(["top/../../canary/file", "top/l/file"])),
                st.one_of(
                    st.just("file"),
                    _TAR_PATHS,
                    st.sampled_from(["CANARY", "../../canary", "hard:CANARY/file"]),
                ),
            ),
            max_size=6,
        )
    )
    def attempt(members: list[tuple[str, str]]) -> None:
        with tempfile.TemporaryDirectory() as top:
            work = Path(top, "work")
            canary = Path(top, "canary")
            for folder in (work, canary):
                folder.mkdir()
            (canary / "file").write_bytes(b"canary")
            before = content_of(canary)
            absolute = [(name, what.replace("CANARY", str(canary))) for name, what in members]
            with suppress(BspError):
                unpack(tar_of(absolute), work)
            assert content_of(canary) == before
            assert {path.name for path in Path(top).iterdir()} == {"work", "canary"}
            assert {path.name for path in work.iterdir()} <= {"target", "x.tar", "x.deb"}

    attempt()


@pytest.mark.parametrize("what", ["device", "pipe"])
def test_a_kernel_tarball_with_a_device_is_refused(what: str, tmp_path: Path) -> None:
    if what == "device" and os.getuid() != 0:
        pytest.skip("only root can make devices")
    with pytest.raises(UserError, match="is not a file, folder or link"):
        unpack_kernel(tar_of([("linux/Makefile", "file"), ("linux/null", what)]), tmp_path)


@pytest.mark.parametrize("what", ["device", "pipe"])
def test_a_package_with_a_device_is_refused(what: str, tmp_path: Path) -> None:
    file = tmp_path / "x_1_arm64.deb"
    file.write_bytes(
        deb_of(tar_of([("./usr/lib/teflon/libteflon.so", "file"), ("./dev/null", what)]))
    )
    with pytest.raises(UserError, match="device"):
        packages.from_file(file)


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "x.data/purelib/../../../evil"]
)
def test_a_wheel_with_a_file_outside_is_refused(name: str, tmp_path: Path) -> None:
    wheel = tmp_path / "in/x-1-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(name, b"evil")
    with pytest.raises(BspError, match="outside of it"):
        wheels.unpack_wheel(wheel, tmp_path / "site")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_links_inside_a_bundle_are_sent(board: FakeBoard, tmp_path: Path) -> None:
    """What is refused is the way out, not the link."""
    from images.deploy.deploy import deploy

    bundle = make_bundle(tmp_path / "linked", userspace={"lib/real.so": b"x"})
    (bundle.path / "userspace/lib/link.so").symlink_to("../lib/real.so")
    manifest = bundles.describe(
        bundle.path,
        board=bundle.manifest.board,
        compatible=bundle.manifest.compatible,
        kernel_release=bundle.manifest.kernel_release,
        cmdline=bundle.manifest.cmdline,
        inputs={},
    )
    (bundle.path / "manifest.json").write_bytes(bundles.encode(manifest))
    assert deploy(board.target(), bundle=bundle.path, board=None).outcome == "confirmed"
