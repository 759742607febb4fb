# SPDX-License-Identifier: MIT
"""Virtual boards: the command line of QEMU, whose process is ended, the probe."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from bsp.base.errors import InfrastructureError, UserError, ValidationError
from bsp.catalog import board_names, load_board, npu_of
from bsp.dts.npu.clocks import ClockRate, compare_clocks, parse_clk_summary
from bsp.dts.tree import Tree, read_tree
from bsp.profile import Board
from bsp.qemu import machine
from bsp.qemu.base_dtb import base_dtb
from bsp.qemu.machine import PID_FILE, QMP_SOCKET, DirectBoot, Machine, arguments, qemu_of
from bsp.remote import inventory
from bsp.remote.inventory import Host
from images.disk import Disk
from virtual.boards import boards, launch
from virtual.boards.boot_dts import boot_dts, find_problems
from virtual.boards.instance import Instance, Record, start_ticks
from virtual.boards.probe import ProbeReport, parse_report
from virtual.boards.qmp import command
from virtual.boards.results import Down, Listed

CAPTURED = Path(__file__).parent / "data" / "probe-imx8mp-evk.txt"
EVK = "imx8mp-evk"


# --- what is typed to QEMU


def _with_bootloader(wanted: bool) -> list[str]:
    boards_of_qemu = [board for board in map(load_board, board_names()) if board.qemu]
    return [each.name for each in boards_of_qemu if qemu_of(each).bootloader is wanted]


@pytest.mark.parametrize("name", _with_bootloader(True))
def test_a_board_with_bootloader_gets_only_that(name: str) -> None:
    words = arguments(Machine(load_board(name), Path("u-boot.bin"), Path("d.qcow2"), ssh_port=2222))
    assert words[words.index("-bios") + 1] == "u-boot.bin"
    assert "-kernel" not in words
    assert any("hostfwd=tcp:127.0.0.1:2222-:22" in word for word in words)


def test_an_arm64_machine_runs_qemus_own_boards_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(name: str) -> list[str]:
        return arguments(Machine(load_board(name), Path("u-boot.bin"), Path("d.qcow2")))

    monkeypatch.setattr(machine, "_KVM", tmp_path / "kvm")
    before = words("virtual")
    assert before[before.index("-accel") + 1] == "tcg,thread=multi"
    (tmp_path / "kvm").touch()
    assert words("virtual") == before  # KVM of another processor is of no use
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    found = words("virtual")
    assert found.count("-accel") == 1
    assert found[found.index("-accel") + 1] == "kvm"
    assert found[found.index("-cpu") + 1] == "host"
    assert found[found.index("-machine") + 1].startswith("virt,gic-version=host")
    chip = words(EVK)
    assert chip[chip.index("-accel") + 1] == "tcg,thread=multi"
    (tmp_path / "kvm").unlink()
    assert words("virtual") == before


@pytest.mark.parametrize("name", _with_bootloader(False))
def test_a_board_without_gets_kernel_and_dtb(name: str) -> None:
    board = load_board(name)
    start = DirectBoot(Path("k"), Path("i"), Path("b.dtb"), "root=x")
    words = arguments(Machine(board, start, disk=None, ssh_port=None))
    assert words[words.index("-dtb") + 1] == "b.dtb"
    assert words[words.index("-append") + 1] == "root=x"
    consoles = [words[at + 1] for at, word in enumerate(words) if word == "-serial"]
    assert consoles == ["null"] * qemu_of(board).serial_index + ["chardev:console"]
    assert words[words.index("-nic") + 1] == "none"


def test_a_board_that_qemu_is_not_is_refused_with_those_it_is() -> None:
    with pytest.raises(UserError, match="QEMU has no machine with the SoC of vim3") as caught:
        boards.up("vim3")
    assert EVK in caught.value.hint
    with pytest.raises(UserError, match="QEMU has no machine"):
        boot_dts(load_board("vim3"))


def test_a_board_without_npu_has_nothing_to_promise() -> None:
    with pytest.raises(UserError, match="has no NPU"):
        boot_dts(load_board("virtual"))


def test_a_tree_that_is_taken_as_it_is_has_nothing_switched_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="taken as it is"):
        boot_dts(load_board(EVK), dtb=tmp_path / "some.dtb", force_enable=True)


# --- whose process is ended


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def _record(process: subprocess.Popen[bytes], **changes: int) -> Record:
    ticks = start_ticks(process.pid)
    assert ticks is not None
    record = Record(
        name="x", board="virtual", kernel="6.12", pid=process.pid, started_ticks=ticks,
        ssh_port=2222, disk="d", started="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return msgspec.structs.replace(record, **changes)


def test_our_process_is_known_and_ended(own_state: Path, sleeper: subprocess.Popen[bytes]) -> None:
    instance = Instance("x")
    instance.save(_record(sleeper))
    assert instance.running()
    assert not instance.wait_until_gone(timeout_s=0.05)
    instance.kill()
    assert sleeper.wait(timeout=5) < 0
    assert not instance.running()
    assert instance.wait_until_gone(timeout_s=1)


def test_a_process_that_only_has_the_same_number_is_left_alone(
    own_state: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    instance = Instance("x")
    record = _record(sleeper)
    instance.save(msgspec.structs.replace(record, started_ticks=record.started_ticks - 1))
    assert not instance.running()
    instance.kill()
    assert sleeper.poll() is None


def test_a_board_whose_qemu_died_is_cleaned_up(
    own_state: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    instance = Instance("x")
    instance.save(_record(sleeper))
    inventory.register(Host(name="x", address="127.0.0.1", port=2222))
    sleeper.kill()
    sleeper.wait()
    assert [running for _, running in boards.listed().boards] == [False]
    assert boards.down("x") == Down("x", was_running=False)
    assert boards.listed() == Listed(())
    with pytest.raises(UserError, match="unknown host"):
        inventory.resolve("x")


def test_bad_names_ports_and_unknown_boards(own_state: Path) -> None:
    with pytest.raises(UserError, match="is not a name for a virtual board"):
        boards.up("virtual", name="../x")
    with pytest.raises(UserError, match="there is no virtual board 'nobody'"):
        boards.down("nobody")
    with pytest.raises(UserError, match="does not run"):
        boards.reset("nobody")
    with pytest.raises(UserError, match="takes the DTB from the disk"):
        boards.up("virtual", dtb=Path("x.dtb"))
    for name, start in (
        ("virtual", "./inv virtual.up"),
        ("virtual-a311d", "./inv virtual.up --board virtual-a311d"),
        ("nobody", "./inv virtual.up --name nobody"),
    ):
        with pytest.raises(UserError) as caught:
            boards.reset(name)
        assert caught.value.hint == start
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is taken"):
            boards.up("virtual", port=port)
    assert boards.listed() == Listed(())


def test_a_dry_run_starts_nothing(own_state: Path) -> None:
    plan = boards.plan_up("virtual", name="planned")
    assert "U-Boot" in plan.text()
    assert boards.listed() == Listed(())


def test_the_end_of_the_console_is_readable(own_state: Path) -> None:
    instance = Instance("x")
    assert instance.last_console_lines() == "(nothing)"
    instance.folder.mkdir(parents=True)
    lines = "".join(f"line {number}\r\n" for number in range(40))
    instance.console_log.write_text(f"\x1b[2J\x1b[1;1H{lines}\n")
    shown = instance.last_console_lines().splitlines()
    assert (len(shown), shown[-1]) == (15, "  | line 39")
    instance.keep_console_log()
    instance.forget()
    assert "line 39" in instance.kept_log.read_text()


def test_a_boot_loader_that_gave_up_is_noticed(own_state: Path) -> None:
    instance = Instance("x")
    assert not instance.at_bootloader_prompt()
    instance.folder.mkdir(parents=True)
    instance.console_log.write_text("=> bootflow scan -lb\r\nScanning for bootflows\r\n")
    assert not instance.at_bootloader_prompt()
    with instance.console_log.open("a") as file:
        file.write("(2 bootflows, 2 valid)\r\n=> ")
    assert instance.at_bootloader_prompt()


def test_a_full_disk_is_noticed_before_anything_is_written(
    own_state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from virtual.boards import boot

    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    disk = Disk(tmp_path / "disk.img", tmp_path / "key", "ssh-ed25519 A", tmp_path, "")
    instance = Instance("full")
    with pytest.raises(InfrastructureError, match=r"100 MiB free in .*, 512 MiB needed"):
        boot.start(instance, load_board("virtual"), disk, kernel="6.12")
    assert list(instance.folder.iterdir()) == []


# --- a machine that runs no program: quick


@pytest.mark.network
def test_qemu_runs_in_the_background_and_is_told_what_to_do(
    own_state: Path, tmp_path: Path
) -> None:
    instance = Instance("idle")
    instance.folder.mkdir(parents=True)
    firmware = tmp_path / "firmware"
    firmware.write_bytes(bytes(64))
    machine = Machine(load_board("virtual"), firmware, ssh_port=launch.free_port(), devices=["-S"])
    launch.start(machine, instance.folder)
    pid = instance.pid()
    assert pid is not None
    ticks = start_ticks(pid)
    assert ticks is not None
    instance.save(
        Record(name="idle", board="virtual", kernel="", pid=pid, started_ticks=ticks, ssh_port=1,
               disk="", started="")
    )  # fmt: skip
    try:
        assert instance.running()
        assert instance.command("query-status")["status"] == "prelaunch"
        boards.reset("idle")
        with pytest.raises(InfrastructureError, match="QEMU refused no_such_command"):
            instance.command("no_such_command")
        instance.command("quit")
        assert instance.wait_until_gone(timeout_s=10)
        assert not (instance.folder / PID_FILE).exists()
        with pytest.raises(InfrastructureError, match="does not answer"):
            command(instance.folder / QMP_SOCKET, "query-status")
    finally:
        instance.kill()


@pytest.mark.network
def test_a_qemu_that_does_not_start_says_why(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        machine = Machine(load_board("virtual"), tmp_path / "none", ssh_port=port)
        with pytest.raises(InfrastructureError, match=r"(?s)QEMU did not start.*host forwarding"):
            launch.start(machine, tmp_path)


@pytest.mark.network
def test_qemus_own_tree_is_a_base_for_ours(tmp_path: Path) -> None:
    board = load_board("virtual")
    tree = read_tree(base_dtb(board).read_bytes(), "QEMU's tree")
    assert board.compatible[0] in tree.compatible
    # Described without firmware it would have a GPIO controller that is not there.
    assert not [path for path in tree.nodes if "pl061" in path]
    assert tree.get("/chosen", "rng-seed") is None


@pytest.mark.network
def test_another_boards_tree_is_not_booted() -> None:
    with pytest.raises(UserError, match="is of another board"):
        boot_dts(load_board(EVK), dtb=base_dtb(load_board("virtual")))


# --- what the probe reads


def test_the_report_is_read_from_a_real_console() -> None:
    text = CAPTURED.read_text()
    report = parse_report(f"[    0.1] boot noise\r\n{text}".replace("\n", "\r\n"))
    assert report.model == "NXP i.MX8MPlus EVK board"
    assert (report.device, report.driver) == ("38500000.npu", "etnaviv-gpu")
    assert report.render_nodes == ("renderD128",)
    rates = {each.name: (each.clock, each.rate_hz) for each in report.clocks}
    assert rates == {
        "reg": ("ml_ahb", 266_666_667),
        "bus": ("ml_axi", 800_000_000),
        "shader": ("npu_root_clk", 800_000_000),
        "core": ("npu_root_clk", 800_000_000),
    }
    assert "38330000.blk-ctrl" in report.deferred
    assert any("bound 38500000.npu" in line for line in report.dmesg)


def test_clocks_of_no_device_and_of_other_devices_are_left_out() -> None:
    text = CAPTURED.read_text()
    assert parse_clk_summary(text, None) == ()
    assert parse_clk_summary(text, "38000000.gpu") == ()


@pytest.mark.parametrize("text", ["", "@@npu-bsp begin\n@@section model\n"])
def test_a_console_without_a_report_is_an_error(text: str) -> None:
    with pytest.raises(ValidationError, match="no report"):
        parse_report(text)


def _report(driver: str | None, *clocks: ClockRate, deferred: tuple[str, ...] = ()) -> ProbeReport:
    device = "38500000.npu" if driver or deferred else None
    return ProbeReport("m", device, driver, clocks, (), deferred, ())


def _tree(*, core_hz: int) -> tuple[Board, Tree]:
    """The part of a tree that assigns the rate of the NPU's first clock."""
    board = load_board(EVK)
    npu = npu_of(board)
    assert npu is not None
    assert npu.rates_node is not None
    cell = npu.clocks[0].cell
    assert cell is not None

    def words(*numbers: int) -> bytes:
        return b"".join(number.to_bytes(4, "big") for number in numbers)

    nodes = {
        "/": {},
        "/clk": {"phandle": words(1), "#clock-cells": words(1)},
        npu.node: {},
        npu.rates_node: {
            "assigned-clocks": words(1, cell),
            "assigned-clock-rates": words(core_hz),
        },
    }
    return board, Tree(nodes)


