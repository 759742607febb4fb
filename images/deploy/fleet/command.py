# SPDX-License-Identifier: MIT
"""``deploy``, ``status`` and ``doctor`` with several boards in ``--host``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.result import Answer
from bsp.base.words import counted
from bsp.catalog import load_board
from bsp.remote.groups import resolve_all
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle

from ..command import DEFAULTS, NOTHING_GIVEN, Content, Settings, ask_downgrade
from ..deploy import deploy
from ..deployment import Deployment
from ..session import Target
from ..status import status
from ..transfer.shared import Shared
from .fleet import GOOD, FleetReport, deploy_fleet, over_all
from .waves import Rules, plan_waves

JOBS = 16


def deploy_to_all(
    text: str,
    content: Content = NOTHING_GIVEN,
    *,
    rules: Rules,
    settings: Settings = DEFAULTS,
    allow_downgrade: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
) -> FleetReport:
    """Deploy to all boards that ``--host TEXT`` names.

    Raises:
        UserError: a host is unknown, its board is unknown, or the bundle is damaged.
    """
    given_bundle = content.named_bundle()
    hosts = resolve_all(text)
    if given_bundle:
        bundle_of = {host.name: given_bundle for host in hosts}
    else:
        bundle_of = _bundles(hosts, content, force_enable=settings.force_enable)
    shared = Shared()
    targets = {host.name: settings.target(host, shared=shared) for host in hosts}
    return deploy_bundles(
        targets,
        bundle_of,
        rules=rules,
        fresh=fresh,
        dry_run=dry_run,
        on_downgrade=None if allow_downgrade else ask_downgrade,
    )


def deploy_bundles(
    targets: dict[str, Target],
    bundles_of: dict[str, Bundle],
    *,
    rules: Rules,
    fresh: bool = False,
    dry_run: bool = False,
    on_downgrade: Callable[[str], None] | None = None,
) -> FleetReport:
    """Deploy its bundle to each target; see ``deploy_fleet``."""

    def one(name: str) -> Deployment:
        return deploy(
            targets[name],
            bundle=bundles_of[name],
            board=None,
            dry_run=dry_run,
            on_downgrade=on_downgrade,
        )

    generations = {name: bundles_of[name].generation for name in targets}
    if dry_run:  # nothing is changed, so a failure stops nothing
        rules = Rules(0, len(targets), len(targets), rules.jobs)
    return deploy_fleet(generations, one, rules, fresh=fresh, keep=not dry_run)


def _bundles(hosts: Sequence[Host], content: Content, *, force_enable: bool) -> dict[str, Bundle]:
    """Return the bundle of each host by its name; one bundle is made for each kind of board."""
    kinds = {host.name: content.board or host.board for host in hosts}
    unknown = [name for name, kind in kinds.items() if not kind]
    if unknown:
        raise UserError(
            f"the board profile is not known for: {', '.join(unknown)}",
            hint='board = "..." in their entries of the inventory; or --board, or --bundle',
        )
    bundle_of_kind: dict[str, Bundle] = {}
    for kind in dict.fromkeys(board for board in kinds.values() if board):
        bundle_of_kind[kind] = content.made_for(load_board(kind), force_enable=force_enable)
        bundles.check(bundle_of_kind[kind])
    return {name: bundle_of_kind[kind] for name, kind in kinds.items() if kind}


def status_of_all(
    text: str, *, accept_new_key: bool, verify: bool = False, jobs: int = JOBS
) -> list[dict[str, Any]]:
    """Return the ``status`` of all boards; ``error`` in place of it where a board cannot answer."""
    hosts = {host.name: host for host in resolve_all(text)}
    statuses = over_all(
        list(hosts),
        lambda name: status(Target(hosts[name], accept_new_key=accept_new_key, verify=verify)),
        jobs=jobs,
    )
    return list(statuses.values())


def doctor_of_all(
    text: str, examine: Callable[[Host], Mapping[str, Any]], *, jobs: int = JOBS
) -> list[dict[str, Any]]:
    """Return the ``doctor`` document of all boards; ``error`` where a board cannot answer."""
    hosts = {host.name: host for host in resolve_all(text)}
    examinations = over_all(
        list(hosts), lambda name: {**examine(hosts[name]), "host": name}, jobs=jobs
    )  # fmt: skip
    return list(examinations.values())


def worst(documents: Sequence[dict[str, Any]], broken: str = "") -> int:
    """Return the worst exit code of many documents; ``broken`` is the key that names a problem."""
    codes = [int(document.get("exit_code", 0)) for document in documents]
    return max(
        [*codes, *(4 for document in documents if broken and document.get(broken))], default=0
    )


def report_text(report: FleetReport) -> str:
    """Return the report as a table, followed by the hints."""
    rows = [
        [
            name,
            record.wave,
            record.outcome,
            f"{record.seconds:.1f}",
            f"{record.document.get('bytes_on_wire', 0) / 1e6:.2f}",
            record.problem.partition("\n")[0],
        ]
        for name, record in report.run.hosts.items()
    ]
    lines = [table(["host", "wave", "outcome", "s", "MB sent", "problem"], rows, width=110), ""]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items())
    lines.append(f"{counted(len(rows), 'board')} in {report.seconds:.0f} s: {counts}")
    if report.run.stopped:
        lines.append(f"stopped: {report.run.stopped}")
    hints = {each.hint: None for each in report.run.hosts.values() if each.hint}
    lines += [f"hint: {hint}" for hint in hints]
    if any(record.outcome not in GOOD for record in report.run.hosts.values()):
        lines.append("the same command again continues with the boards that are not done")
    return "\n".join(lines)


def answer(report: FleetReport, rules: Rules, *, dry_run: bool) -> Answer:
    """Return what the command shows of a run, or of a plan of one."""
    text = plans_text(report, rules) if dry_run else report_text(report)
    return Answer(report.document(), text, report.exit_code)


def plans_text(report: FleetReport, rules: Rules) -> str:
    """Return the text of ``--dry-run``: the waves, and the plan of each board."""
    lines = [
        f"{wave.name}: {', '.join(wave.hosts)}"
        for wave in plan_waves(tuple(report.run.hosts), rules)
    ]
    for name, record in report.run.hosts.items():
        steps = record.document.get("plan", [])
        what = "; ".join(steps) if steps else "nothing to do"
        lines.append(f"{name}: {record.problem or what}")
    return "\n".join(lines)


def status_text(statuses: Sequence[dict[str, Any]]) -> str:
    """Return the status of many boards, one per line."""
    rows = []
    for entry in statuses:
        if "error" in entry:
            rows.append([entry["host"], "", "", "", entry["error"]])
            continue
        damaged = [name for name, paths in entry["generations"].items() if paths]
        through_npu_bsp = entry["boots_through_npu_bsp"]
        unconfirmed = "not confirmed" if through_npu_bsp else "does not boot through npu-bsp"
        notes = [
            "" if entry["confirmed"] else unconfirmed,
            f"damaged: {', '.join(damaged)}" if damaged else "",
            "device tree is not the one sent" if entry["running_dtb_matches"] is False else "",
        ]
        rows.append(
            [
                entry["host"],
                entry["board"] or "?",
                entry["running"] or "none",
                entry["kernel"],
                "; ".join(note for note in notes if note) or "good",
            ]
        )
    return table(["host", "board", "running", "kernel", "state"], rows, width=110)


def doctor_text(examinations: Sequence[dict[str, Any]]) -> str:
    """Return the first broken check of many boards, one per line."""
    rows = []
    for examination in examinations:
        broken = next(
            (
                check
                for check in examination.get("checks", ())
                if check["name"] == examination["first_broken"]
            ),
            None,
        )
        what = examination.get("error") or (
            f"{broken['found']}; next: {broken['next']}" if broken else "the NPU works"
        )
        rows.append([examination["host"], str(examination.get("first_broken") or ""), what])
    return table(["host", "first broken", ""], rows, width=110)
