# SPDX-License-Identifier: MIT
"""Who is who over SSH: ~/.ssh/config, agents and certificates, each against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.remote import ssh
from bsp.remote.inventory import Host, resolve
from bsp.remote.known_hosts import KnownHosts
from tests.support import local_sshd
from tests.support.local_sshd import LocalSshd, make_key

pytestmark = [
    pytest.mark.usefixtures("own_hosts"),
    pytest.mark.skipif(local_sshd.find_sshd() is None, reason="sshd is not installed"),
]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "home/.ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / "home"


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_key(tmp_path / "authority")


def sign(authority: Path, key: Path, *flags: str) -> Path:
    """Sign a key's public half; return the certificate."""
    subprocess.run(
        ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", *flags, f"{key}.pub"], check=True
    )
    return key.with_name(f"{key.name}-cert.pub")


def public(key: Path) -> str:
    return " ".join(key.with_suffix(".pub").read_text().split()[:2])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalSshd]:
    sshd = local_sshd.start(tmp_path / "sshd")
    yield sshd
    sshd.stop()


def says_hello(host: Host) -> bool:
    with ssh.connect(host) as connection:
        return connection.run(["echo", "hello"]).text == "hello\n"


def check_as_ssh(folder: Path, case: object, *, good: bool, refusal: str) -> None:
    """Log in to ``desk`` with ssh and with ours, by the configuration in a folder: both do, or neither."""
    asked = subprocess.run(
        ["ssh", "-F", str(folder / "ssh_config"), "desk", "true"], capture_output=True, check=False
    )
    assert (asked.returncode == 0) == good, (case, asked.stderr)
    if good:
        assert says_hello(resolve("desk")), case
    else:
        with pytest.raises(UserError, match=refusal):
            says_hello(resolve("desk"))


# --- ~/.ssh/config -----------------------------------------------------------------------------------


def write_config(tmp_path: Path, server: LocalSshd, **changes: str) -> None:
    lines = {
        "HostName": "127.0.0.1",
        "Port": str(server.port),
        "User": server.host.user,
        "IdentityFile": str(server.host.identity_file),
        "UserKnownHostsFile": str(server.host.known_hosts),
        **changes,
    }
    text = "Host desk\n" + "".join(f"  {key} {value}\n" for key, value in lines.items() if value)
    (tmp_path / "ssh_config").write_text(text)


def test_a_name_of_ssh_config_is_enough(tmp_path: Path, server: LocalSshd) -> None:
    """HostName, Port, User, IdentityFile, UserKnownHostsFile; each is needed: without it, it fails."""
    write_config(tmp_path, server)
    assert says_hello(resolve("desk"))
    for key in ("Port", "IdentityFile", "UserKnownHostsFile"):
        write_config(tmp_path, server, **{key: ""})
        with pytest.raises(Exception, match=r"cannot reach|no key to try|not known yet|lets none"):
            says_hello(resolve("desk"))


@pytest.mark.slow
def test_files_of_host_keys_are_those_of_ssh(tmp_path: Path, server: LocalSshd) -> None:
    """Several files, the system's, several keys of one type, the name without a port: as ssh takes them."""
    right, wrong = public(tmp_path / "sshd/host_key"), public(make_key(tmp_path / "other"))
    name, plain = f"[127.0.0.1]:{server.port}", "127.0.0.1"
    cases = [
        # first file, second file, the system's, whether it is good
        ("", f"{name} {right}", "", True),
        ("", "", f"{name} {right}", True),
        (f"{name} {wrong}", f"{name} {right}", "", True),
        (f"{name} {right}\n{name} {wrong}", "", "", True),
        (f"{name} {wrong}", "", f"{name} {right}", True),
        ("", "", f"{name} {wrong}", False),
        ("", "", "", False),
        (f"{name} {right}", f"@revoked * {right}", "", False),
        (f"{plain} {right}", "", "", True),
        (f"{plain} {wrong}", "", "", False),
        (f"{plain} {right}", f"{name} {wrong}", "", False),
    ]
    for first, second, system, good in cases:
        files = {"one file": first, "two": second, "global": system}
        for file, content in files.items():
            (tmp_path / file).write_text(content + "\n")
        write_config(
            tmp_path,
            server,
            UserKnownHostsFile=f'"{tmp_path}/one file" {tmp_path}/two',
            GlobalKnownHostsFile=f"{tmp_path}/none {tmp_path}/global",
            BatchMode="yes",
        )
        config = str(tmp_path / "ssh_config")
        asked = subprocess.run(
            ["ssh", "-F", config, "desk", "true"], capture_output=True, check=False
        )
        assert (asked.returncode == 0) == good, (first, second, system, asked.stderr)
        if good:
            assert says_hello(resolve("desk"))
        else:
            with pytest.raises(UserError, match=r"not known yet|not the remembered one|revoked"):
                says_hello(resolve("desk"))


