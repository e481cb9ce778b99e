"""A TCP relay of one bandwidth and one round trip, exact up to some 100 Mbit/s, in user space and without any rights.

`shaped_link` keeps little waiting, so that a sender knows what has left, and can fail; but its chunks wait one by one,
each for a tick of the clock at least, so it ends at some 30 Mbit/s. Here a chunk is told when it arrives. A direction
is one pipe that all connections share: bytes leave it one after the other at the bandwidth and arrive half a round trip
later. A sender that is faster than the pipe is held back, as by a router's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

_CHUNK = 8192
_QUEUE_S = 0.05
"""What may wait before the pipe."""


class LinkShaper:
    """The relay to `host`:`port`, in a thread of its own."""

    def __init__(self, host: str, port: int, mbit: float, rtt_ms: float) -> None:
        """`mbit`: bandwidth of each direction."""
        self.mbit, self.rtt_ms = mbit, rtt_ms
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pipes = (_Pipe(self), _Pipe(self))  # up, down
        self.port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="link-shaper", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def set(self, mbit: float, rtt_ms: float) -> None:
        """Be another link from now on; connections stay open."""
        self.mbit, self.rtt_ms = mbit, rtt_ms

    def close(self) -> None:
        """End the relay and its thread."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            there, back = await asyncio.open_connection(*self._target)
            try:
                for one in (writer, back):
                    one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pipes[0].carry(reader, back))
                    group.create_task(self._pipes[1].carry(there, writer))
            finally:
                back.transport.abort()
        except (OSError, asyncio.CancelledError, ExceptionGroup):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


class _Pipe:
    def __init__(self, link: LinkShaper) -> None:
        self._link = link
        self._free_at = 0.0

    async def carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        """Relay one direction of one connection until its end."""
        clock = asyncio.get_running_loop().time
        arriving: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(_deliver(arriving, sink))
            while data := await source.read(_CHUNK):
                self._free_at = max(clock(), self._free_at) + len(data) * 8e-6 / self._link.mbit
                arriving.put_nowait((self._free_at + self._link.rtt_ms / 2e3, data))
                await asyncio.sleep(max(0.0, self._free_at - clock() - _QUEUE_S))
            arriving.put_nowait((clock() + self._link.rtt_ms / 2e3, b""))


async def _deliver(arriving: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter) -> None:
    clock = asyncio.get_running_loop().time
    while True:
        at, data = await arriving.get()
        await asyncio.sleep(max(0.0, at - clock()))
        if not data:
            with contextlib.suppress(OSError, RuntimeError):
                sink.write_eof()
            return
        sink.write(data)
        await sink.drain()
