# SPDX-License-Identifier: MIT
"""A smoke test on a host: a real OpenSSH server on loopback, and a payload made of this Python."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import InfrastructureError, UserError
from bsp.remote.ssh import Connection, connect
from tests.support.local_sshd import find_sshd, start
from tests.support.models import inputs as input_models
from userspace.npu.model import tiny_model
from userspace.npu.validate import models, smoke
from userspace.npu.validate.label_image import SmokeTestRequest, smoke_test
from userspace.npu.validate.machine import BoardMachine
from userspace.payload.plan import BOARD_PROGRAMS

pytestmark = pytest.mark.skipif(find_sshd() is None, reason="needs sshd (openssh-server)")


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    server = start(tmp_path_factory.mktemp("sshd"))
    try:
        with connect(server.host, timeout_s=20) as opened:
            yield opened
    finally:
        server.stop()


def remote_python(connection: Connection) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return connection.run(["python3", "-c", code], timeout_s=30, check=False).text.strip()


@pytest.fixture
def deployed(tmp_path: Path, connection: Connection) -> Path:
    """A folder like a payload, for the python3 that the server has."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if remote_python(connection) != here:
        pytest.skip(f"python3 on this machine's PATH is not Python {here}")
    folder = tmp_path / "userspace"
    for name in ("bin", "lib"):
        (folder / name).mkdir(parents=True)
    for program in BOARD_PROGRAMS:
        shutil.copy(program, folder / "bin")
    (folder / "site").symlink_to(sysconfig.get_path("platlib"))
    (folder / "manifest.json").write_text(json.dumps({"python": here}))
    return folder


def machine(connection: Connection, userspace: Path, cache: Path) -> BoardMachine:
    return BoardMachine(connection, name="loop", userspace=str(userspace), cache=str(cache))


def test_the_whole_over_ssh(connection: Connection, deployed: Path, tmp_path: Path) -> None:
    there = machine(connection, deployed, tmp_path / "cache")
    request = SmokeTestRequest(model=tiny_model.NAME, runs=1, budget_s=1)
    document = smoke_test(there, request, host="loop", board="virtual")
    assert document["verdict"] == "pass"
    assert (document["host"], document["board"]) == ("loop", "virtual")
    inputs = models.choose(tiny_model.NAME, None)
    wanted = {inputs.model.sha256, inputs.image.sha256}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == wanted


def test_inputs_that_are_no_rgb_picture_over_ssh(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    there = machine(connection, deployed, tmp_path / "cache")
    path = tmp_path / "model.tflite"
    models_and_inputs = [
        (input_models.one_conv(1, 16, 16, 1), ["the picture, in grey"]),
        (input_models.two_inputs(), ["the picture", "generated data, seed 21"]),
    ]
    for content, given in models_and_inputs:
        path.write_bytes(content)
        request = SmokeTestRequest(
            model=str(path),
            image=models.tiny_image().path.as_posix(),
            delegate="cpu",
            runs=1,
            views=1,
        )
        document = smoke_test(there, request, host="loop")
        assert document["verdict"] == "pass", document["results"]
        assert [each["given"] for each in document["inputs"]] == given
    path.write_bytes(input_models.with_operator(250))
    with pytest.raises(UserError, match="cannot run this model: Op builtin_code out of range"):
        smoke_test(there, request, host="loop")


def test_a_file_is_sent_once_and_again_if_it_was_damaged(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    there = machine(connection, deployed, tmp_path / "cache")
    image = models.tiny_image()
    place = Path(there.place(image))
    assert place.read_bytes() == image.path.read_bytes()
    before = place.stat()
    assert there.place(image) == str(place)
    assert place.stat().st_ino == before.st_ino
    place.write_bytes(b"damaged")
    there.place(image)
    assert place.read_bytes() == image.path.read_bytes()


def test_a_large_file_is_sent_in_pieces(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 10000
    (tmp_path / "large").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    there = machine(connection, deployed, tmp_path / "cache")
    place = there.place(models.File("large", tmp_path / "large", digest, ""))
    assert Path(place).read_bytes() == content


def test_what_arrives_with_another_content_is_not_kept(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    there = machine(connection, deployed, tmp_path / "cache")
    image = models.tiny_image()
    lying = models.File(image.name, image.path, "0" * 64, "")
    with pytest.raises(InfrastructureError, match="exit code 8"):
        there.place(lying)
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_deployment_the_error_says_to_deploy(
    connection: Connection, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no userspace of npu-bsp") as caught:
        machine(connection, tmp_path / "none", tmp_path / "cache")
    assert caught.value.hint == "./inv deploy --host loop"
    with pytest.raises(UserError, match=r"/run/npu-bsp/current/userspace/bin/runner\.py"):
        smoke.smoke_test(
            "label_image", SmokeTestRequest(model=tiny_model.NAME), host=connection.host
        )


def test_a_payload_for_another_python_says_so(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    (deployed / "manifest.json").write_text(json.dumps({"python": "3.99"}))
    there = machine(connection, deployed, tmp_path / "cache")
    with pytest.raises(InfrastructureError, match=r"on loop: the payload is for Python 3\.99"):
        smoke_test(there, SmokeTestRequest(model=tiny_model.NAME, runs=1))


def test_a_library_that_cannot_be_loaded_is_named(
    connection: Connection, deployed: Path, tmp_path: Path
) -> None:
    (deployed / "lib" / "libnonsense.so.1").write_text("nonsense")
    there = machine(connection, deployed, tmp_path / "cache")
    with pytest.raises(InfrastructureError, match=r"cannot load libnonsense\.so\.1"):
        smoke_test(there, SmokeTestRequest(model=tiny_model.NAME, runs=1))


def test_the_scripts_are_posix(tmp_path: Path) -> None:
    from userspace.npu.validate import machine as module

    for script in (module._LOOK, module._STORE):
        subprocess.run(["sh", "-n", "-c", script], check=True)
