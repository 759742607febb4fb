# SPDX-License-Identifier: MIT
"""A deployment by an ordinary user with the one sudo rule of docs/operators.md: real sshd, real sudo.

The user, the rule and sudo itself are in a view of /etc and /usr that only this server has (a mount
namespace with overlays): the machine's own are left alone.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.packages.apt import Archive
from bsp.base.project import PROJECT
from bsp.remote import ssh
from images.bundle.manifest import Bundle
from images.deploy.deploy import deploy, rollback
from images.deploy.session import Target
from images.deploy.status import status
from tests.support import local_sshd
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle

pytestmark = [
    *BOARD_MARKS,
    pytest.mark.network,
    pytest.mark.skipif(os.getuid() != 0, reason="making a user for a server of its own needs root"),
    pytest.mark.skipif(not Path("/etc/debian_version").exists(), reason="takes sudo from Debian"),
]
USER = "npu-deploy"
_SUDO = "/usr/bin/sudo"
_VIEW = """\
set -e
mount --make-rprivate /
for name in etc usr; do
    mount -t overlay -o lowerdir=/$name,upperdir={top}/$name,workdir={top}/work-$name overlay /$name
done
mkdir -p /run/sudo
exec "$@"
"""


def rule() -> str:
    """As the page for operators has it."""
    found = re.findall(
        rf"^ {{4}}({USER} .*)$", (PROJECT / "docs/operators.md").read_text(), re.MULTILINE
    )
    assert len(found) == 1
    return str(found[0])


@contextmanager
def server(board: FakeBoard, top: Path, sudoers: str) -> Iterator[Target]:
    """Another SSH server of the board, in its own view of the machine."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    machine = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    )
    unpacked = Archive(suite, machine.stdout.strip()).unpacked(["sudo"])
    for name in ("etc", "usr", "work-etc", "work-usr"):
        (top / name).mkdir(parents=True)
    subprocess.run(["cp", "-a", f"{unpacked}/usr/.", str(top / "usr")], check=True)
    subprocess.run(["cp", "-a", f"{unpacked}/etc/.", str(top / "etc")], check=True)
    (top / "etc/passwd").write_text(
        f"{Path('/etc/passwd').read_text()}{USER}:x:64321:64321::/:/bin/sh\n"
    )
    (top / "etc/group").write_text(f"{Path('/etc/group').read_text()}{USER}:x:64321:\n")
    (top / "etc/shadow").write_text(f"{Path('/etc/shadow').read_text()}{USER}:*:20000::::::\n")
    (top / "etc/shadow").chmod(0o600)
    (top / "etc/sudoers").write_text(f"Defaults env_reset\n{sudoers}\n")
    (top / "etc/sudoers").chmod(0o440)
    board.folder.chmod(0o755)  # it may look, like any user of a board, and not write
    sshd = local_sshd.start(
        board.folder / "as-user",
        under=("unshare", "--mount", "/bin/sh", "-c", _VIEW.format(top=top), "sh"),
    )
    for path in (board.folder / "as-user", board.folder / "as-user/authorized_keys"):
        path.chmod(0o755)
    try:
        target = board.target()
        yield replace(
            target,
            host=replace(sshd.host, name="fake", board=board.host.board, user=USER, sudo=True),
        )
    finally:
        sshd.stop()


@pytest.mark.slow
def test_deploy_by_an_ordinary_user(board: FakeBoard, factory: Bundle, tmp_path: Path) -> None:
    update = make_bundle(tmp_path / "update", kernel=b"another kernel")
    (board.root / "root-only").write_bytes(b"secret")
    (board.root / "root-only").chmod(0o600)
    with server(board, tmp_path / "view", rule()) as target:
        with ssh.connect(target.host) as connection:  # it is what it says
            assert connection.run(["id", "-un"]).text.strip() == USER
            assert connection.run(["cat", f"{board.root}/root-only"], check=False).exit_code != 0
            assert connection.run(["sudo", "-n", "id"], check=False).exit_code != 0
            assert connection.run(["touch", f"{board.fat}/x"], check=False).exit_code != 0
        result = deploy(target, bundle=update, board=None)
        assert result.outcome == "confirmed", result.problem
        assert board.running() == update.generation
        assert status(target)["running_dtb_matches"]
        assert rollback(target).outcome == "confirmed"
        assert board.running() == factory.generation
        # Without sudo = true it is told, and nothing is written.
        before = board.snapshot()
        with pytest.raises(UserError, match="may not do this"):
            deploy(
                replace(target, host=replace(target.host, sudo=False)), bundle=update, board=None
            )
        assert board.snapshot() == before


def test_without_the_rule_it_is_said_what_is_missing(board: FakeBoard, tmp_path: Path) -> None:
    before = board.snapshot()
    with (
        server(board, tmp_path / "view", "") as target,
        pytest.raises(
            UserError, match="npu-deploy may not start a deployment on fake: sudo: "
        ) as caught,
    ):
        status(target)
    assert "docs/operators.md" in caught.value.hint
    assert board.snapshot() == before
