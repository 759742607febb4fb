# SPDX-License-Identifier: MIT
"""Hosts and the connection: names, ~/.ssh/config, keys, jumps; against a real SSH server."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.base.process import ToolFailedError
from bsp.remote import inventory, known_hosts, ssh
from bsp.remote.inventory import Host, resolve
from tests.support import local_sshd
from tests.support.local_sshd import LocalSshd
from tests.support.relay import Relay

needs_sshd = pytest.mark.skipif(
    local_sshd.find_sshd() is None, reason="sshd is not installed (openssh-server)"
)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPU_BSP_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("NPU_BSP_INVENTORY", str(tmp_path / "inventory.toml"))
    monkeypatch.setenv("NPU_BSP_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSshd]:
    sshd = local_sshd.start(tmp_path_factory.mktemp("sshd"))
    yield sshd
    sshd.stop()


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "address", "port", "user"),
    [
        ("root@192.168.1.5", "192.168.1.5", 22, "root"),
        ("debian@board.lan:2222", "board.lan", 2222, "debian"),
        ("10.0.0.7", "10.0.0.7", 22, "root"),
        ("root@[fe80::1]:2200", "fe80::1", 2200, "root"),
    ],
)
def test_addresses(name: str, address: str, port: int, user: str) -> None:
    host = resolve(name)
    assert (host.address, host.port, host.user) == (address, port, user)


def test_unknown_names_say_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text('[hosts.desk-vim3]\naddress = "192.168.1.30"\n')
    with pytest.raises(UserError, match="unknown host 'desk-vim'; did you mean 'desk-vim3'"):
        resolve("desk-vim")
    for bad in ("", "-oProxyCommand=x", "a b", "../x", "root@h:99999"):
        with pytest.raises(UserError):
            resolve(bad)
    for bad in ("root@h:ssh", "root@", "@h", "h;id", "root@h@i:22"):
        with pytest.raises(UserError, match="neither a host name nor an address") as caught:
            resolve(bad)
        assert f"root@{bad}" not in caught.value.hint


def test_a_virtual_board_that_does_not_run_is_started_by_its_profile() -> None:
    with pytest.raises(UserError, match="the virtual board 'virtual-a311d' does not run") as caught:
        resolve("virtual-a311d")
    assert caught.value.hint == "./inv virtual.up --board virtual-a311d"
    with pytest.raises(UserError, match="unknown host 'vim3'"):
        resolve("vim3")


def test_inventory_and_ssh_config(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text(
        '[hosts.desk]\naddress = "desk.lan"\nboard = "vim3"\npower = ["cycle", "desk"]\nuser = "me"\n'
    )
    key = tmp_path / "key"
    key.touch()
    (tmp_path / "ssh_config").write_text(
        f"Host desk.lan\n  Port 2200\n  User other\n  IdentityFile {key}\n"
        "Host lab\n  HostName lab.example\n  HostKeyAlias lab-board\n  ProxyJump me@gate:2222\n"
    )
    desk = resolve("desk")
    assert (desk.port, desk.user, desk.identity_file, desk.power) == (
        2200,
        "me",
        key,
        ("cycle", "desk"),
    )
    lab = resolve("lab")
    assert (lab.address, lab.host_key_alias, lab.proxy_jump) == (
        "lab.example",
        "lab-board",
        "me@gate:2222",
    )
    assert lab.key_name == "lab-board"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[hosts.a]\nadress = 'x'", "unknown key 'adress'; did you mean 'address'"),
        ("[hosts.a]\nport = 'ssh'", "port is 'ssh', expected a port number"),
        ("[hosts.a]\npower = 'reset'", "expected a list of strings"),
        ("[host.a]\nport = 1", "unknown key 'host' in the top level; did you mean 'hosts'"),
        ("hosts = 3", "'hosts' must be a table"),
        ("hosts = [1]", "'hosts' must be a table"),
        ("groups = 'a'", "'groups' must be a table"),
        ("[hosts", "not valid TOML"),
        ("format = 2\n[hosts.a]", "format is 2, this version reads format 1"),
        ("format = 'x'\n[hosts.a]", "key 'format': Expected `int`"),
        ("[hosts.a]\nport = 70000", "port is 70000, expected a port number"),
        ("[hosts.a]\naddress = '192.0.2.1:2222'", "port are keys of their own"),
        ("[hosts.a]\naddress = 'root@192.0.2.1'", "expected a name or an IP address alone"),
        (
            "[hosts.a]\nuser = 'root '",
            "user is 'root ', expected a string: the name of a user alone",
        ),
        ("[hosts.a]\nuser = 'root@vim3'", "expected a string: the name of a user alone"),
        ("[hosts.a]\naddress = '[2001:db8::7]'", "expected a name or an IP address alone"),
        ("[hosts.a]\naddress = '-oProxyCommand=x'", "expected a name or an IP address alone"),
        ("[hosts.a]\nboard = 'vim9'", r"\[hosts.a\]: board is 'vim9', which is no board"),
        ("[hosts.a]\nport = true", "port is True, expected a port number"),
        ("[hosts.a]\nsudo = 1", "sudo is 1, expected true or false"),
        ("[hosts.a]\nkeep = 1", "keep is 1, expected a number from 2 up"),
        ("[hosts.a]\ntags = ['a b']", "expected a list of words"),
        ("[hosts.a]\nuser = ''", "user is '', expected a string"),
        ("[hosts]\na = 1", r"\[hosts.a\] must be a table"),
    ],
)
def test_a_broken_inventory(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "inventory.toml").write_text(text)
    with pytest.raises(UserError, match=match):
        resolve("a")


def test_an_inventory_is_a_file_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe was waited for, and /dev/zero read until memory was full."""
    os.mkfifo(tmp_path / "pipe.toml")
    for file, why in ((tmp_path / "pipe.toml", "is a pipe"), (Path("/dev/zero"), "too long for")):
        monkeypatch.setenv("NPU_BSP_INVENTORY", str(file))
        with pytest.raises(UserError, match=why):
            resolve("desk")