def test_the_users_second_file_is_read(
    tmp_path: Path, server: LocalSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH's default: ~/.ssh/known_hosts and known_hosts2; new keys go into the first."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    line = f"[127.0.0.1]:{server.port} {public(tmp_path / 'sshd/host_key')}\n"
    host = replace(server.host, known_hosts=None)
    (tmp_path / ".ssh/known_hosts2").write_text(line)
    assert says_hello(host)
    (tmp_path / ".ssh/known_hosts2").write_text(f"@revoked * {line.split(' ', 1)[1]}{line}")
    with pytest.raises(UserError, match="revoked"):
        says_hello(host)
    (tmp_path / ".ssh/known_hosts2").unlink()
    ssh.connect(host, accept_new_key=True).close()
    assert (tmp_path / ".ssh/known_hosts").read_text() == line


def test_host_key_alias(tmp_path: Path, server: LocalSshd) -> None:
    known = tmp_path / "aliased"
    known.write_text(f"board-7 {public(tmp_path / 'sshd/host_key')}\n")
    write_config(tmp_path, server, UserKnownHostsFile=str(known), HostKeyAlias="board-7")
    assert says_hello(resolve("desk"))
    write_config(tmp_path, server, UserKnownHostsFile=str(known), HostKeyAlias="board-8")
    with pytest.raises(UserError, match="not known yet"):
        says_hello(resolve("desk"))


def test_proxy_jump_is_really_gone_through(tmp_path: Path, server: LocalSshd) -> None:
    gate = local_sshd.start(tmp_path / "gate")
    try:
        write_config(tmp_path, server, ProxyJump="gate")
        with (tmp_path / "ssh_config").open("a") as file:
            file.write(
                f"Host gate\n  HostName 127.0.0.1\n  Port {gate.port}\n  User {gate.host.user}\n"
                f"  IdentityFile {gate.host.identity_file}\n  UserKnownHostsFile {gate.host.known_hosts}\n"
            )
        assert says_hello(resolve("desk"))
        assert "Accepted publickey" in (tmp_path / "gate/sshd.log").read_text()
        # The gate's host key counts as much as the board's.
        assert gate.host.known_hosts
        gate.host.known_hosts.write_text(
            f"[127.0.0.1]:{gate.port} {public(make_key(tmp_path / 'other'))}\n"
        )
        with pytest.raises(UserError, match="is not the remembered one"):
            says_hello(resolve("desk"))
    finally:
        gate.stop()


def test_strict_checking_cannot_be_switched_off(tmp_path: Path, server: LocalSshd) -> None:
    write_config(
        tmp_path, server, UserKnownHostsFile=str(tmp_path / "none"), StrictHostKeyChecking="no"
    )
    with pytest.raises(UserError, match="not known yet"):
        says_hello(resolve("desk"))


# --- the agent, and certificates of users ------------------------------------------------------------


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import socket
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as folder:  # a socket's path may not be long
        path = Path(folder, "agent")
        process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(path)) == 0:
                    break
            time.sleep(0.02)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield
        process.terminate()
        process.wait(timeout=5)


def test_keys_of_the_agent(agent: None, tmp_path: Path, server: LocalSshd) -> None:
    host = replace(server.host, identity_file=None)
    with pytest.raises(UserError, match="accepts none of our keys"):
        says_hello(host)
    subprocess.run(["ssh-add", "-q", str(server.host.identity_file)], check=True)
    assert says_hello(host)


