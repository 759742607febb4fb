# SPDX-License-Identifier: MIT
"""Deployments: sent to boards, booted on trial, confirmed or rolled back."""

from __future__ import annotations

from typing import Any

from invoke.context import Context

from bsp.base.result import Answer, Result

from .face.command import command
from .face.flags import BOARD, FORCE_ENABLE, HOST, HOSTS, MESA


@command(
    help={
        "host": HOSTS,
        "bundle": "folder that ./inv bundle made (default: one is made for the board)",
        "board": f"{BOARD}; default: the one that the host says it is",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "dtb": "deploy this DTB unchanged instead of the one that build-dts makes",
        "mesa": MESA,
        "dtb-only": "deploy only a device tree, for the kernel that the board runs: --dtb, or the running "
        "one plus what its NPU lacks",
        "force-enable": FORCE_ENABLE,
        "try": "try a device tree (--dtb, or the running one plus what its NPU lacks) once by kexec: "
        "nothing on the board's disk changes, the next reset ends in what it ran",
        "persist": "with --try: if it works, have the distribution keep it through kernel updates "
        "(Armbian, Toradex, u-boot-menu, GRUB, flash-kernel), and reboot into that",
        "adopt": "take over a board that boots in another way: what it runs becomes its first generation, "
        "with --dtb-only in the same boot as another device tree",
        "undo": "undo --adopt or --persist: the board boots as it did before",
        "timeout": "seconds that the board may take to come back from a reboot",
        "keep": "deployed versions (generations) to keep on the board (default: the inventory's, else 2)",
        "verify": "re-hash every deployed file instead of trusting the board's manifest; repair mismatches",
        "verify-every": "re-hash like this on every Nth deployment; 0: never (default: the "
        "inventory's, else 10)",
        "skip-health": "confirm without health checks (docs/deploy.md)",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "allow-downgrade": "allow deploying an older kernel than the running one",
        "canary": "several hosts: how many are deployed first; all must pass before the next wave",
        "wave-size": "several hosts: how many in each later wave (default: a quarter, at least 4)",
        "max-failures": "several hosts: stop after this many failures",
        "jobs": "several hosts: at most this many at a time",
        "fresh": "several hosts: start over instead of resuming an interrupted run",
        "steal": "take the lease from the deployment that holds it; needs --reason",
        "reason": "why --steal; recorded in the board's log",
        "dry-run": "show the plan; change nothing",
    }
)
def deploy(
    _: Context,
    host: str,
    bundle: str = "",
    board: str = "",
    kernel: str = "",
    dtb: str = "",
    mesa: str = "",
    dtb_only: bool = False,
    force_enable: bool = False,
    try_: bool = False,
    persist: bool = False,
    adopt: bool = False,
    undo: bool = False,
    timeout: int = 180,
    skip_health: bool = False,
    keep: int = 0,
    verify: bool = False,
    verify_every: int = -1,
    accept_new_key: bool = False,
    allow_downgrade: bool = False,
    canary: int = 1,
    wave_size: int = 0,
    max_failures: int = 0,
    jobs: int = 16,
    fresh: bool = False,
    steal: bool = False,
    reason: str = "",
    dry_run: bool = False,
) -> Result:
    """Deploy a bundle: trial boot, then confirm or roll back. Example: ./inv deploy --host vim3."""
    from bsp.base.flags import refuse_flags
    from bsp.remote.groups import is_multi_host
    from images.deploy import show
    from images.deploy.claim import claim_of
    from images.deploy.command import Content, Settings, deploy_to, give_back

    settings = Settings(
        timeout_s=timeout,
        accept_new_key=accept_new_key,
        check_health=not skip_health,
        keep=keep or None,
        verify=verify,
        verify_every=None if verify_every == -1 else verify_every,
        claim=claim_of(steal=steal, reason=reason),
        force_enable=force_enable,
    )
    content = Content(bundle, board, kernel, dtb, mesa)
    if is_multi_host(host):
        from images.deploy.fleet import command as fleet_command
        from images.deploy.fleet.waves import Rules

        one_at_a_time = {"adopt": adopt, "undo": undo, "dtb-only": dtb_only, "try": try_}
        refuse_flags(one_at_a_time, f"{host} is several boards, and this takes one at a time")
        rules = Rules(canary, wave_size, max_failures, jobs)
        report = fleet_command.deploy_to_all(
            host,
            content,
            rules=rules,
            settings=settings,
            allow_downgrade=allow_downgrade,
            fresh=fresh,
            dry_run=dry_run,
        )
        return fleet_command.answer(report, rules, dry_run=dry_run)
    if undo:
        returned = give_back(host, accept_new_key=accept_new_key, dry_run=dry_run)
        return Answer(returned, show.given_back_text(returned))
    result = deploy_to(
        host,
        content,
        dtb_only=dtb_only,
        adopt=adopt,
        by_kexec=try_,
        persist=persist,
        settings=settings,
        allow_downgrade=allow_downgrade,
        dry_run=dry_run,
    )
    return show.Shown(result)