def test_an_inventory_may_say_its_format(tmp_path: Path) -> None:
    (tmp_path / "inventory.toml").write_text(
        "format = 1\n[hosts.a]\naddress = '192.0.2.1'\nkeep = 3\n"
    )
    host = resolve("a")
    assert (host.address, host.keep) == ("192.0.2.1", 3)


@pytest.mark.parametrize("address", ["board-1.lan", "2001:db8::7", "fe80::1%eth0", "::1"])
def test_addresses_in_an_inventory(tmp_path: Path, address: str) -> None:
    (tmp_path / "inventory.toml").write_text(f'[hosts.a]\naddress = "{address}"\n')
    assert resolve("a").address == address


def test_registered_hosts_come_back_whole() -> None:
    host = Host("virtual", "127.0.0.1", 2222, power=("a", "b"), known_hosts=Path("/k"), board="virtual",
                console_log=Path("/c"))  # fmt: skip
    inventory.register(host)
    assert resolve("virtual") == host
    assert inventory.registered() == [host]
    inventory.unregister("virtual")
    inventory.unregister("virtual")
    with pytest.raises(UserError):
        resolve("virtual")


# --- the connection ------------------------------------------------------------------------------------


@needs_sshd
def test_run(server: LocalSshd) -> None:
    with ssh.connect(server.host) as connection:
        assert getattr(connection.transport, "remote_cipher") == "aes128-gcm@openssh.com"  # noqa: B009
        words = ["printf", "%s|", "a b", "$HOME", "'", "*", ""]
        assert connection.run(words).text == "a b|$HOME|'|*||"
        data = os.urandom(3_000_000)
        assert connection.run(["cat"], stdin=data).stdout == data
        assert connection.run(["cat"], stdin=iter([b"one", b"two"])).text == "onetwo"
        # A program that does not read its input, and one that fails.
        assert connection.run(["true"], stdin=data).exit_code == 0
        assert connection.run(["sh", "-c", "exit 3"], check=False).exit_code == 3
        with pytest.raises(ToolFailedError, match="exit code 4") as caught:
            connection.run(["sh", "-c", "echo out; echo bad >&2; exit 4"])
        assert caught.value.completed.stderr == b"bad\n"
        started = time.monotonic()
        with pytest.raises(ssh.ConnectionLostError, match="did not answer within"):
            connection.run(["sleep", "20"], timeout_s=0.3)
        assert time.monotonic() - started < 3
        assert connection.run(["echo", "still there"]).text == "still there\n"


