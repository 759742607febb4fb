# SPDX-License-Identifier: MIT
"""A smoke test on this machine or on a host: what ``./inv smoke-test`` and ``./inv bringup`` call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bsp.base.errors import BspError, UserError
from bsp.base.progress import say
from bsp.catalog import load_board, load_soc, npu_of
from bsp.profile import Board
from bsp.remote.inventory import Host
from bsp.remote.ssh import connect

from ..mesa.manifest import BuiltMesa, named_mesa
from ..model.faults.known_wrong import before_a_run, npu_of_soc
from ..report import files as report_files
from ..report import history
from . import label_image, models
from .conditions import after, conditions
from .delegates import OPENCL, rows
from .judge.verdict import Figure
from .machine import DEPLOYED_USERSPACE, BoardMachine, ThisMachine
from .records import Conditions, SmokeDocument

_CONNECT_TIMEOUT_S = 30
_NPU_OF_BOARD = "this board has an NPU (./inv doctor says what is wrong)"
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Place(Protocol):
    """Where a smoke test runs, where that is neither this machine nor a host: a command hands it down."""

    def smoke_test(self, request: label_image.SmokeTestRequest) -> SmokeDocument:
        """Run the test there, and return its document."""


def smoke_test(
    test: str,
    request: label_image.SmokeTestRequest,
    *,
    host: Host | None = None,
    userspace: str | None = None,
    accept_new_key: bool = False,
    rusticl: bool = False,
    mesa: str = "",
    place: Place | None = None,
) -> SmokeDocument:
    """Run a smoke test and return its document.

    Args:
        rusticl: the OpenCL row runs on a driver that is sent to the host; emulated boards always get it.
        mesa: folder of ``build-mesa --opencl`` whose driver is sent in place of the distribution's.
        host: None runs on this machine, with this Python.
        userspace: folder of a payload there; None takes what was deployed, or, on this machine, this
            Python's own packages.
        place: another place to run at, such as an emulated NPU; it goes with neither of the two.

    Raises:
        UserError: unknown test, delegate, model or image; nothing was deployed to the host.
        InfrastructureError: the host cannot be reached, or the runner does not work there.
    """
    label_image.check_name(test)
    request = replace(request, test=test)
    rows(request.delegate)
    if place is not None:
        if host is not None or userspace is not None:
            raise UserError(
                "--npu is an NPU of this machine's own: it goes with neither --host nor --userspace"
            )
        return place.smoke_test(request) | {"emulated": True}
    built = _with_opencl(mesa, host)
    if host is None:
        folder = Path(userspace) if userspace else None
        before = conditions(None)
        document = label_image.smoke_test(ThisMachine(userspace=folder), request)
        return _remembered(document, after(before, None))
    # Before the connection, so that what is missing here is said at once.
    profile = load_board(host.board) if host.board else None
    inputs = label_image.choose(request)
    with connect(host, timeout_s=_CONNECT_TIMEOUT_S, accept_new_key=accept_new_key) as connection:
        machine = BoardMachine(
            connection, name=host.name, userspace=userspace or DEPLOYED_USERSPACE
        )
        before = conditions(connection)
        emulated = profile is not None and _emulated(host, profile)
        document = _on_board(
            machine, request, inputs, host, profile, emulated=emulated, rusticl=rusticl, mesa=built
        )
        return _remembered(document, after(before, connection), emulated=emulated)


def _on_board(
    machine: BoardMachine,
    request: label_image.SmokeTestRequest,
    inputs: models.Inputs,
    host: Host,
    profile: Board | None,
    *,
    emulated: bool,
    rusticl: bool,
    mesa: BuiltMesa | None,
) -> SmokeDocument:
    """Run the test on a connected board, with what its profile expects of its NPU."""
    if npu := npu_of_soc(profile.soc) if profile else "":
        use = f"./inv deploy --host {host.name} --mesa FOLDER"
        content = inputs.model.path.read_bytes()
        for line in before_a_run(content, npu, machine.mesa(), use=use):
            say(line)
    opencl, driver = _opencl_on(machine, request, rusticl=rusticl or emulated, mesa=mesa)
    if opencl and emulated:
        request = _with_llvmpipe(request)
    return label_image.smoke_test(
        machine,
        request,
        host=host.name,
        board=host.board,
        min_delegated_share=profile.userspace.min_delegated_share
        if profile
        else label_image.DEFAULT_MIN_DELEGATED_SHARE,
        inputs=inputs,
        opencl=opencl,
        rusticl=driver,
        published=_published(profile) if profile and not emulated else [],
        npu_expected=_NPU_OF_BOARD if profile and _has_npu(profile, emulated=emulated) else "",
    )


def _with_opencl(folder: str, host: Host | None) -> BuiltMesa | None:
    """Return the Mesa whose OpenCL driver is to be sent; None: the distribution's.

    Raises:
        UserError: it has none, or there is no host to send it to.
    """
    built = named_mesa(folder)
    if built is None:
        return None
    if host is None:
        raise UserError("--rusticl --mesa sends an OpenCL driver to a host", hint="add --host NAME")
    if built.opencl is None:
        raise UserError(
            f"{built.folder} has no OpenCL driver: it was built without --opencl",
            hint="./inv build-mesa --opencl; without --mesa, Debian's is sent",
        )
    return built


def _opencl_on(
    machine: BoardMachine,
    request: label_image.SmokeTestRequest,
    *,
    rusticl: bool,
    mesa: BuiltMesa | None,
) -> tuple[str | None, str | None]:
    """Return the folders of the OpenCL delegate and of its driver on a board.

    They are sent if the delegate was built and is asked for, the driver if ``rusticl`` wants it.
    """
    if not any(name.partition(":")[0] == OPENCL for name in rows(request.delegate)):
        return None, None
    from ..opencl import build
    from ..opencl import rusticl as driver

    delegate = build.built()
    if delegate is None:
        return None, None
    delegate_folder = machine.place_folder(delegate.folder)
    return delegate_folder, machine.place_folder(driver.build(mesa)) if rusticl else None


def _with_llvmpipe(request: label_image.SmokeTestRequest) -> label_image.SmokeTestRequest:
    """Have an emulated board's OpenCL run on the CPU, unless the user says which driver is to.

    Mesa docs/rusticl.rst: no driver is enabled by itself; llvmpipe calls itself a CPU, TFLite wants a GPU.
    """
    environment = dict(request.environment)
    if "RUSTICL_ENABLE" in environment:
        return request
    environment |= {"RUSTICL_ENABLE": "llvmpipe", "RUSTICL_DEVICE_TYPE": "gpu"}
    return replace(request, environment=tuple(environment.items()))


def npu_on(host: Host) -> str:
    """Return the NPU of a host's board, as reports name it; "" where its profile names none."""
    return npu_of_soc(load_board(host.board).soc) if host.board else ""


