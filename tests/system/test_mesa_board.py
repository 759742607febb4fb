# SPDX-License-Identifier: MIT
"""A Mesa that was built here, on virtual boards: deployed, named by the doctor, and right on their NPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsp.base.errors import UserError
from bsp.remote import inventory
from bsp.remote.inventory import Host
from userspace.npu.doctor import doctor as examination
from userspace.npu.mesa.source import mesa_tree
from userspace.npu.validate.label_image import SmokeTestRequest
from userspace.npu.validate.smoke import smoke_test
from virtual import bringup

pytestmark = [pytest.mark.full, pytest.mark.network, pytest.mark.timeout(1800)]
MOBILEDET = "src/gallium/targets/teflon/tests/ssdlite_mobiledet_coco_qat_postprocess.tflite"


@pytest.fixture(scope="module", params=["virtual-a311d", "virtual-imx8mp"])
def host(request: pytest.FixtureRequest, boards_state: Path) -> Iterator[Host]:
    """A board that ``bringup --mesa patched`` took to a validated MobileNet V1, still running."""
    from virtual.boards import boards

    try:
        report = bringup.bringup(
            board="vim3", virtual=request.param, kernel=None, keep=True, mesa=bringup.PATCHED
        )
        assert report.exit_code == 0, report.text()
        first = report.rows[0]
        assert (first.name, first.status) == ("build-mesa", "pass")
        assert "patches of npu-bsp" in first.result
        yield inventory.resolve(bringup.INSTANCE)
    finally:
        with contextlib.suppress(UserError):  # it never came up
            boards.down(bringup.INSTANCE)


def test_the_doctor_names_it(host: Host) -> None:
    found = examination.doctor(host)
    (check,) = [each for each in found["checks"] if each["name"] == "mesa"]
    assert "25.0.7 + 25 patches of npu-bsp" in check["found"]
    assert found["first_broken"] is None


@pytest.mark.parametrize("model", ["mobilenet_v2_1.0_224_quant", MOBILEDET])
def test_models_pass_on_its_npu(host: Host, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    test = "label_image"
    if model == MOBILEDET:
        test, model = "detect", str(mesa_tree("distribution:trixie").path / MOBILEDET)
    request = SmokeTestRequest(
        "cpu-reference,teflon", model=model, runs=2, budget_s=5, views=0, timeout_s=900
    )
    document = smoke_test(test, request, host=host)
    (row,) = [each for each in document["results"] if each["delegate"] == "teflon"]
    assert row["status"] == "pass", row["reason"]
    assert (row["delegated_ops"] or 0) > (row["total_ops"] or 0) // 2
    assert "patches of npu-bsp" in str(document["conditions"].get("mesa"))
    if test == "detect":
        assert "mended in this Mesa: " in capsys.readouterr().err
