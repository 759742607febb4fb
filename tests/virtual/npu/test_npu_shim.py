# SPDX-License-Identifier: MIT
"""The virtual NPU's shim door: the preloaded C file, its server, and Mesa's own delegate on both."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsp.base.errors import UserError
from tests.support.models.noise import noise_picture
from tests.support.models.small_nets import Net
from tests.support.npu import layers as npu_layers
from tests.support.npu.jobs import Bench, bench_for, load_state
from tests.virtual.npu.test_npu_engine import convolution
from userspace.npu.model.tflite_file import (
    NO_ACTIVATION,
    SAME,
    VALID,
    Operator,
    Tensor,
    conv,
    write_model,
)
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.smoke import smoke_test
from virtual.npu import shim
from virtual.npu.identity import load_identity
from virtual.npu.shim import host, server, session
from virtual.npu.shim.place import VirtualNpu, virtual_npu
from virtual.npu.shim.server import MAGIC, Server
from virtual.npu.traces.replay import replay
from virtual.npu.vivante.maker import Maker

PAGE = 4096
MEMORY_BYTES = 1 << 20
# Linux include/uapi/linux/fcntl.h
F_ADD_SEALS, SEALS = 1033, 1 | 2 | 4


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "npu.sock", load_identity("a311d"), report=tmp_path / "report.json")
    threading.Thread(target=made.serve, daemon=True).start()
    yield made
    made.close()


@contextmanager
def client(
    folder: Path, *, seal: bool = True, hello: bytes | None = None
) -> Iterator[socket.socket]:
    """A client that has said hello, with an empty memory."""
    memory = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, MEMORY_BYTES)
    if seal:
        fcntl.fcntl(memory, F_ADD_SEALS, SEALS)
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(10)
        connection.connect(str(folder / "npu.sock"))
        content = hello or struct.pack("<8sQ", MAGIC, MEMORY_BYTES)
        socket.send_fds(connection, [content], [memory])
        os.close(memory)
        yield connection


def submit(connection: socket.socket, words: list[int], buffers: list[tuple[int, ...]]) -> str:
    """Send a submit and return what the server says, "" for success."""
    table = b"".join(struct.pack("<4Q", *buffer) for buffer in buffers)
    stream = struct.pack(f"<{len(words)}I", *words)
    connection.sendall(struct.pack("<II", len(buffers), len(stream)) + table + stream)
    status, size = struct.unpack("<II", connection.recv(8, socket.MSG_WAITALL))
    text = connection.recv(size, socket.MSG_WAITALL).decode() if size else ""
    assert bool(status) == bool(text)
    return text


def faults(folder: Path, *, until: int = 1) -> list[str]:
    """Wait for the report of a client that ended, and return its faults."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if (folder / "report.json").exists():
            clients = json.loads((folder / "report.json").read_text(encoding="utf-8"))["clients"]
            found = [fault for each in clients for fault in each["faults"]]
            if len(found) >= until:
                return found
        time.sleep(0.01)
    raise AssertionError("no report")


def test_identity_and_faults_reach_the_client(running: Server, tmp_path: Path) -> None:
    with client(tmp_path) as connection:
        welcome = struct.unpack("<8s6I", connection.recv(32, socket.MSG_WAITALL))
        assert welcome == (MAGIC, 0x8000, 0x7120, 0x45080009, 0x88, 0, 0)
        assert submit(connection, load_state(0x380C, 0), []) == ""
        said = submit(connection, load_state(0x0C00, 1), [])
        assert "state: expected one that Mesa writes on an NPU" in said
        buffer = (0x400000, PAGE, PAGE, 1)
        said = submit(connection, load_state(0x10A0, 0x401000), [buffer])
        assert "NN job 0 at 0x00401000: GPU address" in said
        # It lives on after a fault.
        assert submit(connection, load_state(0x380C, 0), [buffer]) == ""