@needs_sshd
def test_through_another_host(server: LocalSshd, tmp_path: Path) -> None:
    inner = server.host
    (tmp_path / "ssh_config").write_text(
        f"Host gate\n HostName 127.0.0.1\n Port {inner.port}\n User {inner.user}\n"
        f" IdentityFile {inner.identity_file}\n UserKnownHostsFile {inner.known_hosts}\n"
    )
    with ssh.connect(server.with_(proxy_jump="gate")) as connection:
        assert connection.run(["echo", "through"]).text == "through\n"


@needs_sshd
def test_first_contact_asks_a_person(
    server: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    host = server.with_(known_hosts=tmp_path / "known")
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    with pytest.raises(UserError, match="was not accepted"):
        ssh.connect(host)
    assert not (tmp_path / "known").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    ssh.connect(host).close()
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    ssh.connect(host).close()
    assert (tmp_path / "known").read_text().startswith(f"[127.0.0.1]:{host.port} ssh-ed25519 ")
    assert (tmp_path / "known").stat().st_mode & 0o777 == 0o600


@needs_sshd
def test_a_revoked_key_is_refused(server: LocalSshd, tmp_path: Path) -> None:
    assert server.host.known_hosts
    line = server.host.known_hosts.read_text()
    known = tmp_path / "known"
    known.write_text(f"{line}@revoked * {' '.join(line.split()[1:])}\n")
    with pytest.raises(UserError, match="marked as revoked"):
        ssh.connect(server.with_(known_hosts=known))


@needs_sshd
def test_lines_that_are_damaged_or_of_old_keys_are_passed_over(
    server: LocalSshd, tmp_path: Path
) -> None:
    """They were a fault of ours at every connection to that host: ssh skips them."""
    assert server.host.known_hosts
    line = server.host.known_hosts.read_text()
    name, kind, key = line.split()[:3]
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", _copy(server, tmp_path / "hashed")], check=True)
    odd = [
        f"|1|garbage {kind} {key}", f"|1|AAAA|BBBB {kind} {key}", f"|1| {kind} {key}",
        f"{name} ssh-dss AAAAB3NzaC1kc3MAAACB", f"{name} ssh-rsa {key}", f"{name} {kind} {key[:40]}",
        f"{name} {kind}", f"{name} {kind} !!!", "@revoked", "\0\xff",
    ]  # fmt: skip
    for good in (line, (tmp_path / "hashed").read_text()):
        known = tmp_path / "known"
        known.write_text("\n".join([*odd, good]))
        ssh.connect(server.with_(known_hosts=known)).close()


def _copy(server: LocalSshd, path: Path) -> Path:
    assert server.host.known_hosts
    path.write_text(server.host.known_hosts.read_text())
    return path


@needs_sshd
def test_revocations_of_the_system_and_of_a_list_count(
    server: LocalSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file the user has for this host: he cannot unsay what is revoked for all."""
    assert server.host.known_hosts
    key = " ".join(server.host.known_hosts.read_text().split()[1:3])
    for_all, listed, krl = tmp_path / "ssh_known_hosts", tmp_path / "list", tmp_path / "krl"
    monkeypatch.setattr(known_hosts, "_SYSTEM_FILES", (for_all,))
    for_all.write_text(f"@revoked * {key}\n")
    with pytest.raises(UserError, match="marked as revoked"):
        ssh.connect(server.host)
    for_all.write_text(f"127.0.0.1 {key}\n@revoked * ssh-ed25519 AAAA\n")
    ssh.connect(server.host).close()
    listed.write_text(f"{key}\n")
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", krl, listed], check=True)
    for revoked in (
        listed,
        krl,
        tmp_path / "none",
    ):  # ssh, too, takes a list that is gone for all keys
        with pytest.raises(UserError, match=f"marked as revoked in .* or {revoked}"):
            ssh.connect(server.with_(revoked_host_keys=revoked))
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    ssh.connect(server.with_(revoked_host_keys=other.with_suffix(".pub"))).close()


@needs_sshd
def test_waiting_for_a_host(server: LocalSshd) -> None:
    ssh.wait_until_up(server.host, timeout_s=10).close()
    with pytest.raises(ssh.UnreachableError, match="did not answer within 1 s"):
        ssh.wait_until_up(server.with_(port=local_sshd.free_port()), timeout_s=1)


def test_something_else_answers(tmp_path: Path) -> None:
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            peer, _ = listener.accept()
            peer.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n" * 60)
            peer.close()

        threading.Thread(target=answer, daemon=True).start()
        host = Host("web", "127.0.0.1", listener.getsockname()[1], known_hosts=tmp_path / "known")
        with pytest.raises(InfrastructureError, match="does not let an SSH session begin"):
            ssh.connect(host, timeout_s=5)


def test_a_server_that_says_nothing_is_named_as_such(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host("mute", "127.0.0.1", listener.getsockname()[1], known_hosts=tmp_path / "known")
        with pytest.raises(InfrastructureError, match=r"begin: it sent nothing for 0\.5 s"):
            ssh.connect(host, timeout_s=0.5)


def test_a_connection_from_before_the_boards_network_is_not_waited_for(server: LocalSshd) -> None:
    """QEMU's user network takes a connection at once; the board may never hear of it."""
    assert [ssh.answer_limit_s(each) for each in (0, 10, 60, 150, 1e4)] == [2, 2, 6, 15, 30]
    with Relay(server.host.port, deaf=1) as relay:
        host = server.with_(port=relay.port, host_key_alias=server.host.key_name)
        with ssh.wait_until_up(host, timeout_s=60) as connection:
            assert connection.run(["echo", "up"]).text == "up\n"


def test_a_log_in_that_waits_is_given_up_with_the_others(tmp_path: Path) -> None:
    """Ctrl-C while a fleet is asked: the boards that say nothing are not waited for."""
    import socket

    from bsp.base.at_once import at_once

    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = Host("mute", "127.0.0.1", listener.getsockname()[1], known_hosts=tmp_path / "known")

        log_ins: list[Future[ssh.Connection]] = []

        def give_up() -> None:
            with at_once(1) as pool:
                log_ins.append(pool.submit(ssh.connect, host, timeout_s=120))
                peer, _ = listener.accept()
                with peer:
                    peer.recv(1)  # it has begun: the client's banner
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            give_up()
    # Not because its time was over.
    assert "sent nothing" not in str(log_ins[0].exception())


@needs_sshd
def test_keys_that_cannot_be_used(server: LocalSshd, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no key")
    for path, match in (
        (broken, "cannot read the private key"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(UserError, match=match):
            ssh.connect(server.with_(identity_file=path))


@needs_sshd
def test_known_hosts_as_openssh_writes_them(server: LocalSshd, tmp_path: Path) -> None:
    import subprocess

    assert server.host.known_hosts
    kind, key = server.host.known_hosts.read_text().split()[1:3]
    known = tmp_path / "known"
    hashed = tmp_path / "hashed"
    hashed.write_text(f"{server.host.key_name} {kind} {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hashed)], check=True)
    for line in (
        f"other,[127.0.0.?]:* {kind} {key}",
        hashed.read_text(),
        f"# note\n[127*]:* {kind} {key} me",
    ):
        known.write_text(f"@cert-authority *.example {kind} {key}\n\nbroken line\n{line}\n")
        ssh.connect(server.with_(known_hosts=known)).close()
    known.write_text(f"[127.*]:*,!{server.host.key_name} {kind} {key}\n")
    with pytest.raises(UserError, match="is not known yet"):
        ssh.connect(server.with_(known_hosts=known))
