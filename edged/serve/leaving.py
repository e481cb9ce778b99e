"""How a draining worker parts with its connections: the successor takes them, or their clients must connect again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from edged import handover
from edged.serve.app import Api
from edged.serve.http import HttpServer

GRACE_S = 2.0
"""How long to wait for busy connections to become idle, and then for idle clients to hear `Connection: close`."""
AT_ONCE = 64
"""Connections given away in one pass: while that lasts each needs two descriptors."""
_LOOK_S = 0.002


async def stop_accepting(listening: asyncio.Server) -> None:
    """Close the server's descriptors of its sockets, and lose none of the connections it has accepted already.

    `Server.close` alone drops those that were accepted a moment ago: asyncio makes their transports in the next pass of
    the loop, and refuses to for a server that is closed by then (`asyncio.Server._attach`).
    """
    loop = asyncio.get_running_loop()
    for one in listening.sockets:
        loop.remove_reader(one.fileno())
    await asyncio.sleep(0)  # the next pass makes their transports,
    await asyncio.sleep(0)  # and the one after it tells our server of them
    listening.close()


class Leaving:
    """One worker's end. It does not accept any more; what is under way is answered."""

    def __init__(
        self, server: HttpServer, api: Api, successor: socket.socket | None, on_left: Callable[[], None]
    ) -> None:
        """`successor` takes connections; None: there is none, so that clients have to connect again.

        `on_left` is called as soon as the successor has, or will get, whatever clients begin from then on.
        """
        self._server, self._api, self._successor, self._on_left = server, api, successor, on_left
        self._loop = asyncio.get_running_loop()

    async def run(self, until: float) -> None:
        """Part with all connections until the loop time `until`; what is left then is cut off."""
        self._api.draining = True
        if self._successor is not None:
            self._api.succeeded = True
            self._server.part(True)
            await self._give_away(self._successor, min(until, self._loop.time() + GRACE_S))
            self._server.part(False)
        self._server.draining = True
        await self._tell(until)
        await self._server.shutdown(max(0.1, until - self._loop.time()))

    async def _give_away(self, successor: socket.socket, until: float) -> None:
        """Every connection moves as soon as it is idle."""
        told = False
        while self._loop.time() < until:
            idle = self._server.idle_connections(AT_ONCE)
            left = await handover.give(successor, idle, until)
            for connection in left:  # nobody takes them: their clients hear of it from us
                await self._server.adopt(connection)
            if not told and len(idle) < AT_ONCE:
                told = True
                self._on_left()
            if left or not self._server.connections:
                return
            await asyncio.sleep(0 if len(idle) == AT_ONCE else _LOOK_S)

    async def _tell(self, until: float) -> None:
        """Wait until nothing is in flight and idle clients have gone, or have had their time to."""
        patient_until = self._loop.time() + GRACE_S
        while self._server.connections and self._loop.time() < until:
            if not self._server.in_flight and self._loop.time() > patient_until:
                return
            await asyncio.sleep(0.02)
