# SPDX-License-Identifier: MIT
"""What a door knows of engines: each kernel driver's NPUs have one, and a maker of it for every client.

A maker is ``maker.py`` in the engine's folder. It holds what is to be done beside running jobs: exact mode,
and comparing with a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .decoded_cache import DecodedCache
from .finding import Finding
from .identity import AnyIdentity, Identity
from .jobs import JobRecord, Step, Watch
from .memory import Memory
from .rocket import maker as rocket
from .tflite.operations import Inputs, Operation
from .vivante import maker as vivante


class Engine(Protocol):
    """One client's NPU, as a door sees it."""

    memory: Memory
    findings: list[Finding]

    def submit(self, stream: NDArray[np.uint32]) -> None:
        """Run what a client submits to its end."""

    def steps(self, stream: NDArray[np.uint32]) -> Iterator[Step]:
        """Yield the steps of what a client submits."""


class Maker(Protocol):
    """Makes the engines of one kind of NPU."""

    @property
    def operations(self) -> Sequence[Operation] | None:
        """The model's operations that a trace has to hold for exact mode; None for none."""

    def engine(
        self,
        cache: DecodedCache,
        *,
        on_job: Callable[[JobRecord], None] | None = None,
        watch: Watch | None = None,
    ) -> Engine:
        """Return an engine for one client, with no memory yet."""


def maker_for(
    identity: AnyIdentity,
    *,
    exact_for: Path | None = None,
    audit_for: Path | None = None,
    operands: Mapping[int, Inputs] | None = None,
) -> Maker:
    """Return the maker for an NPU.

    Args:
        exact_for: compute this model exactly as TFLite does.
        audit_for: compare each job with this model.
        operands: what the model's ADDs add, where that is known.

    Raises:
        UserError: a file is not a model.
    """
    if isinstance(identity, Identity):
        return vivante.for_model(identity, exact_for, audit_for, operands)
    return rocket.for_model(exact_for, audit_for)


def maker_for_trace(
    identity: AnyIdentity,
    operations: list[Operation],
    *,
    exact: bool,
    audit_for: Path | None = None,
) -> Maker:
    """Return the maker of the engines that run a recorded trace again.

    Args:
        operations: the model's, as the trace has them.
        exact: the trace was recorded in exact mode.
        audit_for: compare each job with this model.

    Raises:
        UserError: a file is not a model, or exact mode needs one.
    """
    if isinstance(identity, Identity):
        return vivante.for_trace(identity, operations, audit_for, exact=exact)
    return rocket.for_trace(identity.name, audit_for, exact=exact)
