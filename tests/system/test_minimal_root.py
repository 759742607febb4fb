# SPDX-License-Identifier: MIT
"""First use on a new machine: nothing but Python there, no recommended packages, a user without sudo.

In a root of its own that mmdebstrap makes; packages and wheels are fetched, as a newcomer fetches them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bsp.base.packages.apt import debian_mirror
from bsp.base.project import PROJECT

pytestmark = [
    pytest.mark.full,
    pytest.mark.network,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a root of its own"),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed"),
]

_USER = 1000
_HOME = "/home/tester"
_CLONE = f"{_HOME}/a clone"


# Not chroot: the kernel refuses user namespaces, which make a board's root, to whoever is in one.
_INSIDE = """
root=$1 user=$2 where=$3
shift 3
mount --bind "$root" "$root"
cd "$root"
mkdir -p before
/usr/sbin/pivot_root . before
cd /
mount -t proc proc proc
mount -t binfmt_misc binfmt_misc proc/sys/fs/binfmt_misc
mount -t sysfs sysfs sys
mount --rbind before/dev dev
umount -l before
cd "$where"
exec setpriv --reuid "$user" --regid "$user" --clear-groups "$@"
"""


@dataclass(frozen=True)
class Root:
    """A small Debian with a clone of this project in it."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str, user: int = 0, where: str = "/") -> subprocess.CompletedProcess[str]:
        """Run a program there; its mounts go when it ends."""
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        proxies = {
            name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")
        }
        # As a login has it: an ordinary user's PATH has no sbin.
        path = "/usr/local/bin:/usr/bin:/bin" if user else "/usr/sbin:/usr/bin:/sbin:/bin"
        settings = {
            **pip,
            **proxies,
            **self.variables,
            "PATH": path,
            "HOME": _HOME if user else "/root",
            "TERM": "dumb",
        }
        return subprocess.run(
            ["unshare", "--mount", "sh", "-euc", _INSIDE, "sh", str(self.folder), str(user), where, *words],
            env=settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3600,
        )  # fmt: skip

    def inv(self, *words: str, user: int = 0) -> subprocess.CompletedProcess[str]:
        """Type a command in the clone."""
        return self.run("./inv", *words, user=user, where=_CLONE)