@pytest.mark.parametrize(
    ("asked_hz", "measured_hz", "problem", "rounded"),
    [
        (800_000_000, 800_000_000, False, False),
        (266_666_666, 266_666_667, False, False),
        (400_000_000, 800_000_000, True, False),
        (300_000_000, 266_666_667, False, True),
    ],
)
def test_rates_are_compared(asked_hz: int, measured_hz: int, problem: bool, rounded: bool) -> None:
    board, tree = _tree(core_hz=asked_hz)
    npu = npu_of(board)
    assert npu is not None
    measured = ClockRate("core", "npu_root_clk", measured_hz)
    clocks = compare_clocks(tree, npu, (measured,))
    assert (clocks[0].asked_hz, clocks[0].rounded) == (asked_hz, rounded)
    found = find_problems(npu, _report("etnaviv-gpu", measured), clocks, promised=True)
    assert bool(found) is problem


def test_binding_is_compared() -> None:
    npu = npu_of(load_board(EVK))
    assert npu is not None
    assert find_problems(npu, _report(None), (), promised=False) == ()
    assert "is not enabled, but" in find_problems(npu, _report("e"), (), promised=False)[0]
    assert "no driver is bound" in find_problems(npu, _report(None), (), promised=True)[0]
    waiting = _report(None, deferred=("38500000.npu",))
    assert "dependency never appeared" in find_problems(npu, waiting, (), promised=True)[0]
