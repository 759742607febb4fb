# SPDX-License-Identifier: MIT
"""Device tree blobs that are damaged or hostile: an error in words, in bounded time and memory."""

from __future__ import annotations

import contextlib
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.base.project import PROJECT
from bsp.catalog import load_board, npu_of
from bsp.dts.inputs.given import board_tree
from bsp.dts.inputs.identity import check_identity
from bsp.dts.npu.owners import other_owners, vendor_of
from bsp.dts.npu.required_changes import plan_changes, rates
from bsp.dts.tree import read_tree
from bsp.scan.classify import classify
from bsp.scan.drivers import Driver
from bsp.scan.scan import known_socs
from tests.support.kernel_tree import make_kernel

LIMIT_S = 1.0
LIMIT_BYTES = 256 << 20

MAGIC = 0xD00DFEED
BEGIN, END_NODE, PROP, NOP, END = 1, 2, 3, 4, 9

DRIVERS = {
    name: Driver(name, (compatible,), None, None)
    for name, compatible in (
        ("etnaviv", "vivante,gc"),
        ("rocket", "rockchip,rk3588-rknn-core"),
        ("ethosu", "arm,ethos-u65"),
    )
}


def everything(blob: bytes, board_name: str) -> None:
    """All that this project does with a tree before another program sees it."""
    board = load_board(board_name)
    npu = npu_of(board)
    assert npu is not None
    tree = read_tree(blob, "the test's DTB")
    classify("test", tree, DRIVERS, known_socs())
    vendor_of(tree, npu)
    other_owners(tree, npu)
    rates(tree, npu)
    check_identity(tree, board, "it")
    plan_changes(tree, npu, what="it")


def refused(blob: bytes, board_name: str = "vim3") -> str:
    """Return the error's message; it has to come within the limit."""
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        everything(blob, board_name)
    assert time.process_time() - started < LIMIT_S
    assert caught.value.exit_code == 2
    return caught.value.message


# --- blobs that are made by hand -----------------------------------------------------------------


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def blob_of(structure: bytes, names: bytes = b"status\0", total: int | None = None) -> bytes:
    header = 40 + 16
    size = header + len(structure) + len(names)
    return (
        words(MAGIC, size if total is None else total, header, header + len(structure), 40, 17, 16, 0,
              len(names), len(structure))
        + bytes(16) + structure + names
    )  # fmt: skip


def node(name: bytes) -> bytes:
    return words(BEGIN) + padded(name + b"\0")


def test_deep_nesting() -> None:
    deep = node(b"") + node(b"a") * 50_000 + words(END_NODE) * 50_001 + words(END)
    assert "nested too deep" in refused(blob_of(deep))


@pytest.mark.parametrize("depth", [2, 60, 63, 64, 65, 1000])
def test_the_limit_of_nesting_is_the_kernels(depth: int) -> None:
    """FDT_MAX_DEPTH in drivers/of/fdt.c is 64; the root is one of them."""
    blob = blob_of(node(b"") + node(b"a") * (depth - 1) + words(END_NODE) * depth + words(END))
    if depth <= 64:
        assert len(read_tree(blob, "it").nodes) == depth
    else:
        with pytest.raises(UserError, match="nested too deep"):
            read_tree(blob, "it")


@pytest.mark.slow
def test_twice_as_large_a_tree_takes_twice_as_long_and_not_four_times() -> None:
    """As deep as is allowed, and as wide as fits: linear in the size."""

    def seconds(branches: int) -> float:
        below = node(b"b") * 60 + words(END_NODE) * 61
        body = b"".join(node(b"a%06d" % number) + below for number in range(branches))
        blob = blob_of(node(b"") + body + words(END_NODE, END))
        took = []
        for _ in range(3):
            started = time.process_time()
            read_tree(blob, "it")
            took.append(time.process_time() - started)
        return min(took)

    assert seconds(1200) < 8 * max(seconds(300), 0.01)
    assert seconds(1200) < LIMIT_S


@pytest.mark.parametrize(
    ("structure", "what"),
    [
        (node(b"") + node(b"a") + words(END_NODE) + node(b"a") + words(END_NODE, END_NODE, END), "twice"),
        (node(b"") + (words(PROP, 0, 0)) * 2 + words(END_NODE, END), "twice"),
        (node(b"") + words(END_NODE) + node(b"") + words(END_NODE, END), "two roots"),
        (node(b"") + node(b"") + words(END_NODE, END_NODE, END), "twice"),
        (node(b"a") + words(END_NODE, END), "ends inside"),
    ],
)  # fmt: skip
def test_what_a_kernel_would_read_in_another_way_is_refused(structure: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what):
        read_tree(blob_of(structure), "it")


