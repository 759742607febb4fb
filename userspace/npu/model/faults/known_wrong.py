# SPDX-License-Identifier: MIT
"""Is a model known to come out wrong with a Mesa on an NPU? Verdicts by hash, then known faults."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

import msgspec

from bsp.base.errors import InfrastructureError

from ..graph import Model, read_model
from ..partitions import partitions
from ..prediction import predict, rules_for
from .known_faults import KNOWN_NPUS, OURS, RK3588, faults_of, surroundings_of

_VERDICTS = Path(__file__).with_name("verdicts.toml")
_DRIVERS = {RK3588: "rocket"}
_DRIVER = "etnaviv"
"""Of the others."""
_EMULATED = "qemu-virt-"


class KnownVerdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``gate-mesa --model`` said of a model with versions of Mesa on an NPU.

    Attributes:
        name: for people; the model is known by its hash.
        first_wrong: the first wrong operation; "" where it is right.
    """

    sha256: str
    name: str
    npu: str
    mesa: tuple[str, ...]
    first_wrong: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    verdicts: tuple[KnownVerdict, ...]


@functools.cache
def verdicts() -> tuple[KnownVerdict, ...]:
    """Return all verdicts that are kept."""
    try:
        return msgspec.toml.decode(_VERDICTS.read_bytes(), type=_File).verdicts
    except msgspec.MsgspecError as error:
        raise InfrastructureError(f"{_VERDICTS}: {error}") from error


def npu_of_soc(soc: str) -> str:
    """Return the NPU of a SoC, as verdicts name it; "" of one that no verdict is about."""
    name = soc.removeprefix(_EMULATED)
    return name if name in KNOWN_NPUS else ""


def known_wrong(content: bytes, npu: str, mesa: str) -> list[str]:
    """Return in words what is known to be wrong with a model; empty also where nothing is known.

    Args:
        npu: ``a311d``; mesa: version, ``26.1.6-1``.
    """
    if OURS in mesa:
        return []
    return [f"{what}{way_out}" for what, way_out in _known_wrong(content, npu, mesa)]


def _known_wrong(content: bytes, npu: str, mesa: str) -> list[tuple[str, str]]:
    """What is known to be wrong with an upstream Mesa, and the ways out, each in words."""
    upstream = mesa.partition("-")[0]
    if npu not in KNOWN_NPUS or not upstream:
        return []
    digest = hashlib.sha256(content).hexdigest()
    for each in verdicts():
        if (each.sha256, each.npu) == (digest, npu) and upstream in each.mesa:
            if not each.first_wrong:
                return []
            return [(f"{each.name} goes wrong at {each.first_wrong}", _right_with(each))]
    return _faults(read_model(content), npu, upstream)


def before_a_run(content: bytes, npu: str, mesa: str, *, use: str) -> list[str]:
    """Return what to say before a model runs: what is known to be wrong, or what our patches mend of it.

    Args:
        use: how a Mesa of ``build-mesa`` gets to where the model runs.
    """
    if OURS in mesa:
        upstream = re.split(r"[ +]", mesa)[0]
        mended = _known_wrong(content, npu, upstream)
        return [f"mended in this Mesa: {what}" for what, _ in mended]
    faults = known_wrong(content, npu, mesa)
    lines = [f"known to come out wrong on this NPU with this Mesa: {line}" for line in faults]
    if lines and npu not in _DRIVERS:  # our patches are for the other driver
        lines.append(
            f"a Mesa that does it right, or leaves it to the CPU: ./inv build-mesa, then {use}"
        )
    return lines


def wrong_models(npu: str, mesa: str) -> list[str]:
    """Return the names of known models that come out wrong with a Mesa on an NPU."""
    upstream = mesa.partition("-")[0]
    if OURS in mesa:
        return []
    return [
        each.name
        for each in verdicts()
        if each.npu == npu and upstream in each.mesa and each.first_wrong
    ]


def _right_with(verdict: KnownVerdict) -> str:
    right = [
        version
        for each in verdicts()
        if (each.sha256, each.npu, each.first_wrong) == (verdict.sha256, verdict.npu, "")
        for version in each.mesa
    ]
    return f"; right with Mesa {', '.join(right)}" if right else ""


def _faults(model: Model, npu: str, mesa: str) -> list[tuple[str, str]]:
    rules = rules_for(_DRIVERS.get(npu, _DRIVER), mesa)
    if rules is None:
        return []
    by_symptom: dict[str, tuple[str, str]] = {}
    for partition in partitions(model, predict(model.operations, rules).taken):
        where = surroundings_of(partition, model.operations)
        for each in (model.operations[index] for index in partition.operations):
            for fault in faults_of(each, where, npu, mesa):
                way_out = f" ({fault.way_out})"
                by_symptom.setdefault(fault.what, (f"{each.name} {fault.what}", way_out))
    return list(by_symptom.values())
