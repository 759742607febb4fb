# SPDX-License-Identifier: MIT
"""What is asked before a tree is tried that the distribution is to keep."""

from __future__ import annotations

import pytest

from bsp.base.errors import UserError
from bsp.dts.npu.rate import at_rate
from bsp.dts.npu.required_changes import Change, plan_changes
from bsp.dts.tree import Tree
from images.deploy.kept_tree import refuse_overlay, refuse_without_keeper
from tests.bsp.boot_survey.test_survey import board, surveyed
from tests.bsp.dts.test_rate import imx8mp, the_npu

STATUS = [Change("/npu", "status", "disabled", "okay")]
CONF = "/boot/extlinux/extlinux.conf"


def test_a_whole_tree_is_not_kept_where_overlays_are_applied_to_it() -> None:
    programs = ("u-boot-update",)
    plain = surveyed("debian-u-boot-menu", programs=programs)
    refuse_without_keeper(plain, "desk", overlay=False)
    text = board("debian-u-boot-menu").files[CONF]
    named = text.replace("label l0r", "    fdtoverlays /boot/dtbo/can.dtbo\nlabel l0r")
    how = surveyed("debian-u-boot-menu", programs=programs, files={CONF: named})
    refuse_without_keeper(how, "desk", overlay=True)
    with pytest.raises(UserError, match=r"names overlays \(/boot/dtbo/can\.dtbo now\)") as caught:
        refuse_without_keeper(how, "desk", overlay=False)
    assert "leave --dtb out" in str(caught.value.hint)
    with pytest.raises(UserError, match="armbian names overlays"):
        refuse_without_keeper(surveyed("armbian-vim3"), "desk", overlay=False)


def test_an_overlay_is_not_replaced_by_one_of_what_is_lacking_beside_it() -> None:
    armbian = surveyed("armbian-vim3")
    refuse_overlay(armbian, "", STATUS, "desk")
    with pytest.raises(UserError, match="armbian keeps an overlay of npu-bsp's already") as caught:
        refuse_overlay(armbian, "armbian", STATUS, "desk")
    assert "--host desk --undo" in str(caught.value.hint)
    whole = surveyed("debian-u-boot-menu", programs=("u-boot-update",))
    refuse_overlay(whole, "u-boot-menu", STATUS, "desk")


def test_an_overlay_that_fits_one_kernels_tree_alone_is_not_kept() -> None:
    npu = at_rate(the_npu("imx8mp-evk"), imx8mp(), 500_000_000, "it")
    unlabelled = plan_changes(imx8mp(), npu, what="it")
    symbols = {"/__symbols__": {"clk": b"/clk\0"}}
    labelled = plan_changes(Tree({**imx8mp().nodes, **symbols}), npu, what="it")
    toradex = surveyed("toradex")
    refuse_overlay(toradex, "", labelled, "desk")
    with pytest.raises(UserError, match=r"by their numbers .*assigned-clock-parents.* no labels"):
        refuse_overlay(toradex, "", unlabelled, "desk")
    refuse_overlay(surveyed("yocto-evk"), "", unlabelled, "desk")
