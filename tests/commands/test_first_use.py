# SPDX-License-Identifier: MIT
"""First use: the real launcher and installer, with stand-ins for apt, dpkg, sudo and Python."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bsp.base.process import PACKAGE_OF_TOOL
from bsp.base.project import PROJECT

_REAL = (
    "sh", "env", "grep", "sed", "tr", "mktemp", "rm", "tail", "touch", "flock", "fold", "wc", "readlink",
    "cat", "cp", "mkdir", "chmod", "sleep", "find", "head",
)  # fmt: skip

_PYTHON = """#!/bin/sh
# A Python that makes environments out of copies of itself.
state={state}
case "$*" in
*ensurepip*|*"import pip, venv"*) [ ! -e $state/no-venv ] ;;
"-m venv "*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
*"-m pip"*)
    echo pip >> $state/pip
    touch "$TMPDIR/left-over"
    [ ! -e $state/slow-pip ] || { touch $state/pip-runs; sleep 30; } ;;
*/start.py*) shift 4; echo "started: $*" ;;
esac
"""

_DPKG = """#!/bin/sh
echo asked >> {state}/dpkg
for name in $(cat {state}/installed); do printf 'installed=%s ' $name; done
"""

_APT = """#!/bin/sh
# What root may do; -o and its value are left out of what is noted.
echo "$(id -u): $*" >> {state}/apt
case "$*" in
*--print-uris*)
    echo 'Need to get 203 MB/204 MB of archives.'
    echo 'After this operation, 893 MB of additional disk space will be used.'
    exit 0 ;;
update*) exit 0 ;;
esac
[ "$(id -u)" = 0 ] || [ -n "$AS_ROOT" ] || { echo 'E: are you root?'; exit 100; }
for word; do case $word in
gamma) [ ! -e {state}/no-gamma ] || { echo 'E: no gamma'; exit 100; } ;;
esac; done
[ ! -e {state}/apt-fails ] || { echo 'E: the mirror is gone'; exit 100; }
echo 'dlstatus:1:12.5:Retrieving file 1 of 3 (1 min remaining)'
sleep 0.1
echo 'pmstatus:alpha:50.0000:Installing alpha (amd64)'
echo 'Setting up alpha'
for word; do case $word in alpha|beta|gamma) echo $word >> {state}/installed ;; esac; done
"""

_SUDO = """#!/bin/sh
case "$(cat {state}/sudo) $*" in
*" -n true") [ "$(cat {state}/sudo)" = free ] ;;
"refused -v") echo 'sorry, user tester may not run sudo'; exit 1 ;;
*" -v") ;;
refused*) exit 1 ;;
*) AS_ROOT=1 exec "$@" ;;
esac
"""


class Machine:
    """A machine with nothing installed, and a fresh clone of the project."""

    def __init__(self, folder: Path, *, uid: int = 0, sudo: str = "", where: str = "clone") -> None:
        self.state = folder / "state"
        self.tools = folder / "bin"
        self.temporary = folder / "tmp"
        self.root = folder / where
        for each in (self.state, self.tools, self.temporary):
            each.mkdir()
        (self.root / "requirements").mkdir(parents=True)
        shutil.copy(PROJECT / "inv", self.root)
        for name in ("install.sh", "system.sh"):
            shutil.copy(PROJECT / "requirements" / name, self.root / "requirements")
        for name, text in (("system", "# words\nalpha\nbeta\n"), ("system-dev", "gamma\n")):
            (self.root / "requirements" / f"{name}.txt").write_text(text)
        for name in ("run", "dev"):
            (self.root / "requirements" / f"{name}.txt").touch()
        for tool in _REAL:
            path = shutil.which(tool)
            assert path, tool
            (self.tools / tool).symlink_to(path)
        self.add("python3", _PYTHON)
        self.add("dpkg-query", _DPKG)
        self.add("apt-get", _APT)
        self.add("id", f"#!/bin/sh\n[ $1 = -u ] && echo {uid} || echo tester\n")
        if sudo:
            self.add("sudo", _SUDO)
        self.note("sudo", sudo)
        self.note("installed")

    def add(self, name: str, script: str) -> None:
        (self.tools / name).write_text(script.replace("{state}", str(self.state)))
        (self.tools / name).chmod(0o755)

    def note(self, name: str, text: str = "") -> None:
        (self.state / name).write_text(f"{text}\n" if text else "")

    def told(self, name: str) -> list[str]:
        """What a stand-in was asked for."""
        file = self.state / name
        return file.read_text().splitlines() if file.exists() else []

    def environment(self, **more: str) -> dict[str, str]:
        return {"PATH": str(self.tools), "TMPDIR": str(self.temporary), "TERM": "xterm",
                "HOME": str(self.root), **more}  # fmt: skip

    def inv(
        self, *words: str, launcher: str | Path = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Type a command where there is no terminal."""
        return subprocess.run(
            [launcher or self.root / "inv", *words], env=self.environment(**more),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/",
        )  # fmt: skip

    def typed(self, *words: str, answer: str = "", **more: str) -> tuple[int, str]:
        """Type a command at a terminal, and an answer where it asks."""
        near, far = pty.openpty()
        with subprocess.Popen(
            [self.root / "inv", *words], env=self.environment(**more), stdin=far, stdout=far, stderr=far,
            start_new_session=True,
        ) as process:  # fmt: skip
            os.close(far)
            seen, answered = b"", False
            try:
                while data := os.read(near, 4096):
                    seen += data
                    if b"[Y/n]" in seen and not answered:
                        answered = True
                        os.write(near, answer.encode() + b"\n")
            except OSError:  # Linux' way to say that the other end is closed
                pass
        os.close(near)
        return process.returncode, seen.decode().replace("\r\n", "\n")

    def left(self) -> list[str]:
        """What lies about: temporary files, and an environment that is not complete."""
        kept = [path.name for path in self.temporary.iterdir()]
        return kept + [name for name in (".venv",) if (self.root / name).exists()]