def test_versions_of_the_format() -> None:
    blob = bytearray(blob_of(node(b"") + words(END_NODE, END)))
    for version, compatible, taken in (
        (17, 16, True),
        (16, 16, True),
        (3, 1, False),
        (18, 18, False),
    ):
        blob[20:28] = words(version, compatible)
        if taken:
            read_tree(bytes(blob), "it")
        else:
            with pytest.raises(UserError, match=f"version {version}"):
                read_tree(bytes(blob), "it")


@pytest.mark.parametrize("length", [1, 3, 4, 39])
def test_only_the_start_of_a_blob(length: int) -> None:
    blob = blob_of(node(b"") + words(END_NODE, END))
    with pytest.raises(UserError, match="truncated"):
        read_tree(blob[:length], "it")


def test_a_long_name_above_many_nodes() -> None:
    child = node(b"b") + words(END_NODE)
    long = node(b"") + node(b"a" * 200_000) + child * 50_000 + words(END_NODE, END_NODE, END)
    assert "damaged" in refused(blob_of(long))


def test_property_names_that_do_not_end() -> None:
    properties = b"".join(words(PROP, 0, offset) for offset in range(50_000))
    structure = node(b"") + properties + words(END_NODE, END)
    assert "damaged" in refused(blob_of(structure, b"x" * 1_000_000))


def test_absurd_sizes() -> None:
    tiny = node(b"") + words(END_NODE, END)
    assert "at most" in refused(blob_of(tiny, total=0xFFFFFFFF))
    assert "truncated" in refused(blob_of(tiny, total=1 << 20))
    huge = blob_of(tiny, total=32 << 20) + bytes(32 << 20)
    assert "the kernel takes at most" in refused(huge)
    wide = node(b"") + words(PROP, 0xFFFFFFF0, 0) + words(END_NODE, END)
    assert "damaged" in refused(blob_of(wide))
    assert "damaged" in refused(
        words(MAGIC, 56, 0xFFFFFFF0, 0xFFFFFFF0, 40, 17, 16, 0, 0, 0) + bytes(16)
    )


def with_npu(properties: dict[str, bytes], others: dict[str, dict[str, bytes]]) -> bytes:
    """A blob for the VIM3 with these properties of the NPU's node, and these nodes."""
    names = bytearray()
    offsets: dict[str, int] = {}

    def values(node: dict[str, bytes]) -> bytes:
        made = b""
        for name, value in node.items():
            if name not in offsets:
                offsets[name] = len(names)
                names.extend(name.encode() + b"\0")
            made += words(PROP, len(value), offsets[name]) + padded(value)
        return made

    npu = {"compatible": b"vivante,gc\0", "power-domains": words(1), **properties}
    structure = node(b"") + values({"compatible": b"khadas,vim3\0amlogic,a311d\0"})
    for path, content in {"npu@ff100000": npu, **others}.items():
        structure += node(path.encode()) + values(content) + words(END_NODE)
    return blob_of(structure + words(END_NODE, END), bytes(names))


@pytest.mark.slow
def test_phandles_in_a_circle_and_clocks_without_end() -> None:
    # A provider that is its own clock, whose number of arguments is absurd; a list of 300,000 clocks.
    for count in (0, 1, 0xFFFFFFFF):
        provider = {"phandle": words(2), "#clock-cells": words(count), "clocks": words(2, 2, 2)}
        blob = with_npu(
            {
                "clocks": words(*[2] * 100_000),
                "clock-names": b"core\0bus\0",
                "assigned-clocks": words(*[2] * 100_000),
                "assigned-clock-parents": words(*[2] * 100_000),
            },
            {"clk": provider},
        )
        started = time.process_time()
        with contextlib.suppress(UserError):
            everything(blob, "vim3")
        assert time.process_time() - started < LIMIT_S


def test_a_vendor_kernels_tree_is_recognised() -> None:
    structure = with_npu({}, {"galcore": {"compatible": b"amlogic, galcore\0"}})
    message = refused(structure.replace(b"vivante,gc\0", b"no-such,gc\0"))
    assert "for a vendor's kernel" in message
    assert "/galcore" in message


# --- real blobs with bytes changed ---------------------------------------------------------------