def is_emulated(host: Host) -> bool:
    """Whether a host is QEMU's; False where its board is not known yet."""
    return host.board is not None and _emulated(host, load_board(host.board))


def _emulated(host: Host, profile: Board) -> bool:
    """Whether a host is QEMU's: a profile may stand for a real board and for its emulation."""
    return profile.qemu is not None and host.address in _LOOPBACK


def _has_npu(profile: Board, *, emulated: bool) -> bool:
    """Whether a board is to have a working NPU: by its profile, or, emulated, by its emulator."""
    if emulated and not (profile.qemu and profile.qemu.npu):
        return False
    npu = npu_of(profile)
    return npu is not None and npu.enabled


def _published(profile: Board) -> list[tuple[str, Figure]]:
    """Return the published figures of a board's SoC."""
    return [
        (each.model, Figure(each.delegate, each.median_ms, each.source))
        for each in load_soc(profile.soc).published
    ]


def _remembered(
    document: SmokeDocument, run_conditions: Conditions, *, emulated: bool = False
) -> SmokeDocument:
    """Add a run and its conditions to the host's history; where that fails, the result still counts."""
    document["emulated"] = emulated
    document["conditions"] = run_conditions
    try:
        history.append(document["host"], history.entry_of(document, run_conditions))
        report_files.remember(document)
    except (BspError, OSError) as error:
        say(f"this run is not in the history: {error}")
    return document
