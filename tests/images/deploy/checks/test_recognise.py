# SPDX-License-Identifier: MIT
"""All commands that reach a board over SSH take it for the same one; boards made of folders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from bsp.base.errors import UserError
from bsp.catalog import board_file, board_names, load_board
from bsp.profile import Board
from bsp.remote.in_place import build_in_place
from bsp.remote.ssh import connect
from images.bundle.manifest import Bundle
from images.deploy import in_place
from images.deploy.checks.recognise import recognised
from images.deploy.deploy import deploy, rollback
from images.deploy.status import status
from tests.support.fake_board import BOARD_MARKS, FakeBoard, make_bundle
from tests.support.fake_boot import compile_dtb

pytestmark = [*BOARD_MARKS, pytest.mark.usefixtures("own_profiles")]

EVK = ("fsl,imx8mp-evk", "fsl,imx8mp")


def source(compatible: tuple[str, ...], body: str, model: str) -> str:
    said = ", ".join(f'"{each}"' for each in compatible)
    return (
        f'/dts-v1/;\n/ {{ compatible = {said}; model = "{model}"; #address-cells = <2>; '
        f"#size-cells = <2>;\n{body}\n}};"
    )


VIRTUAL_NPU = """clock { phandle = <1>; #clock-cells = <0>; };
    intc { phandle = <2>; #interrupt-cells = <3>; };
    npu@10000000 { compatible = "vivante,gc"; reg = <0 0x10000000 0 0x40000>; interrupts = <0 3 4>;
        interrupt-parent = <2>; clocks = <1>, <1>; clock-names = "core", "bus"; status = "disabled"; };"""
NAMES = [  # what the board says; the profile that it is, or why there is no answer
    (("linux,dummy-virt",), "virtual"),
    (("npu-bsp,virtual-a311d", "linux,dummy-virt"), "virtual-a311d"),
    (("vendor,carrier", "linux,dummy-virt"), "derived from it"),
    (("vendor,carrier",), "which no profile is for"),
    (("fsl,imx8mp",), "name of a chip or a module"),
    (EVK, "which trees of other boards often keep"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("compatible", "expected"), NAMES)
@pytest.mark.parametrize("way", ["deploy", "deploy --dtb-only", "build-dts --from-host"])
def test_all_commands_take_a_board_for_the_same(
    board: FakeBoard,
    tmp_path: Path,
    compatible: tuple[str, ...],
    expected: str,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strings = b"".join(each.encode() + b"\0" for each in compatible)
    (board.root / "proc/device-tree/compatible").write_bytes(strings)
    dtb = compile_dtb(source(compatible, VIRTUAL_NPU, "A test board"), tmp_path / "it.dtb")
    (board.root / "sys/firmware/fdt").write_bytes(dtb.read_bytes())
    target = board.target(board=None)
    asked: list[str] = []

    class StopError(Exception):
        """The board was recognised; what comes then is not looked at."""

    def stop(profile: Board) -> Bundle:
        asked.append(profile.name)
        raise StopError

    def recorded(*arguments: Any, **options: Any) -> None:
        asked.append(recognised(*arguments, **options)[0].name)
        raise StopError

    monkeypatch.setattr(in_place, "recognised", recorded)

    def go() -> None:
        if way == "deploy":
            deploy(target, bundle=None, board=None, make_bundle=stop)
        elif way == "deploy --dtb-only":
            in_place.deploy_dtb(target, board=None, dtb=dtb, dry_run=True)
        else:
            with connect(target.host) as connection:
                made = build_in_place(connection, target_dir=tmp_path / "out", root=target.root)
            asked.append(made.board.name)

    before = board.snapshot()
    if expected in board_names():
        with contextlib.suppress(StopError):
            go()
        assert asked == [expected]
    elif expected == "derived from it" and way == "build-dts --from-host":
        go()  # its own tree stays, so it is no danger that it is another board
        assert asked == ["virtual"]
    else:
        with pytest.raises(UserError, match=expected):
            go()
    assert board.snapshot() == before
    found = status(target)
    assert found["profile"] == (
        "virtual"
        if expected == "derived from it"
        else expected
        if expected in board_names()
        else None
    )
    assert bool(found["profile_problem"]) == (compatible == EVK)


def test_a_bundle_for_a_reference_board_is_not_sent_to_another(
    board: FakeBoard, tmp_path: Path, own_profiles: Path
) -> None:
    text = board_file("virtual").read_text().replace('name = "virtual"', 'name = "reference"')
    identity = '[identity]\nmodels = ["The reference"]\n\n[boot]'
    (own_profiles / "reference.toml").write_text(text.replace("[boot]", identity))
    reference = load_board("reference")
    bundle = make_bundle(tmp_path / "new", board=reference, initrd=b"newer")
    before = board.snapshot()
    with pytest.raises(UserError, match="'A test board', not 'The reference'"):
        deploy(board.target(board=None), bundle=bundle, board=None)
    assert board.snapshot() == before
    # Said by the user, it is believed.
    result = deploy(board.target(board=None), bundle=bundle, board=reference, dry_run=True)
    assert result.outcome == "planned"
    result = deploy(board.target(board="reference"), bundle=bundle, board=None, dry_run=True)
    assert result.outcome == "planned"


@pytest.mark.slow
def test_a_board_that_runs_as_another_gets_its_own_name_with_a_deployment(
    board: FakeBoard, factory: Bundle, tmp_path: Path, own_profiles: Path
) -> None:
    text = board_file("virtual").read_text().replace('name = "virtual"', 'name = "carrier"')
    text = text.replace('["linux,dummy-virt"]', '["acme,carrier", "linux,dummy-virt"]')
    identity = '[identity]\nmodels = ["A test board"]\nruns_as = "linux,dummy-virt"\n\n[boot]'
    (own_profiles / "carrier.toml").write_text(text.replace("[boot]", identity))
    carrier = load_board("carrier")
    board.behave("own-name")
    bundle = make_bundle(tmp_path / "new", board=carrier, compatible="acme,carrier")
    result = deploy(board.target(board=None), bundle=bundle, board=None)
    assert result.outcome == "confirmed", result.problem
    found = status(board.target(board=None))
    assert (found["compatible"], found["profile"]) == (["acme,carrier"], "carrier")
    # And back, to a tree that does not have the name.
    result = rollback(board.target(board=None))
    assert result.outcome == "confirmed", result.problem
    assert board.running() == factory.generation
