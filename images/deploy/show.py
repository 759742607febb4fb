# SPDX-License-Identifier: MIT
"""Deployments and statuses as text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bsp.base import result as base
from bsp.base.words import counted
from bsp.boot_survey.told import meaning_of
from images.bundle.manifest import Bundle

from .checks.drift import Change
from .deployment import Deployment, GivenBack
from .status import LeaseRecord, StatusDocument

_SHOWN = 8


@dataclass(frozen=True)
class Shown(base.Result):
    """A deployment or rollback, as the commands show it."""

    result: Deployment

    @property
    def exit_code(self) -> int:
        """That of the deployment."""
        return self.result.exit_code

    def document(self) -> dict[str, Any]:
        """The deployment as JSON."""
        return self.result.document()

    def text(self) -> str:
        """Return the outcome in a few lines; of a failed deployment only the survey."""
        survey = f"{self.result.survey.text()}\n" if self.result.survey else ""
        return survey if self.exit_code else f"{survey}{result_text(self.result)}"

    def complaint(self) -> str:
        """Return why a deployment failed: the board's console, what happened, what to do."""
        if not self.exit_code:
            return ""
        if self.result.outcome == "refused":
            return f"error: {self.result.problem}\nhint: {self.result.hint}\n"
        console = f"{_indented(self.result.console)}\n" if self.result.console else ""
        return (
            f"{console}error: {self.result.outcome}: {self.result.problem}\n"
            f"hint: {self.result.hint}\n"
        )


def result_text(result: Deployment) -> str:
    """The outcome in a few lines."""
    if result.outcome == "planned":
        drift = drift_lines(result.verified, result.drift)
        return "\n".join([f"{result.host} ({result.board}): {result.plan}", *drift])
    if result.outcome in ("tried", "persisted"):
        works = f"; works: {', '.join(map(str, result.health))}" if result.health else ""
        return (
            f"{result.host} ({result.board}): it runs with that device tree{works}\n  {result.hint}"
        )
    lines = [f"{result.host} ({result.board}): {result.outcome}, generation {result.to}"]
    if result.outcome == "confirmed":
        seconds = sum(float(step["seconds"]) for step in result.steps)
        sent = (
            f"{counted(result.sent.sent_files, 'file')}, {result.sent.sent_bytes / 1e6:.2f} MB sent"
        )
        lines.append(f"  before: {result.before or 'no generation'}; {sent}; {seconds:.0f} s")
    lines += [f"  {line}" for line in drift_lines(result.verified, result.drift)]
    if result.health:
        lines.append(f"  works: {', '.join(map(str, result.health))}")
    if result.running_dtb_matches is not None:
        same = "is the one sent" if result.running_dtb_matches else "DIFFERS from the one sent"
        lines.append(f"  running device tree: {same}")
    return "\n".join(lines)


def drift_lines(verified: bool, changes: list[Change]) -> list[str]:
    """What re-hashing all files found."""
    if not verified:
        return []
    words = {True: "repaired", False: "NOT repaired: deploy its bundle again", None: "changed"}
    lines = [
        f"{words[each.repaired]}: {each.path}"
        + (f" of generation {each.generation}" if each.generation else "")
        for each in changes[:_SHOWN]
    ]
    if len(changes) > _SHOWN:
        lines.append(f"and {len(changes) - _SHOWN} more (--json lists all)")
    return lines or ["all that is there was read: nothing was changed"]


def given_back_text(document: GivenBack) -> str:
    """Return what undoing an adoption did."""
    host, back = document["host"], ", ".join(document["returned"]) or "nothing else"
    if document["outcome"] == "planned":
        return f"{host}: would boot as before npu-bsp took it over"
    return (
        f"{host}: from its next boot on it boots as before (restored: {back})\n"
        "  its boot partition is as it was; /var/lib/npu-bsp may be removed once it has rebooted"
    )


