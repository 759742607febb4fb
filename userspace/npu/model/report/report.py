# SPDX-License-Identifier: MIT
"""What an NPU will do with a model, without a board: the facts, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from bsp.base.errors import UserError

from ...profile.measured import Measured
from .. import foreign
from ..choices import npus_of, others, rules_of
from ..faults import known_faults
from ..faults.known_faults import Fault
from ..graph import Model, read_model
from ..partitions import Partition, partitions
from ..prediction import Refusal, Rules, refusal_of
from ..summary import Numbers, macs, numbers, parameters_bytes
from ..trial.run import CPU, Run
from . import advice
from .advice import Advice

_SCHEMA = 3
_PATCHED = "the rules are the package's; what our patches leave to the CPU, a run shows"
_LEFT = Refusal("patches", "our patches leave it to the CPU")


@dataclass(frozen=True)
class Version:
    """What one version of Mesa does with a model.

    Attributes:
        refusals: why an operation is left to the CPU, or None, by index.
        faults: (NPU, index of an operation, what is wrong with it).
    """

    mesa: str
    rules: Rules
    refusals: tuple[Refusal | None, ...]
    partitions: tuple[Partition, ...]
    faults: tuple[tuple[str, int, Fault], ...]

    @property
    def name(self) -> str:
        """Driver and Mesa, as the report's key."""
        return f"{self.rules.driver} {self.mesa}"

    @property
    def taken(self) -> tuple[int, ...]:
        """Indices of the operations that it takes."""
        return tuple(index for index, refusal in enumerate(self.refusals) if refusal is None)

    @property
    def crossings(self) -> int:
        """How many tensors an inference takes to the NPU or back."""
        return sum(len(each.inputs) + len(each.outputs) for each in self.partitions)

    @property
    def bytes_across(self) -> int:
        """How many bytes these have."""
        return sum(each.bytes_in + each.bytes_out for each in self.partitions)

    def faults_on(self, npu: str) -> list[tuple[int, Fault]]:
        """What is known to be wrong on one NPU: index of the operation, and how."""
        return [(index, fault) for name, index, fault in self.faults if name == npu]


@dataclass(frozen=True)
class Facts:
    """All that is known of a model: from its file, and from runs on virtual NPUs.

    Attributes:
        macs, parameters: of each operation, by index; bytes.
        npus: the driver of each NPU.
        advice: of the whole model first.
        by_operation: what to do about each operation; "" where nothing.
        elsewhere: why it belongs on other hardware; "" where it does not.
        lacking: what of it a TFLite runtime may not have; part of ``advice``.
        others: of drivers that nobody asked about, the newest Mesa.
        runs: what became of it where it was run; given: what its inputs got, in words.
        not_run: why it was not run, or not everywhere; "" where it was, or nobody asked.
        measured: what came out on a board; None where nobody asked.
    """

    path: Path
    size_bytes: int
    model: Model
    numbers: Numbers
    macs: tuple[int, ...]
    parameters: tuple[int, ...]
    npus: Mapping[str, str]
    versions: tuple[Version, ...]
    advice: tuple[Advice, ...]
    by_operation: tuple[str, ...]
    elsewhere: str
    lacking: tuple[Advice, ...]
    others: tuple[Version, ...] = ()
    runs: tuple[Run, ...] = ()
    given: tuple[str, ...] = ()
    not_run: str = ""
    measured: Measured | None = None

    @property
    def pairs(self) -> list[tuple[Version, str]]:
        """Each Mesa with each NPU that it has a driver for."""
        return [
            (version, npu)
            for version in self.versions
            for npu, driver in self.npus.items()
            if driver == version.rules.driver
        ]

    @property
    def parameters_bytes(self) -> int:
        """Bytes of all constants; one that several operations share counts once."""
        shared = {
            id(tensor): len(tensor.data)
            for each in self.model.operations
            for tensor in each.inputs
            if tensor and tensor.data
        }
        return sum(shared.values())

    def share(self, version: Version) -> float:
        """Return which part of the multiplications a version takes; where there are none, of operations."""
        total = sum(self.macs)
        if not total:
            return len(version.taken) / len(self.macs)
        return sum(self.macs[index] for index in version.taken) / total


def report(path: Path, npu: str = "", mesa: str = "") -> Facts:
    """Return what is known of a model.

    Args:
        npu: names of SoCs with commas; those of Vivante's NPUs that were swept if empty.
        mesa: versions with commas; those that the rules were compared with if empty.

    Raises:
        UserError: there is no such model, NPU, or no rule for a Mesa.
    """
    npus = npus_of(npu)
    chosen = rules_of(mesa, npus.values())
    beside = [] if npu else others(mesa, npus.values())
    content = foreign.read(path)
    model = read_model(content, what=str(path))
    _check(model, path)
    versions = tuple(_version(model, name, rules, npus) for name, rules in chosen)
    unasked = tuple(_version(model, name, rules, npus) for name, rules in beside)
    by_operation = tuple(
        advice.for_operation(each, (version.refusals[each.index] for version in versions))
        for each in model.operations
    )
    kinds, lacking = numbers(model), tuple(advice.lacking(model))
    return Facts(
        path,
        len(content),
        model,
        kinds,
        tuple(macs(each) for each in model.operations),
        tuple(parameters_bytes(each) for each in model.operations),
        npus,
        versions,
        (
            *lacking,
            *advice.whole_model(model, kinds),
            *advice.grouped(dict(enumerate(by_operation)), model.operations),
        ),
        by_operation,
        advice.other_hardware(model),
        lacking,
        unasked,
    )


def as_run(facts: Facts) -> Facts:
    """Return the facts with what a patched Mesa left to the CPU on each NPU that it was run on."""
    versions = []
    for version in facts.versions:
        runs = [run for run in facts.runs if run.mesa == version.mesa and run.operations]
        if runs and known_faults.OURS in version.mesa:
            refusals = tuple(
                refusal
                or (_LEFT if all(run.operations[index].status == CPU for run in runs) else None)
                for index, refusal in enumerate(version.refusals)
            )
            taken = [index for index, refusal in enumerate(refusals) if refusal is None]
            version = replace(
                version,
                rules=msgspec.structs.replace(version.rules, warning=""),
                refusals=refusals,
                partitions=tuple(partitions(facts.model, taken)),
            )
        versions.append(version)
    return replace(facts, versions=tuple(versions))


def _check(model: Model, path: Path) -> None:
    if model.schema != _SCHEMA:
        raise UserError(
            f"{path} has schema version {model.schema}; TFLite runtimes take {_SCHEMA} alone",
            hint="convert it again with a present TensorFlow",
        )
    if not model.operations:
        raise UserError(f"{path} has no operations", hint="give another model, or convert it again")


def _version(model: Model, mesa: str, rules: Rules, npus: Mapping[str, str]) -> Version:
    if known_faults.OURS in mesa:
        rules = msgspec.structs.replace(rules, warning=_PATCHED)
    refusals = tuple(refusal_of(each, rules) for each in model.operations)
    taken = [index for index, refusal in enumerate(refusals) if refusal is None]
    graphs = tuple(partitions(model, taken))
    faults = []
    for partition in graphs:
        where = known_faults.surroundings_of(partition, model.operations)
        for index in partition.operations:
            for npu in (npu for npu, driver in npus.items() if driver == rules.driver):
                operation = model.operations[index]
                faults_here = known_faults.faults_of(operation, where, npu, mesa)
                faults += [(npu, index, fault) for fault in faults_here]
    return Version(mesa, rules, refusals, graphs, tuple(faults))