@command(
    help={
        "host": HOST,
        "to": "roll back to this generation (status --json lists those on the board)",
        "timeout": "seconds that the board may take to come back from a reboot",
        "skip-health": "confirm without health checks (docs/deploy.md)",
        "steal": "take the lease from the deployment that holds it; needs --reason",
        "reason": "why --steal; recorded in the board's log",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "dry-run": "show the plan; change nothing",
    }
)
def rollback(
    _: Context,
    host: str,
    to: str = "",
    timeout: int = 180,
    skip_health: bool = False,
    steal: bool = False,
    reason: str = "",
    accept_new_key: bool = False,
    dry_run: bool = False,
) -> Result:
    """Go back to the generation before this one. Example: ./inv rollback --host vim3."""
    from bsp.remote.inventory import resolve
    from images.deploy import show
    from images.deploy.claim import claim_of
    from images.deploy.deploy import rollback as roll_back
    from images.deploy.session import Target

    target = Target(
        resolve(host),
        timeout_s=timeout,
        check_health=not skip_health,
        accept_new_key=accept_new_key,
        claim=claim_of(steal=steal, reason=reason),
    )
    return show.Shown(roll_back(target, to=to or None, dry_run=dry_run))


@command(
    help={
        "host": HOSTS,
        "verify": "re-hash every deployed file and list mismatches",
        "accept-new-key": "on first contact, trust the host's key without asking",
    }
)
def status(_: Context, host: str, verify: bool = False, accept_new_key: bool = False) -> Result:
    """Show what runs on a board, and what boots next. Example: ./inv status --host vim3."""
    from bsp.remote.groups import is_multi_host
    from bsp.remote.inventory import resolve
    from images.deploy import show
    from images.deploy.session import Target
    from images.deploy.status import status as status_of

    if is_multi_host(host):
        from images.deploy.fleet import command as fleet_command

        statuses = fleet_command.status_of_all(host, accept_new_key=accept_new_key, verify=verify)
        text = fleet_command.status_text(statuses)
        return Answer({"hosts": statuses}, text, fleet_command.worst(statuses))
    status = status_of(Target(resolve(host), accept_new_key=accept_new_key, verify=verify))
    return Answer({**status}, show.status_text(status))


@command(
    help={
        "board": BOARD,
        "container": "container image that the test runs in; it holds this project (docs/lab.md)",
        "folder": "path of this project in the image",
        "device-type": "LAVA's device type (default: the name of the board's device tree in the kernel)",
        "bundle": "URL of a tar archive of a bundle (default: the container makes one)",
        "bundle-sha256": "SHA-256 of that archive",
        "tag": "tag that the device must have; may be repeated",
        "output": "write the job there (default: print it)",
        "dry-run": "print the job; write no file",
    },
    iterable=["tag"],
)
def lava_job(
    _: Context,
    board: str,
    container: str,
    folder: str = "/npu-bsp",
    device_type: str = "",
    bundle: str = "",
    bundle_sha256: str = "",
    tag: Any = (),
    output: str = "",
    dry_run: bool = False,
) -> Result:
    """Write a LAVA job that deploys and validates. Example: ./inv lava-job --board vim3 --container I."""
    from pathlib import Path

    from bsp.catalog import load_board
    from bsp.remote.lab import lava

    request = lava.JobRequest(
        load_board(board), container, folder, device_type, bundle, bundle_sha256, tuple(tag)
    )
    job = lava.write(request, Path(output) if output else None, dry_run=dry_run)
    document = {key: value for key, value in job.items() if key != "text"}
    return Answer(document, job["text"] if dry_run or not output else output)
