# SPDX-License-Identifier: MIT
"""A smoke test on a virtual NPU of this machine: what ``--npu virtual:NAME`` chooses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bsp.base.errors import UserError
from bsp.base.progress import say
from userspace.npu.model.faults.known_wrong import before_a_run
from userspace.npu.model.graph import read_model
from userspace.npu.validate import label_image
from userspace.npu.validate.records import SmokeDocument

from ...gates.packages import SUITE_OF_DRIVER, find_delegate
from ..identity import driver_of
from ..taken import not_in_the_main_graph
from . import host

_RUNS = 3
_POISON = 0xA5
_BUDGET_S = 3.0
_VIEWS = 2


@dataclass(frozen=True)
class VirtualNpu:
    """A virtual NPU behind the shim, as a ``Place`` for a smoke test.

    Attributes:
        npu: ``virtual:NAME``.
        exact: it computes exactly as TFLite does, not as silicon is predicted to.
        strict: its new memory is poisoned, and what the model contradicts is a failure.
        record: file that gets a trace of what comes to it.
        mesa: a delegate in place of the distribution's, as ``find_delegate`` takes it; "" for the usual
            one: ``SUITE_OF_DRIVER``.
    """

    npu: str
    exact: bool = False
    strict: bool = False
    record: Path | None = None
    mesa: str = ""

    def smoke_test(self, request: label_image.SmokeTestRequest) -> SmokeDocument:
        """Run the test there, and return its document.

        Raises:
            UserError: there is no such NPU, model or image.
        """
        name = host.npu_name(self.npu)
        inputs = label_image.choose(request)
        if why := not_in_the_main_graph(read_model(inputs.model.path.read_bytes())):
            raise UserError(
                f"{inputs.model.name}: {why}",
                hint="smoke-test --host runs it on a board; or convert it without IF and WHILE",
            )
        suite = SUITE_OF_DRIVER[driver_of(name)]
        chosen = self.mesa or (suite if suite != host.DISTRIBUTION else "")
        delegate = find_delegate(chosen) if chosen else None
        mesa = host.System(delegate.root, delegate.version) if delegate else None
        # Times under emulation say nothing: a few runs, to see that they agree.
        request = replace(
            request,
            runs=min(request.runs, _RUNS),
            budget_s=min(request.budget_s, _BUDGET_S),
            views=min(request.views, _VIEWS),
        )
        content, version = inputs.model.path.read_bytes(), host.mesa_version(mesa)
        for line in before_a_run(content, name, version, use="this with --mesa FOLDER"):
            say(line)
        if self.record and not self.record.absolute().parent.is_dir():
            raise UserError(f"there is no folder {self.record.absolute().parent} to record into")
        with host.virtual_host(
            name,
            exact_for=inputs.model.path if self.exact else None,
            timeout_s=request.timeout_s,
            poison=_POISON if self.strict else 0,
            audit_for=inputs.model.path,
            picture=inputs.image.path,
            record=self.record,
            mesa=mesa,
        ) as there:
            document = label_image.smoke_test(
                there.machine,
                request,
                host=self.npu,
                inputs=inputs,
                npu_expected=f"{self.npu} is there, behind the shim",
                exact=self.exact,
            )
        mode = "exact" if self.exact else "hw"
        host.add_to_document(
            document,
            name,
            mode,
            there.emulator,
            strict=self.strict,
            model=inputs.model.path.read_bytes(),
        )
        return document


def virtual_npu(
    npu: str,
    *,
    exact: bool = False,
    strict: bool = False,
    record: Path | None = None,
    mesa: str = "",
) -> VirtualNpu | None:
    """Return the virtual NPU that the flags choose; None without ``npu``.

    Raises:
        UserError: a flag that only a virtual NPU has, without ``npu``.
    """
    if npu:
        return VirtualNpu(npu, exact, strict, record, mesa)
    if mesa:
        raise UserError(
            "--mesa is for a virtual NPU of this machine: a board has the Mesa that is deployed to it",
            hint="add --npu virtual:a311d; for a board: ./inv deploy --host NAME --mesa FOLDER",
        )
    if strict:
        raise UserError("--strict is for a virtual NPU", hint="add --npu virtual:a311d")
    if record:
        raise UserError(
            "--record is for a virtual NPU of this machine",
            hint="add --npu virtual:a311d; for a virtual board: ./inv virtual.up --record FILE",
        )
    if exact:
        raise UserError("--exact is for a virtual NPU", hint="add --npu virtual:a311d")
    return None