def line(sudo: str = "") -> re.Pattern[str]:
    """The line for an administrator; apt without lists has to fetch them first."""
    install = f"{sudo}apt-get install --no-install-recommends alpha beta"
    return re.compile(f"^    ({sudo}apt-get update && )?{install}$", re.MULTILINE)


def test_where_nobody_can_be_asked_everything_is_installed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    first = machine.inv("deploy", "--host", "x")
    assert first.returncode == 0, first.stderr
    assert first.stdout == "started: deploy --host x\n"
    assert first.stderr.count("alpha beta") == 1
    assert "[Y/n]" not in first.stderr
    assert machine.told("installed") == ["alpha", "beta"]
    installed = [line for line in machine.told("apt") if "install" in line]
    assert [line.rpartition("--yes ")[2] for line in installed] == [
        "--no-install-recommends alpha beta"
    ]
    asked = len(machine.told("dpkg"))
    second = machine.inv("deploy")
    assert (second.stdout, second.stderr) == ("started: deploy\n", "")
    assert len(machine.told("dpkg")) == asked
    assert machine.told("pip") == ["pip"]
    assert machine.left() == [".venv"]


def test_sudo_without_a_password_is_used(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000, sudo="free")
    assert machine.inv("deploy").returncode == 0
    assert machine.told("installed") == ["alpha", "beta"]


@pytest.mark.parametrize("sudo", ["", "password", "refused"])
def test_without_root_and_a_terminal_the_line_for_an_administrator_is_said_once(
    tmp_path: Path, sudo: str
) -> None:
    machine = Machine(tmp_path, uid=1000, sudo=sudo)
    first = machine.inv("build-dts", "--board", "vim3")
    assert first.returncode == 0
    assert first.stdout == "started: build-dts --board vim3\n"
    assert first.stderr.count("alpha") == 1
    assert line().search(first.stderr)
    assert "2 Debian packages are missing" in first.stderr
    assert "As root, an administrator installs them" in first.stderr
    assert machine.inv("build-dts").stderr == ""
    assert (machine.root / ".venv/.npu-bsp-missing").read_text() == "alpha beta\n"
    # An administrator installed them: --yes looks again.
    machine.note("installed", "alpha\nbeta")
    assert machine.inv("--yes", "build-dts").stdout == "started: build-dts\n"
    assert not (machine.root / ".venv/.npu-bsp-missing").exists()


def test_who_may_not_use_sudo_is_told_the_line_for_root(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000, sudo="refused")
    code, seen = machine.typed("deploy", answer="y")
    assert code == 0
    assert "sudo does not let you. As root, an administrator installs them" in seen
    assert line().search(seen)
    assert "started: deploy" in seen
    assert machine.told("installed") == []


def test_at_a_terminal_it_says_sizes_and_asks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000, sudo="password")
    code, seen = machine.typed("deploy", answer="n")
    assert code == 0
    assert "2 Debian packages are to be installed:\n  alpha beta" in seen
    assert "To fetch: 203 MB/204 MB." in seen
    assert "On disk: 893 MB." in seen
    assert "about 2 GB" in seen
    assert line("sudo ").search(seen)
    assert machine.told("installed") == []
    assert "started: deploy" in seen
    assert machine.typed("deploy")[1] == "started: deploy\n"  # it does not ask each time


