# SPDX-License-Identifier: MIT
"""Validation: does the NPU compute right, why does it not work, has it become slower?"""

from __future__ import annotations

from invoke.context import Context

from bsp.base.result import FAILED_VALIDATION, Answer, Result

from .face.command import command
from .face.flags import ACCEPT_NEW_KEY, ANY_MESA, BOARD, HOST, HOSTS


@command(
    help={
        "test": "label_image, or detect: a model that finds objects",
        "host": f"{HOST}; this machine if left out",
        "npu": "virtual:a311d, virtual:imx8mp or virtual:rk3588: this machine, with an emulated NPU",
        "exact": "with --npu: use TFLite's arithmetic instead of the hardware's predicted rounding",
        "strict": "with --npu: poison new memory, and fail the row where a job contradicts the model",
        "mesa": f"with --npu: {ANY_MESA}; with --rusticl: folder of ./inv build-mesa --opencl",
        "record": "with --npu: write a trace of the NPU's jobs to this file (npu.show, npu.replay)",
        "delegate": "all, cpu, cpu-reference, teflon, opencl, tim-vx, or PATH[:key=value;key=value]; "
        "several: separated by commas, or the flag repeated",
        "env": "NAME=VALUE for the delegates, such as RUSTICL_ENABLE=etnaviv; may be repeated",
        "model": "name of a known model, or a .tflite file",
        "image": "name of a known image, or a BMP file",
        "size": "HEIGHTxWIDTH for a model that takes pictures of any size (default: 224x224)",
        "profile": "take the time of each operation on the NPU, too",
        "quick": "a small model of this project on the NPU, three runs: does it work at all?",
        "runs": "measure at most this many runs of each delegate",
        "threads": "CPU threads (default: all cores)",
        "budget": "spend at most this many seconds on measured runs of each delegate",
        "views": "compare at most this many crops and flips of the picture with the reference",
        "timeout": "seconds after which a delegate is considered hung",
        "userspace": "folder of a payload on the host (default: the deployed one)",
        "rusticl": "send Mesa's OpenCL driver along: Debian's, or with --mesa one that was built here",
        "report": "write an HTML page there, with history and doctor; .json and .xml beside it",
        "junit": "write the results as JUnit XML there",
        "accept-new-key": ACCEPT_NEW_KEY,
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
    mesa: str = "",
    record: str = "",
    delegate: list[str] | None = None,
    env: list[str] | None = None,
    model: str = "",
    image: str = "",
    profile: bool = False,
    quick: bool = False,
    size: str = "",
    runs: int = 50,
    threads: str = "",
    budget: float = 20.0,
    views: int = 8,
    timeout: float = 300.0,
    userspace: str = "",
    rusticl: bool = False,
    report: str = "",
    junit: str = "",
    accept_new_key: bool = False,
) -> Result:
    """Run a model with each delegate and judge it. Example: ./inv smoke-test label_image."""
    from pathlib import Path

    from bsp.remote.inventory import resolve
    from userspace.npu.report import files as report_files
    from userspace.npu.report.report import text_of
    from userspace.npu.validate import smoke
    from userspace.npu.validate.fixed_size import size_of
    from userspace.npu.validate.label_image import SmokeTestRequest, environment_of, threads_of
    from userspace.npu.validate.label_image import quick as made_quick
    from virtual.npu.shim.place import virtual_npu

    targets = report_files.ReportTargets.of(report, junit)
    board_host = resolve(host) if host else None
    request = SmokeTestRequest(
        delegate=",".join(delegate or ["all"]),
        environment=environment_of(env or []),
        model=model or None,
        image=image or None,
        runs=runs,
        threads=threads_of(threads),
        budget_s=budget,
        views=views,
        timeout_s=timeout,
        test=test,
        size=size_of(size),
        profile=profile,
    )
    document = smoke.smoke_test(
        test,
        made_quick(request) if quick else request,
        host=board_host,
        userspace=userspace or None,
        accept_new_key=accept_new_key,
        rusticl=rusticl,
        mesa=mesa if rusticl and not npu else "",
        place=virtual_npu(
            npu,
            exact=exact,
            strict=strict,
            record=Path(record) if record else None,
            mesa=mesa if npu or not rusticl else "",
        ),
    )
    unwritten = report_files.after_run(document, board_host, targets)
    code = 0 if document["verdict"] == "pass" else FAILED_VALIDATION
    if unwritten is not None:
        return Answer(document, text_of(document), code or unwritten.exit_code, unwritten.lines())
    return Answer(document, text_of(document), code)


@command(
    help={
        "host": f"{HOSTS}; this machine if left out",
        "board": f"{BOARD}; default: the one that the host says it is",
        "userspace": "folder of a payload on the host (default: the deployed one)",
        "accept-new-key": ACCEPT_NEW_KEY,
    }
)
def doctor(
    _: Context,
    host: str = "",
    board: str = "",
    userspace: str = "",
    accept_new_key: bool = False,
) -> Result:
    """Say why the NPU does not work, and what to do. Example: ./inv doctor --host vim3."""
    from bsp.remote.groups import is_multi_host
    from bsp.remote.inventory import Host, resolve
    from userspace.npu.doctor import doctor as examination
    from userspace.npu.doctor.records import DoctorDocument

    if is_multi_host(host):
        from images.deploy.fleet import command as fleet_command

        def examine(each: Host) -> DoctorDocument:
            return examination.doctor(
                each,
                board=board or each.board,
                userspace=userspace or None,
                accept_new_key=accept_new_key,
            )

        documents = fleet_command.doctor_of_all(host, examine)
        text = fleet_command.doctor_text(documents)
        return Answer({"hosts": documents}, text, fleet_command.worst(documents, "first_broken"))
    document = examination.doctor(
        resolve(host) if host else None,
        board=board or None,
        userspace=userspace or None,
        accept_new_key=accept_new_key,
    )
    code = FAILED_VALIDATION if document["first_broken"] else 0
    return Answer(document, examination.text(document), code)


@command(
    help={
        "host": f"{HOST}; this machine if left out",
        "output": "HTML file; .json and .xml (JUnit) go beside it (default: build/report-HOST.html)",
        "no-doctor": "leave the doctor's checks out",
        "accept-new-key": ACCEPT_NEW_KEY,
    }
)
def report(
    _: Context,
    host: str = "",
    output: str = "",
    no_doctor: bool = False,
    accept_new_key: bool = False,
) -> Result:
    """Write a host's checks, results and history as HTML. Example: ./inv report --host vim3."""
    from pathlib import Path

    from bsp.remote.inventory import resolve
    from userspace.npu.report import files as report_files

    document = report_files.report(
        resolve(host) if host else None,
        Path(output) if output else None,
        ask_doctor=not no_doctor,
        accept_new_key=accept_new_key,
    )
    return Answer(document, report_files.text(document))


@command(
    help={
        "host": f"{HOST}; this machine if left out",
        "check": "end with exit code 4 if the newest runs are slower",
    }
)
def history(_: Context, host: str = "", check: bool = False) -> Result:
    """Say whether a host became slower. Example: ./inv history --host vim3."""
    from userspace.npu.report import history as past
    from userspace.npu.report import regression

    document = regression.document(past.need(host or past.THIS_MACHINE))
    slower = check and document["verdict"] == "slower"
    return Answer(document, regression.text(document), FAILED_VALIDATION if slower else 0)
