# SPDX-License-Identifier: MIT
"""What is asked before a tree is tried that the distribution is to keep."""

from __future__ import annotations

import pytest

from bsp.base.errors import UserError
from images.deploy.kept_tree import refuse_replaced_overlay, refuse_without_keeper
from tests.bsp.boot_survey.test_survey import board, surveyed

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
    refuse_replaced_overlay(armbian, "", "desk")
    with pytest.raises(UserError, match="armbian keeps an overlay of npu-bsp's already") as caught:
        refuse_replaced_overlay(armbian, "armbian", "desk")
    assert "--host desk --undo" in str(caught.value.hint)
    whole = surveyed("debian-u-boot-menu", programs=("u-boot-update",))
    refuse_replaced_overlay(whole, "u-boot-menu", "desk")
