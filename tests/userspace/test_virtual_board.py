# SPDX-License-Identifier: MIT
"""The payload on the virtual board: real arm64 Debian, over SSH, in a folder of its own."""

from __future__ import annotations

import tarfile
from io import BytesIO

import pytest

from bsp.board.inventory import Host
from bsp.board.ssh import connect
from userspace.npu import tiny_model
from userspace.npu.label_image import Request
from userspace.npu.smoke import smoke_test
from userspace.payload import build_payload

FOLDER = "/tmp/userspace-of-a-test"


@pytest.mark.slow
@pytest.mark.network
def test_smoke_test_on_the_virtual_board(virtual_board: Host) -> None:
    made = build_payload(distribution="trixie")
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(made.folder, arcname=".")
    with connect(virtual_board, timeout_s=60) as connection:
        unpack = f"rm -rf {FOLDER} && mkdir {FOLDER} && exec tar -x -f - -C {FOLDER}"
        connection.run(["sh", "-c", unpack], stdin=packed.getvalue(), timeout_s=300)
    try:
        document = smoke_test(
            "label_image",
            Request(model=tiny_model.NAME, runs=3, budget_s=5),
            host=virtual_board,
            userspace=FOLDER,
        )
    finally:
        with connect(virtual_board, timeout_s=60) as connection:
            connection.run(["rm", "-rf", FOLDER], timeout_s=120)
    rows = {row["delegate"]: row for row in document["results"]}
    assert document["verdict"] == "pass"
    assert document["board"] == "virtual"
    assert rows["cpu"]["status"] == rows["cpu-reference"]["status"] == "pass"
    assert (rows["teflon"]["status"], rows["teflon"]["reason"]) == ("skip", "no NPU device")
