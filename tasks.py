# SPDX-License-Identifier: MIT
"""The face: each task parses its flags, calls one function and prints what came back.

Everything is imported inside the tasks: ``invoke --list`` must stay as fast as an empty file.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task

if TYPE_CHECKING:
    from bsp.base.errors import BspError

# Looking for cycles among all that imports make takes up to a quarter of a short command's time.
gc.set_threshold(100_000, 20, 20)
atexit.register(gc.freeze)

_JSON = "print one JSON document on stdout"
_BOARD = "board profile (./inv boards lists them)"
_KERNEL = "kernel source: 6.12, tarball:URL#sha256=..., git:URL@ref or path:DIR"
_HOST = "inventory name, name from ~/.ssh/config, user@address[:port], or lab:TAG=VALUE"
_HOSTS = f"{_HOST}; several with commas, tag:T, group:G"


_Body = TypeVar("_Body", bound=Callable[..., Any])


def task(**options: Any) -> Callable[[_Body], _Body]:
    """As ``invoke.task``, without automatic short flags, and with errors as a person wants them."""

    def decorate(body: _Body) -> _Body:
        @functools.wraps(body)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            from bsp.base.errors import BspError, InfrastructureError

            _end_as_with_ctrl_c()
            try:
                return body(*args, **kwargs)
            except BspError as error:
                raise _ended(error, as_json=bool(kwargs.get("json"))) from error
            except OSError as error:
                hint = "NPU_BSP_DEBUG=1 shows where; df shows whether a disk is full"
                failure = InfrastructureError(str(error), hint=hint)
                raise _ended(failure, as_json=bool(kwargs.get("json"))) from error
            except KeyboardInterrupt as interrupt:
                sys.stderr.write("interrupted\n")
                number = interrupt.args[0] if interrupt.args else signal.SIGINT
                raise Exit(code=128 + number) from None

        return cast(_Body, invoke_task(guarded, auto_shortflags=False, **options))

    return decorate


def _end_as_with_ctrl_c() -> None:
    """Have SIGTERM and a closed terminal end what was started too, and put things in order."""

    def interrupt(number: int, _: object) -> None:
        signal.signal(
            number, signal.SIG_IGN
        )  # once; there is no Ctrl-C in the middle of cleaning up
        raise KeyboardInterrupt(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            with contextlib.suppress(ValueError):  # in a thread
                signal.signal(number, interrupt)


def _ended(error: BspError, *, as_json: bool) -> Exit:
    """Print an error as a person (and with --json a machine) wants it; return what ends the task."""
    import traceback

    from bsp.base.output import print_json

    if os.environ.get("NPU_BSP_DEBUG"):
        traceback.print_exc()
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    if as_json:
        print_json({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
    return Exit(code=error.exit_code)


# --- boards ----------------------------------------------------------------------------------


@task(
    help={
        "scan": "look into kernel trees: every board with an NPU that a free driver (nearly) knows",
        "kernel": f"which, may be repeated (default: the distribution's); {_KERNEL}",
        "fresh": "scan again, also where the answer is cached",
        "json": _JSON,
    },
    iterable=["kernel"],
)
def boards(
    _: Context,
    scan: bool = False,
    kernel: list[str] | None = None,
    fresh: bool = False,
    json: bool = False,
) -> None:
    """List the board profiles, or what kernels have. Example: ./inv boards --scan --kernel 7.3."""
    from bsp.base.output import print_json, print_text

    if scan:
        from bsp.scan import show
        from bsp.scan.scan import scan_all

        scans = scan_all(kernel or (), fresh=fresh)
        print_json(show.as_json(scans)) if json else print_text(show.text(scans))
        return
    from bsp import describe
    from bsp.base.errors import UserError

    if kernel or fresh:
        raise UserError(
            "--kernel and --fresh are for looking into kernels",
            hint="./inv boards --scan --kernel 7.3",
        )
    rows = describe.all_boards()
    if json:
        print_json(rows)
    else:
        print_text(describe.boards_table(rows))


@task(
    help={
        "name": f"{_BOARD}, or a profile's file: ./mine.toml",
        "check": "say what its profile still lacks",
        "json": _JSON,
    },
    positional=["name"],
)
def board(_: Context, name: str, check: bool = False, json: bool = False) -> None:
    """Explain one board and its NPU. Example: ./inv board vim3."""
    from bsp import describe
    from bsp.base.output import print_json, print_text

    if check:
        from bsp.new_board import check_board, missing_text

        found, lacks = check_board(name)
        document = {"board": found.name, "missing": [each.__dict__ for each in lacks]}
        print_json(document) if json else print_text(missing_text(found.name, lacks))
        if lacks:
            raise Exit(code=4)
    elif json:
        print_json(describe.one_board(name))
    else:
        print_text(describe.board_text(name))


@task(
    help={
        "name": "what to call it: small letters, digits, hyphens",
        "like": f"a board that it resembles: {_BOARD}",
        "from-host": f"fill it in from this running board: {_HOST}",
        "from-dtb": "fill it in from this device tree (a vendor's, too)",
        "kernel": f"its default kernel, whose source is searched for the board; {_KERNEL}",
        "output": "folder or file for the profile (default: ~/.config/npu-bsp/boards)",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "dry-run": "show the profile; write nothing",
        "json": _JSON,
    },
    positional=["name"],
)
def new_board(
    _: Context,
    name: str,
    like: str = "",
    from_host: str = "",
    from_dtb: str = "",
    kernel: str = "",
    output: str = "",
    accept_new_key: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Write a new board's profile. Example: ./inv new-board mine --from-dtb mine.dtb."""
    from pathlib import Path

    from bsp import new_board as making
    from bsp.base.errors import UserError
    from bsp.base.output import print_json, print_text

    if from_host and from_dtb:
        raise UserError("--from-host and --from-dtb are two sources", hint="leave one of them out")
    if from_host:
        source = making.source_of_host(from_host, accept_new_key=accept_new_key)
    elif from_dtb:
        source = making.source_of_dtb(Path(from_dtb))
    else:
        source = making.Source("")
    made = making.new_board(name, source, like=like, kernel=kernel, output=output, dry_run=dry_run)
    print_json(made.as_json()) if json else print_text(made.report())


