# SPDX-License-Identifier: MIT
"""A smoke test on this machine or on a host: what ``./inv smoke-test`` and ``./inv bringup`` call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bsp.board.inventory import Host
from bsp.board.ssh import connect
from bsp.profile import load_board

from . import label_image, models
from .delegates import rows
from .machine import DEPLOYED_USERSPACE, BoardMachine, ThisMachine

_CONNECT_TIMEOUT_S = 30


def smoke_test(
    test: str,
    request: label_image.Request,
    *,
    host: Host | None = None,
    userspace: str | None = None,
    accept_new_key: bool = False,
) -> dict[str, Any]:
    """Run a smoke test and return its document.

    Args:
        host: None runs on this machine, with this Python.
        userspace: folder of a payload there; None takes what was deployed, or, on this machine, this
            Python's own packages.

    Raises:
        UserError: unknown test, delegate, model or image; nothing was deployed to the host.
        InfrastructureError: the host cannot be reached, or the runner does not work there.
    """
    label_image.check_name(test)
    rows(request.delegate)
    if host is None:
        folder = Path(userspace) if userspace else None
        return label_image.smoke_test(ThisMachine(userspace=folder), request)
    profile = load_board(host.board) if host.board else None
    # Before the connection, so that what is missing here is said at once.
    inputs = models.choose(request.model, request.image)
    with connect(host, timeout_s=_CONNECT_TIMEOUT_S, accept_new_key=accept_new_key) as connection:
        machine = BoardMachine(
            connection, name=host.name, userspace=userspace or DEPLOYED_USERSPACE
        )
        return label_image.smoke_test(
            machine,
            request,
            host=host.name,
            board=host.board,
            min_delegated_share=profile.userspace.min_delegated_share
            if profile
            else label_image.DEFAULT_MIN_DELEGATED_SHARE,
            inputs=inputs,
        )