def status_text(status: StatusDocument) -> str:
    """What runs on a board, as aligned lines."""
    rows = [
        ("board", f"{status['model'] or '?'} ({', '.join(status['compatible'])})"),
        ("running", _running(status)),
        *_npu(status),
        *_generation(status),
        ("next boot", _next_boot(status)),
        *([("previous", status["previous"] or "none")] if status["good"] else []),
        *(("U-Boot lacks", meaning_of(name)) for name in status["uboot_lacks"]),
        *_integrity(status),
        *_lease(status["lease"]),
        *(("" if number else "log", line) for number, line in enumerate(status["log"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([status["host"], *(f"  {name.ljust(width)}  {text}" for name, text in rows)])


def _npu(status: StatusDocument) -> list[tuple[str, str]]:
    rows = []
    if status["npu_on"] is not None:
        rows.append(("NPU", "on" if status["npu_on"] else "off, by the running device tree"))
    if keeper := status["kept_by"]:
        without = ", and what runs was booted without that" if status["npu_on"] is False else ""
        kept = f"{keeper}, for each kernel that it installs{without} (deploy --undo takes it back)"
        rows.append(("NPU kept by", kept))
        if (of := status["kept_tree_of"]) and of != status["kernel"]:
            rows.append(
                ("", f"the tree is that of Linux {of}: what a later kernel's has is not in it")
            )
    return rows


def _generation(status: StatusDocument) -> list[tuple[str, str]]:
    """The kernel that runs, and what else is of a generation."""
    if status["running"] is None:
        return [("kernel", f"{status['kernel']}, the distribution's")]
    return [
        ("kernel", f"{status['kernel']}{_verdict(status['kernel_matches'])}"),
        ("device tree", _verdict(status["running_dtb_matches"]).strip(" ,") or "not compared"),
        *(("", difference) for difference in status["dtb_differences"]),
        ("userspace", "present" if status["userspace"] else "none in this generation"),
    ]


def _next_boot(status: StatusDocument) -> str:
    generation = status["trial"] or status["good"] or "?"
    keeper = status["kept_by"]
    if not status["boots_through_npu_bsp"]:
        boots = "as the distribution boots" + (f", with what {keeper} keeps" if keeper else "")
        if not status["adopted"]:
            return boots
        return (
            f"{boots}: npu-bsp's boot.scr was replaced since the board was adopted (by an update?). ./inv "
            "deploy --adopt makes what then runs the generation"
        )
    if not status["rivals"]:
        return generation
    tree = f"what {keeper} keeps" if keeper else "the distribution's device tree"
    return (
        f"what {' and '.join(status['rivals'])} names (of a kernel update?), which U-Boot reads before "
        f"npu-bsp's script: not generation {generation}, and with {tree}. ./inv deploy --adopt makes that "
        "the generation"
    )


def _running(status: StatusDocument) -> str:
    if not status["boots_through_npu_bsp"] and not status["adopted"]:
        return "does not boot through npu-bsp (./inv deploy --adopt takes it over)"
    if status["running"] is None:
        return "booted something that is not a generation"
    return f"{status['running']} ({'good' if status['confirmed'] else 'not confirmed'})"


def _integrity(status: StatusDocument) -> list[tuple[str, str]]:
    """What re-hashing all files found; else what the board itself knows to be damaged."""
    if status["verified"]:
        changes = [Change(**each) for each in status["drift"]]
        return [("verified", line) for line in drift_lines(status["verified"], changes)]
    return [
        (f"damaged {name}", ", ".join(paths[:5]))
        for name, paths in status["generations"].items()
        if paths
    ]


def _lease(held: LeaseRecord | None) -> list[tuple[str, str]]:
    if not held:
        return []
    return [("in use", f"{held['purpose']} of {held['owner']}, {held['left_s']:.0f} s left")]


def bundle_document(bundle: Bundle) -> dict[str, Any]:
    """A bundle as JSON."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "generation": manifest.generation,
        "board": manifest.board,
        "kernel_release": manifest.kernel_release,
        "cmdline": manifest.cmdline,
        "files": len(manifest.files),
        "bytes_total": manifest.total_bytes,
        "inputs": manifest.inputs,
    }


def bundle_text(bundle: Bundle) -> str:
    """A bundle in a few lines."""
    manifest = bundle.manifest
    return (
        f"generation {manifest.generation} for {manifest.board}: kernel {manifest.kernel_release}, "
        f"{counted(len(manifest.files), 'file')}, {manifest.total_bytes / 1e6:.0f} MB\n{bundle.path}"
    )


def _verdict(matches: bool | None) -> str:
    if matches is None:
        return ""
    return ", as the manifest says" if matches else ", NOT as the manifest says"


def _indented(text: str) -> str:
    return "\n".join(f"  | {line}" for line in text.splitlines())