def mutated(blob: bytes, chance: random.Random) -> bytes:
    """Return a blob with a few faults of one kind."""
    data = bytearray(blob)
    kind = chance.randrange(6)
    if kind == 0:
        return bytes(data[: chance.randrange(len(data))])
    for _ in range(chance.choice((1, 1, 2, 5, 40))):
        at = chance.randrange(len(data))
        if kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 2:  # a cell: sizes, tokens, phandles
            at &= ~3
            value = chance.choice((0, 1, 2, 3, 9, 0xFFFFFFFF, 0x7FFFFFFF, chance.getrandbits(32)))
            data[at : at + 4] = words(value)
        elif kind == 3:  # the header
            at = chance.randrange(10) * 4
            data[at : at + 4] = words(
                chance.choice((0, 40, len(blob), 0xFFFFFFF0, chance.getrandbits(17)))
            )
        elif kind == 4:
            length = chance.randrange(1, 64)
            other = chance.randrange(len(data))
            data[at : at + length] = data[other : other + length]
        else:
            del data[at : at + chance.randrange(1, 16)]
            data += bytes(max(0, len(blob) - len(data)))  # so that it is not only truncated
    return bytes(data)


def run_mutations(blobs: list[tuple[str, bytes]], count: int, seed: int) -> tuple[int, float]:
    """Read ``count`` mutated blobs; return how many were refused, and the slowest one's seconds."""
    chance = random.Random(seed)
    refusals, slowest_s = 0, 0.0
    for number in range(count):
        name, blob = blobs[number % len(blobs)]
        started = time.process_time()
        try:
            everything(mutated(blob, chance), name)
        except UserError:
            refusals += 1
        slowest_s = max(slowest_s, time.process_time() - started)
    return refusals, slowest_s


def test_mutated_blobs_of_a_small_tree(tmp_path: Path) -> None:
    kernel = make_kernel(tmp_path)
    source = "arch/arm64/boot/dts/amlogic/meson-g12b-a311d-khadas-vim3.dts"
    preprocessed = subprocess.run(
        ["cpp", "-nostdinc", "-Iscripts/dtc/include-prefixes", "-undef", "-xassembler-with-cpp", source],
        cwd=kernel, capture_output=True, check=True,
    ).stdout  # fmt: skip
    blob = subprocess.run(
        ["dtc", "-q", "-@", "-Idts", "-Odtb"], input=preprocessed, capture_output=True, check=True
    ).stdout
    everything(blob, "vim3")  # whole, it is taken
    refusals, slowest_s = run_mutations([("vim3", blob)], 500, seed=1)
    assert refusals > 100
    assert slowest_s < LIMIT_S


FUZZ = """
import resource, sys
from pathlib import Path
from tests.bsp.dts.test_dtb_fuzz import LIMIT_BYTES, run_mutations
blobs = [tuple(word.split("=", 1)) for word in sys.argv[3:]]
read = [(name, Path(file).read_bytes()) for name, file in blobs]
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), resource.RLIM_INFINITY))
print(*run_mutations(read, int(sys.argv[1]), seed=2))
"""


@pytest.mark.full
@pytest.mark.network
def test_ten_thousand_mutated_blobs_of_real_boards(tmp_path: Path) -> None:
    from bsp.dts.build import build_dts

    files = []
    for name in ("vim3", "imx8mp-evk", "rk3588-rock-5b", "imx93-11x11-evk"):
        board = load_board(name)
        result = build_dts(board, kernel=None, base_dtb=None, target_dir=tmp_path / name)
        files.append(f"{name}={result.dtb}")
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "10000", str(LIMIT_BYTES + (1 << 30)), *files],
        cwd=PROJECT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    refusals, slowest_s = done.stdout.split()
    assert int(refusals) > 1000
    assert float(slowest_s) < LIMIT_S
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert used < LIMIT_BYTES


def test_a_file_without_end_is_read_in_part() -> None:
    started = time.process_time()
    with pytest.raises(UserError, match="not a device tree blob"):
        board_tree(Path("/dev/zero"), flag="--base-dtb")
    assert time.process_time() - started < LIMIT_S
    with pytest.raises(UserError, match="cannot read"):
        board_tree(Path("/nowhere/at.dtb"), flag="--base-dtb")


@pytest.mark.parametrize(("at", "said"), [(32, "does not end"), (36, "its header says 4")])
def test_sizes_of_its_parts_that_are_not_theirs(at: int, said: str) -> None:
    """libfdt, and so the kernel, refuses them, too."""
    body = node(b"") + words(PROP, 0, 0) + words(END_NODE, END)
    blob = bytearray(blob_of(body, b"a\0"))
    read_tree(bytes(blob), "it")
    struct.pack_into(">I", blob, at, 0 if at == 32 else 4)
    with pytest.raises(UserError, match=said):
        read_tree(bytes(blob), "it")
