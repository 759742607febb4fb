# SPDX-License-Identifier: MIT
"""Threads end together: what one of them waits for is ended where another fails, or the user gives up."""

from __future__ import annotations

import threading

import pytest

from bsp.base.at_once import at_once, ended_by
from bsp.base.errors import InfrastructureError
from bsp.base.process import run
from bsp.base.spawn import ToolFailedError


def test_a_program_that_a_thread_waits_for_is_ended() -> None:
    began = threading.Event()
    errors: list[ToolFailedError] = []

    def wait() -> None:
        try:
            run(["sleep", "600"], meanwhile=began.set)
        except ToolFailedError as error:
            errors.append(error)

    def give_up() -> None:
        with at_once(2) as pool:
            pool.submit(wait)
            assert began.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert len(errors) == 1
    assert errors[0].completed.exit_code < 0


def test_what_has_not_begun_never_does() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def fail() -> None:
        with at_once(1) as pool:
            pool.submit(gate.wait)
            for number in range(5):
                pool.submit(begun.append, number)
            threading.Timer(0.2, gate.set).start()
            raise ValueError("one fails")

    with pytest.raises(ValueError, match="one fails"):
        fail()
    assert begun == []


def test_nothing_new_is_started_once_the_others_end() -> None:
    gate, holds = threading.Event(), threading.Event()
    refused: list[str] = []

    def hold() -> None:
        with ended_by(gate.set):
            holds.set()
            gate.wait(30)

    def start_late() -> None:
        gate.wait(30)
        try:
            with ended_by(print):
                pass
        except InfrastructureError as error:
            refused.append(error.message)

    def give_up() -> None:
        with at_once(2) as pool:
            pool.submit(hold)
            pool.submit(start_late)
            assert holds.wait(30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        give_up()
    assert refused == ["interrupted"]


def test_outside_a_pool_nothing_is_kept() -> None:
    ended: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        at_once(1),
        ended_by(lambda: ended.append("of the main thread")),
    ):
        raise KeyboardInterrupt
    assert ended == []
