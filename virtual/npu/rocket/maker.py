# SPDX-License-Identifier: MIT
"""Makes engines of a Rockchip NPU, one for each client."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bsp.base.errors import UserError

from ..decoded_cache import DecodedCache
from ..jobs import JobRecord, Watch
from ..memory import Buffers
from .engine import Engine
from .model import Model, tasks_of


@dataclass(frozen=True)
class Maker:
    """As ``engines.Maker``.

    Attributes:
        model: makes what compares a client's tasks with a model, and computes them in exact mode.
        operations: none: a trace's exact mode needs the model's file.
    """

    model: Callable[[], Model] | None = None
    operations: None = None

    def engine(
        self,
        cache: DecodedCache,
        *,
        on_job: Callable[[JobRecord], None] | None = None,
        watch: Watch | None = None,
    ) -> Engine:
        """Return an engine for one client, with no memory yet."""
        model = self.model() if self.model else None
        return Engine(Buffers([]), on_job=on_job, cache=cache, model=model, watch=watch)


def for_trace(name: str, model: Path | None, *, exact: bool) -> Maker:
    """Return the maker that runs a trace again; as ``engines.maker_for_trace``."""
    if exact and not model:
        raise UserError(
            f"this trace of {name} is one of exact mode, and needs the model that was run",
            hint="--model FILE.tflite",
        )
    return for_model(model if exact else None, model)


def for_model(exact_for: Path | None, audit_for: Path | None) -> Maker:
    """Return the maker for a model; as ``engines.maker_for``.

    Raises:
        UserError: a file is not a model.
    """
    path = exact_for or audit_for
    if path is None:
        return Maker()
    return Maker(functools.partial(Model, tasks_of(path), exact=exact_for is not None))
