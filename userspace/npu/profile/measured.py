# SPDX-License-Identifier: MIT
"""A model that was run on a board, for its report; and a board's times as a calibration to contribute."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bsp.base.cache import write_atomically
from bsp.base.errors import InfrastructureError, UserError
from bsp.base.progress import say

from ..model.estimate import FORMAT, Calibration, OperationPoint, Point
from ..model.graph import Model
from ..model.summary import macs
from ..model.trial.pictures import open_picture
from ..validate.delegates import TEFLON
from ..validate.label_image import SmokeTestRequest
from ..validate.onboard.bmp import encode_bmp
from ..validate.records import RowResult, SmokeDocument

_MAGIC = b"BM"


@dataclass(frozen=True)
class Measured:
    """What came out on a board: Teflon's row, and where that was."""

    document: SmokeDocument
    row: RowResult

    @property
    def emulated(self) -> bool:
        """Whether the board is an emulated one."""
        return bool(self.document.get("emulated"))

    @property
    def where(self) -> str:
        """Host, board and Mesa, in words."""
        mesa = (self.row.get("versions") or {}).get("mesa") or (
            self.document.get("conditions") or {}
        ).get("mesa")
        board = self.document.get("board")
        words = [self.document["host"], board if board != self.document["host"] else "", mesa]
        return ", ".join(f"Mesa {word}" if word is mesa else str(word) for word in words if word)

    def as_document(self) -> dict[str, Any]:
        """Return it for the report's JSON."""
        row = self.row
        return {
            "host": self.document["host"],
            "board": self.document.get("board"),
            "emulated": self.emulated,
            "status": row["status"],
            "reason": row["reason"],
            "latency_ms": row["latency_ms"],
            "first_ms": row["first_ms"],
            "conditions": self.document.get("conditions", {}),
            "profile": row.get("profile"),
        }


def measured(
    path: Path,
    picture: Path | None,
    size: tuple[int, int] | None,
    smoke_test: Callable[[SmokeTestRequest], SmokeDocument],
) -> Measured:
    """Run a model with a profile.

    Args:
        picture: any that ``open_picture`` reads; None: the usual one.
        smoke_test: runs a request on the board.

    Raises:
        UserError, InfrastructureError: as ``smoke.smoke_test`` and ``open_picture``.
    """
    with tempfile.TemporaryDirectory(prefix="npu-bsp-measured-") as folder:
        if picture and not picture.read_bytes().startswith(_MAGIC):
            converted = Path(folder) / f"{picture.stem}.bmp"
            converted.write_bytes(encode_bmp(open_picture(picture).pixels()))
            picture = converted
        request = SmokeTestRequest(
            delegate=TEFLON,
            model=str(path),
            image=str(picture) if picture else None,
            size=size,
            views=0,
            profile=True,
        )
        document = smoke_test(request)
    row = next(each for each in document["results"] if each["delegate"] == TEFLON)
    return Measured(document, row)


def check_calibration(npu: str, *, emulated: bool) -> None:
    """Refuse, before anything runs, what cannot give a calibration.

    Raises:
        UserError: which NPU it is is not known, or it is an emulator's.
    """
    if not npu or "," in npu:
        raise UserError("which NPU the host has is not known", hint="--npu NAME")
    if emulated:
        raise UserError("an emulated board's times calibrate nothing", hint="give a real board")


def calibration(measured: Measured, model: Model, npu: str) -> Calibration:
    """Return a board's times of a model as a calibration.

    Raises:
        UserError: they are an emulator's, the result was not a pass, or there is no profile.
    """
    profile = measured.row.get("profile") or {"error": "it was not taken"}
    latency = measured.row["latency_ms"]
    check_calibration(npu, emulated=measured.emulated)
    if measured.row["status"] != "pass" or latency is None:
        raise UserError(
            f"{TEFLON} did not pass, its times calibrate nothing: {measured.row['reason']}"
        )
    if "error" in profile:
        raise UserError(f"there is no time by operation to calibrate with: {profile['error']}")
    conditions = measured.document.get("conditions") or {}
    clocks = conditions.get("npu_clocks_hz") or {}
    words = [measured.where, f"Linux {conditions['kernel']}" if "kernel" in conditions else ""]
    words += [f"{name} {hz / 1e6:g} MHz" for name, hz in sorted(clocks.items())]
    where = ", ".join(filter(None, words))
    taken = measured.row.get("delegated_nodes") or []
    point = Point(
        model=Path(measured.document["model"]["name"]).stem,
        jobs=profile["nn_jobs"] + profile["tp_jobs"],
        macs=sum(macs(model.operations[index]) for index in taken),
        ms=(round(latency["median"], 3),),
        source=f"measured: {where}; median of {latency['n']} inferences",
        operations=tuple(
            OperationPoint(
                operation=each["name"],
                jobs=each["nn_jobs"] + each["tp_jobs"],
                macs=macs(model.operations[each["operations"][0]]),
                ms=each["ms"],
            )
            for each in profile["operations"]
            if len(each["operations"]) == 1
        ),
    )
    return Calibration(format=FORMAT, npu=npu, counted_with=where, points=(point,))


def write_calibration(content: Calibration, path: Path) -> None:
    """Write a calibration file.

    Raises:
        InfrastructureError: it cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
    try:
        write_atomically(path, text)
    except OSError as error:
        raise InfrastructureError(f"cannot write {path}: {error.strerror}") from error
    say(f"the calibration is {path}: docs/model-report.md says what becomes of it")