def test_a_proxy_command_leads_to_the_host(
    tmp_path: Path, server: LocalSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = server.host
    gate = (
        f"ssh -F none -i {host.identity_file} -o UserKnownHostsFile={host.known_hosts} "
        f"-p {server.port} -W %h:%p {host.user}@127.0.0.1; : %%"
    )
    monkeypatch.setenv("SHELL", "/bin/sh")
    write_config(tmp_path, server, ProxyCommand=gate)
    assert says_hello(resolve("desk"))
    # The command hears that it is no longer needed, also one that does not read.
    lingering = f"echo $$ >{tmp_path}/pid; sleep 600"
    write_config(tmp_path, server, ProxyCommand=f"sh -c '{lingering}'")
    with pytest.raises(ssh.UnreachableError, match="does not lead to an SSH server"):
        ssh.connect(resolve("desk"), timeout_s=2)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # What it says is the reason.
    write_config(tmp_path, server, ProxyCommand="sh -c 'echo no way to %h >&2; exit 3'")
    with pytest.raises(ssh.UnreachableError, match=r"no way to 127\.0\.0\.1") as error:
        ssh.connect(resolve("desk"))
    assert error.value.exit_code == 3
    # A name is no place for what a shell would act on.
    for who, where in (("a;b@desk", "127.0.0.1"), ("desk", "a$(b)")):
        write_config(tmp_path, server, User="", HostName=where, ProxyCommand="sh -c 'echo %r %h'")
        with pytest.raises(UserError, match=r"cannot stand for %|invalid characters"):
            resolve(who)


@pytest.mark.slow
def test_host_keys_from_a_command_as_with_ssh(tmp_path: Path, server: LocalSshd) -> None:
    """KnownHostsCommand, each case compared with what ssh does with the same file."""
    host_key, other = public(server.folder / "host_key"), public(make_key(tmp_path / "other"))
    name = f"[127.0.0.1]:{server.port}"
    script = tmp_path / "keys of hosts"
    cases: list[tuple[str, str, bool]] = [
        # the command's lines, more arguments of it, whether it lets us in
        (f"echo '{name} {host_key}'", "", True),
        ('echo "$1 $2 $3"', "%H %t %K", True),  # of the key that was shown: NONE before
        (f"[ $1 = HOSTNAME ] && echo '{name} {host_key}'; true", "%I", True),
        (f"[ $1 = ORDER ] && echo '{name} {host_key}'; true", "%I", False),
        (f"echo '{name} {other}'", "", False),
        (f"echo '127.0.0.9 {host_key}'", "", False),
        (f"echo '@revoked {name} {host_key}'; echo '{name} {host_key}'", "", False),
        (f"echo '{name} {host_key}'; exit 1", "", False),
        ("exit 0", "", False),
        ('[ "$*" = "127.0.0.1 %% desk a b" ] && ' + f"echo '{name} {host_key}'", "%h %%%% %n 'a b'", True),
    ]  # fmt: skip
    for lines, arguments, good in cases:
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o755)
        write_config(
            tmp_path, server, UserKnownHostsFile="none", GlobalKnownHostsFile="none",
            KnownHostsCommand=f'"{script}" {arguments}', BatchMode="yes",
        )  # fmt: skip
        check_as_ssh(tmp_path, lines, good=good, refusal=r"host key|KnownHostsCommand")


@pytest.mark.parametrize("value", ["keys %H", "/bin/keys %C", "/bin/keys 'a"])
def test_a_command_for_host_keys_that_cannot_be_asked_is_refused(
    tmp_path: Path, server: LocalSshd, value: str
) -> None:
    write_config(tmp_path, server, KnownHostsCommand=value)
    with pytest.raises(UserError):  # ssh's own words for some
        resolve("desk")
    write_config(tmp_path, server, KnownHostsCommand="/no/such/program %H")
    with pytest.raises(UserError, match="/no/such/program"):
        ssh.connect(resolve("desk"))