# --- device trees ----------------------------------------------------------------------------


@task(
    help={
        "board": f"{_BOARD}; with --from-host: the one that the host says it is",
        "kernel": _KERNEL,
        "from-host": f"start from the tree that this board runs: {_HOST}",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "base-dtb": "start from this DTB in place of the kernel's source",
        "npu-rate": "run the NPU's clocks at this rate, such as 500MHz",
        "overlay": "keep the changes beside the DTB as a .dtbo too",
        "output": "folder for the result (default: build/BOARD/KERNEL)",
        "dry-run": "say what would be built; write nothing",
        "json": _JSON,
    }
)
def build_dts(
    _: Context,
    board: str = "",
    kernel: str = "",
    from_host: str = "",
    accept_new_key: bool = False,
    base_dtb: str = "",
    npu_rate: str = "",
    overlay: bool = False,
    output: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Build a board's device tree, with what its NPU lacks. Example: ./inv build-dts --board vim3."""
    from pathlib import Path

    from bsp.base.errors import UserError
    from bsp.base.output import print_json, print_text
    from bsp.dts import build
    from bsp.dts.rate import parse_rate
    from bsp.profile import load_board

    if from_host:
        from bsp.remote.in_place import build_from_host

        if kernel or base_dtb:
            raise UserError(
                "--from-host brings its own kernel and tree",
                hint="leave --kernel and --base-dtb out",
            )
        here = build_from_host(
            from_host,
            board=board,
            output=output,
            npu_rate_hz=parse_rate(npu_rate) if npu_rate else None,
            keep_overlay=overlay,
            accept_new_key=accept_new_key,
            dry_run=dry_run,
        )
        print_json(here.as_json()) if json else print_text(here.text())
        return
    if not board:
        raise UserError(
            "--board is missing", hint="./inv boards lists the boards; or --from-host HOST"
        )

    profile = load_board(board)
    base = Path(base_dtb) if base_dtb else None
    if base is None and profile.dts is None:
        from virtual.boards.base_dtb import base_dtb as dtb_of_qemu

        base = dtb_of_qemu(profile)
    result = build.build_dts(
        profile,
        kernel=kernel or None,
        base_dtb=base,
        target_dir=Path(output) if output else build.default_target(profile, kernel or None, base),
        npu_rate_hz=parse_rate(npu_rate) if npu_rate else None,
        keep_overlay=overlay,
        dry_run=dry_run,
    )
    if json:
        print_json(result.as_json())
    else:
        print_text(result.text())


@task(
    help={
        "board": _BOARD,
        "kernel": f"whose tree and bindings; {_KERNEL}",
        "dtb": "check this DTB in place of the one that build-dts makes",
        "json": _JSON,
    }
)
def check_dts(_: Context, board: str, kernel: str = "", dtb: str = "", json: bool = False) -> None:
    """Check a device tree against the kernel's bindings. Example: ./inv check-dts --board vim3."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.dts import schema
    from bsp.profile import load_board

    profile = load_board(board)
    base = None
    if profile.dts is None:
        from virtual.boards.base_dtb import base_dtb as dtb_of_qemu

        base = dtb_of_qemu(profile)
    result = schema.check_dts(
        profile, kernel=kernel or None, dtb=Path(dtb) if dtb else None, base_dtb=base
    )
    print_json(result.as_json()) if json else print_text(result.text())
    if result.problems:
        raise Exit(code=4)


# --- userspace and validation ----------------------------------------------------------------


@task(
    help={
        "board": _BOARD,
        "distribution": "Debian release on the board (default: the profile's)",
        "python": "the board's Python, such as 3.13 (default: the distribution's)",
        "output": "put the tree there (default: the cache)",
        "json": _JSON,
        "dry-run": "only say what it would be made of",
    }
)
def build_userspace(
    _: Context,
    board: str,
    distribution: str = "",
    python: str = "",
    output: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the offline userspace for a board. Example: ./inv build-userspace --board vim3."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.profile import load_board
    from userspace.payload import payload

    chosen = distribution or load_board(board).userspace.distribution
    if dry_run:
        plan = payload.plan_payload(chosen, python or None)
        print_json(plan.as_json()) if json else print_text(plan.text())
        return
    made = payload.build_payload(
        distribution=chosen, python=python or None, target=Path(output) if output else None
    )
    print_json(made.as_json()) if json else print_text(made.text())


@task(
    help={
        "test": "label_image, or detect: a model that finds objects",
        "host": f"{_HOST}; this machine if left out",
        "npu": "virtual:a311d or virtual:imx8mp: this machine, with an emulated NPU",
        "exact": "with --npu: compute exactly as TFLite, not as silicon is predicted to",
        "strict": "with --npu: poison new memory; what the model contradicts fails the row",
        "record": "with --npu: record what comes to the NPU to this file (npu.show, npu.replay)",
        "delegate": "all, cpu, cpu-reference, teflon, opencl, tim-vx, or PATH[:key=value;key=value]; "
        "several with commas, or several times",
        "env": "NAME=VALUE for the delegates, as RUSTICL_ENABLE=etnaviv; several times",
        "model": "name of a known model, or a .tflite file",
        "image": "name of a known image, or a BMP file",
        "quick": "the project's own small model on the NPU, three runs: does it work at all?",
        "runs": "measured runs of each delegate, at most",
        "threads": "CPU threads (default: all cores)",
        "budget": "seconds of measured runs of each delegate, at most",
        "views": "crops and flips of the picture to compare with the reference, at most",
        "timeout": "seconds after which a delegate counts as hanging",
        "userspace": "folder of a payload on the host (default: the deployed one)",
        "rusticl": "send Mesa's OpenCL driver with the OpenCL delegate, to a host that has none",
        "report": "write an HTML page there, with history and doctor; .json and .xml beside it",
        "junit": "write the results as JUnit XML there",
        "accept-new-key": "trust the host at first contact without asking",
        "json": _JSON,
    },
    positional=["test"],
    iterable=["delegate", "env"],
)
def smoke_test(
    _: Context,
    test: str,
    host: str = "",
    npu: str = "",
    exact: bool = False,
    strict: bool = False,
    record: str = "",
    delegate: list[str] | None = None,
    env: list[str] | None = None,
    model: str = "",
    image: str = "",
    quick: bool = False,
    runs: int = 50,
    threads: int = 0,
    budget: float = 20.0,
    views: int = 8,
    timeout: float = 300.0,
    userspace: str = "",
    rusticl: bool = False,
    report: str = "",
    junit: str = "",
    accept_new_key: bool = False,
    json: bool = False,
) -> None:
    """Run a model with each delegate and judge it. Example: ./inv smoke-test label_image."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.remote.inventory import resolve
    from userspace.npu.report import files as report_files
    from userspace.npu.report.report import text_of
    from userspace.npu.validate import smoke
    from userspace.npu.validate.label_image import Request, environment_of
    from userspace.npu.validate.label_image import quick as made_quick

    wanted = report_files.Wanted.of(report, junit)
    where = resolve(host) if host else None
    request = Request(
        delegate=",".join(delegate or ["all"]),
        environment=environment_of(env or []),
        model=model or None,
        image=image or None,
        runs=runs,
        threads=threads or None,
        budget_s=budget,
        views=views,
        timeout_s=timeout,
        test=test,
    )
    document = smoke.smoke_test(
        test,
        made_quick(request) if quick else request,
        host=where,
        userspace=userspace or None,
        accept_new_key=accept_new_key,
        npu=npu or None,
        exact=exact,
        strict=strict,
        record=Path(record) if record else None,
        rusticl=rusticl,
    )
    report_files.after_run(document, where, wanted)
    print_json(document) if json else print_text(text_of(document))
    if document["verdict"] != "pass":
        raise Exit(code=4)


@task(
    help={
        "host": f"{_HOSTS}; this machine if left out",
        "board": f"{_BOARD}; default: the one that the host says it is",
        "userspace": "folder of a payload on the host (default: the deployed one)",
        "accept-new-key": "trust the host at first contact without asking",
        "json": _JSON,
    }
)
def doctor(
    _: Context,
    host: str = "",
    board: str = "",
    userspace: str = "",
    accept_new_key: bool = False,
    json: bool = False,
) -> None:
    """Say why the NPU does not work, and what to do. Example: ./inv doctor --host vim3."""
    from bsp.base.output import print_json, print_text
    from bsp.remote.groups import means_several
    from bsp.remote.inventory import Host, resolve
    from userspace.npu.doctor import doctor as examination

    if means_several(host):
        from images.deploy.fleet import command as fleet_command

        def examine(each: Host) -> dict[str, Any]:
            return examination.doctor(
                each,
                board=board or each.board,
                userspace=userspace or None,
                accept_new_key=accept_new_key,
            )

        all_found = fleet_command.doctor_of_all(host, examine)
        print_json({"hosts": all_found}) if json else print_text(
            fleet_command.doctor_text(all_found)
        )
        code = fleet_command.worst(all_found, "first_broken")
        if code:
            raise Exit(code=code)
        return
    found = examination.doctor(
        resolve(host) if host else None,
        board=board or None,
        userspace=userspace or None,
        accept_new_key=accept_new_key,
    )
    print_json(found) if json else print_text(examination.text(found))
    if found["first_broken"]:
        raise Exit(code=4)


@task(
    help={
        "host": f"{_HOST}; this machine if left out",
        "output": "HTML file; .json and .xml (JUnit) go beside it (default: build/report-HOST.html)",
        "no-doctor": "do not ask the host how it is",
        "accept-new-key": "trust the host at first contact without asking",
        "json": _JSON,
    }
)
def report(
    _: Context,
    host: str = "",
    output: str = "",
    no_doctor: bool = False,
    accept_new_key: bool = False,
    json: bool = False,
) -> None:
    """Write what is known of a host as one HTML page. Example: ./inv report --host vim3."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.remote.inventory import resolve
    from userspace.npu.report import files as report_files

    made = report_files.report(
        resolve(host) if host else None,
        Path(output) if output else None,
        ask_doctor=not no_doctor,
        accept_new_key=accept_new_key,
    )
    print_json(made) if json else print_text(report_files.text(made))


@task(
    help={
        "host": f"{_HOST}; this machine if left out",
        "check": "exit code 4 if the newest runs are slower",
        "json": _JSON,
    }
)
def history(_: Context, host: str = "", check: bool = False, json: bool = False) -> None:
    """Say whether a host became slower. Example: ./inv history --host vim3."""
    from bsp.base.output import print_json, print_text
    from userspace.npu.report import history as past
    from userspace.npu.report import regression

    found = regression.document(past.need(host or past.THIS_MACHINE))
    print_json(found) if json else print_text(regression.text(found))
    if check and found["verdict"] == "slower":
        raise Exit(code=4)


@task(
    help={
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "board": "virtual-a311d, virtual-imx8mp or all",
        "invokes": "inferences on each board",
        "json": _JSON,
    }
)
def gate_kernel(
    _: Context, kernel: str = "", board: str = "all", invokes: int = 1000, json: bool = False
) -> None:
    """Judge a kernel's NPU driver on virtual boards. Example: ./inv gate-kernel --kernel 6.12."""
    from bsp.base.output import print_json, print_text
    from virtual.gates import kernel as gate

    document = gate.gate(gate.plan(kernel, board, invokes))
    print_json(document) if json else print_text(gate.text_of(document))
    if document["verdict"] != "good":
        raise Exit(code=4)


@task(
    help={
        "package": "a mesa-teflon-delegate .deb file for arm64",
        "suite": "Debian suite in place of a file: trixie, trixie-backports, sid...",
        "against": "version, suite or file that is known to be good: what changed?",
        "npu": "virtual:a311d, virtual:imx8mp or all",
        "quick": "about 60 generated models and one MobileNet in place of hundreds and three",
        "timeout": "seconds for one model",
        "json": _JSON,
    }
)
def gate_mesa(
    _: Context,
    package: str = "",
    suite: str = "",
    against: str = "",
    npu: str = "all",
    quick: bool = False,
    timeout: float = 180.0,
    json: bool = False,
) -> None:
    """Judge Mesa's delegate on virtual NPUs. Example: ./inv gate-mesa --suite sid --against 25.0.7."""
    from bsp.base.output import print_json, print_text
    from virtual.gates import mesa

    document = mesa.gate(
        mesa.Request(
            package=package,
            suite=suite,
            against=against,
            npu=npu,
            quick=quick,
            timeout_s=timeout,
        )
    )
    print_json(document) if json else print_text(mesa.text_of(document))
    if document["verdict"] != "good":
        raise Exit(code=4)


@task(
    name="build-delegate",
    help={
        "name": "opencl",
        "jobs": "compilers at once (default: one a core)",
        "dry-run": "only say what would be built, and whether it is there",
        "json": _JSON,
    },
    positional=["name"],
)
def build_delegate(
    _: Context, name: str, jobs: int = 0, dry_run: bool = False, json: bool = False
) -> None:
    """Build a delegate that is packaged nowhere. Example: ./inv build-delegate opencl."""
    from bsp.base.output import print_json, print_text
    from userspace.npu.opencl import build

    build.check_name(name)
    if dry_run:
        planned = build.plan()
        print_json(planned) if json else print_text(build.plan_text(planned))
        return
    made = build.build(jobs=jobs or None)
    print_json(made.as_json()) if json else print_text(made.text())


# --- bundles and boards ----------------------------------------------------------------------


@task(
    help={
        "board": _BOARD,
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "dtb": "use this DTB as it is, in place of the one that build-dts makes",
        "output": "put the bundle there (default: the cache; of RAUC: build/BOARD.raucb)",
        "key": "sign with this private key (default: yours, made on first use)",
        "verify": "check this bundle instead: manifest, signature, every byte",
        "sign": "sign this bundle instead",
        "reproduce": "make it twice, apart in folder and time, and compare",
        "format": "npu-bsp, or rauc: a whole root for a device with A/B slots",
        "rauc-cert": "certificate to sign a RAUC bundle with (default: one for development, made here)",
        "rauc-key": "the private key of --rauc-cert",
        "rauc-keyring": "certificates that the device trusts (default: that of --rauc-cert)",
        "rauc-system": "the device's system.conf (default: slots rootfs-a and rootfs-b)",
        "ssh-key": "of a RAUC bundle: public key that may log in as root (default: your usual one)",
        "dry-run": "of a RAUC bundle: check what is given; make nothing",
        "json": _JSON,
    }
)
def bundle(
    _: Context,
    board: str = "",
    kernel: str = "",
    dtb: str = "",
    output: str = "",
    key: str = "",
    verify: str = "",
    sign: str = "",
    reproduce: bool = False,
    format: str = "npu-bsp",
    rauc_cert: str = "",
    rauc_key: str = "",
    rauc_keyring: str = "",
    rauc_system: str = "",
    ssh_key: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Make what deploy sends: kernel, device tree, userspace. Example: ./inv bundle --board vim3."""
    from bsp.base.output import print_json, print_text
    from images.bundle import command

    rauc = command.RaucFlags(rauc_cert, rauc_key, rauc_keyring, rauc_system, ssh_key, dry_run)
    command.check_format(format, rauc, alone=bool(verify or sign or reproduce))
    if verify or sign:
        found = command.verify(verify) if verify else command.sign(sign, key)
    elif reproduce:
        found = command.reproduce(board, kernel=kernel, dtb=dtb, key=key)
    elif format == "rauc":
        found = command.make_rauc(board, rauc, kernel=kernel, dtb=dtb, output=output, key=key)
    else:
        found = command.make(board, kernel=kernel, dtb=dtb, output=output, key=key)
    print_json(found.document) if json else print_text(found.text)


@task(
    help={
        "board": _BOARD,
        "kernel": "series of the distribution's kernel, or build:ID (default: the profile's)",
        "update": "take what is newest now, and show what changed",
        "file": "lock file (default: build/BOARD.lock.json)",
        "dry-run": "show what would be written",
        "json": _JSON,
    }
)
def lock(
    _: Context,
    board: str,
    kernel: str = "",
    update: bool = False,
    file: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Write down every input of a bundle, exactly. Example: ./inv lock --board vim3."""
    from bsp.base.output import print_json, print_text
    from bsp.profile import load_board
    from images.bundle import lock as locks

    found = locks.lock(
        load_board(board), kernel=kernel or None, file=file, update=update, dry_run=dry_run
    )
    print_json(found.document()) if json else print_text(found.text())


@task(
    help={
        "host": _HOSTS,
        "bundle": "folder that the task bundle made (default: one is made for the board)",
        "board": f"{_BOARD}; default: the one that the host says it is",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "dtb": "deploy this DTB as it is, in place of the one that build-dts makes",
        "dtb-only": "only another device tree, with the kernel that the board runs: --dtb, or the running "
        "one with what its NPU lacks",
        "adopt": "take over a board that boots in another way: what it runs becomes its first generation",
        "undo": "give a board that was taken over back to what booted it before",
        "timeout": "seconds that the board may take to come back from a reboot",
        "keep": "generations that stay on the board (default: the inventory's, else 2)",
        "verify": "read all that is on the board, where otherwise it is believed; repair what was changed",
        "verify-every": "the same by itself, each Nth time; 0: never (default: the inventory's, else 10)",
        "skip-health": "confirm what is as sent without checking that it works (docs/deploy.md)",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "allow-downgrade": "an older kernel than the running one is meant",
        "canary": "several hosts: how many come first, all of which have to be well afterwards",
        "wave-size": "several hosts: how many in each further wave (default: a quarter, at least 4)",
        "max-failures": "several hosts: how many may fail before no other is started",
        "jobs": "several hosts: how many at a time, at most",
        "fresh": "several hosts: begin anew where such a run was interrupted",
        "steal": "take the board from a deployment that has it; needs --reason",
        "reason": "why --steal; it stands in the log on the board",
        "dry-run": "show the plan; change nothing",
        "json": _JSON,
    }
)
def deploy(
    _: Context,
    host: str,
    bundle: str = "",
    board: str = "",
    kernel: str = "",
    dtb: str = "",
    dtb_only: bool = False,
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
    json: bool = False,
) -> None:
    """Bring a bundle onto boards, with a way back. Example: ./inv deploy --host vim3."""
    from bsp.remote.groups import means_several
    from images.deploy import show
    from images.deploy.claim import claim_of
    from images.deploy.command import Settings, deploy_to, give_back

    settings = Settings(
        timeout, accept_new_key, not skip_health, keep or None, verify,
        None if verify_every == -1 else verify_every, claim_of(steal=steal, reason=reason),
    )  # fmt: skip
    if means_several(host):
        from bsp.base.errors import UserError
        from bsp.base.output import print_json, print_text
        from images.deploy.fleet import command as fleet_command
        from images.deploy.fleet.waves import Rules

        if adopt or undo or dtb_only:
            raise UserError(
                "--adopt, --undo and --dtb-only take one board at a time", hint="give one --host"
            )
        rules = Rules(canary, wave_size, max_failures, jobs)
        report = fleet_command.deploy_to_all(
            host,
            rules=rules,
            bundle=bundle,
            board=board,
            kernel=kernel,
            dtb=dtb,
            settings=settings,
            allow_downgrade=allow_downgrade,
            fresh=fresh,
            dry_run=dry_run,
        )
        if json:
            print_json(report.document())
        else:
            text = fleet_command.plans_text(report, rules) if dry_run else ""
            print_text(text or fleet_command.report_text(report))
        if report.exit_code:
            raise Exit(code=report.exit_code)
        return
    if undo:
        given = give_back(host, accept_new_key=accept_new_key, dry_run=dry_run)
        show.print_given_back(given, as_json=json)
        return
    result = deploy_to(
        host,
        bundle=bundle,
        board=board,
        kernel=kernel,
        dtb=dtb,
        dtb_only=dtb_only,
        adopt=adopt,
        settings=settings,
        allow_downgrade=allow_downgrade,
        dry_run=dry_run,
    )
    show.print_result(result, as_json=json)
    if result.exit_code:
        raise Exit(code=result.exit_code)


@task(
    help={
        "host": _HOST,
        "to": "another generation that is kept there (see status --json)",
        "timeout": "seconds that the board may take to come back from a reboot",
        "skip-health": "confirm what is as sent without checking that it works (docs/deploy.md)",
        "steal": "take the board from a deployment that has it; needs --reason",
        "reason": "why --steal; it stands in the log on the board",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "dry-run": "show the plan; change nothing",
        "json": _JSON,
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
    json: bool = False,
) -> None:
    """Go back to the generation before this one. Example: ./inv rollback --host vim3."""
    from bsp.remote.inventory import resolve
    from images.deploy import show
    from images.deploy.claim import claim_of
    from images.deploy.deploy import Target
    from images.deploy.deploy import rollback as roll_back

    target = Target(
        resolve(host),
        timeout_s=timeout,
        check_health=not skip_health,
        accept_new_key=accept_new_key,
        claim=claim_of(steal=steal, reason=reason),
    )
    result = roll_back(target, to=to or None, dry_run=dry_run)
    show.print_result(result, as_json=json)
    if result.exit_code:
        raise Exit(code=result.exit_code)


@task(
    help={
        "host": _HOSTS,
        "verify": "read all that is there, and name what was changed",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "json": _JSON,
    }
)
def status(
    _: Context, host: str, verify: bool = False, accept_new_key: bool = False, json: bool = False
) -> None:
    """Show what runs on a board, and what boots next. Example: ./inv status --host vim3."""
    from bsp.base.output import print_json, print_text
    from bsp.remote.groups import means_several
    from bsp.remote.inventory import resolve
    from images.deploy import show
    from images.deploy.deploy import Target
    from images.deploy.deploy import status as status_of

    if means_several(host):
        from images.deploy.fleet import command as fleet_command

        all_found = fleet_command.status_of_all(host, accept_new_key=accept_new_key, verify=verify)
        print_json({"hosts": all_found}) if json else print_text(
            fleet_command.status_text(all_found)
        )
        code = fleet_command.worst(all_found)
        if code:
            raise Exit(code=code)
        return
    found = status_of(Target(resolve(host), accept_new_key=accept_new_key, verify=verify))
    print_json(found) if json else print_text(show.status_text(found))


@task(
    help={
        "board": _BOARD,
        "container": "image that the test runs in, with this project (docs/lab.md)",
        "folder": "where this project is in the image",
        "device-type": "LAVA's name of the kind of board (default: the kernel's name of its device tree)",
        "bundle": "address of a tar of a bundle (default: the container makes one)",
        "bundle-sha256": "that tar's SHA-256",
        "tag": "tag that the device has to have; may be given several times",
        "output": "write the job there (default: print it)",
        "dry-run": "print it in any case; write nothing",
        "json": _JSON,
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
    json: bool = False,
) -> None:
    """Write a LAVA job that deploys and validates. Example: ./inv lava-job --board vim3 --container I."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.profile import load_board
    from bsp.remote.lab import lava

    request = lava.Request(
        load_board(board), container, folder, device_type, bundle, bundle_sha256, tuple(tag)
    )
    found = lava.write(request, Path(output) if output else None, dry_run=dry_run)
    if json:
        print_json({key: value for key, value in found.items() if key != "text"})
    else:
        print_text(found["text"] if dry_run or not output else output)


# --- traces of the virtual NPU ---------------------------------------------------------------


@task(
    help={
        "file": "a trace: smoke-test --npu ... --record FILE, or virtual.up --record FILE",
        "model": "the .tflite file that was run: compare each job with it too",
        "timeout": "seconds that it may take",
        "json": _JSON,
    },
    positional=["file"],
)
def replay(
    _: Context, file: str, model: str = "", timeout: float = 600.0, json: bool = False
) -> None:
    """Run a trace's jobs again; do they write the same? Example: ./inv npu.replay v1.npu."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from virtual.npu.traces import replay as replaying
    from virtual.npu.traces.trace_text import replayed_text

    against = Path(model) if model else None
    found = replaying.replay(Path(file), model=against, timeout_s=timeout)
    print_json(found.as_json()) if json else print_text(replayed_text(found))
    if found.differences or found.blamed:
        raise Exit(code=4)


@task(
    help={
        "file": "a trace: smoke-test --npu ... --record FILE, or virtual.up --record FILE",
        "job": "only the job of this number, with all fields of its descriptor",
        "json": _JSON,
    },
    positional=["file"],
)
def show(_: Context, file: str, job: int = -1, json: bool = False) -> None:
    """Show a trace of the NPU in words. Example: ./inv npu.show v1.npu."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from virtual.npu.traces import show as showing
    from virtual.npu.traces.trace_text import shown_text

    found = showing.show(Path(file), job=job if job >= 0 else None)
    print_json(found.as_json()) if json else print_text(shown_text(found, fields=job >= 0))


# --- disk images -----------------------------------------------------------------------------


@task(
    help={
        "board": _BOARD,
        "bundle": "folder that the task bundle made (default: one is made for the board)",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "distribution": "trixie or bookworm (default: the profile's)",
        "package": "Debian package to install besides; may be given several times",
        "hostname": "name of the board (default: npu-BOARD)",
        "ssh-key": "public key that may log in as root (default: your usual one)",
        "host-key": "the board's own private key, so that it survives flashing (ed25519)",
        "bootloader": "file for the SoC's boot ROM, where the board has none elsewhere",
        "size": "size of the disk: 4G, 3800M",
        "output": "the image (default: build/images/BOARD.img)",
        "dry-run": "say what would be built; write nothing",
        "json": _JSON,
    },
    iterable=["package"],
)
def build_image(
    _: Context,
    board: str,
    bundle: str = "",
    kernel: str = "",
    distribution: str = "",
    package: Any = (),
    hostname: str = "",
    ssh_key: str = "",
    host_key: str = "",
    bootloader: str = "",
    size: str = "4G",
    output: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Build a bootable disk image. Example: ./inv build-image --board vim3 --ssh-key ~/.ssh/id.pub."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.profile import load_board
    from images.disk import image, image_report

    def path(name: str) -> Path | None:
        return Path(name).expanduser() if name else None

    made = image.build_image(
        image.Request(
            board=load_board(board),
            bundle=path(bundle),
            kernel=kernel or None,
            distribution=distribution or None,
            packages=tuple(package),
            hostname=hostname or None,
            ssh_key=path(ssh_key),
            host_key=path(host_key),
            bootloader=path(bootloader),
            size=size,
            output=path(output),
        ),
        dry_run=dry_run,
    )
    print_json(made.as_json()) if json else print_text(image_report.text_of(made))


@task(
    help={
        "device": "block device to write to: /dev/mmcblk1, /dev/sdb",
        "image": "disk image (of build-image, or another; IMAGE.bmap beside it is used)",
        "host": f"where the device is: {_HOST}; this machine if left out",
        "board": "refuse if the host is not this board (default: what the image says)",
        "any-device": "also devices that cannot be taken out of this machine, and plain files",
        "timeout": "seconds that the board may take to answer",
        "accept-new-key": "on first contact, trust the host's key without asking",
        "yes": "do not ask before overwriting the device",
        "dry-run": "say what would be written where; write nothing",
        "json": _JSON,
    }
)
def flash(
    _: Context,
    device: str,
    image: str,
    host: str = "",
    board: str = "",
    any_device: bool = False,
    timeout: float = 60.0,
    accept_new_key: bool = False,
    yes: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Write an image to storage. Example: ./inv flash --host vim3 --device /dev/mmcblk1 --image F."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.profile import load_board
    from bsp.remote.inventory import resolve
    from images.flash import command, show

    result = command.flash(
        command.Request(
            device=device,
            image=Path(image).expanduser(),
            host=resolve(host) if host else None,
            board=load_board(board) if board else None,
            any_device=any_device,
            accept_new_key=accept_new_key,
            timeout_s=timeout,
        ),
        dry_run=dry_run,
        yes=yes,
    )
    print_json(result.as_json()) if json else print_text(show.result_text(result))


# --- virtual boards --------------------------------------------------------------------------


_VIRTUAL = "name of the virtual board (default: the board's)"


@task(
    help={
        "board": f"{_BOARD}; default: virtual",
        "name": "call it this; several run side by side under different names (default: the board's)",
        "port": "port on 127.0.0.1 for SSH (default: a free one)",
        "kernel": "series of the distribution's kernel (default: the profile's)",
        "watchdog": "give it a hardware watchdog that resets it when its kernel hangs",
        "dtb": "device tree, for boards that QEMU starts without a bootloader",
        "disk": "boot from a copy of this image (of build-image, or a flashed one)",
        "identity": "private key that logs in to --disk (default: the image's)",
        "extra-disk": "a second disk: FILE, or FILE:SIZE to make it; written to",
        "record": "record what its NPU does to this file (npu.show, npu.replay)",
        "timeout": "seconds until it has to answer over SSH",
        "dry-run": "say what would be done",
        "json": _JSON,
    }
)
def up(
    _: Context,
    board: str = "virtual",
    name: str = "",
    port: int = 0,
    kernel: str = "",
    disk: str = "",
    identity: str = "",
    extra_disk: str = "",
    watchdog: bool = False,
    dtb: str = "",
    record: str = "",
    timeout: float = 300.0,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Start a virtual board, and wait until it answers. Example: ./inv virtual.up."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from virtual.boards import boards as virtual_boards
    from virtual.boards import report

    if dry_run:
        plan = virtual_boards.plan_up(board, name=name or None)
        print_json(plan) if json else print_text("\n".join(plan["would"]))
        return
    found = virtual_boards.up(
        board,
        name=name or None,
        port=port or None,
        disk=Path(disk) if disk else None,
        identity=Path(identity) if identity else None,
        extra_disk=extra_disk or None,
        watchdog=watchdog,
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        record=Path(record) if record else None,
        timeout_s=timeout,
    )
    print_json(found) if json else print_text(report.text_of(found))


@task(
    help={
        "name": _VIRTUAL,
        "board": "the same, for a virtual board that has its board's name",
        "timeout": "seconds to wait for a clean end before QEMU is ended",
        "dry-run": "say what would be done",
        "json": _JSON,
    }
)
def down(
    _: Context,
    name: str = "",
    board: str = "virtual",
    timeout: float = 60.0,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Shut a virtual board down and remove it. Example: ./inv virtual.down."""
    from bsp.base.output import print_json, print_text
    from virtual.boards import boards as virtual_boards
    from virtual.boards import report

    found = virtual_boards.down(name or board, timeout_s=timeout, dry_run=dry_run)
    print_json(found) if json else print_text(report.text_of_down(found))


@task(
    help={
        "name": _VIRTUAL,
        "board": "the same, for a virtual board that has its board's name",
        "command": "run this there instead of a shell",
    }
)
def ssh(_: Context, name: str = "", board: str = "virtual", command: str = "") -> None:
    """Log in to a virtual board. Example: ./inv virtual.ssh --command 'uname -a'."""
    from virtual.boards import boards as virtual_boards

    words = virtual_boards.ssh_command(name or board, command)
    sys.stdout.flush()
    os.execv(words[0], words)  # noqa: S606 # this terminal becomes the board's


@task(help={"json": _JSON}, name="list")
def list_virtual(_: Context, json: bool = False) -> None:
    """List the virtual boards that are up. Example: ./inv virtual.list."""
    from bsp.base.output import print_json, print_text
    from virtual.boards import boards as virtual_boards
    from virtual.boards import report

    found = virtual_boards.listed()
    print_json(found) if json else print_text(report.text_of_list(found))


@task(
    help={
        "board": _BOARD,
        "kernel": _KERNEL,
        "dtb": "boot this DTB instead of building one",
        "npu-disabled": "build it with the NPU switched off (it must then stay unbound)",
        "npu-rate": "build the device tree with the NPU at this rate, such as 500MHz",
        "timeout": "seconds until the kernel must have answered",
        "json": _JSON,
    }
)
def boot_dts(
    _: Context,
    board: str,
    kernel: str = "",
    dtb: str = "",
    npu_disabled: bool = False,
    npu_rate: str = "",
    timeout: float = 180.0,
    json: bool = False,
) -> None:
    """Boot a device tree in QEMU; is the NPU bound? Example: ./inv boot-dts --board imx8mp-evk."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from bsp.dts.rate import parse_rate
    from bsp.profile import load_board
    from virtual.boards import boot_dts as booting

    result = booting.boot_dts(
        load_board(board),
        kernel=kernel or None,
        dtb=Path(dtb) if dtb else None,
        npu_disabled=npu_disabled,
        npu_rate_hz=parse_rate(npu_rate) if npu_rate else None,
        timeout_s=timeout,
    )
    print_json(result.as_json()) if json else print_text(result.text())
    if result.problems:
        raise Exit(code=4)


# --- all of it -------------------------------------------------------------------------------


@task(
    help={
        "board": f"whose device tree is built: {_BOARD}",
        "kernel": f"for that device tree; {_KERNEL}",
        "virtual-board": "virtual board that the rest runs on",
        "keep": "leave the virtual board running",
        "json": _JSON,
    }
)
def bringup(
    _: Context,
    board: str = "vim3",
    kernel: str = "",
    virtual_board: str = "virtual-a311d",
    keep: bool = False,
    json: bool = False,
) -> None:
    """Go the whole path, end to end, on a virtual board. Example: ./inv bringup."""
    from bsp.base.output import print_json, print_text
    from virtual import bringup as path

    report = path.bringup(board=board, kernel=kernel or None, virtual=virtual_board, keep=keep)
    print_json(report.document()) if json else print_text(report.text())
    if report.exit_code:
        sys.stderr.write(
            f"error: {report.error}\n" + (f"hint: {report.hint}\n" * bool(report.hint))
        )
        raise Exit(code=report.exit_code)


# --- kernels ---------------------------------------------------------------------------------


@task(
    help={
        "board": _BOARD,
        "kernel": _KERNEL,
        "prebuilt": "take the distribution's kernel package, and check the same symbols in it",
        "fragment": "your own configuration on top: FILE, or FILE,FILE",
        "experiment": "patch series marked as experiments, by name",
        "config-only": "stop after the configuration has been compared with what was asked for",
        "llvm": "build with clang and its tools",
        "jobs": "how many compilers at once (default: as many as there are cores)",
        "output": "folder that gets a copy of the result",
        "explain": "say what each symbol is for; build nothing",
        "menuconfig": "change the configuration in the kernel's menus (with --save-fragment)",
        "save-fragment": "write the changes to this file, as a fragment",
        "dry-run": "say what would be done",
        "json": _JSON,
    }
)
def build_kernel(
    _: Context,
    board: str,
    kernel: str = "",
    prebuilt: bool = False,
    fragment: str = "",
    experiment: str = "",
    config_only: bool = False,
    llvm: bool = False,
    jobs: int = 0,
    output: str = "",
    explain: bool = False,
    menuconfig: bool = False,
    save_fragment: str = "",
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Patch, configure, check and cross-build a kernel. Example: ./inv build-kernel --board vim3."""
    from bsp.base.output import print_json, print_text
    from bsp.kernel import command
    from bsp.profile import load_board

    profile = load_board(board)
    options = command.Options(
        kernel, fragment, experiment, prebuilt, llvm, config_only, dry_run, jobs, output
    )
    if explain:
        rows = command.explain(profile, options)
        print_json(rows) if json else print_text(command.explanation_text(rows))
    elif menuconfig or save_fragment:
        saved = command.save_fragment(profile, options, save_fragment, menu=menuconfig)
        print_json(saved) if json else print_text("\n".join(saved["lines"]))
    else:
        found = command.build_kernel_for(profile, options)
        print_json(found) if json else print_text(command.text_of(found))


# --- developers ------------------------------------------------------------------------------


@task(
    help={
        "points": "how many states of the disk to judge",
        "boot": "how many of them to boot really (half a minute each, on an idle machine)",
        "broken": "deploy in a way that is broken on purpose: no-fsync, switch-first",
        "seed": "another seed samples other states",
        "recording": "folder: keep the recording there, or judge the one that is there again",
        "json": _JSON,
    }
)
def crash_test(
    _: Context,
    points: int = 10_000,
    boot: int = 4,
    broken: str = "",
    seed: int = 1,
    recording: str = "",
    json: bool = False,
) -> None:
    """Cut the power at each write of a deployment. Example: ./inv crash-test --points 10000."""
    from pathlib import Path

    from bsp.base.output import print_json, print_text
    from virtual.crash import harness

    report = harness.crash_test(
        points=points, boot=boot, broken=broken, seed=seed,
        keep=Path(recording) if recording else None,
    )  # fmt: skip
    print_json(report.document()) if json else print_text(report.text())
    if report.unbootable:
        raise Exit(code=4)


@task(
    help={
        "fast": "only the fast tier (under 2 minutes)",
        "full": "the long tests too: real kernel builds, whole sweeps (hours)",
        "select": "only tests whose names match (pytest -k)",
        "durations": "list the N slowest tests",
    }
)
def test(
    context: Context, fast: bool = False, full: bool = False, select: str = "", durations: int = 0
) -> None:
    """Run the tests. Example: ./inv test --fast."""
    tier = "not slow and not full" if fast else "" if full else "not full"
    flags = [*(["-m", tier] if tier else []), *(["-k", select] if select else [])]
    if fast:  # each test has folders and servers of its own; the slow ones share boards
        flags += ["-n", "auto"]
    _tool(context, "pytest", *flags, *([f"--durations={durations}"] if durations else []))


@task()
def faults(context: Context) -> None:
    """Put hundreds of deployments through one fault each; writes docs/faults.md. Example: ./inv faults."""
    import os
    from pathlib import Path

    os.environ["NPU_BSP_FAULT_TABLE"] = str(Path(__file__).parent / "docs/faults.md")
    _tool(context, "pytest", "tests/images/deploy/test_faults.py")


@task()
def lint(context: Context) -> None:
    """Check style and types with ruff and mypy. Example: ./inv lint."""
    _tool(context, "ruff", "check", ".")
    _tool(context, "ruff", "format", "--check", ".")
    _tool(context, "mypy")


@task(
    help={
        "name": "which one: a file of bench/ (all are listed without it)",
        "rounds": "how often to repeat (default: the measurement's own)",
        "json": _JSON,
    },
    positional=["name"],
)
def bench(context: Context, name: str = "", rounds: int = 0, json: bool = False) -> None:
    """Measure how fast it is, against its peers. Example: ./inv bench startup."""
    from pathlib import Path

    from bsp.base.errors import UserError
    from bsp.base.output import print_json, print_text

    files = sorted((Path(__file__).parent / "bench").glob("[!_]*.py"))
    known = [file.stem for file in files if "def main(" in file.read_text()]
    if not name:
        print_json(known) if json else print_text("\n".join(known))
        return
    if name not in known:
        raise UserError(f"there is no measurement {name!r}", hint=f"one of: {', '.join(known)}")
    flags = [*(["--rounds", str(rounds)] if rounds else []), *(["--json"] if json else [])]
    _tool(context, f"bench.{name}", *flags)


@task(help={"check": "write nothing; fail if something would change", "json": _JSON})
def docs(_: Context, check: bool = False, json: bool = False) -> None:
    """Write docs/commands.md from the commands, and check all links. Example: ./inv docs."""
    from bsp.base.output import print_json, print_text
    from docs import make

    written = make.make(namespace, check=check)
    print_json({"written": written}) if json else print_text(
        f"written: {', '.join(written)}" if written else "everything is up to date"
    )


def _tool(context: Context, module: str, *arguments: str) -> None:
    """Run a developer's tool of our virtual environment in the project folder."""
    import shlex
    from pathlib import Path

    with context.cd(str(Path(__file__).parent)):
        command = shlex.join([sys.executable, "-m", module, *arguments])
        result = context.run(command, warn=True, in_stream=False)
    if result.exited:
        raise Exit(code=result.exited)


namespace = Collection(
    bench,
    board,
    boards,
    boot_dts,
    bringup,
    build_dts,
    build_image,
    build_kernel,
    build_userspace,
    bundle,
    check_dts,
    crash_test,
    deploy,
    doctor,
    faults,
    flash,
    history,
    lava_job,
    docs,
    lint,
    new_board,
    lock,
    report,
    rollback,
    smoke_test,
    gate_kernel,
    build_delegate,
    gate_mesa,
    status,
    test,
)
namespace.add_collection(Collection("npu", replay, show))
namespace.add_collection(Collection("virtual", up, down, ssh, list_virtual))
