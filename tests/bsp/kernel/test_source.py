# SPDX-License-Identifier: MIT
"""Kernel sources: each kind on a small tree, and everything that can come out wrong."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bsp.base import trees
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.project import PROJECT
from bsp.kernel.source import kernel_tree
from tests.support.kernel_tree import make_kernel


@pytest.fixture(autouse=True)
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    if not request.node.get_closest_marker("network"):  # those use the shared one: 150 MB
        monkeypatch.setenv("NPU_BSP_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tarball")
    make_kernel(folder / "linux-6.12")
    (folder / "linux-6.12/README").write_text("not needed for device trees")
    subprocess.run(["tar", "-cJf", "linux.tar.xz", "linux-6.12"], cwd=folder, check=True)
    return folder / "linux.tar.xz"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Server:
    """A web server on loopback. ``answer`` gets the request handler."""

    address: str
    answer: Callable[[http.server.BaseHTTPRequestHandler], None]
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.requests.append(self.path)
            found.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    found = Server(f"http://127.0.0.1:{httpd.server_port}", lambda request: None)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def sends(content: bytes, *, length: int | None = None) -> Callable[..., None]:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)

    return answer


def left_behind(cache: Path) -> list[str]:
    """What is in the cache apart from locks and empty folders."""
    return [str(path) for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


# --- tarball ---------------------------------------------------------------------------------


def test_a_tarball_is_fetched_once_and_unpacked_in_part(server: Server, tarball: Path) -> None:
    server.answer = sends(tarball.read_bytes())
    name = f"tarball:{server.address}/linux.tar.xz#sha256={sha256(tarball)}"
    for _ in range(2):
        tree = kernel_tree(name)
        assert (tree.release, tree.series) == ("6.12.0", "6.12")
    assert server.requests == ["/linux.tar.xz"]
    assert (tree.path / "scripts/dtc/include-prefixes/dt-bindings/clock/g12a-clkc.h").exists()
    assert not (tree.path / "README").exists()
    whole = kernel_tree(name, whole=True)
    assert (whole.path / "README").exists()
    assert server.requests == ["/linux.tar.xz"]


def test_a_tarball_on_this_machine(tarball: Path) -> None:
    assert kernel_tree(f"tarball:{tarball}#sha256={sha256(tarball)}").release == "6.12.0"


def test_files_of_the_future_are_no_damage(tarball: Path, tmp_path: Path) -> None:
    """Where a machine's clock stands in 1970 all are; tar says so of each, and of missing parts."""
    later = tmp_path / "later.tar"
    with tarfile.open(later, "w") as archive:
        entry = tarfile.TarInfo("linux/Makefile")
        entry.mtime = 1 << 33
        archive.addfile(entry)
    trees.unpack(later, tmp_path / "unpacked", ("Makefile", "no-such-part"), "a kernel source")
    assert (tmp_path / "unpacked/Makefile").is_file()


def test_another_content_is_refused(server: Server, tarball: Path, cache: Path) -> None:
    server.answer = sends(tarball.read_bytes()[:-1] + b"!")
    with pytest.raises(InfrastructureError, match="another content") as caught:
        kernel_tree(f"tarball:{server.address}/linux.tar.xz#sha256={sha256(tarball)}")
    assert sha256(tarball) in caught.value.message
    assert left_behind(cache) == []


