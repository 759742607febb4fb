# SPDX-License-Identifier: MIT
"""Answers what a coordinator knows, a question a line; runs in the environment that has labgrid."""

from __future__ import annotations

import asyncio
import sys

from labgrid.remote.client import ClientSession
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages


async def main() -> None:
    loop = asyncio.get_running_loop()
    session = ClientSession(sys.argv[1], loop)
    await session.start()
    while question := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        if question == "reservations":
            found = await session.stub.GetReservations(messages.GetReservationsRequest())
            answer = str(len(found.reservations))
        elif question == "resources":
            groups = [group for each in session.resources.values() for group in each.values()]
            answer = str(sum(len(group) for group in groups))
        else:
            await session.sync_with_coordinator()
            answer = str(session.places[question].acquired)
        print(answer, flush=True)
    session.stopping.set()
    await session.stop()


asyncio.run(main())
