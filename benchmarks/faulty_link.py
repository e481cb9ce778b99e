"""A TCP relay between a device and cloudd whose faults can be switched while it runs: what a bad link does, on demand.

healthy    relays
refused    the port is closed
hung       accepts and relays nothing, in either direction; open connections freeze as well (half-open)
slow       relays at a few hundred bytes a second
reset      accepts, then resets the connection

`forget` is a fault of another kind: what is open relays nothing any more, for ever and without a word, and new
connections work. A firewall that lost its table does that, and so does a peer that lost its power (half-open).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Literal

Fault = Literal["healthy", "refused", "hung", "slow", "reset"]
SLOW_BYTES, SLOW_PAUSE_S = 64, 0.2


class FaultyLink:
    """The relay, in a thread of its own. `port` stays the same through all faults."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self._target = (target_host, target_port)
        self._fault: Fault = "healthy"
        self._changed = asyncio.Event()
        self._forgotten = 0  # connections of a generation below this one relay nothing
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.relayed = 0  # bytes, both directions
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-link", daemon=True)
        self._thread.start()
        self._call(self._listen())

    def _call(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)  # type: ignore[arg-type]

    def set(self, fault: Fault) -> None:
        """Switch. Connections that are open are frozen, slowed down, or (healthy again) left to go on."""
        self._call(self._set(fault))

    async def _set(self, fault: Fault) -> None:
        if fault == "refused" and self._server is not None:
            self._server.close()
            self._server = None
        if fault in ("refused", "reset"):
            for task in self._tasks:
                task.cancel()
        self._fault = fault
        self._changed.set()
        self._changed = asyncio.Event()
        if fault != "refused" and self._server is None:
            await self._listen()

    def forget(self) -> None:
        """Freeze every connection that is open now, for good; neither side hears of it."""
        self._call(self._forget())

    async def _forget(self) -> None:
        self._forgotten += 1

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "reset":
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        generation = self._forgotten
        try:
            await self._until_it_may_pass(generation)
            there, back = await asyncio.open_connection(*self._target)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._relay(reader, back, generation))
                    group.create_task(self._relay(there, writer, generation))
            finally:
                back.transport.abort()
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _until_it_may_pass(self, generation: int) -> None:
        while self._fault == "hung" or generation < self._forgotten:
            await self._changed.wait()

    async def _relay(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, generation: int) -> None:
        while data := await source.read(65_536):
            await self._until_it_may_pass(generation)
            self.relayed += len(data)
            if self._fault == "slow":
                for at in range(0, len(data), SLOW_BYTES):
                    sink.write(data[at : at + SLOW_BYTES])
                    await sink.drain()
                    if self._fault == "slow":
                        await asyncio.sleep(SLOW_PAUSE_S)
            else:
                sink.write(data)
                await sink.drain()
        await self._until_it_may_pass(generation)  # nor does the end of a connection
        with contextlib.suppress(OSError, RuntimeError):
            sink.write_eof()

    async def _end(self) -> None:
        await self._set("refused")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """End the relay and its thread."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