def test_a_truncated_download_is_refused(server: Server, tarball: Path, cache: Path) -> None:
    content = tarball.read_bytes()
    server.answer = sends(content[: len(content) // 2], length=len(content))
    with pytest.raises(InfrastructureError, match=r"ended after|cannot download"):
        kernel_tree(f"tarball:{server.address}/linux.tar.xz#sha256={sha256(tarball)}")
    assert left_behind(cache) == []


def test_an_address_that_does_not_answer(server: Server) -> None:
    server.answer = lambda request: request.send_error(404)
    with pytest.raises(InfrastructureError, match="Not Found"):
        kernel_tree(f"tarball:{server.address}/x.tar#sha256={'0' * 64}")


@pytest.mark.parametrize("content", [b"<html>not here</html>", b""])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "linux.tar.xz"
    file.write_bytes(content)
    with pytest.raises(UserError):
        kernel_tree(f"tarball:{file}#sha256={sha256(file)}")
    assert [path.name for path in (cache / "sources").iterdir() if path.suffix != ".lock"] == []


def test_a_damaged_archive_is_refused(tarball: Path, tmp_path: Path) -> None:
    file = tmp_path / "linux.tar.xz"
    file.write_bytes(tarball.read_bytes()[:600])
    with pytest.raises(UserError, match="not a complete tar archive"):
        kernel_tree(f"tarball:{file}#sha256={sha256(file)}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tarball:http://127.0.0.1/x.tar", "has no hash"),
        ("tarball:http://127.0.0.1/x.tar#sha256=12", "is not a SHA-256"),
        ("tarball:http://127.0.0.1/x.tar#md5=12", "has no hash"),
        ("git:https://127.0.0.1/linux.git", "names no ref"),
        ("git:git@127.0.0.1:linux.git", "names no ref"),
        ("git:https://127.0.0.1/linux.git@--upload-pack=x", "names no ref"),
        ("git:--upload-pack=x@v6.12", "names no ref"),
        ("pat:/tmp", "did you mean 'path'"),
        ("6.13", "the distribution has 6.1, 6.12"),
        ("six", "unknown kernel 'six'"),
        ("path:/no/such/folder", "there is no folder"),
    ],
)
def test_names_that_cannot_be_read(name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        kernel_tree(name)
    assert caught.value.exit_code == 2


# --- path ------------------------------------------------------------------------------------


def test_a_path_is_used_in_place(tmp_path: Path, cache: Path) -> None:
    folder = make_kernel(tmp_path / "linux", release="7.3")
    tree = kernel_tree(f"path:{folder}")
    assert (tree.path, tree.release) == (folder, "7.3.0")
    assert left_behind(cache) == []


def test_a_folder_that_is_no_kernel_tree(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a Linux source tree"):
        kernel_tree(f"path:{tmp_path}")


# --- git -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_kernel(tmp_path_factory.mktemp("git") / "linux")
    (folder / "README").write_text("not needed for device trees")
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message=one")
    git(folder, "tag", "--annotate", "--message=six", "v6.12")
    (folder / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 13\nSUBLEVEL = 1\n")
    git(folder, "commit", "--quiet", "--all", "--message=two")
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    return folder


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode().strip()


def test_git_takes_tags_branches_and_commits(repository: Path) -> None:
    tagged = kernel_tree(f"git:{repository}@v6.12")
    assert tagged.release == "6.12.0"
    assert tagged.origin == "commit " + git(repository, "rev-parse", "v6.12^{commit}")
    assert not (tagged.path / "README").exists()
    assert kernel_tree(f"git:{repository.as_uri()}@main").release == "6.13.1"
    commit = git(repository, "rev-parse", "v6.12^{commit}")
    assert kernel_tree(f"git:{repository}@{commit}").path == tagged.path
    assert (kernel_tree(f"git:{repository}@v6.12", whole=True).path / "README").exists()


def test_git_without_such_a_ref(repository: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'v6\.12'"):
        kernel_tree(f"git:{repository}@v6.1")


def test_git_that_does_not_answer(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot read the git repository"):
        kernel_tree(f"git:{(tmp_path / 'none.git').as_uri()}@v6.12")
    with pytest.raises(InfrastructureError, match="cannot fetch"):
        kernel_tree(f"git:{(tmp_path / 'none.git').as_uri()}@{'0' * 40}")
    assert left_behind(cache) == []


# --- labels ----------------------------------------------------------------------------------


def test_labels_are_folder_names_and_differ() -> None:
    names = [
        "6.12",
        "path:/home/me/linux",
        "path:/home/you/linux",
        "git:https://host/linux.git@v6.12",
        "git:https://host/linux.git@v6.13",
        "tarball:https://host/linux-6.12.tar.xz#sha256=" + "0" * 64,
    ]
    labels = [trees.label(name) for name in names]
    assert len(set(labels)) == len(names)
    assert all("/" not in label and not label.startswith(".") for label in labels)
    assert labels[0] == "6.12"


# --- several at once, and interrupted --------------------------------------------------------

FETCH = """
import sys
from bsp.kernel.source import kernel_tree
print(kernel_tree(sys.argv[1]).path)
"""


def start(name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, name],
        cwd=PROJECT,
        env=os.environ.copy(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def test_two_at_once_fetch_once(server: Server, tarball: Path) -> None:
    def slowly(request: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.4)
        sends(tarball.read_bytes())(request)

    server.answer = slowly
    name = f"tarball:{server.address}/linux.tar.xz#sha256={sha256(tarball)}"
    runs = [start(name) for _ in range(2)]
    said = [run.communicate(timeout=30) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert len(server.requests) == 1


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_leaves_nothing_in_place(
    server: Server, tarball: Path, cache: Path, signal_number: int
) -> None:
    content = tarball.read_bytes()
    reached, released = threading.Event(), threading.Event()

    def stalls(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:500])
        request.wfile.flush()
        reached.set()
        released.wait(30)

    server.answer = stalls
    name = f"tarball:{server.address}/linux.tar.xz#sha256={sha256(tarball)}"
    run = start(name)
    assert reached.wait(20)
    time.sleep(0.1)
    os.kill(run.pid, signal_number)
    run.communicate(timeout=20)
    released.set()
    assert run.returncode != 0
    if signal_number == signal.SIGINT:
        assert left_behind(cache) == []
    # After a kill a temporary may remain; the next run clears it away and succeeds.
    server.answer = sends(content)
    assert kernel_tree(name).release == "6.12.0"
    assert list(cache.rglob("*.part")) == []


# --- the distribution's packages -------------------------------------------------------------


@pytest.mark.network
def test_the_distributions_source() -> None:
    tree = kernel_tree("6.12")
    assert tree.series == "6.12"
    assert tree.origin.startswith("linux-source-6.12 6.12.")
    # What a link below include/dt-bindings reaches is there too.
    assert (tree.path / "include/dt-bindings/input/linux-event-codes.h").is_file()
    assert (tree.path / "scripts/dtc/include-prefixes/arm/allwinner").is_dir()