@pytest.mark.slow
def test_names_of_new_host_keys_are_hashed_where_that_is_asked_for(
    tmp_path: Path, server: LocalSshd
) -> None:
    for value, hashed in (("yes", True), ("no", False)):
        known = tmp_path / f"known-{value}"
        write_config(tmp_path, server, UserKnownHostsFile=str(known), HashKnownHosts=value)
        ssh.connect(resolve("desk"), accept_new_key=True).close()
        assert known.read_text().startswith("|1|") == hashed
        assert ("127.0.0.1" in known.read_text()) != hashed
        assert says_hello(resolve("desk"))  # it is found again, by ssh too
        asked = subprocess.run(
            ["ssh", "-F", str(tmp_path / "ssh_config"), "-o", "BatchMode=yes", "desk", "true"],
            capture_output=True, check=False,
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr


def test_a_proxy_command_may_hand_on_a_connected_socket(tmp_path: Path, server: LocalSshd) -> None:
    program = tmp_path / "connect.py"
    program.write_text(
        "import socket, sys\n"
        "made = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "out = socket.socket(fileno=1)\n"
        "socket.send_fds(out, [b'\\0'], [made.fileno()])\n"
    )
    command = f"{sys.executable} {program} %h %p"
    write_config(tmp_path, server, ProxyCommand=command, ProxyUseFdpass="yes")
    assert says_hello(resolve("desk"))
    for wrong, why in (
        ("sh -c 'echo no way >&2'", "no way"),
        ("echo SSH-2.0-x", "it ended without"),
    ):
        write_config(tmp_path, server, ProxyCommand=wrong, ProxyUseFdpass="yes")
        with pytest.raises(UserError, match=f"hands on no connected socket: {why}") as caught:
            ssh.connect(resolve("desk"))
        assert "ProxyUseFdpass" in caught.value.hint


def test_which_agent_and_which_of_its_keys_as_with_ssh(
    agent: None, tmp_path: Path, server: LocalSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """IdentityAgent and IdentitiesOnly, each compared with what ssh does with the same file."""
    key = server.host.identity_file
    assert key
    subprocess.run(["ssh-add", "-q", str(key)], check=True)
    wrong = make_key(tmp_path / "wrong")
    socket_ = os.environ["SSH_AUTH_SOCK"]
    monkeypatch.setenv("OTHER_SOCK", socket_)
    cases: list[tuple[bool, dict[str, str], bool]] = [
        # whether SSH_AUTH_SOCK is set, what the file says, whether it lets us in
        (True, {}, True),
        (False, {}, False),
        (False, {"IdentityAgent": socket_}, True),
        (False, {"IdentityAgent": "$OTHER_SOCK"}, True),
        (False, {"IdentityAgent": "SSH_AUTH_SOCK"}, False),
        (True, {"IdentityAgent": "SSH_AUTH_SOCK"}, True),
        (True, {"IdentityAgent": "none"}, False),
        (True, {"IdentityAgent": str(tmp_path / "nobody")}, False),
        (True, {"IdentitiesOnly": "yes", "IdentityFile": str(wrong)}, False),
        (True, {"IdentityFile": str(wrong)}, True),
        (True, {"IdentitiesOnly": "yes", "IdentityFile": f"{key}.pub"}, True),
    ]
    for is_set, lines, good in cases:
        with monkeypatch.context() as patch:
            if not is_set:
                patch.delenv("SSH_AUTH_SOCK")
            write_config(tmp_path, server, **{"IdentityFile": "", "BatchMode": "yes", **lines})
            check_as_ssh(tmp_path, lines, good=good, refusal="accepts none of our keys")


@pytest.fixture
def trusting(tmp_path: Path, authority: Path) -> Iterator[LocalSshd]:
    """A server that lets in whom the authority vouches for, and nobody else."""
    sshd = local_sshd.start(
        tmp_path / "trusting",
        configure=lambda folder: f"TrustedUserCAKeys {authority}.pub\nAuthorizedKeysFile none\n",
    )
    yield sshd
    sshd.stop()


@pytest.mark.parametrize("how", ["beside the key", "CertificateFile", "agent"])
def test_certificates_of_users(
    how: str, agent: None, tmp_path: Path, trusting: LocalSshd, authority: Path
) -> None:
    key = make_key(tmp_path / "mine")
    host = replace(trusting.host, identity_file=key)
    with pytest.raises(UserError, match="accepts none of our keys"):
        says_hello(host)
    certificate = sign(authority, key, "-n", trusting.host.user)
    if how == "CertificateFile":
        elsewhere = certificate.rename(tmp_path / "elsewhere.pub")
        with pytest.raises(UserError, match="accepts none"):
            says_hello(host)
        write_config(tmp_path, trusting, IdentityFile=str(key), CertificateFile=str(elsewhere))
        host = resolve("desk")
    elif how == "agent":
        subprocess.run(["ssh-add", "-q", str(key)], check=True)
        certificate.unlink()
        host = replace(host, identity_file=None)
    assert says_hello(host)


def test_a_certificate_that_has_expired_does_not_stand_in_the_way_of_its_key(
    tmp_path: Path, server: LocalSshd, authority: Path
) -> None:
    assert server.host.identity_file
    sign(authority, server.host.identity_file, "-n", "root", "-V", "20200101:20200102")
    assert says_hello(server.host)


# --- certificates of hosts ----------------------------------------------------------------------------


def certified_server(folder: Path, authority: Path, *flags: str) -> LocalSshd:
    def configure(inside: Path) -> str:
        return f"HostCertificate {sign(authority, inside / 'host_key', *flags)}\n"

    return local_sshd.start(folder, configure=configure)


GOOD = ("-h", "-n", "127.0.0.1,other")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "line", "match"),
    [
        (GOOD, "@cert-authority 127.0.0.* {ca}", ""),
        (GOOD, "@cert-authority [127.0.0.1]:{port} {ca}", ""),
        (GOOD, "@cert-authority *.example {ca}", "not known yet"),
        (GOOD, "@cert-authority * {other}", "no authority in known_hosts"),
        (GOOD, "@cert-authority * {ca}\n@revoked * {ca}", "no authority in known_hosts"),
        (GOOD, "@cert-authority * {ca}\n@revoked * {host}", "marked as revoked"),
        (("-h", "-n", "other"), "@cert-authority * {ca}", "it is for other, not for 127.0.0.1"),
        (("-h",), "@cert-authority * {ca}", "for no name at all"),
        ((*GOOD, "-V", "20200101:20200102"), "@cert-authority * {ca}", "not valid now"),
        ((*GOOD, "-V", "20990101:20990102"), "@cert-authority * {ca}", "not valid now"),
        (("-n", "127.0.0.1"), "@cert-authority * {ca}", "not known yet|user's certificate|not good"),
        # The key itself is known: what is wrong with the certificate does not matter.
        ((*GOOD, "-V", "20200101:20200102"), "@cert-authority * {ca}\n[127.0.0.1]:{port} {host}", ""),
    ],
)  # fmt: skip
def test_certificates_of_hosts(
    flags: tuple[str, ...], line: str, match: str, tmp_path: Path, authority: Path
) -> None:
    try:
        server = certified_server(tmp_path / "certified", authority, *flags)
    except AssertionError:
        assert "-h" not in flags  # sshd itself does not start with a user's certificate
        return
    try:
        known = tmp_path / "known"
        known.write_text(
            line.format(
                ca=public(authority),
                other=public(make_key(tmp_path / "other")),
                host=public(tmp_path / "certified/host_key"),
                port=server.port,
            )
            + "\n"
        )
        before = known.read_text()
        host = replace(server.host, known_hosts=known)
        if match:
            with pytest.raises(UserError, match=match):
                says_hello(host)
        else:
            assert says_hello(host)
        assert known.read_text() == before
    finally:
        server.stop()


def test_a_certificate_whose_signature_is_wrong(tmp_path: Path, authority: Path) -> None:
    """Nobody but the authority can make one: its bytes changed, at each of many places."""
    import base64

    key = make_key(tmp_path / "key")
    kind, text = sign(authority, key, "-h", "-n", "127.0.0.1").read_text().split()[:2]
    blob = base64.b64decode(text)
    known = tmp_path / "known"
    known.write_text(f"@cert-authority * {public(authority)}\n")
    keys = KnownHosts(Host("x", "127.0.0.1", known_hosts=known))
    assert not keys._certificate_problem(kind, blob)
    for at in range(40, len(blob), 7):
        assert keys._certificate_problem(
            kind, blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        ), at
