# SPDX-License-Identifier: MIT
"""Makes engines of a Vivante NPU, one for each client."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..decoded_cache import DecodedCache
from ..identity import Identity
from ..jobs import JobRecord, Watch
from ..memory import Buffers
from ..tflite.operations import Inputs, Operation, operations
from .audit.exact import ExactMode
from .audit.jobs import ModelAudit
from .engine import Audit, Engine, HardwareMode, Requantisation


@dataclass(frozen=True)
class Maker:
    """As ``engines.Maker``.

    Attributes:
        requantisation: makes how accumulators become outputs, for each client.
        audit: makes what compares its jobs with the model.
    """

    identity: Identity
    requantisation: Callable[[], Requantisation] = HardwareMode
    audit: Callable[[], Audit] | None = None
    operations: Sequence[Operation] | None = None

    def engine(
        self,
        cache: DecodedCache,
        *,
        on_job: Callable[[JobRecord], None] | None = None,
        watch: Watch | None = None,
    ) -> Engine:
        """Return an engine for one client, with no memory yet."""
        return Engine(
            self.identity,
            Buffers([]),
            requantisation=self.requantisation(),
            cache=cache,
            on_job=on_job,
            watch=watch,
            audit=self.audit() if self.audit else None,
        )


def for_trace(
    identity: Identity, operations_of_model: list[Operation], audit_for: Path | None, *, exact: bool
) -> Maker:
    """Return the maker that runs a trace again; as ``engines.maker_for_trace``."""
    return _maker(identity, operations_of_model if exact else None, audit_for, None)


def for_model(
    identity: Identity,
    exact_for: Path | None,
    audit_for: Path | None,
    operands: Mapping[int, Inputs] | None,
) -> Maker:
    """Return the maker for a model; as ``engines.maker_for``.

    Raises:
        UserError: a file is not a model.
    """
    model_operations = operations(exact_for) if exact_for else None
    maker = _maker(identity, model_operations, audit_for, operands)
    if maker.audit:
        maker.audit()  # a file that is not a model is said now
    return maker


def _maker(
    identity: Identity,
    model_operations: list[Operation] | None,
    audit_for: Path | None,
    operands: Mapping[int, Inputs] | None,
) -> Maker:
    """Return a maker: exact where the model's operations are known, comparing with ``audit_for``."""
    generation = identity.nn_generation
    requantisation: Callable[[], Requantisation] = HardwareMode
    if model_operations is not None:
        requantisation = functools.partial(ExactMode, model_operations, generation)
    audit = None
    if audit_for:
        audit = functools.partial(ModelAudit, audit_for, generation, operands=operands)
    return Maker(identity, requantisation, audit, model_operations)