@pytest.mark.parametrize(
    ("buffers", "said"),
    [
        ([(0x400000, 0, PAGE, 0)], "buffer flags"),
        ([(0xFFFFF000, 0, 2 * PAGE, 1)], "buffer address"),
        ([(0x400000, 0, PAGE, 1), (0x400800, PAGE, PAGE, 1)], "no two at the same address"),
    ],
)
def test_buffers_that_cannot_be(
    running: Server, tmp_path: Path, buffers: list[tuple[int, ...]], said: str
) -> None:
    with client(tmp_path) as connection:
        connection.recv(32, socket.MSG_WAITALL)
        assert said in submit(connection, [0, 0], buffers)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (struct.pack("<II", 1 << 20, 4), "submit of"),
        (struct.pack("<II", 0, 6), "submit of"),
        (struct.pack("<II4Q2I", 1, 8, 0x400000, MEMORY_BYTES - 1, PAGE, 1, 0, 0), "outside"),
        (struct.pack("<II", 1, 8) + b"abc", "gone within"),
    ],
)
def test_what_is_no_message_ends_the_client(
    running: Server, tmp_path: Path, message: bytes, reason: str
) -> None:
    with client(tmp_path) as connection:
        connection.recv(32, socket.MSG_WAITALL)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert reason in faults(tmp_path)[0]
    with client(tmp_path) as connection:  # the next one is served
        assert connection.recv(32, socket.MSG_WAITALL)[:8] == MAGIC


def test_bad_hellos(running: Server, tmp_path: Path) -> None:
    with client(tmp_path, seal=False) as connection:
        assert connection.recv(1) == b""
    assert "not sealed" in faults(tmp_path)[0]
    with client(tmp_path, hello=struct.pack("<8sQ", MAGIC, 1 << 40)) as connection:
        assert connection.recv(1) == b""
    with client(tmp_path, hello=b"GET / HTTP/1.0\r\n") as connection:
        assert connection.recv(1) == b""
    assert "expected b'NPUSHIM1'" in faults(tmp_path, until=3)[2]


