# SPDX-License-Identifier: MIT
"""Gates: is this Mesa, or this kernel, right on the virtual NPU?"""

from __future__ import annotations

from invoke.context import Context

from bsp.base.errors import UserError
from bsp.base.flags import refuse_flags
from bsp.base.result import FAILED_VALIDATION, Answer, Result

from .face.command import command
from .face.flags import ANY_MESA


@command(
    help={
        "package": "judge the delegate of this mesa-teflon-delegate .deb file (arm64)",
        "suite": "judge the delegate of this Debian suite: trixie, trixie-backports, sid...",
        "mesa": ANY_MESA,
        "against": "a delegate that is known to be good, named as for --mesa: report what changed since it",
        "npu": "virtual:a311d, virtual:imx8mp or all",
        "silicon": "run Mesa's own tests, and compare with its lists of results from real boards",
        "quick": "a small sweep: about 115 generated models and one MobileNet (default: hundreds, and "
        "three); with --silicon: an eighth of the tests; with --model: with this Mesa alone",
        "bisect": "between these two commits of --source, find the one that made it wrong; commits that "
        "do not build are skipped",
        "source": "with --bisect: path:DIR, a git repository of Mesa",
        "case": "with --bisect: the case of the sweep to judge by: its name, or a part that only "
        "one name has",
        "model": "judge this .tflite file or known model in place of a sweep: its first wrong operation, "
        "and which Mesa is right; may be repeated; with --bisect one file (default: the quick sweep)",
        "timeout": "seconds for one model",
    },
    iterable=["model"],
)
def gate_mesa(
    _: Context,
    package: str = "",
    suite: str = "",
    mesa: str = "",
    against: str = "",
    npu: str = "all",
    silicon: bool = False,
    quick: bool = False,
    bisect: str = "",
    source: str = "",
    case: str = "",
    model: list[str] | None = None,
    timeout: float = 180.0,
) -> Result:
    """Judge Mesa's delegate on virtual NPUs. Example: ./inv gate-mesa --suite sid --against 25.0.7."""
    chosen_mesa = {"package": package, "suite": suite, "mesa": mesa}
    if bisect:
        ruled_out = {**chosen_mesa, "against": against, "silicon": silicon}
        refuse_flags(ruled_out, "--bisect builds what it tests from --source")
        return _bisect(bisect, source, case, model or [], npu, timeout)
    if source or case:
        raise UserError("--source and --case are for --bisect", hint="add --bisect GOOD..BAD")
    if model:
        ruled_out = {"against": against, "silicon": silicon}
        refuse_flags(ruled_out, "--model compares with every Mesa that is known")
        return _models(model, package, suite, mesa, npu, quick=quick, timeout_s=timeout)
    if silicon:
        from virtual.gates.silicon import gate

        refuse_flags(
            {"against": against}, "--silicon compares with boards, --against with another Mesa"
        )
        return gate.compare_with_silicon(
            gate.SiliconRequest(**chosen_mesa, npu=npu, quick=quick, timeout_s=timeout)
        )
    from virtual.gates import mesa as gate_of_mesa

    document = gate_of_mesa.gate(
        gate_of_mesa.GateRequest(
            **chosen_mesa, against=against, npu=npu, quick=quick, timeout_s=timeout
        )
    )
    code = 0 if document["verdict"] == "good" else FAILED_VALIDATION
    return Answer(document, gate_of_mesa.text_of(document), code)


def _bisect(
    commits: str, source: str, case: str, models: list[str], npu: str, timeout_s: float
) -> Result:
    from virtual.gates import mesa_bisect

    if len(models) > 1:
        raise UserError("--bisect takes one --model", hint="bisect for one after the other")
    model = models[0] if models else ""
    return mesa_bisect.bisect(
        mesa_bisect.BisectRequest(commits, source, case, model, npu, timeout_s)
    )


def _models(
    names: list[str],
    package: str,
    suite: str,
    mesa: str,
    npu: str,
    *,
    quick: bool,
    timeout_s: float,
) -> Result:
    from virtual.gates import model_gate
    from virtual.gates.packages import named_delegate

    if not (package or suite or mesa):
        suite = model_gate.DEFAULT_SUITE
    delegate = named_delegate(package, suite, mesa)
    return model_gate.gate_models(
        model_gate.ModelGateRequest(tuple(names), delegate, npu, quick=quick, timeout_s=timeout_s)
    )


@command(
    help={
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "board": "virtual-a311d, virtual-imx8mp or all",
        "invokes": "inferences on each board",
    }
)
def gate_kernel(_: Context, kernel: str = "", board: str = "all", invokes: int = 1000) -> Result:
    """Judge a kernel's NPU driver on virtual boards. Example: ./inv gate-kernel --kernel 6.12."""
    from virtual.gates import kernel as gate

    document = gate.gate(gate.plan(kernel, board, invokes))
    code = 0 if document["verdict"] == "good" else FAILED_VALIDATION
    return Answer(document, gate.text_of(document), code)
