"""A TCP relay between a device and cloudd with a bandwidth upwards, a delay both ways, and outages, on demand.

All connections share the uplink, as they would behind one modem: a chunk leaves when those before it have left. What
has not left is not read, and little waits in between (some 16 KiB: small receive buffers, short segments), so what the
device's kernel counts as acknowledged has nearly left. An outage is silent: what is open then relays nothing any more.
"""

from __future__ import annotations

import asyncio
import socket
import time

from benchmarks.faulty_link import FaultyLink

CHUNK = 4096
RECEIVE_BUFFER = 8192
SEGMENT = 1400
IN_FLIGHT = 64
"""Chunks that may be under way in one connection."""


class ShapedLink(FaultyLink):
    """The relay, in a thread of its own."""

    def __init__(self, target_host: str, target_port: int, bytes_per_s: float, delay_s: float) -> None:
        """`delay_s`: each way."""
        self._bytes_per_s, self._delay_s = bytes_per_s, delay_s
        self._free_at = 0.0
        super().__init__(target_host, target_port)

    def drop(self) -> None:
        """The link is down: nothing comes through, and nothing that is under way will."""
        self.forget()
        self.set("hung")

    def restore(self) -> None:
        """New connections work again."""
        self.set("healthy")

    async def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        listener.bind(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)
        self.port = listener.getsockname()[1]

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int) -> None:
        upwards = sink.get_extra_info("peername")[:2] == self._target
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(line, sink, generation))
            while data := await source.read(CHUNK):
                if upwards:
                    await self._leave(len(data))
                await line.put((time.monotonic() + self._delay_s, data))
            await line.put((0.0, b""))

    async def _leave(self, size: int) -> None:
        """Wait until so many more bytes have gone through the uplink."""
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / self._bytes_per_s
        await asyncio.sleep(self._free_at - now)

    async def _deliver(
        self, line: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter, generation: int
    ) -> None:
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._until_it_may_pass(generation)
            if not data:
                break
            self.relayed += len(data)
            sink.write(data)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