@pytest.mark.parametrize("answer", ["", "y", "YES"])
def test_a_yes_installs_and_shows_how_far_it_is(tmp_path: Path, answer: str) -> None:
    machine = Machine(tmp_path, uid=1000, sudo="password")
    code, seen = machine.typed("deploy", answer=answer)
    assert code == 0, seen
    assert machine.told("installed") == ["alpha", "beta"]
    assert "\r\x1b[K  fetching 12 %" in seen
    assert "\r\x1b[K  installing 50 % alpha" in seen
    assert "Setting up" not in seen


@pytest.mark.parametrize(
    ("words", "more"),
    [(("--yes", "deploy"), {}), (("deploy",), {"NPU_BSP_YES": "1"}), (("deploy",), {"CI": "true"})],
)
def test_no_question_where_it_is_answered_before(
    tmp_path: Path, words: tuple[str, ...], more: dict[str, str]
) -> None:
    machine = Machine(tmp_path)
    code, seen = machine.typed(*words, **more)
    assert code == 0
    assert "[Y/n]" not in seen
    assert "started: deploy" in seen
    assert machine.told("installed") == ["alpha", "beta"]


def test_yes_behind_the_task_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    ended = machine.inv("bringup", "--yes")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: --yes is a flag of ./inv itself: it stands before the task\n"
        "hint: ./inv --yes bringup\n"
    )
    assert machine.told("installed") == machine.told("pip") == []
    # A task's own flag is left to it, and so is everything once all is installed.
    assert machine.inv("flash", "--yes").stdout == "started: flash --yes\n"
    assert machine.inv("bringup", "--yes").stdout == "started: bringup --yes\n"


def test_a_dumb_terminal_sees_no_control_characters(tmp_path: Path) -> None:
    for number, more in enumerate(({"TERM": "dumb"}, {"NO_COLOR": "1"})):
        (tmp_path / str(number)).mkdir()
        machine = Machine(tmp_path / str(number))
        assert "\x1b" not in machine.typed("--yes", "deploy", **more)[1]


@pytest.mark.parametrize(
    "words",
    ["", "--list", "--help", "-h deploy", "deploy --help", "deploy --host x -h", "boards",
     "board vim3", "completion bash"],
)  # fmt: skip
def test_lists_and_help_need_no_packages(tmp_path: Path, words: str) -> None:
    machine = Machine(tmp_path, uid=1000)
    ended = machine.inv(*words.split())
    assert ended.returncode == 0
    assert ended.stdout == f"started: {words}\n"
    assert machine.told("dpkg") == []
    assert "alpha" not in ended.stderr
    # The first task that does need them looks.
    assert "2 Debian packages are missing" in machine.inv("deploy").stderr


def test_without_what_makes_environments_nothing_can_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000)
    machine.note("no-venv")
    ended = machine.inv("--list")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("alpha") == 1
    assert "python3-venv is not installed" in ended.stderr
    assert "hint: " in ended.stderr
    assert machine.left() == []


def test_an_old_python_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("python3", "#!/bin/sh\nexit 1\n")
    ended = machine.inv("--list")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: Python 3.11 or later is needed")
    assert machine.left() == []


