# SPDX-License-Identifier: MIT
"""Device trees against the kernel's bindings: only the problems that our changes bring in.

``dtschema`` does the checking. It needs a compiled library, so it is an extra that the first check
installs. Processing a kernel's bindings takes it a minute; that is kept for each kernel source, as is
what a tree was found to have.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.cache import cache_dir, make_once
from ...base.errors import InfrastructureError, UserError
from ...base.packages.optional_env import extra_python
from ...base.process import run
from ...base.progress import step
from ...base.result import FAILED_VALIDATION, Result
from ...base.words import filled
from ...catalog import load_soc
from ...kernel.source import BINDINGS, KernelTree, kernel_tree
from ...profile import Board
from ..build import build_dts
from ..compiler.compile import compile_dts
from ..inputs.given import board_tree
from ..inputs.identity import check_identity
from ..inputs.upstream import refuse_without_board
from ..npu.switched_off import refuse_without_build

_RUNNER = Path(__file__).with_name("validate_trees.py")
_EXTRA = "dtschema"
_PROCESS = "from dtschema.mk_schema import main; main()"


@dataclass(frozen=True)
class Problem:
    """One rule that a tree breaks.

    Attributes:
        node: its path.
        property: empty where the rule is about the node.
        rule: the schema, and its keyword: ``dt-core.yaml: enum``.
    """

    node: str
    property: str
    rule: str
    message: str


def _key(problem: Problem) -> tuple[str, str, str]:
    """What makes two problems the same one."""
    return problem.node, problem.property, problem.rule


@dataclass(frozen=True)
class CheckResult(Result):
    """What ``check-dts`` found.

    Attributes:
        kernel: whose tree and bindings, as it was named.
        checked: what was checked against the unpatched tree.
        ignored: how many problems the unpatched tree has itself.
    """

    board: str
    kernel: str
    checked: str
    problems: tuple[Problem, ...]
    ignored: int

    @property
    def exit_code(self) -> int:
        """4 where there are problems."""
        return FAILED_VALIDATION if self.problems else 0

    def document(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "board": self.board,
            "kernel": self.kernel,
            "checked": self.checked,
            "problems": [
                {
                    "node": problem.node,
                    "property": problem.property or None,
                    "rule": problem.rule,
                    "message": problem.message,
                }
                for problem in self.problems
            ],
            "ignored": self.ignored,
        }

    def text(self) -> str:
        """Return the result for people."""
        lines = [f"{self.board}: {self.checked}, against the bindings of Linux {self.kernel}"]
        for problem in self.problems:
            lines += ["", f"{problem.node} {problem.property}".rstrip(), f"  rule   {problem.rule}"]
            lines.append(filled(problem.message, first="  found  ", rest=" " * 9))
        lines.append("" if self.problems else "no problem that the unpatched tree does not have")
        count = len(self.problems)
        if count:
            lines.append(
                f"{count} problem{'s' * (count > 1)} that the unpatched tree does not have"
            )
        if self.ignored:
            lines.append(f"not shown: {self.ignored} that it has itself")
        return "\n".join(lines)


def check_dts(
    board: Board,
    *,
    kernel: str | None = None,
    dtb: Path | None = None,
    base_dtb: Path | None = None,
    force_enable: bool = False,
) -> CheckResult:
    """Check a board's device tree against the bindings of a kernel.

    Args:
        kernel: kernel source as ``--kernel`` takes it; None for the board's default.
        dtb: check this DTB; None: the one that build-dts makes.
        base_dtb: the unpatched tree, for boards whose tree no kernel source has.
        force_enable: as for ``build_dts``.

    Raises:
        UserError: the DTB is none, or of another board; the kernel has no bindings.
        InfrastructureError: dtschema cannot be installed, or failed.
    """
    name = kernel or board.kernel
    refuse_without_build(dtb, force_enable=force_enable)
    if base_dtb is None and board.dts is None:
        raise UserError(
            f"board {board.name} has no device tree source in the kernel to compare with"
        )
    with tempfile.TemporaryDirectory(prefix="npu-bsp-check-") as folder:
        work = Path(folder)
        base = work / "base.dtb"
        if base_dtb is not None:
            base.write_bytes(board_tree(base_dtb, flag="--base-dtb")[0])
        else:
            if not board.dts:
                raise RuntimeError(f"board {board.name} has no device tree source in the kernel")
            linux, directory = kernel_tree(name), load_soc(board.soc).dts_directory or "."
            refuse_without_board(board, linux, directory)
            compile_dts(linux, directory, board.dts, base)
        if dtb is None:
            built = build_dts(
                board,
                kernel=name if base_dtb is None or ":" not in name else None,
                base_dtb=base_dtb,
                target_dir=work / "built",
                force_enable=force_enable,
            )
            changed, checked = built.dtb, "what build-dts makes"
        else:
            changed, checked = dtb, str(dtb)
            check_identity(board_tree(dtb, flag="--dtb")[1], board, str(dtb))
        schema, python = processed_bindings(kernel_tree(name, bindings=True))
        before, after = _problems(python, schema, base, changed)
    of_base = {_key(problem) for problem in before}
    new = {_key(problem): problem for problem in after if _key(problem) not in of_base}
    return CheckResult(
        board=board.name,
        kernel=name,
        checked=checked,
        problems=tuple(sorted(new.values(), key=_key)),
        ignored=len(of_base),
    )


def processed_bindings(tree: KernelTree) -> tuple[Path, Path]:
    """Return a kernel's processed bindings, and the interpreter that has dtschema.

    Raises:
        UserError: the kernel source has no bindings.
    """
    folder = tree.path / BINDINGS
    if not folder.is_dir():
        raise UserError(
            f"Linux {tree.release} ({tree.name}) has no bindings: there is no folder {BINDINGS}",
            hint="name the top folder of a whole kernel source",
        )
    python = extra_python(_EXTRA, module="dtschema", compiled=("pylibfdt",))
    # In the cache a tree never changes; any other is known by the state of its files.
    state = tree.path.name.removesuffix("-whole") if tree.fixed else _state_of(folder)
    key = hashlib.sha256(f"{python.parents[1].name} {state}".encode()).hexdigest()[:16]
    target = cache_dir() / "schemas"
    target.mkdir(parents=True, exist_ok=True)

    def make(temporary: Path) -> None:
        with step(f"Processing the bindings of Linux {tree.release}, once (about a minute)"):
            run([python, "-c", _PROCESS, "-j", "-o", temporary, folder], timeout_s=1800)
        if not temporary.exists() or temporary.stat().st_size == 0:
            raise InfrastructureError(f"dtschema made nothing of {folder}")

    return make_once(target / f"{key}.json", make), python


def _state_of(folder: Path) -> str:
    digest = hashlib.sha256(str(folder).encode())
    for file in sorted(folder.rglob("*.yaml")):
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _problems(
    python: Path, schema: Path, base: Path, changed: Path
) -> tuple[list[Problem], list[Problem]]:
    """Return the problems of the base tree, and those of the nodes that the other tree has otherwise."""
    blobs = [base.read_bytes(), changed.read_bytes()]
    sums = [hashlib.sha256(blob).hexdigest()[:16] for blob in blobs]
    sums.append(hashlib.sha256(_RUNNER.read_bytes()).hexdigest()[:8])
    folder = schema.with_suffix("")
    folder.mkdir(exist_ok=True)

    def make(target: Path) -> None:
        with step("Checking the device tree against the bindings"):
            other = [changed] if blobs[0] != blobs[1] else []
            done = run([python, _RUNNER, schema, base, *other], timeout_s=600)
        json.loads(done.stdout)
        target.write_bytes(done.stdout)

    diagnostics = json.loads(make_once(folder / f"{'-'.join(sums)}.json", make).read_bytes())
    return _read(diagnostics["base"]), _read(diagnostics["changed"])


# One complaint of dtschema may be about several properties, which are then named in the message.
_UNEXPECTED = re.compile(r"\((.*) (?:was|were) unexpected\)$")
_NO_MATCH = re.compile(r"^(.*) (?:does|do) not match any of the regexes: ")
_REQUIRED = re.compile(r"^('.*') is a (?:required|dependency) ")


def _read(diagnostics: list[dict[str, Any]]) -> list[Problem]:
    """Turn what ``dt-validate --json-output`` writes into problems."""
    problems: list[Problem] = []
    for each in diagnostics:
        schema = str(each.get("schema") or each["type"]).rstrip("#")
        schema = schema.removeprefix("http://devicetree.org/schemas/")
        keywords = [word for word in each.get("schema_path", []) if isinstance(word, str)]
        rule = f"{schema}: {keywords[-1]}" if keywords else schema
        node = each.get("node") or "/"
        path = [str(word) for word in each.get("property_path", [])]
        problems += [
            Problem(node, name, rule, _message(each))
            for name in (path[:1] or _named(str(each["message"])))
        ]
    return problems


def _named(message: str) -> list[str]:
    """The properties that a complaint about a node names; one empty name where it names none."""
    for pattern in (_UNEXPECTED, _NO_MATCH, _REQUIRED):
        match = pattern.search(message)
        if match:
            return re.findall(r"'([^']+)'", match.group(1)) or [""]
    return [""]


def _message(diagnostic: dict[str, Any]) -> str:
    """What is wrong, in one line: of alternatives, what each of them says."""
    context = [str(each["message"]) for each in diagnostic.get("context", [])]
    # That a value is not of another type altogether helps nobody.
    useful = [text for text in context if "is not of type 'object'" not in text] or context
    return "; or ".join(dict.fromkeys(useful)) or str(diagnostic["message"])