def test_a_client_that_falls_silent_is_cut_off(
    running: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MESSAGE_TIMEOUT_S", 0.1)
    with client(tmp_path) as connection:
        connection.recv(32, socket.MSG_WAITALL)
        time.sleep(0.3)  # between messages that is allowed
        assert submit(connection, [0, 0], []) == ""
        connection.sendall(struct.pack("<II", 1, 8))
        assert connection.recv(1) == b""
    assert "silent for 0.1 s" in faults(tmp_path)[0]


def test_random_messages_do_no_harm(running: Server, tmp_path: Path) -> None:
    rng = random.Random(7)
    for _ in range(60):
        with client(tmp_path) as connection:
            connection.recv(32, socket.MSG_WAITALL)
            size = rng.choice([8, 40, 200])
            message = bytearray(
                struct.pack("<II4Q", 1, size - 40 if size > 40 else 0, 1 << 22, 0, PAGE, 3)
            )
            message += rng.randbytes(max(0, size - 40))
            message[rng.randrange(8)] ^= 1 << rng.randrange(8)
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    with client(tmp_path) as connection:
        assert connection.recv(32, socket.MSG_WAITALL)[:8] == MAGIC


def test_the_server_ends_with_who_started_it(tmp_path: Path) -> None:
    with session.emulator("imx8mp") as emulator:
        assert emulator.socket.exists()
        folder = emulator.socket.parent
    assert not folder.exists()
    assert emulator.report == []


# --- the C file, in a process of this machine's own

CLIENT = """
import ctypes, fcntl, mmap, os, struct, sys

def ask(number, data):
    fcntl.ioctl(node, 3 << 30 | len(data) << 16 | ord("d") << 8 | number, data)
    return data

node = os.open("/dev/dri/renderD128", os.O_RDWR)
other = os.open("/etc/hostname", os.O_RDONLY)  # other files are as ever
os.close(other)
job = [bytes.fromhex(line) for line in sys.stdin.read().split()]
stream, descriptor, coefficients, image, size = *job[:4], int.from_bytes(job[4], "little")
name, date, desc = (ctypes.create_string_buffer(32) for _ in range(3))
texts = [value for text in (name, date, desc) for value in (32, ctypes.addressof(text))]
version = ask(0x00, bytearray(struct.pack("<iii4x6Q", 0, 0, 0, *texts)))
params = [struct.unpack("<IIQ", ask(0x40, bytearray(struct.pack("<IIQ", 0, number, 0))))[2]
          for number in (0x01, 0x02, 0x1C)]
try:
    ask(0x40, bytearray(struct.pack("<IIQ", 1, 1, 0)))
except OSError as error:
    params.append(error.errno)

def buffer(content):
    _, _, handle = struct.unpack("<QII", ask(0x42, bytearray(struct.pack("<QII", len(content), 0, 0))))
    _, _, offset = struct.unpack("<IIQ", ask(0x43, bytearray(struct.pack("<IIQ", handle, 0, 0))))
    view = mmap.mmap(node, max(len(content), 1), offset=offset)
    view[:] = content
    return handle, view

closed = buffer(b"x" * 5000)[0]
ask(0x09, bytearray(struct.pack("<II", closed, 0)))
again, zeros = buffer(bytes(5000))  # the room of the closed one
assert again == closed
made = [buffer(each) for each in (descriptor, image, bytes(size), coefficients)]
places = (0x400000, 0x10000000, 0x20000000, 0x30000000)
table = b"".join(struct.pack("<IIQ", 2 if place == 0x20000000 else 1, handle, place)
                 for (handle, _), place in zip(made, places))
bos, words = ctypes.create_string_buffer(table), ctypes.create_string_buffer(stream)
request = struct.pack("<6I3QIiQII", 0, 0, 0, 4, 0, len(stream), ctypes.addressof(bos), 0,
                      ctypes.addressof(words), 8, -1, 0, 0, 0)
try:
    ask(0x46, bytearray(request))
    result = made[2][1][:].hex()
except OSError as error:
    result = str(error.errno)
print(name.value.decode(), params, result)
"""


def run_client(emulator: session.Emulator, bench: Bench, image: bytes) -> tuple[str, str]:
    parts = [
        bench.stream.tobytes(),
        bench.descriptor.tobytes(),
        bench.coefficients.tobytes(),
        image,
    ]
    parts.append(bench.output.size.to_bytes(8, "little"))
    preload = shim.build(platform.machine())
    completed = subprocess.run(
        [sys.executable, "-c", CLIENT],
        input="\n".join(part.hex() for part in parts),
        env={**os.environ, **emulator.environment, "LD_PRELOAD": str(preload)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return completed.stdout, completed.stderr


def test_a_job_through_the_shim() -> None:
    job = convolution(6, 8)
    bench = bench_for(job)
    with session.emulator("imx8mp") as emulator:
        said, errors = run_client(emulator, bench, job.image.tobytes())
        expected = job.expected().tobytes().hex()
        assert said == f"etnaviv [32768, 32770, 84410377, 6] {expected}\n", errors
        bench.descriptor[0] ^= 1  # layer_type
        said, errors = run_client(emulator, bench, job.image.tobytes())
        assert said.endswith(" 5\n")  # EIO
        assert "virtual NPU imx8mp: NN job 0 at 0x00400000: layer_type (word 0)" in errors
    assert [client["nn_jobs"] for client in emulator.report] == [1, 0]
    assert len(emulator.faults) == 1


def test_the_shim_without_an_emulator(tmp_path: Path) -> None:
    gone = session.Emulator("a311d", tmp_path, {"NPU_SHIM_SOCKET": str(tmp_path / "none")})
    said, errors = run_client(gone, bench_for(convolution(6, 8)), b"")
    assert said == ""
    assert "npu-shim: the emulator does not answer: No such file or directory" in errors


# --- the command line


def test_npu_is_checked_before_anything_is_fetched() -> None:
    with pytest.raises(UserError, match="no NPU 'a311d'"):
        smoke_test("label_image", SmokeTestRequest(), place=VirtualNpu("a311d"))
    with pytest.raises(UserError, match="did you mean 'imx8mp'"):
        smoke_test("label_image", SmokeTestRequest(), place=VirtualNpu("virtual:imx8"))
    with pytest.raises(UserError, match="neither --host nor"):
        smoke_test(
            "label_image",
            SmokeTestRequest(),
            place=VirtualNpu("virtual:a311d"),
            userspace="/somewhere",
        )
    with pytest.raises(UserError, match="for a virtual NPU"):
        virtual_npu("", exact=True)
    with pytest.raises(UserError, match="--strict is for a virtual NPU"):
        virtual_npu("", strict=True)
    with pytest.raises(UserError, match="--record is for a virtual NPU"):
        virtual_npu("", record=Path("t.npu"))
    with pytest.raises(UserError, match="no folder /none to record into"):
        smoke_test(
            "label_image",
            SmokeTestRequest(),
            place=VirtualNpu("virtual:a311d", record=Path("/none/t.npu")),
        )


def test_a_fault_fails_the_row_that_mesa_passes() -> None:
    row = {"delegate": "teflon", "status": "pass", "reason": "", "latency_ms": {}}
    report = [{"nn_jobs": 3, "tp_jobs": 1, "faults": ["NN job 2: x"], "findings": []}]
    document: Any = {"results": [dict(row)], "verdict": "pass"}
    emulator = session.Emulator("a311d", Path(), {}, report)
    host.add_to_document(document, "a311d", "hw", emulator)
    assert document["verdict"] == "fail"
    assert document["npu"]["faults"] == ["NN job 2: x"]
    report[0] |= {"nn_jobs": 0, "tp_jobs": 0, "faults": []}
    document = {"results": [dict(row)], "verdict": "pass"}
    host.add_to_document(document, "a311d", "hw", emulator)
    assert document["results"][0]["reason"] == "no job came to the virtual NPU"
    report[0] |= {"nn_jobs": 3, "blamed": ["job 1: fits no operation"]}
    wrong: list[str] = ["job 1: bias"]
    for strict, said, verdict in ((False, [], "pass"), (True, [], "fail"), (False, wrong, "fail")):
        report[0]["wrong"] = said
        document = {"results": [dict(row)], "verdict": "pass"}
        host.add_to_document(document, "a311d", "hw", emulator, strict=strict)
        assert document["verdict"] == verdict


def test_each_wrong_output_has_a_finding_though_another_has_one_already() -> None:
    net = Net(8)
    shared = net.conv(0, 8)
    last = net.conv(shared, 4)
    model = net.model(
        [shared, last]
    )  # the first comes channel by channel; the last has a wrong bias
    outputs = [{"index": number, "problem": "wrong", "order": ""} for number in (0, 1)]
    row = {"delegate": "teflon", "status": "fail", "reason": "both are wrong", "latency_ms": {},
           "outputs": outputs, "delegated_nodes": [0, 1]}  # fmt: skip
    said = "operation 1 (CONV_2D) NN job 2: bias: expected 1, found 2 [submission]"
    report = [{"nn_jobs": 3, "tp_jobs": 1, "faults": [], "findings": [said], "wrong": [said]}]
    document: Any = {"results": [row], "verdict": "fail"}
    seen = session.Emulator("a311d", Path(), {}, report)
    host.add_to_document(document, "a311d", "hw", seen, model=model)
    first, second = document["npu"]["wrong"]
    assert first == said
    assert second.startswith("operation 0 (CONV_2D): order of ")
    assert document["npu"]["findings"] == [first, second]
    assert document["results"][0]["reason"] == f"not what the model says: {said}; both are wrong"


def test_a_job_that_fits_no_operation_is_told_from_the_model() -> None:
    """Mesa takes an ADD of floats, and its jobs make no sense beside the model."""
    model = write_model(
        [Tensor("a", (1, 8, 8, 4), "float32"), Tensor("b", (1, 8, 8, 4), "float32")],
        [Operator(0, (0, 0), (1,), 11)],
        inputs=[0],
        outputs=[1],
        description="",
    )
    row = {"delegate": "teflon", "status": "fail", "reason": "nan", "latency_ms": {},
           "outputs": [{"index": 0, "problem": "nan", "order": ""}], "delegated_nodes": [0]}  # fmt: skip
    for fault, names in (
        ("NN job 0: x [not understood: a job fits no operation]", True),
        ("NN job 0: x [submission: the stream does not fit]", False),
        ("client cut off: [Errno 32] Broken pipe", False),
    ):
        report = [{"nn_jobs": 1, "tp_jobs": 0, "faults": [fault], "findings": [], "wrong": []}]
        document: Any = {"results": [dict(row)], "verdict": "fail"}
        seen = session.Emulator("a311d", Path(), {}, report)
        host.add_to_document(document, "a311d", "hw", seen, model=model)
        reason = document["results"][0]["reason"]
        assert reason.startswith("not what the model says: operation 0 (ADD): tensors") is names
        assert f"the virtual NPU stopped: {fault}" in reason
        assert bool(document["npu"]["wrong"]) is names


@pytest.mark.parametrize("name", ["teflon", "teflon:a=b"])
def test_what_ended_the_client_comes_before_what_the_emulator_saw_of_it(name: str) -> None:
    """The emulator sees a client that dies or is ended as one that is gone: that is not a reason."""
    reason = "did not end within 4 s"
    row = {"delegate": name, "status": "fail", "reason": reason, "latency_ms": None}
    for faults, said in (
        (["client cut off: [Errno 32] Broken pipe"], reason),
        (["NN job 2: x"], f"{reason}; the virtual NPU stopped: NN job 2: x"),
        ([], reason),
    ):
        report = [{"nn_jobs": 3, "tp_jobs": 1, "faults": faults, "findings": []}]
        document: Any = {"results": [dict(row)], "verdict": "fail"}
        host.add_to_document(document, "a311d", "hw", session.Emulator("a311d", Path(), {}, report))
        assert document["results"][0]["status"] == document["verdict"] == "fail"
        assert document["results"][0]["reason"] == said
        assert document["npu"]["faults"] == faults


# --- Mesa's own delegate


def asset(name: str) -> Path:
    folder = os.environ.get("NPU_BSP_ASSETS")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"needs $NPU_BSP_ASSETS with {name}")
    return Path(folder) / name


ONCE = ("--runs", "1", "--views", "0")
"""The picture itself, once: what the layers are compared on."""


def run_compared(
    npu: str, model: Path, image: Path, folder: Path
) -> tuple[npu_layers.Compared, Server]:
    """Run a model with Mesa's delegate, each layer compared with TFLite's portable kernels."""
    identity = load_identity(npu)
    layers = npu_layers.compared(model, image, identity.nn_generation)
    running = Server(folder / "s", identity, maker=Maker(identity, lambda: layers))
    threading.Thread(target=running.serve, daemon=True).start()
    with closing(running):
        machine = host.client_machine({"NPU_SHIM_SOCKET": str(folder / "s")})
        arguments = ["--model", str(model), "--image", str(image), "--delegate", "teflon"]
        facts = machine.run_runner([*arguments, *ONCE], timeout_s=300)
    assert "error" not in facts["results"][0], facts["results"][0]
    assert not any(layers.different.values()), layers.different
    return layers, running


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_mesa_computes_every_layer_exactly(npu: str, tmp_path: Path) -> None:
    """libteflon.so unchanged: no value of any layer differs from TFLite's portable kernels."""
    model, image = asset("mobilenet_v1_0.25_128_quant.tflite"), asset("grace_hopper.bmp")
    layers, _ = run_compared(npu, model, image, tmp_path)
    assert len(layers.different) == 28
    assert layers.values == 2 * 412_649


DENSE, DEPTHWISE = "conv", "depthwise"
CHAINS = {
    "32x32": (32, 32, [
        (DENSE, 3, 2, SAME, 8), (DENSE, 3, 1, SAME, 17), (DEPTHWISE, 3, 1, SAME, 0),
        (DENSE, 1, 1, SAME, 24), (DEPTHWISE, 3, 2, SAME, 0), (DENSE, 1, 1, SAME, 40),
        (DENSE, 3, 1, VALID, 12), (DENSE, 5, 1, SAME, 16),
    ]),
    "24x40": (24, 40, [
        (DENSE, 5, 2, SAME, 8), (DEPTHWISE, 5, 1, SAME, 0), (DENSE, 1, 2, SAME, 20),
        (DENSE, 3, 1, VALID, 9),
    ]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
@pytest.mark.parametrize("name", CHAINS)
def test_kernels_strides_and_paddings_exactly(npu: str, name: str, tmp_path: Path) -> None:
    height, width, layers = CHAINS[name]
    model, image = tmp_path / "chain.tflite", tmp_path / "noise.bmp"
    model.write_bytes(npu_layers.chain(height, width, layers))
    noise_picture(image, height, width)
    seen, _ = run_compared(npu, model, image, tmp_path)
    assert len(seen.different) == len(layers)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize("npu", ["a311d", "imx8mp"])
def test_smoke_test_on_predicted_silicon(npu: str) -> None:
    model, image = asset("mobilenet_v1_0.25_128_quant.tflite"), asset("grace_hopper.bmp")
    request = SmokeTestRequest(
        delegate="teflon", model=str(model), image=str(image), runs=2, views=2
    )
    document = smoke_test("label_image", request, place=VirtualNpu(f"virtual:{npu}"))
    assert document["verdict"] == "pass", document
    rows = {row["delegate"]: row for row in document["results"]}
    assert rows["teflon"]["delegated_ops"] == 28
    assert rows["teflon"]["top"][0]["index"] == rows["cpu-reference"]["top"][0]["index"]
    assert document["npu"]["jobs"] >= 28
    assert document["npu"]["faults"] == document["npu"]["findings"] == []
    difference = rows["teflon"]["max_abs_diff"]
    assert difference is not None
    assert np.isfinite(difference)


def model_with_add() -> bytes:
    """Input 8x8x3 -> 1x1 convolution -> another -> ADD of both, with unlike scales."""
    rng = np.random.default_rng(8)
    first, second = rng.integers(0, 256, (16, 1, 1, 3)), rng.integers(0, 256, (16, 1, 1, 16))
    tensors = [
        Tensor("input", (1, 8, 8, 3), "uint8", 0.02, 110),
        Tensor("weights_1", first.shape, "uint8", 0.004, 120, first),
        Tensor("bias_1", (16,), "int32", 0.02 * 0.004, 0, rng.integers(-2000, 2000, 16)),
        Tensor("features_1", (1, 8, 8, 16), "uint8", 0.03, 90),
        Tensor("weights_2", second.shape, "uint8", 0.004, 120, second),
        Tensor("bias_2", (16,), "int32", 0.03 * 0.004, 0, rng.integers(-2000, 2000, 16)),
        Tensor("features_2", (1, 8, 8, 16), "uint8", 0.02, 100),
        Tensor("sum", (1, 8, 8, 16), "uint8", 0.04, 100),
    ]
    operators = [
        conv((0, 1, 2), 3, stride=1, activation=NO_ACTIVATION),
        conv((3, 4, 5), 6, stride=1, activation=NO_ACTIVATION),
        Operator(0, (6, 3), (7,), 11),  # ADD, AddOptions
    ]
    return write_model(tensors, operators, inputs=[0], outputs=[7], description="add")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("npu", "faults_when_poisoned"), [("a311d", True), ("imx8mp", False)])
def test_poison_shows_reads_of_what_was_never_written(
    npu: str, faults_when_poisoned: bool, tmp_path: Path
) -> None:
    """Mesa 25.0.7 corrects v7's ADD bias with bytes past the weights; zeroed pages hide it."""
    model, picture = tmp_path / "add.tflite", tmp_path / "noise.bmp"
    model.write_bytes(model_with_add())
    noise_picture(picture, 8, seed=9)
    found = []
    for poison in (0, 0xA5):
        trace = tmp_path / f"{poison}.npu"
        with host.virtual_host(
            npu, exact_for=model, poison=poison, audit_for=model, record=trace
        ) as there:
            arguments = ["--model", str(model), "--image", str(picture), "--delegate", "teflon"]
            facts = there.machine.run_runner([*arguments, *ONCE], timeout_s=300)
        assert "error" not in facts["results"][0], facts
        (seen,) = there.emulator.report
        assert seen["nn_jobs"] > 0
        found.append(there.emulator.faults)
        blamed = there.emulator.blamed
        assert bool(blamed) == bool(there.emulator.faults)
        assert all("bias of the ADD" in each and "[submission" in each for each in blamed)
        again = replay(trace, model=model)
        assert again.differences == []
        assert [str(each) for each in again.blamed] == blamed
        assert again.header.software["mesa-teflon-delegate"]
    assert found[0] == []
    assert bool(found[1]) == faults_when_poisoned
    assert all("operation 2 (ADD) NN" in fault for fault in found[1])