def test_when_apt_fails_its_last_words_are_shown(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.note("apt-fails")
    ended = machine.inv("deploy")
    assert ended.returncode == 3
    assert "E: the mirror is gone" in ended.stderr
    assert "error: apt could not install" in ended.stderr
    assert machine.left() == []


def test_what_only_tests_need_may_be_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.note("no-gamma")
    ended = machine.inv("test", "--fast")
    assert ended.returncode == 0
    assert ended.stdout == "started: test --fast\n"
    assert "only needed by tests, which then are skipped: gamma" in ended.stderr
    assert machine.inv("test").stderr == ""


def test_tests_install_what_they_need_besides(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.inv("deploy").returncode == 0
    assert machine.inv("test").returncode == 0
    assert machine.told("installed") == ["alpha", "beta", "gamma"]


def test_a_new_requirement_is_installed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.inv("deploy").returncode == 0
    later = time.time() + 5
    (machine.root / "requirements/system.txt").write_text("alpha\nbeta\ngamma\n")
    os.utime(machine.root / "requirements/system.txt", (later, later))
    assert machine.inv("deploy").returncode == 0
    assert machine.told("installed") == ["alpha", "beta", "gamma"]


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    """As after an upgrade of the distribution."""
    machine = Machine(tmp_path)
    assert machine.inv("deploy").returncode == 0
    python = machine.root / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    assert machine.inv("deploy").stdout == "started: deploy\n"
    assert machine.told("pip") == ["pip", "pip"]


# --- interrupted, and two at once ------------------------------------------------------------


def slow_install(machine: Machine) -> subprocess.Popen[str]:
    machine.note("slow-pip")
    process = subprocess.Popen(
        # Whoever runs the tests under nohup ignores SIGHUP, and a shell keeps to that.
        ["env", "--default-signal=HUP", machine.root / "inv", "deploy"],
        env=machine.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (machine.state / "pip-runs").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    machine = Machine(tmp_path)
    process = slow_install(machine)
    os.killpg(process.pid, number)  # as a terminal does
    out, error = process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number)
    assert out == ""
    assert "Traceback" not in error
    assert machine.left() == []
    (machine.state / "slow-pip").unlink()
    assert machine.inv("deploy").stdout == "started: deploy\n"
    assert machine.left() == [".venv"]


def test_ctrl_c_keeps_an_environment_that_was_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert machine.inv("deploy").returncode == 0
    (machine.root / ".venv/.npu-bsp-run").unlink()
    process = slow_install(machine)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert (machine.root / ".venv/bin/python").exists()
    (machine.state / "slow-pip").unlink()
    assert machine.inv("deploy").returncode == 0


@pytest.mark.slow
def test_two_at_once_install_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("python3", _PYTHON.replace("sleep 30", "sleep 1"))
    first = slow_install(machine)
    second = machine.inv("deploy")
    out, _ = first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert out == second.stdout == "started: deploy\n"
    assert "waiting for it" in second.stderr
    assert machine.told("pip") == ["pip"]
    assert machine.told("installed") == ["alpha", "beta"]


# --- where the launcher is -------------------------------------------------------------------


def test_a_folder_with_blanks_and_links_to_the_launcher(tmp_path: Path) -> None:
    machine = Machine(tmp_path, where="a folder with  'blanks' and $things")
    bin_folder = tmp_path / "home bin"
    bin_folder.mkdir()
    (bin_folder / "inv").symlink_to(machine.root / "inv")
    (bin_folder / "second").symlink_to("inv")
    (tmp_path / "project").symlink_to(machine.root)
    for launcher in (
        bin_folder / "inv",
        bin_folder / "second",
        tmp_path / "project/inv",
        os.path.relpath(bin_folder / "inv", "/"),
    ):
        assert machine.inv("deploy", "a b", launcher=launcher).stdout == "started: deploy a b\n"
    assert (machine.root / ".venv").exists()
    assert machine.told("pip") == ["pip"]
    found = machine.inv("deploy", launcher="inv", PATH=f"{bin_folder}:{machine.tools}")
    assert found.stdout == "started: deploy\n"


# --- other distributions ---------------------------------------------------------------------

_RPM = """#!/bin/sh
grep -qxF "$3" {state}/installed
"""

_DNF = """#!/bin/sh
echo "$*" >> {state}/dnf
for word; do case $word in
-*|install) ;;
a-in-fedora) [ ! -e {state}/no-alpha ] && echo $word >> {state}/installed ;;
*) echo $word >> {state}/installed ;;
esac; done
"""


def fedora(folder: Path, *, uid: int = 0) -> Machine:
    machine = Machine(folder, uid=uid)
    for name in ("dpkg-query", "apt-get"):
        (machine.tools / name).unlink()
    machine.add("rpm", _RPM)
    machine.add("dnf", _DNF)
    (machine.root / "requirements/system.txt").write_text("alpha\nbeta\ndelta\n")
    (machine.root / "requirements/system-fedora.txt").write_text(
        "# words\nalpha a-in-fedora\napt apt\nbeta - Fedora does that itself\n"
        "delta a-in-fedora\ndpkg dpkg\ngamma g++\n"
    )
    return machine


def test_fedora_gets_its_own_names_and_is_told_what_it_lacks(tmp_path: Path) -> None:
    machine = fedora(tmp_path)
    ended = machine.inv("deploy")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("beta: Fedora does that itself") == 1
    assert "Installing Fedora packages: apt dpkg a-in-fedora" in ended.stderr
    assert machine.told("installed") == ["apt", "dpkg", "a-in-fedora"]
    assert "--setopt=install_weak_deps=False" in machine.told("dnf")[0]
    assert machine.inv("deploy").stderr == ""


def test_what_this_fedora_does_not_have_is_named(tmp_path: Path) -> None:
    machine = fedora(tmp_path)
    machine.note("no-alpha")
    ended = machine.inv("deploy")
    assert ended.returncode == 0
    assert "dnf could not install: a-in-fedora" in ended.stderr
    assert (machine.root / ".venv/.npu-bsp-missing").read_text() == "a-in-fedora\n"


def test_an_ordinary_user_of_fedora_gets_dnf_s_line(tmp_path: Path) -> None:
    ended = fedora(tmp_path, uid=1000).inv("deploy")
    assert (
        "\n    dnf install --setopt=install_weak_deps=False apt dpkg a-in-fedora\n" in ended.stderr
    )
    assert "3 Fedora packages are missing" in ended.stderr


def test_an_arm64_machine_needs_no_emulator_and_no_cross_compiler(tmp_path: Path) -> None:
    for name, expected in (("arm64", ["alpha"]), ("amd64", ["alpha", "beta"])):
        (tmp_path / name).mkdir()
        machine = Machine(tmp_path / name)
        machine.add("dpkg", f"#!/bin/sh\necho {name}\n")
        (machine.root / "requirements/system.txt").write_text("alpha\nbeta [!arm64]\n")
        assert machine.inv("deploy").returncode == 0
        assert machine.told("installed") == expected


@pytest.mark.parametrize(
    ("release", "hint"),
    [
        ('ID=ubuntu\nVERSION_ID="22.04"', "sudo apt-get install python3.11 python3.11-venv"),
        ('ID=ubuntu\nVERSION_ID="20.04"', "Ubuntu 22.04 is the oldest"),
        ('ID=debian\nVERSION_ID="11"', "Debian 12 .* is the oldest"),
        ("ID=fedora\nVERSION_ID=35", "sudo dnf install python3.11"),
        ("ID=void", "sudo apt-get install python3 "),
    ],
)
def test_without_python_3_11_the_distribution_s_way_to_it_is_said(
    tmp_path: Path, release: str, hint: str
) -> None:
    machine = Machine(tmp_path)
    machine.add("python3", "#!/bin/sh\nexit 1\n")
    (tmp_path / "os-release").write_text(f"{release}\n")
    ended = machine.inv("--list", NPU_BSP_OS_RELEASE=str(tmp_path / "os-release"))
    assert ended.returncode == 2
    assert re.search(f"^hint: {hint}", ended.stderr, re.MULTILINE), ended.stderr


def test_a_python_beside_the_distribution_s_has_a_venv_package_of_its_own(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000)
    (machine.tools / "python3.11").symlink_to("python3-as-it-is")
    machine.add("python3-as-it-is", _PYTHON)
    machine.add("python3", "#!/bin/sh\nexit 1\n")
    machine.note("no-venv")
    (machine.root / "requirements/system.txt").write_text("python3-venv\n")
    assert "no-install-recommends python3.11-venv\n" in machine.inv("--list").stderr


_DPKG_DEB = """#!/bin/sh
for word; do folder=$word; done
mkdir -p "$folder/usr/share/python-wheels"
touch "$folder/usr/share/python-wheels/pip-1-py3.whl"
"""


def test_without_python3_venv_pip_comes_out_of_its_package(tmp_path: Path) -> None:
    machine = Machine(tmp_path, uid=1000)
    machine.note("no-venv")
    machine.add("dpkg-deb", _DPKG_DEB)
    machine.add("apt-get", '#!/bin/sh\necho "$*" >> {state}/apt\n')
    ended = machine.inv("--list")
    if not Path("/var/lib/dpkg/status").exists():
        pytest.skip("this is not a Debian-like system")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "started: --list\n"
    assert "Fetching pip from its Debian package" in ended.stderr
    assert any(
        "AllowUnauthenticated=false" in line and "download" in line for line in machine.told("apt")
    )
    assert machine.told("pip") == ["pip"]
    assert machine.left() == [".venv"]


def test_the_table_of_fedora_knows_every_package() -> None:
    rows = (PROJECT / "requirements/system-fedora.txt").read_text().splitlines()
    known = [row.split()[0] for row in rows if not row.startswith("#")]
    assert known == sorted(set(known))
    assert all(len(row.split()) >= (3 if row.split()[1] == "-" else 2) for row in rows)
    for name in ("system.txt", "system-dev.txt"):
        lines = (PROJECT / "requirements" / name).read_text().splitlines()
        assert {line.split()[0] for line in lines if not line.startswith("#")} <= set(known)
    assert set(PACKAGE_OF_TOOL.values()) <= set(known)
