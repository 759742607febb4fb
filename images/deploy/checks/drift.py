# SPDX-License-Identifier: MIT
"""Files that changed on a board since they were deployed: found by re-hashing, listed, repaired.

An ordinary deployment believes what the board says of its generations: their manifests, and that a file of
the right size and time has the right content. ``--verify`` re-hashes all files; so does every Nth
deployment by itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from bsp.base.cache import state_dir, write_atomically
from bsp.base.errors import UserError
from bsp.base.progress import step
from bsp.remote.inventory import Host
from images.bundle.manifest import Bundle

from ..boot import slots
from ..plan import Facts, Mend, Plan
from ..transfer.agent import Agent, onboard_request, remembered

EVERY = 10
"""Every Nth deployment re-hashes all files, where nothing else is asked for."""
_MANIFEST = "manifest.json"
_MEND_S = 600.0


@dataclass(frozen=True)
class Change:
    """A file that is not as it was deployed.

    Attributes:
        generation: None: a file outside the generations.
        repaired: None: nothing was tried yet.
    """

    generation: str | None
    path: str
    repaired: bool | None = None


def is_due(host: Host, *, asked: bool, every: int | None) -> bool:
    """Return whether a deployment is to re-hash all files.

    Args:
        asked: ``--verify``.
        every: ``--verify-every``; None: what the inventory says, else ``EVERY``. 0: never by itself.
    """
    interval = every if every is not None else host.verify_every
    interval = EVERY if interval is None else interval
    return asked or 0 < interval <= _trusting(host) + 1


def count(host: Host, *, thorough: bool) -> None:
    """Record whether a deployment re-hashed all files."""
    trusting = 0 if thorough else _trusting(host) + 1
    write_atomically(_counter(host), json.dumps({"trusting": trusting}).encode() + b"\n")


def _trusting(host: Host) -> int:
    """Return the number of deployments since files were last re-hashed."""
    try:
        return int(json.loads(_counter(host).read_text())["trusting"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _counter(host: Host) -> Path:
    return state_dir() / "verified" / f"{host.name.replace('/', '_')}.json"


def rehash(
    agent: Agent, generation: str | None, bundle: Bundle | None, *, fat_mount: str, repair: bool
) -> tuple[Facts, list[Change]]:
    """Re-hash all files on the board.

    A manifest that was changed says nothing about the files beside it: where this machine knows the right
    one, it is put back first.

    Args:
        repair: whether anything may be written.

    Returns:
        What the board says; changed manifests.
    """
    with step("Re-hashing all deployed files"):
        facts = agent.open(generation, fat_mount=fat_mount, lock=False, thorough=True)
        changes = []
        for name, digest in facts.manifests.items():
            right = _right_manifest(name, bundle)
            if right is not None and hashlib.sha256(right).hexdigest() != digest:
                if repair:
                    packed = base64.b64encode(zlib.compress(right)).decode()
                    agent.ask({"do": "restore-manifest", "generation": name, "manifest": packed})
                changes.append(Change(name, _MANIFEST, repair))
            elif right is None:
                try:
                    agent.manifest(name)
                except UserError:  # it is not what its name says
                    changes.append(Change(name, _MANIFEST, False))
        if changes and repair:
            facts = agent.open(generation, fat_mount=fat_mount, lock=False, thorough=True)
    return facts, changes


def _right_manifest(generation: str, bundle: Bundle | None) -> bytes | None:
    if bundle is not None and bundle.generation == generation:
        return (bundle.path / _MANIFEST).read_bytes()
    return remembered(generation)


def changes_in(facts: Facts) -> list[Change]:
    """Return all changes that re-hashing found, in generations and outside."""
    changes = [Change(name, path) for name, paths in facts.generations.items() for path in paths]
    return changes + [Change(None, path) for path in onboard_changes(facts)]


def onboard_changes(facts: Facts) -> tuple[str, ...]:
    """Files outside the generations that are not those of this version."""
    return tuple(f"/{each['target']}" for each in onboard_request(facts)["onboard"])


def mend(agent: Agent, repair: Mend, facts: Facts) -> dict[str, list[str]]:
    """Repair what the plan says; return what is left: generation to paths."""
    arguments = {}
    for name, _ in repair.generations:
        try:
            manifest = agent.manifest(name)
        except UserError:  # of another version of this program, or damaged
            continue
        if manifest.cmdline is not None and not facts.adopted:
            arguments[name] = slots.args_forms(manifest, manifest.cmdline)
    request = {
        "do": "mend",
        "generations": dict(repair.generations),
        "args": arguments,
        **onboard_request(facts),
    }
    left: dict[str, list[str]] = agent.ask(request, timeout_s=_MEND_S)["left"]
    return left


def outcome(changes: list[Change], plan: Plan, left: dict[str, list[str]]) -> list[Change]:
    """The changes, each with whether carrying out the plan repaired it."""
    mended = {name for step in plan.steps if isinstance(step, Mend) for name, _ in step.generations}
    sent = plan.send.generation if plan.send else None

    def repaired(change: Change) -> bool:
        if change.repaired is not None:
            return change.repaired
        if change.generation in (None, sent):
            return True
        return change.generation in mended and change.path not in left.get(change.generation, ())

    return [Change(each.generation, each.path, repaired(each)) for each in changes]
