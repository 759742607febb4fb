# SPDX-License-Identifier: MIT
"""~/.ssh/config as a real ``ssh -G`` reads it: Include, Match, tokens; and which names are known."""

from __future__ import annotations

import fnmatch
import getpass
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsp.base.errors import InfrastructureError, UserError
from bsp.remote import inventory, ssh, ssh_config
from bsp.remote.inventory import Host, resolve, resolve_jump
from bsp.remote.ssh_config import named_in_ssh_config
from tests.support import local_sshd

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="openssh-client is missing")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(tmp_path / "inventory.toml"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def write(folder: Path, **files: str) -> None:
    """Write configuration files; ``HERE`` in them stands for the folder."""
    for name, text in files.items():
        (folder / name).write_text(text.replace("HERE", str(folder)))


# --- which names are known ----------------------------------------------------------------------------


def test_hosts_of_included_files_are_known(tmp_path: Path) -> None:
    write(
        tmp_path,
        ssh_config="Include HERE/part-*\nHost *\n User everyone\n",
        **{
            "part-1": 'Host "desk vim3" vim3\n HostName 192.168.7.3\n Port 2200\n',
            "part-2": "INCLUDE=HERE/deeper\n",
            "deeper": "host=deep\n\thostname = deep.example\n",
        },
    )
    vim3 = resolve("vim3")
    assert (vim3.address, vim3.port, vim3.user) == ("192.168.7.3", 2200, "everyone")
    assert resolve("deep").address == "deep.example"
    with pytest.raises(UserError, match="unknown host 'vim'; did you mean 'vim3'"):
        resolve("vim")


def test_a_name_that_only_a_command_knows_is_known(tmp_path: Path) -> None:
    """``Match exec`` without a pattern: what ssh says of this name alone makes it known."""
    write(
        tmp_path,
        ssh_config="Include HERE/more\nHost *\n HostName %h.lan\n",
        more='Match exec "grep -qx %n HERE/boards"\n HostName 10.0.0.7\n Port 2207\n',
        boards="desk\n",
    )
    desk = resolve("desk")
    assert (desk.address, desk.port) == ("10.0.0.7", 2207)
    with pytest.raises(UserError, match="unknown host 'deskk'"):
        resolve("deskk")


def test_an_include_counts_where_its_block_does(tmp_path: Path) -> None:
    write(
        tmp_path,
        ssh_config="Host inner-*\n Include HERE/some\nHost outer\n Include HERE/some\n",
        some="Host inner-1\n Port 7\nHost other\n Port 8\n",
    )
    assert resolve("inner-1").port == 7
    # ssh takes nothing for these from the file, as the Include line is not for them.
    assert not named_in_ssh_config("other")
    assert ssh_config.names_in_ssh_config() == {"outer", "inner-1", "other"}


@pytest.mark.parametrize(
    ("text", "known", "unknown"),
    [
        ("Host *\n User x", (), ("a", "vim3")),
        ("Host !gate *\n User x", (), ("gate", "vim3")),
        ("Host board-? !board-9", ("board-1",), ("board-9", "board-10", "board-")),
        ("Host *.lab", ("vim3.lab",), ("vim3", ".lab2")),
        ("Match host vim3,evk-*", ("vim3", "evk-2"), ("evk",)),
        ('Match user me originalhost "vim3" ', ("vim3",), ("me",)),
        ("Match originalhost=vim3", ("vim3",), ("originalhost=vim3",)),
        ('Match originalhost="vim3"', ("vim3",), ('"vim3"',)),
        ('Match host = "vim3,b-*" user x', ("vim3", "b-1"), ("=", "x")),
        ('"Host" desk"-1"', ("desk-1",), ("desk",)),
        ("Match host *,!x", (), ("vim3", "x")),
        ("Match exec true", (), ("exec", "true")),
        ("Match all", (), ("all",)),
        ("Host vim3 # the desk", ("vim3",), ("desk",)),
        ("# Host vim3\nHostName vim3\n", (), ("vim3",)),
    ],
)
def test_patterns_that_name_a_host(
    tmp_path: Path, text: str, known: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    write(tmp_path, ssh_config=text + "\n")
    assert [name for name in (*known, *unknown) if named_in_ssh_config(name)] == list(known)


def test_files_that_include_each_other(tmp_path: Path) -> None:
    write(tmp_path, ssh_config="Include HERE/a\nHost vim3\n", a="Include HERE/ssh_config\n")
    with pytest.raises(UserError, match="Too many recursive configuration includes") as error:
        resolve("vim3")
    assert error.value.exit_code == 2
    assert f"ssh -F {tmp_path}/ssh_config -G vim3" in error.value.hint
    # A folder of files that each include the folder: 12 of them are 12! ways, if each way is walked.
    write(
        tmp_path,
        ssh_config="Include HERE/f*\n",
        **{f"f{n}": "Include HERE/f*\n" for n in range(12)},
    )
    assert not named_in_ssh_config("vim3")


def test_what_ssh_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    write(tmp_path, ssh_config="Include HERE/none-* HERE/some\n", some="Host vim3\n Prot 22\n")
    with pytest.raises(UserError, match=r"some: line 2: Bad configuration option: prot"):
        resolve("vim3")
    write(tmp_path, some="Host vim3\n Port 22\n")
    assert resolve("vim3").port == 22
    (tmp_path / "some").chmod(0o666)  # anybody could write a Match exec into it
    with pytest.raises(UserError, match="Bad owner or permissions"):
        resolve("vim3")


# --- what ssh answers ---------------------------------------------------------------------------------


def test_a_file_with_a_mark_at_its_beginning_is_refused_in_sshs_words(tmp_path: Path) -> None:
    write(tmp_path, ssh_config="\ufeffHost vim3\n HostName 192.0.2.3\n")
    with pytest.raises(UserError, match="Bad configuration option"):
        resolve("vim3")


def test_a_match_of_other_hosts_names_none(tmp_path: Path) -> None:
    """What such a block includes is not read for this name; for another it is."""
    write(
        tmp_path,
        ssh_config="Match !originalhost vim3 host vim*\n Port 2201\n"
        "Match !host desk*\n Include HERE/more\n",
        more="Host board-? desk-?\n Port 2202\n",
    )
    known = [name for name in ("vim3", "vim3l", "board-1", "desk-1") if named_in_ssh_config(name)]
    assert known == ["vim3l", "board-1"]
    for name in ("vim3", "vim3l", "board-1", "desk-1"):
        asked = subprocess.run(
            ["ssh", "-F", str(tmp_path / "ssh_config"), "-G", name],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ("port 22\n" not in asked.stdout) == (name in known)


PATTERNS = (
    "vim3",
    "vim*",
    "*",
    "?",
    "board-?",
    "!vim3",
    "!board-1",
    "*.c",
    "192.168.*",
    "VIM3",
    "???",
)
NAMES = ("vim3", "vim3l", "VIM3", "board-1", "a.b.c", "192.168.1.7", "fe80::1")
SOME = st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3)
KEYWORDS = st.sampled_from(
    ("Host", "host=", "\tHOST", "Match host", "match originalhost", "Match !host")
)
SETTING = st.sampled_from(("HostName %h.lan", "Port=2200", "User joe", 'HostName "10.0.0.9"', ""))


@given(st.lists(st.tuples(KEYWORDS, SOME, SETTING), min_size=1, max_size=5), st.sampled_from(NAMES))
@settings(max_examples=60, deadline=None)
def test_any_blocks_mean_what_they_mean_for_ssh(
    blocks: list[tuple[str, list[str], str]], name: str
) -> None:
    """Address and port are those of ``ssh -G``, and a name is known that a block which ssh takes names."""
    lines = []
    for number, (keyword, patterns, setting) in enumerate(blocks):
        separator = "," if keyword.lower().startswith("match") else " "
        lines += [f"{keyword} {separator.join(patterns)}", f"  SendEnv M{number}", f"  {setting}"]
    config = Path(os.environ["NPU_BSP_SSH_CONFIG"])
    config.write_text("\n".join(lines) + "\n")
    asked = subprocess.run(
        ["ssh", "-F", str(config), "-G", name], capture_output=True, text=True, check=True
    )
    said = [line.partition(" ")[::2] for line in asked.stdout.splitlines()]
    answer = ssh_config.ask_ssh(name, default_user="root")
    assert answer
    assert ("hostname", answer.address) in said
    assert ("port", str(answer.port)) in said
    naming = [
        number
        for number, (keyword, patterns, _) in enumerate(blocks)
        if not keyword.startswith(("Match", "match"))
        and any(re.search(r"\w", each) and fnmatch.fnmatchcase(name, each) for each in patterns)
    ]
    if any(("sendenv", f"M{number}") in said for number in naming):
        assert named_in_ssh_config(name)


def test_match_blocks(tmp_path: Path) -> None:
    write(
        tmp_path,
        ssh_config="Host vim3\n HostName vim3.example\n"
        "Match host vim3.example user debian\n Port 2201\n"
        'Match originalhost vim3 exec "test %h = vim3.example && echo ran >> HERE/ran"\n User fallback\n'
        "Match exec false\n Port 9\n",
    )
    host = resolve("vim3")
    assert (host.address, host.port, host.user) == ("vim3.example", 22, "fallback")
    assert (tmp_path / "ran").read_text() == "ran\n"
    # Where a user is given, it is the one that Match compares.
    named = resolve("debian@vim3")
    assert (named.address, named.port, named.user) == ("vim3.example", 2201, "debian")


def test_a_match_command_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_config, "_ANSWER_S", 0.5)
    write(tmp_path, ssh_config='Host vim3\nMatch exec "sleep 30"\n')
    with pytest.raises(InfrastructureError, match=r"did not end within 0\.5 s"):
        resolve("vim3")


def test_no_shell_sees_a_name_that_is_more_than_a_name(tmp_path: Path) -> None:
    write(tmp_path, ssh_config='Match exec "echo %n >> HERE/ran"\n Port 9\n')
    for name in ("root@a;touch$HOME", "root@$(id)", "root@`id`", "root@a|b", "root@-oX=y"):
        with pytest.raises(UserError, match="not a host name"):
            resolve(name)
    assert not (tmp_path / "ran").exists()


def test_defaults_of_ssh_are_not_taken_for_configured(tmp_path: Path) -> None:
    """ssh -G prints a user, keys and known_hosts for every name; a board's user is root by default."""
    write(tmp_path, ssh_config="Host vim3\n HostName 10.0.0.3\n")
    assert resolve("vim3") == Host("vim3", "10.0.0.3")
    write(tmp_path, ssh_config="Host vim3\n IdentityFile none\n UserKnownHostsFile none\n")
    assert resolve("vim3") == Host("vim3", "vim3", known_hosts=Path("/dev/null"))


def test_keys_and_certificates(tmp_path: Path) -> None:
    for name in ("vim3.example_22_key", "second", "cert", "known hosts"):
        (tmp_path / name).touch()
    write(
        tmp_path,
        ssh_config="Host vim3\n HostName %h.example\n IdentityFile HERE/missing\n"
        " IdentityFile HERE/%h_%p_key\n IdentityFile ${KEYS}/second\n CertificateFile HERE/none\n"
        ' CertificateFile HERE/cert\n UserKnownHostsFile "HERE/known hosts"\n'
        " RevokedHostKeys HERE/revoked\n",
    )
    os.environ["KEYS"] = str(tmp_path)
    try:
        host = resolve("vim3")
    finally:
        del os.environ["KEYS"]
    assert host.identity_file == tmp_path / "vim3.example_22_key"
    assert host.more_identity_files == (tmp_path / "second",)
    assert host.certificate_file == tmp_path / "cert"
    assert host.known_hosts == tmp_path / "known hosts"
    assert host.revoked_host_keys == tmp_path / "revoked"
    inventory.register(host)
    assert resolve("vim3") == host


def test_the_inventory_goes_first(tmp_path: Path) -> None:
    write(
        tmp_path,
        ssh_config="Host desk.lan\n User other\n Port 2200\n ProxyJump gate\n",
        **{
            "inventory.toml": '[hosts.desk]\naddress = "desk.lan"\nuser = "me"\nproxy_jump = "own"\n'
        },
    )
    desk = resolve("desk")
    assert (desk.user, desk.port, desk.proxy_jump) == ("me", 2200, "own")
    write(tmp_path, **{"inventory.toml": '[hosts.desk]\nmore_identity_files = ["x"]\n'})
    with pytest.raises(UserError, match="unknown key 'more_identity_files'"):
        resolve("desk")


@pytest.mark.parametrize(
    ("name", "address", "port", "user"),
    [
        ("::1", "::1", 22, "root"),
        ("me@2001:db8::7", "2001:db8::7", 2022, "me"),
        ("me@[2001:db8::7]:99", "2001:db8::7", 99, "me"),
        ("root@fe80::1%eth0", "fe80::1%eth0", 22, "root"),
        ("six", "fe80::2%eth1", 22, "root"),
    ],
)
def test_ipv6(tmp_path: Path, name: str, address: str, port: int, user: str) -> None:
    write(tmp_path, ssh_config="Host 2001:db8::7\n Port 2022\nHost six\n HostName fe80::2%%eth1\n")
    host = resolve(name)
    assert (host.address, host.port, host.user) == (address, port, user)


def test_home_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh itself goes by the account's folder; this project goes by $HOME, for Include lines too."""
    monkeypatch.delenv("NPU_BSP_SSH_CONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh/config.d").mkdir(parents=True)
    (tmp_path / ".ssh/key").touch()
    write(tmp_path / ".ssh", config="Include config.d/* ~/.ssh/more\n", more="Host b\n Port 3\n")
    write(tmp_path / ".ssh/config.d", lab="Host a\n Port 2\n IdentityFile ~/.ssh/key\n")
    assert (resolve("a").port, resolve("b").port) == (2, 3)
    assert resolve("a").identity_file == tmp_path / ".ssh/key"
    write(tmp_path / ".ssh", more="Host b\n Prot 3\n")
    with pytest.raises(UserError, match=rf"{tmp_path}/\.ssh/more: line 2: Bad configuration"):
        resolve("b")


# --- jump hosts ---------------------------------------------------------------------------------------


def test_jump_hosts_are_reached_as_ssh_would(tmp_path: Path) -> None:
    write(
        tmp_path,
        ssh_config="Host vim3\n ProxyJump ssh://me@gate.example:2222\nHost gate\n User door\n",
        **{"inventory.toml": '[hosts.desk]\naddress = "10.0.0.1"\n'},
    )
    assert resolve("vim3").proxy_jump == "me@gate.example:2222"
    # A name that stands nowhere is not a typing error here: ssh takes it, with the local user.
    stands_nowhere = resolve_jump("gate.example")
    assert (stands_nowhere.address, stands_nowhere.user) == ("gate.example", getpass.getuser())
    assert resolve_jump("gate").user == "door"
    assert resolve_jump("desk").user == "root"  # as the inventory has it
    assert resolve_jump("[10.0.0.9]:24").port == 24
    with pytest.raises(UserError, match="is not an address"):
        resolve_jump("a:b:c")


def test_a_jump_host_behind_itself(tmp_path: Path) -> None:
    write(tmp_path, ssh_config="Host *\n ProxyJump gate\nHost vim3\n")
    with pytest.raises(UserError, match="jumphost loop via gate"):
        ssh.connect(resolve("vim3"))
    write(tmp_path, ssh_config="Host a\n ProxyJump b\nHost b\n ProxyJump c\nHost c\n ProxyJump b\n")
    with pytest.raises(UserError, match="the way to b leads through b itself"):
        ssh.connect(resolve("a"))


# --- keys in use --------------------------------------------------------------------------------------


@pytest.mark.skipif(local_sshd.find_sshd() is None, reason="sshd is not installed")
def test_a_key_that_the_agent_holds_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The identity file is a public key, or has a passphrase; the agent has what belongs to it."""
    server = local_sshd.start(tmp_path / "sshd")
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / "agent").exists():
            assert agent.poll() is None
        key = server.host.identity_file
        assert key
        assert server.host.known_hosts
        environment = {**os.environ, "SSH_AUTH_SOCK": str(tmp_path / "agent")}
        subprocess.run(["ssh-add", "-q", str(key)], check=True, env=environment)
        locked = tmp_path / "locked"
        shutil.copy(key, locked)
        shutil.copy(f"{key}.pub", f"{locked}.pub")
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(locked)], check=True)
        for file in (locked, Path(f"{locked}.pub")):
            write(
                tmp_path,
                ssh_config=f"Host vim3\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile {file}\n"
                f" User {server.host.user}\n UserKnownHostsFile {server.host.known_hosts}\n",
            )
            with pytest.raises(UserError, match=r"passphrase|cannot read the private key"):
                ssh.connect(resolve("vim3"))
            with monkeypatch.context() as patch:
                patch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
                ssh.connect(resolve("vim3")).close()
        # The second identity file is the right one.
        local_sshd.make_key(tmp_path / "wrong")
        write(
            tmp_path,
            ssh_config=f"Host vim3\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile HERE/wrong\n"
            f" IdentityFile {key}\n User {server.host.user}\n"
            f" UserKnownHostsFile {server.host.known_hosts}\n",
        )
        ssh.connect(resolve("vim3")).close()
    finally:
        agent.terminate()
        agent.wait()
        server.stop()
