# SPDX-License-Identifier: MIT
"""Machines without root, without Debian's mirror, without Debian's keys: a signed archive made here.

apt, dpkg-deb and gpg are real; only where the machine's own apt is set up is changed.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from bsp.base import process
from bsp.base.cache import cache_dir
from bsp.base.errors import BspError, InfrastructureError, UserError
from bsp.base.packages import apt, debian, host_apt, host_system
from bsp.base.packages.host_system import distribution
from bsp.base.spawn import spawn

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "dpkg-deb", "gpg"))), reason="needs apt, dpkg and gpg"
)


class Distribution:
    """An archive of a distribution that is not Debian, and an apt that knows it and nothing else."""

    def __init__(self, root: Path) -> None:
        self.root, self.archive, self.keys = root, root / "an archive", root / "keys"
        self.sources = root / "etc/sources.list"
        self.archive.mkdir()
        self.keys.mkdir(mode=0o700)
        self.gpg("--batch", "--passphrase", "", "--quick-gen-key", "archive@example", "ed25519")
        (root / "key.gpg").write_bytes(self.gpg("--export"))

    def gpg(self, *words: str) -> bytes:
        environment = {**os.environ, "GNUPGHOME": str(self.keys)}
        return subprocess.run(
            ["gpg", "--quiet", "--yes", *words], env=environment, check=True, capture_output=True
        ).stdout

    def stop_agent(self) -> None:
        environment = {**os.environ, "GNUPGHOME": str(self.keys)}
        subprocess.run(["gpgconf", "--kill", "all"], env=environment, check=True)

    def add(self, name: str, files: dict[str, str], links: dict[str, str] | None = None) -> None:
        folder = self.root / f"tree-{name}"
        (folder / "DEBIAN").mkdir(parents=True)
        (folder / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example>\n"
            "Description: made for a test\n"
        )
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            (folder / path).chmod(0o755)
        for path, target in (links or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(target)
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", folder, self.archive / f"{name}_1_all.deb"],
            check=True, capture_output=True,
        )  # fmt: skip

    def publish(self, *, signed: bool = True) -> None:
        (self.archive / "InRelease").unlink(missing_ok=True)
        stanzas = []
        for deb in sorted(self.archive.glob("*.deb")):
            content = deb.read_bytes()
            control = (self.root / f"tree-{deb.name.split('_')[0]}/DEBIAN/control").read_text()
            stanzas.append(
                f"{control}Filename: ./{deb.name}\nSize: {len(content)}\n"
                f"SHA256: {hashlib.sha256(content).hexdigest()}\n"
            )
        packages = "\n".join(stanzas).encode()
        (self.archive / "Packages").write_bytes(packages)
        now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
        (self.archive / "Release").write_text(
            f"Origin: Other\nSuite: x\nCodename: x\nDate: {now}\nSHA256:\n"
            f" {hashlib.sha256(packages).hexdigest()} {len(packages)} Packages\n"
        )
        if signed:
            release, target = self.archive / "Release", self.archive / "InRelease"
            self.gpg("--clearsign", "--output", str(target), str(release))


@pytest.fixture
def machine(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Distribution]:
    """A machine of that distribution, with an empty package status, whose user is not root."""
    made = Distribution(tmp_path)
    etc = tmp_path / "etc"
    for name in ("apt.conf.d", "sources.list.d", "preferences.d", "trusted.gpg.d"):
        (etc / name).mkdir(parents=True)
    # As somebody may have set it up: it counts for nothing here.
    (etc / "apt.conf.d/99careless").write_text(
        'Acquire::AllowInsecureRepositories "true";\nAPT::Get::AllowUnauthenticated "true";\n'
    )
    made.sources.write_text(
        f"deb [signed-by={tmp_path}/key.gpg] copy:{quote(str(made.archive))} ./\n"
    )
    status = tmp_path / "status"
    status.touch()
    real = spawn

    def spawn_here(words: list[str], **more: object) -> object:
        if words[0] == "apt-get":
            words = [*words[:1], "-o", f"Dir::Etc={etc}", *words[1:]]
        return real(words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(host_apt, "spawn", spawn_here)
    monkeypatch.setattr(host_apt, "_STATUS", status)
    monkeypatch.setattr(debian, "_HOST_LISTS", tmp_path / "no-lists")
    monkeypatch.setattr(
        debian, "_KEYRINGS", (tmp_path / "usr/share/keyrings/debian-archive-keyring.gpg",)
    )
    monkeypatch.setattr(
        debian, "mirror_of_tools", lambda root: "" if root == Path("/") else _real_tools(root)
    )
    monkeypatch.setenv("NPU_BSP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NPU_BSP_DEBIAN_MIRROR", raising=False)
    monkeypatch.setenv("PATH", os.environ["PATH"])  # what is added to it goes
    debian._found_mirror.cache_clear()
    yield made
    debian._found_mirror.cache_clear()
    made.stop_agent()


_real_tools = debian.mirror_of_tools


def test_a_program_comes_out_of_its_package(
    machine: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '#!/bin/sh\necho "bc $LD_LIBRARY_PATH $*"\n'
    links = {"usr/bin/bc": "/bin/bc"}  # as the links of kmod's programs
    machine.add("bc", {"bin/bc": text, "usr/lib/x": "x"}, links)
    machine.publish()
    monkeypatch.setattr(
        process, "find_tool", lambda name: None if name == "bc" else shutil.which(name)
    )
    said = process.run(["bc", "a b"]).text
    assert said.startswith("bc ")
    assert said.endswith(" a b\n")
    assert "/programs/" in said  # where its libraries are
    # Children find it by its name; the second time nothing is fetched.
    shutil.rmtree(machine.archive)
    folder = Path(process.require_tool("bc")).parent
    assert str(folder) in os.environ["PATH"].split(":")
    assert os.environ["PATH"].count(str(folder)) == 1


def test_what_cannot_be_used_unpacked_is_to_be_installed(
    machine: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = ("make", "bc")
    monkeypatch.setattr(
        process, "find_tool", lambda name: None if name in lacks else shutil.which(name)
    )
    with pytest.raises(UserError, match="the program 'make' is needed") as caught:
        process.require_tool("make")
    assert caught.value.hint == "sudo apt-get install make"
    machine.publish()  # without bc
    with pytest.raises(UserError, match=r"'bc' is needed .* could not be fetched either") as caught:
        process.require_tool("bc")
    assert caught.value.hint == "sudo apt-get install bc"
    assert not (Path(os.environ["NPU_BSP_CACHE"]) / "programs" / distribution() / "bc").exists()


def test_an_archive_may_be_a_folder(machine: Distribution) -> None:
    """apt takes packages of a ``file:`` source where they are, and copies none."""
    machine.sources.write_text(machine.sources.read_text().replace("copy:", "file:"))
    machine.add("bc", {"usr/bin/bc": "#!/bin/sh\n"})
    machine.publish()
    assert host_apt.packages(["bc"]) == [machine.archive / "bc_1_all.deb"]
    host_apt.unpack(["bc"], machine.root / "unpacked")
    assert (machine.root / "unpacked/usr/bin/bc").is_file()


@pytest.mark.parametrize("where", ["copy:", "file:"])
@pytest.mark.parametrize("fault", ["unsigned", "other key", "changed"])
def test_nothing_is_taken_unverified(machine: Distribution, fault: str, where: str) -> None:
    machine.sources.write_text(machine.sources.read_text().replace("copy:", where))
    machine.add("bc", {"usr/bin/bc": "#!/bin/sh\n"})
    machine.publish(signed=fault != "unsigned")
    if fault == "other key":
        machine.stop_agent()
        machine.keys = machine.root / "other-keys"
        machine.keys.mkdir(mode=0o700)
        machine.gpg("--batch", "--passphrase", "", "--quick-gen-key", "evil@example", "ed25519")
        machine.publish()
    if fault == "changed":
        with (machine.archive / "bc_1_all.deb").open("ab") as file:
            file.write(b"more")
    with pytest.raises(InfrastructureError, match="apt cannot"):
        host_apt.packages(["bc"])


def test_debians_mirror_and_keys_come_from_the_machines_own_packages(machine: Distribution) -> None:
    machine.add("debian-archive-keyring", {"usr/share/keyrings/debian-archive-keyring.gpg": "keys"})
    machine.add(
        "mmdebstrap", {"usr/bin/mmdebstrap": "my $mirror = 'http://mirror.example/debian';\n"}
    )
    machine.publish()
    keyring = _keyring()
    assert keyring.read_text() == "keys"
    assert keyring.is_relative_to(cache_dir() / "packages")
    assert debian.debian_mirror() == "http://mirror.example/debian"
    sources = apt.Archive("trixie", "amd64")._sources()
    assert sources == f"deb [signed-by={keyring}] http://mirror.example/debian trixie main\n"


def _keyring() -> Path:
    # Inside the package the paths are the real ones; outside of it none of them is there.
    inside = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debian, "_KEYRINGS", (inside,))
        patch.setattr(debian, "_first", lambda paths: next(
            (each for each in paths if each != inside and each.is_file()), None))  # fmt: skip
        found = debian.debian_keyring()
    debian._KEYRINGS = (found,)
    return found


def test_without_keys_nothing_is_fetched(machine: Distribution) -> None:
    machine.publish()
    with pytest.raises(UserError, match="cannot be verified: its keys are not here") as caught:
        debian.debian_keyring()
    assert "debian-archive-keyring" in caught.value.hint
    with pytest.raises(BspError):
        apt.Archive("trixie", "amd64").download(["hello"])


def test_without_any_mirror_the_variable_is_named(
    machine: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.publish()
    with pytest.raises(UserError, match="nothing on this machine knows a mirror") as caught:
        debian.debian_mirror()
    assert "NPU_BSP_DEBIAN_MIRROR" in caught.value.hint
    monkeypatch.setenv("NPU_BSP_DEBIAN_MIRROR", "http://own.example/d")
    assert debian.debian_mirror() == "http://own.example/d"


@pytest.mark.parametrize(
    ("file", "text", "mirror"),
    [
        ("usr/sbin/debootstrap", 'DEF_MIRROR="http://a.example/debian"\n', "http://a.example/debian"),
        ("usr/sbin/debootstrap", 'DEF_MIRROR="http://a.example/ubuntu"\n', ""),
        ("usr/bin/mmdebstrap",
         "  my $mirror    = 'https://b.example:8080/x/debian/';\n"
         "my $secmirror = 'http://b/debian-security';\n", "https://b.example:8080/x/debian"),
        ("usr/bin/mmdebstrap", "my $secmirror = 'http://b.example/debian-security';\n", ""),
        ("usr/share/python-apt/templates/debian.mirrors",
         "#LOC:AM\nhttp://c.example/debian/\nhttp://d.example/debian/\n", "http://c.example/debian"),
    ],
)  # fmt: skip
def test_the_tools_that_make_debian_systems_know_a_mirror(
    tmp_path: Path, file: str, text: str, mirror: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    assert _real_tools(tmp_path) == mirror


def test_an_apt_without_lists_is_asked_with_lists_of_our_own(
    machine: Distribution, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.add("bc", {"usr/bin/bc": "#!/bin/sh\n"})
    machine.publish()
    assert host_apt.mirrors() == [("Other", "./", f"copy:{machine.archive}/")]
    monkeypatch.setattr(host_apt, "mirrors", lambda: [
        ("Debian", "trixie-security", "http://s"), ("Debian", "trixie", "http://d/debian/")])  # fmt: skip
    assert debian.debian_mirror() == "http://d/debian/"


def test_an_origin_may_be_two_words() -> None:
    listed = "Raspberry Pi Foundation|trixie|http://r/\nDebian|trixie|http://d/debian/\n|x|http://n/\nbad\n"
    assert host_apt.read_targets(listed) == [
        ("Raspberry Pi Foundation", "trixie", "http://r/"),
        ("Debian", "trixie", "http://d/debian/"),
        ("", "x", "http://n/"),
    ]


def test_the_architecture_is_that_of_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine, name in (("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")):
        host_system.host_architecture.cache_clear()
        monkeypatch.setattr(host_system, "find_tool", lambda _: None)
        monkeypatch.setattr(os, "uname", lambda machine=machine: SimpleNamespace(machine=machine))
        assert host_system.host_architecture() == name
    host_system.host_architecture.cache_clear()


def test_fedora_s_hints_are_dnf_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_system, "is_dnf_system", lambda: True)
    assert host_system.install_command(["xz-utils"]) == "sudo dnf install xz"
    assert host_system.install_command(["mount", "fdisk"]) == "sudo dnf install util-linux"
    assert host_system.install_command(["libc6-dev-arm64-cross"]).startswith(
        "Fedora has no package"
    )
