# SPDX-License-Identifier: MIT
"""The base floor: nothing is half-written, and every failure says what to do."""

import errno
import http.server
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bsp.base import cache, download, output, process
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.base.words import counted


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("NPU_BSP_CACHE", str(folder))
    return folder


# --- cache -----------------------------------------------------------------------------------


def test_make_once_makes_once(tmp_path: Path) -> None:
    calls = []

    def make(target: Path) -> None:
        calls.append(target)
        target.write_text("made")

    for _ in range(2):
        assert cache.make_once(tmp_path / "thing", make).read_text() == "made"
    assert len(calls) == 1


def test_a_failing_maker_leaves_nothing(tmp_path: Path) -> None:
    def make(target: Path) -> None:
        target.mkdir()
        (target / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        cache.make_once(tmp_path / "thing", make)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


MAKER = """
import sys, time
from pathlib import Path
from bsp.base import cache
def make(target):
    target.mkdir()
    (target / "one").write_text("1")
    print("half", flush=True)
    time.sleep(float(sys.argv[2]))
    (target / "two").write_text("2")
    with open(sys.argv[1] + ".calls", "a") as calls: calls.write("made\\n")
cache.make_once(Path(sys.argv[1]), make)
"""


def start_maker(target: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(target), str(seconds)]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_runs_at_once_make_one_complete_result(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    runs = [start_maker(target, 0.4) for _ in range(3)]
    assert [run.wait(timeout=30) for run in runs] == [0, 0, 0]
    assert (target / "two").read_text() == "2"
    assert (tmp_path / "thing.calls").read_text() == "made\n"
    for run in runs:
        run.communicate()


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_under_the_name(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    target = tmp_path / "thing"
    run = start_maker(target, 30)
    assert run.stdout is not None
    assert run.stdout.readline() == "half\n"
    run.send_signal(signal_number)
    run.communicate(timeout=30)
    assert not target.exists()
    # the next run is right, and has swept up
    assert start_maker(target, 0).communicate(timeout=30)[1] == ""
    assert sorted(path.name for path in target.iterdir()) == ["one", "two"]
    assert not list(tmp_path.glob(".*.part"))


def test_write_atomically_keeps_the_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    cache.write_atomically(target, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as error:
        cache.write_atomically(target, b"new")
    assert error.value.filename == str(target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: it ends each copy in the middle."""
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "link").symlink_to("deep")
    for number in range(50):
        (source / f"deep/{number}").write_bytes(bytes(4096))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        with pytest.raises(InfrastructureError) as error:
            cache.copy_folder(source, tmp_path / "out/copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.message == f"cannot write {tmp_path}/out/copy: File too large"
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        cache.copy_folder(source, tmp_path / "out/copy", finish=lambda _: 1 // 0)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(InfrastructureError, match="File exists"):
        cache.copy_folder(source, source / "deep/1/copy")
    cache.copy_folder(
        source, tmp_path / "out/copy", finish=lambda copy: (copy / "done").write_text("")
    )
    assert {path.name for path in (tmp_path / "out/copy").iterdir()} == {"deep", "link", "done"}
    assert (tmp_path / "out/copy/link").is_symlink()


def test_a_cache_folder_that_cannot_be_made_says_which_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InfrastructureError) as caught:
        cache.cache_dir()
    assert "NPU_BSP_CACHE" in caught.value.hint


# --- processes -------------------------------------------------------------------------------


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        process.run(["dtc", "--version"])
    assert "'dtc'" in caught.value.message
    assert caught.value.hint == "sudo apt-get install device-tree-compiler"


@pytest.mark.parametrize(
    ("start", "package"),
    [
        (b"\xfd7zXZ\0\0", "xz-utils"),
        (b"\x28\xb5\x2f\xfd\x04\0", "zstd"),
        (b"BZh91AY", "bzip2"),
        (b"plain", ""),
        (b"", ""),
    ],
)
def test_what_tar_unpacks_with_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, package: str
) -> None:
    (tmp_path / "file.tar").write_bytes(start)
    monkeypatch.setattr(process, "find_tool", lambda _: None)
    if not package:
        process.require_unpacker(tmp_path / "file.tar")
        return
    with pytest.raises(UserError) as caught:
        process.require_unpacker(tmp_path / "file.tar")
    assert caught.value.hint == f"sudo apt-get install {package}"


def test_a_failing_tool_shows_its_last_lines() -> None:
    with pytest.raises(process.ToolFailedError) as caught:
        process.run(["sh", "-c", "echo line one; echo the reason >&2; exit 7"])
    assert "exit code 7" in caught.value.message
    assert caught.value.message.endswith("the reason")
    assert caught.value.completed.stdout == b"line one\n"


TERMINATED = """
import sys
from invoke.context import Context
from invoke.exceptions import Exit
from bsp.base.process import run
from commands.face.command import session

@session(help={})
def slow(_):
    run(["sh", "-c", "sleep 60 & echo $! > $1.new; mv $1.new $1; wait", "sh", sys.argv[1]])

try:
    slow(Context())
except Exit as end:
    sys.exit(end.code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_task_that_is_ended_ends_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", TERMINATED, str(started)],
        cwd=PROJECT, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as ended:  # fmt: skip
        deadline = time.monotonic() + 30
        while not started.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        ended.send_signal(number)
        _, said = ended.communicate(timeout=30)
    assert ended.returncode == 128 + number
    assert said.decode().splitlines() == ["interrupted"]
    _wait_until_ended(int(started.read_text()))


def test_a_signal_while_a_program_is_being_started_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []

    class Started(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)
            signal.raise_signal(signal.SIGINT)  # before whoever starts it has got it

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(subprocess, "Popen", Started)
    with pytest.raises(KeyboardInterrupt):
        process.run(["sleep", "60"])
    assert signal.getsignal(signal.SIGINT) is before
    _wait_until_ended(started[0])
    with pytest.raises(OSError, match="folder"):
        process.run(["true"], cwd=Path("/no/such/folder"))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_time_out_ends_grandchildren_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(InfrastructureError, match="did not end within"):
        process.run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout_s=0.5)
    _wait_until_ended(int(note.read_text()))


def _wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(pid):
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- downloads -------------------------------------------------------------------------------

CONTENT = b"a device tree\n" * 1000


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/missing"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path.startswith("/cut") else CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_download_keeps_a_verified_copy(own_cache: Path, server: str, tmp_path: Path) -> None:
    (tmp_path / "same").write_bytes(CONTENT)
    sha256 = download.sha256_of(tmp_path / "same")
    got = download.download(f"{server}/tree.dtb", sha256)
    assert got.read_bytes() == CONTENT
    assert got.name == "tree.dtb"
    assert download.download("http://127.0.0.1:1/tree.dtb", sha256) == got  # from the cache


@pytest.mark.parametrize(
    ("path", "said"),
    [("tree.dtb", "another content"), ("cut.dtb", "ended after 100 of"), ("missing", "404")],
)
def test_a_bad_download_keeps_nothing(own_cache: Path, server: str, path: str, said: str) -> None:
    with pytest.raises(InfrastructureError, match=said):
        download.download(f"{server}/{path}", "0" * 64)
    assert not [file for file in own_cache.rglob("*") if file.is_file() and file.suffix != ".lock"]


def test_a_hash_that_is_none_is_refused(own_cache: Path) -> None:
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        download.download("http://127.0.0.1:1/x", "abc")


# --- output ----------------------------------------------------------------------------------


def test_tables_fit_80_columns() -> None:
    text = output.table(["board", "what"], [["vim3", "word " * 40], ["x", ""]])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("board  what")
    assert lines[3].startswith("       word")


def test_json_has_no_number_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "a": float("nan"),
        "rows": [{"b": float("inf")}, (1.5, float("-inf"))],
        "path": Path("x"),
        "n": 3,
    }
    output.print_json(document)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": None, "rows": [{"b": None}, [1.5, None]], "path": "x", "n": 3}


def test_tables_break_lines_between_words() -> None:
    long = "a-word-with-hyphens-that-is-longer-than-the-column-is-wide/and/has/slashes"
    text = output.table(("name", "what"), (("x" * 50, f"few words {long} and more"),))
    assert long in text
    assert all(word in text.split() for word in f"few words {long} and more".split())


@pytest.mark.parametrize(
    ("number", "words", "expected"),
    [
        (0, ("run",), "0 runs"),
        (1, ("run",), "1 run"),
        (2, ("run",), "2 runs"),
        (1, ("property", "properties"), "1 property"),
        (3, ("property", "properties"), "3 properties"),
    ],
)
def test_numbers_and_their_nouns(number: int, words: tuple[str, ...], expected: str) -> None:
    assert counted(number, *words) == expected


def test_what_is_not_a_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As root, a report to /dev/null made a file of it for the whole machine."""
    fifo, link = tmp_path / "fifo", tmp_path / "stdout"
    os.mkfifo(fifo)
    link.symlink_to(fifo)  # as /dev/stdout is one
    for target in (fifo, link):
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            cache.write_atomically(target, b"content")
            assert os.read(reader, 100) == b"content"
        finally:
            os.close(reader)
    assert fifo.is_fifo()
    assert link.is_symlink()
    cache.write_atomically(Path(os.devnull), b"content")
    assert Path(os.devnull).is_char_device()


def test_a_disk_is_no_place_for_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = next((each for each in Path("/dev").iterdir() if each.is_block_device()), None)
    if disk is None:
        pytest.skip("no block device in /dev")
    for write in (cache.refuse_disk, lambda path: cache.write_atomically(path, b"")):
        with pytest.raises(UserError, match=f"{disk} is a disk, and no place for a file") as caught:
            write(disk)
        assert f"flash --device {disk}" in caught.value.hint
    assert disk.is_block_device()
