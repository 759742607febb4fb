# SPDX-License-Identifier: MIT
"""What a board's U-Boot lacks reaches the user; where it is not known, it is asked before a trial.

The boot script itself is tested in a real U-Boot (boot/test_boot_script.py).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.boot_survey.told import explained, lacks_in, untaken_in
from bsp.uboot import Trial
from images.bundle import manifest as bundles
from images.deploy import in_place
from images.deploy.adopt import adopt
from images.deploy.show import Shown, status_text
from images.deploy.status import status
from images.deploy.trial import Boot, why_not_taken
from tests.support.fake_board import BOARD_MARKS, FakeBoard
from tests.support.fake_boot import compile_dtb, tree_source

from .test_adopt import files_of, make_stock

pytestmark = BOARD_MARKS


@pytest.fixture
def stock(request: pytest.FixtureRequest, factory: bundles.Bundle) -> Iterator[FakeBoard]:
    """A board that knows nothing of us; it boots by a script, or as the parameter says."""
    with tempfile.TemporaryDirectory(prefix="npu-bsp-test-") as folder:
        fake = FakeBoard(Path(folder), factory)
        make_stock(fake, getattr(request, "param", "boot.scr"))
        try:
            yield fake
        finally:
            fake.close()


@pytest.fixture
def not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("images.deploy.adopt.trial_of", lambda _: Trial("asked", "not known"))


def test_names_on_a_command_line() -> None:
    line = "root=/dev/sda1 npu_bsp.lacks=cmp,mmc-read npu_bsp.slot=good npu_bsp.lacks=cmp,$(x),,mw"
    assert lacks_in(line) == ("cmp", "mmc-read", "mw")
    assert lacks_in("console=ttyS0") == ()
    assert explained(()) == ""
    assert "the command mmc read (sectors" in explained(("mmc-read",))
    assert "the variable devtype (" in explained(("devtype",))
    assert "the command new (the boot script needs it)" in explained(("new",))
    assert "was moved or copied" in untaken_in("a npu_bsp.trial=moved b")
    assert untaken_in("npu_bsp.trial=else") == untaken_in("npu_bsp.slot=good") == ""


def test_a_trial_that_was_not_booted_is_told_from_one_that_crashed() -> None:
    good, old = "0" * 12, None
    unloadable = untaken_in("npu_bsp.trial=unloadable")
    assert why_not_taken(Boot("id", good), armed=False) == ""
    assert why_not_taken(Boot("id", good, ("mw",)), armed=False) == ""
    assert why_not_taken(Boot("id", good, (), unloadable), armed=False) == (
        "it was not tried: U-Boot could not load all of its files from the boot partition"
    )
    both = why_not_taken(Boot("id", good, ("cmp",), untaken_in("npu_bsp.trial=moved")), armed=True)
    assert "lacks the command cmp (" in both
    assert "; its mark, trial.env, is not in the sector" in both
    assert "does not run npu-bsp's boot script" in why_not_taken(Boot("id", old), armed=True)


@pytest.mark.slow
@pytest.mark.usefixtures("not_known")
def test_a_u_boot_that_is_not_known_is_asked_before_the_trial(stock: FakeBoard) -> None:
    planned = adopt(stock.target(), board=None, dry_run=True)
    assert "asked what it can do; nothing is tried yet" in str(planned.plan)
    result = adopt(stock.target(), board=None)
    assert result.outcome == "confirmed", result.problem
    names = [str(step["name"]).partition(" of ")[0] for step in result.steps]
    assert names.index("Probe boot: what its U-Boot can do") + 1 == names.index("Trial boot")
    assert result.document()["uboot_lacks"] == []
    # Asked once: from now on it is known that a trial can be taken.
    dtb = compile_dtb(tree_source(extra='status = "okay";'), stock.folder / "new.dtb")
    again = in_place.deploy_dtb(stock.target(), board=None, dtb=dtb)
    assert again.outcome == "confirmed"
    assert not [step for step in again.steps if "Probe" in str(step["name"])]


@pytest.mark.slow
@pytest.mark.usefixtures("not_known")
def test_nothing_is_tried_with_a_u_boot_that_lacks_something(stock: FakeBoard) -> None:
    before = files_of(stock.fat)
    stock.behave("lacks cmp,itest")
    result = adopt(stock.target(), board=None)
    assert result.outcome == "rolled-back"
    assert not [step for step in result.steps if "Trial boot" in str(step["name"])]
    assert "its U-Boot lacks the command cmp (" in result.problem
    assert "the command itest (" in result.problem
    assert "; the old system runs" in result.problem
    assert "--try" in result.hint
    assert result.document()["uboot_lacks"] == ["cmp", "itest"]
    assert "its U-Boot lacks" in Shown(result).complaint()
    assert files_of(stock.fat) == before


def test_what_lacked_at_the_last_boot_is_not_asked_again(stock: FakeBoard) -> None:
    before = files_of(stock.fat)
    cmdline = stock.root / "proc/cmdline"
    cmdline.write_text(f"{cmdline.read_text().strip()} npu_bsp.lacks=fatwrite\n")
    with pytest.raises(UserError, match="no trial can be taken on fake: its U-Boot lacks") as error:
        adopt(stock.target(), board=None)
    assert "the command fatwrite (" in error.value.message
    assert "--try" in error.value.hint
    assert adopt(stock.target(), board=None, dry_run=True).outcome == "refused"
    assert files_of(stock.fat) == before


@pytest.mark.slow
@pytest.mark.usefixtures("not_known")
@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("stay", "it did not reboot within 2 s"), ("panic", None)],
)
def test_a_probe_that_is_not_booted(stock: FakeBoard, behaviour: str, said: str | None) -> None:
    """``panic``: the probe passes; it is the trial that falls."""
    before = files_of(stock.fat)
    stock.behave(behaviour)
    result = adopt(stock.target(timeout_s=2), board=None)
    assert result.outcome == "rolled-back", result
    assert (said or "it crashed during the trial boot") in result.problem
    assert files_of(stock.fat) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stock", "behaviour", "said"),
    [
        (
            "boot.scr",
            "lacks fatwrite",
            r"it was not tried: its U-Boot lacks the command fatwrite \(",
        ),
        (
            "extlinux",
            "lacks fatwrite",
            r"it was not tried: its U-Boot lacks the command fatwrite \(",
        ),
        (
            "extlinux",
            "silently lacks fatwrite",
            r"it was not tried, and its mark, trial\.env, is as it was armed: U-Boot does",
        ),
    ],
    indirect=["stock"],
)
def test_a_first_trial_that_was_not_taken_is_none_that_crashed(
    stock: FakeBoard, behaviour: str, said: str
) -> None:
    before = files_of(stock.fat)
    stock.behave(behaviour)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("images.deploy.adopt.trial_of", lambda _: Trial("fat", "known"))
        result = adopt(stock.target(), board=None)
    assert result.outcome == "rolled-back"
    assert "crashed" not in result.problem
    assert re.search(said, result.problem), result.problem
    assert files_of(stock.fat) == before


@pytest.mark.slow
def test_a_later_trial_that_was_not_taken_is_disarmed(stock: FakeBoard) -> None:
    adopted = adopt(stock.target(), board=None)
    assert adopted.outcome == "confirmed"
    stock.behave("lacks fatwrite")
    dtb = compile_dtb(tree_source(extra='status = "okay";'), stock.folder / "new.dtb")
    result = in_place.deploy_dtb(stock.target(), board=None, dtb=dtb)
    assert result.outcome == "rolled-back"
    assert "it was not tried: its U-Boot lacks the command fatwrite" in result.problem
    assert result.document()["uboot_lacks"] == ["fatwrite"]
    assert stock.trial() is None
    found = status(stock.target())
    assert found["uboot_lacks"] == ["fatwrite"]
    assert found["trial"] is None
    assert "U-Boot lacks  the command fatwrite (" in status_text(found)
    # The next one is tried: what lacked is not remembered, nor copied into a generation.
    stock.behave("ok")
    tried = in_place.deploy_dtb(stock.target(), board=None, dtb=dtb)
    assert tried.outcome == "confirmed", tried.problem
    assert tried.document()["uboot_lacks"] == []
    assert "U-Boot lacks" not in status_text(status(stock.target()))