@pytest.fixture(params=["bookworm", "trixie"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Root]:
    folder = tmp_path / "root"
    subprocess.run(
        ["unshare", "--mount", "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet",
         "--include=ca-certificates,python3", "--skip=output/dev", request.param, folder,
         f"deb {debian_mirror()} {request.param} main"],
        check=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    try:
        shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
        certificate = os.environ.get("PIP_CERT")
        if certificate:  # the network here may have a certificate of its own
            (folder / certificate.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(certificate, folder / certificate.lstrip("/"))
        clone(folder / _CLONE.lstrip("/"))
        made = Root(folder)
        assets = os.environ.get("NPU_BSP_ASSETS")
        if assets:
            shutil.copytree(assets, folder / "assets")
            made.variables["NPU_BSP_ASSETS"] = "/assets"
        made.run("sh", "-c", f"echo tester:x:{_USER}:{_USER}::{_HOME}:/bin/sh >> /etc/passwd")
        for name in ("subuid", "subgid"):
            (folder / "etc" / name).write_text("tester:100000:65536\n")
        made.run("chown", "-R", f"{_USER}:{_USER}", _HOME)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clone(target: Path) -> None:
    """The project's files as they are now, without what is built or installed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    for name in listed.decode().split("\0"):
        if name and (PROJECT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, target / name, follow_symlinks=False)


def test_first_use(root: Root) -> None:
    # An ordinary user, no sudo, no python3-venv: what is missing is said once, lists work.
    first = root.inv("--list", user=_USER)
    assert first.returncode == 0, first
    assert first.stderr.count(" uidmap ") == 1
    assert "As root, an administrator installs them" in first.stderr
    assert "\n    apt-get update && apt-get install " in first.stderr  # no lists yet
    assert "bringup" in first.stdout
    assert "administrator" not in root.inv("board", "vim3", user=_USER).stderr
    # So does what needs programs that work out of their packages.
    tree = root.inv("build-dts", "--board", "vim3", user=_USER)
    assert tree.returncode == 0, tree
    assert "Fetching device-tree-compiler, to be used from the cache" in tree.stderr
    assert root.inv("build-userspace", "--board", "vim3", user=_USER).returncode == 0
    # A compiler has to be installed.
    kernel = root.inv("build-kernel", "--board", "vim3", user=_USER)
    assert kernel.returncode == 2, kernel
    assert re.search(r"^hint: sudo apt-get install [\w-]+$", kernel.stderr, re.MULTILINE)

    # The administrator types the line; then it works, for that user too.
    administrator_installs(root, first.stderr)
    assert root.inv("--yes", "boards", user=_USER).stderr == ""

    # What is compiled with gcc, make and the cross compiler, and what depmod and patch are for.
    tested = root.inv(
        "test", "--fast", "--select", "build_kernel or npu_shim or dts_build", user=_USER
    )
    assert tested.returncode == 0, tested.stdout[-4000:] + tested.stderr
    for reason in ("no compiler", "not installed", "needs aarch64-linux-gnu-gcc"):
        assert reason not in tested.stdout, tested.stdout[-4000:]


@pytest.mark.parametrize("root", ["trixie"], indirect=True)
@pytest.mark.parametrize("foreign", [False, True], ids=["Debian", "another distribution"])
def test_the_whole_path_and_the_fast_tier(root: Root, foreign: bool) -> None:
    administrator_installs(root, root.inv("--list", user=_USER).stderr)
    only_tests_need = (PROJECT / "requirements/system-dev.txt").read_text().splitlines()
    packages = [line.strip() for line in only_tests_need if line.strip() and line[0] != "#"]
    got = root.run("apt-get", "install", "--yes", "--no-install-recommends", *packages)
    assert got.returncode == 0, got.stderr
    if foreign:
        make_foreign(root)
    for words in (("--yes", "bringup"), ("test", "--fast")):
        done = root.inv(*words, user=_USER)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def administrator_installs(root: Root, said: str) -> None:
    """Type, as root, the line that an ordinary user was told."""
    line = next(row for row in said.splitlines() if row.startswith("    apt-get update"))
    installed = root.run("sh", "-c", f"{line} --yes")
    assert installed.returncode == 0, installed.stderr


def make_foreign(root: Root) -> None:
    """Leave an apt that knows no Debian, and none of its keys: but its own archive has their package."""
    root.variables["NPU_BSP_DEBIAN_MIRROR"] = debian_mirror()
    got = root.run("apt-get", "download", "debian-archive-keyring", where="/srv")
    assert got.returncode == 0, got.stderr
    made = root.run("sh", "-euc", _FOREIGN, where="/srv")
    assert made.returncode == 0, made.stderr


_FOREIGN = """
apt-get install --yes --no-install-recommends gpg gpg-agent >&2
export GNUPGHOME=/srv/keys
mkdir -m 700 keys
gpg --batch --quiet --passphrase '' --quick-gen-key archive@example ed25519
gpg --export > /usr/share/keyrings/example.gpg
mkdir archive
mv debian-archive-keyring*.deb archive
cd archive
deb=$(ls *.deb)
{ dpkg-deb -f "$deb"; echo "Filename: ./$deb"; echo "Size: $(stat -c %s "$deb")"
  echo "SHA256: $(sha256sum "$deb" | cut -d' ' -f1)"; } > Packages
{ echo 'Origin: Example'; echo 'Label: Example'; echo 'Suite: noble'; echo 'Codename: noble'
  echo "Date: $(LC_ALL=C date -u '+%a, %d %b %Y %H:%M:%S UTC')"; echo 'SHA256:'
  echo " $(sha256sum Packages | cut -d' ' -f1) $(stat -c %s Packages) Packages"; } > Release
gpg --batch --quiet --clearsign -o InRelease Release
gpgconf --kill all
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/trusted.gpg.d/* /var/lib/apt/lists/*
rm -rf /usr/share/keyrings/debian-*
echo 'deb [signed-by=/usr/share/keyrings/example.gpg] file:/srv/archive ./' > /etc/apt/sources.list
cat > /etc/os-release <<'END'
ID=ubuntu
ID_LIKE=debian
VERSION_ID="24.04"
VERSION_CODENAME=noble
PRETTY_NAME="Ubuntu 24.04"
END
chmod -R a+rX /srv/archive
apt-get update >&2
"""
