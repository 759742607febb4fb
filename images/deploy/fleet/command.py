# SPDX-License-Identifier: MIT
"""``--host`` with several boards, as it is typed: deploy, status and doctor over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bsp.base.errors import UserError
from bsp.base.output import table
from bsp.base.words import counted
from bsp.profile import load_board
from bsp.remote.groups import resolve_all
from bsp.remote.inventory import Host
from images.bundle import manifest as bundles
from images.bundle.manifest import Bundle

from ..command import DEFAULTS, NOTHING_GIVEN, Content, Settings, ask_downgrade
from ..deploy import Deployment, Target, deploy, status
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
    """Deploy to all boards that ``--host TEXT`` means.

    Raises:
        UserError: a host is not known, it is not known which board one is, or the bundle is broken.
    """
    given = content.given()
    hosts = resolve_all(text)
    if given:
        wanted = {host.name: given for host in hosts}
    else:
        wanted = _bundles(hosts, content, force_enable=settings.force_enable)
    shared = Shared()
    targets = {host.name: settings.target(host, shared=shared) for host in hosts}
    return deploy_bundles(
        targets,
        wanted,
        rules=rules,
        fresh=fresh,
        dry_run=dry_run,
        on_downgrade=None if allow_downgrade else ask_downgrade,
    )


def deploy_bundles(
    targets: dict[str, Target],
    wanted: dict[str, Bundle],
    *,
    rules: Rules,
    fresh: bool = False,
    dry_run: bool = False,
    on_downgrade: Callable[[str], None] | None = None,
) -> FleetReport:
    """Deploy to each target its bundle; see ``deploy_fleet``."""

    def one(name: str) -> Deployment:
        return deploy(
            targets[name],
            bundle=wanted[name],
            board=None,
            dry_run=dry_run,
            on_downgrade=on_downgrade,
        )

    generations = {name: wanted[name].generation for name in targets}
    if dry_run:  # only looks, so at all of them, whatever one of them says
        rules = Rules(0, len(targets), len(targets), rules.jobs)
    return deploy_fleet(generations, one, rules, fresh=fresh, keep=not dry_run)


def _bundles(hosts: Sequence[Host], content: Content, *, force_enable: bool) -> dict[str, Bundle]:
    """The bundle of each host, by its name: one is made for each kind of board."""
    kinds = {host.name: content.board or host.board for host in hosts}
    unsaid = [name for name, kind in kinds.items() if not kind]
    if unsaid:
        raise UserError(
            f"it is not said which board these are: {', '.join(unsaid)}",
            hint='board = "..." in their entries of the inventory; or --board, or --bundle',
        )
    made: dict[str, Bundle] = {}
    for kind in dict.fromkeys(each for each in kinds.values() if each):
        made[kind] = content.made_for(load_board(kind), force_enable=force_enable)
        bundles.check(made[kind])
    return {name: made[kind] for name, kind in kinds.items() if kind}


def status_of_all(
    text: str, *, accept_new_key: bool, verify: bool = False, jobs: int = JOBS
) -> list[dict[str, Any]]:
    """``status`` of all boards; who cannot answer has ``error``."""
    hosts = {host.name: host for host in resolve_all(text)}
    found = over_all(
        list(hosts),
        lambda name: status(Target(hosts[name], accept_new_key=accept_new_key, verify=verify)),
        jobs=jobs,
    )
    return list(found.values())


def doctor_of_all(
    text: str, examine: Callable[[Host], Mapping[str, Any]], *, jobs: int = JOBS
) -> list[dict[str, Any]]:
    """``doctor`` of all boards; who cannot answer has ``error``."""
    hosts = {host.name: host for host in resolve_all(text)}
    found = over_all(
        list(hosts), lambda name: {**examine(hosts[name]), "host": name}, jobs=jobs
    )  # fmt: skip
    return list(found.values())


def worst(found: Sequence[dict[str, Any]], broken: str = "") -> int:
    """The worst exit code of what many boards answered; ``broken``: the key that says what is wrong."""
    codes = [int(each.get("exit_code", 0)) for each in found]
    return max([*codes, *(4 for each in found if broken and each.get(broken))], default=0)


def report_text(report: FleetReport) -> str:
    """The report as a table, what went wrong below it."""
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
        lines.append("the same command again goes on with those that are not done")
    return "\n".join(lines)


def plans_text(report: FleetReport, rules: Rules) -> str:
    """What ``--dry-run`` says: the waves, and the plan of each board."""
    lines = [
        f"{wave.name}: {', '.join(wave.hosts)}"
        for wave in plan_waves(tuple(report.run.hosts), rules)
    ]
    for name, record in report.run.hosts.items():
        steps = record.document.get("plan", [])
        what = "; ".join(steps) if steps else "nothing to do"
        lines.append(f"{name}: {record.problem or what}")
    return "\n".join(lines)


def status_text(found: Sequence[dict[str, Any]]) -> str:
    """The status of many boards, one a line."""
    rows = []
    for each in found:
        if "error" in each:
            rows.append([each["host"], "", "", "", each["error"]])
            continue
        damaged = [name for name, paths in each["generations"].items() if paths]
        ours = each["boots_through_npu_bsp"]
        unconfirmed = "not confirmed" if ours else "does not boot through npu-bsp"
        notes = [
            "" if each["confirmed"] else unconfirmed,
            f"damaged: {', '.join(damaged)}" if damaged else "",
            "device tree is not the one sent" if each["running_dtb_matches"] is False else "",
        ]
        rows.append(
            [
                each["host"],
                each["board"] or "?",
                each["running"] or "none",
                each["kernel"],
                "; ".join(note for note in notes if note) or "good",
            ]
        )
    return table(["host", "board", "running", "kernel", "state"], rows, width=110)


def doctor_text(found: Sequence[dict[str, Any]]) -> str:
    """What doctor found on many boards, one a line."""
    rows = []
    for each in found:
        broken = next(
            (check for check in each.get("checks", ()) if check["name"] == each["first_broken"]),
            None,
        )
        what = each.get("error") or (
            f"{broken['found']}; next: {broken['next']}" if broken else "the NPU works"
        )
        rows.append([each["host"], str(each.get("first_broken") or ""), what])
    return table(["host", "first broken", ""], rows, width=110)
