"""Idle connections move from a worker to its successor, so that a swap disconnects no keep-alive client.

The supervisor makes one pair of SOCK_SEQPACKET sockets a worker: the worker has the sending end, the supervisor keeps
the receiving end and gives a copy of it to the successor. What was sent and not yet received belongs to the kernel; it
outlives both workers as long as the supervisor has its end open. Every message is one byte with descriptors beside it
(SCM_RIGHTS). Nothing here waits in the event loop's thread.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger("edged.handover")

AT_ONCE = 32
"""Descriptors in one message; the kernel's own limit is 253."""
_ROUNDS = 8
"""Messages received in one pass of the event loop."""
_PAUSE_S = 0.01
"""Between two tries while the kernel holds as many descriptors on their way as it will."""
_FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS)
_ANCILLARY = socket.CMSG_SPACE(AT_ONCE * array.array("i").itemsize)


def pair() -> tuple[socket.socket, socket.socket]:
    """(sending end, receiving end), both non-blocking. Raises OSError."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending.setblocking(False)
    receiving.setblocking(False)
    return sending, receiving


def inherited(descriptor: int) -> socket.socket | None:
    """The end that a worker was started with; None for -1 or for what is no such socket."""
    if descriptor < 0:
        return None
    try:
        end = socket.socket(fileno=descriptor)
    except OSError as error:
        log.warning("the socket for the hand-over of connections cannot be used: %s", error)
        return None
    end.setblocking(False)
    end.set_inheritable(False)
    return end


async def give(sending: socket.socket, connections: Sequence[socket.socket], until: float) -> list[socket.socket]:
    """Send `connections` and close our copies; those that could not be sent by the loop time `until` come back."""
    loop = asyncio.get_running_loop()
    left = list(connections)
    while left:
        part = left[:AT_ONCE]
        try:
            socket.send_fds(sending, [b"\0"], [connection.fileno() for connection in part])
        except OSError as error:
            if error.errno not in _FULL or loop.time() > until:
                log.info("%d connections could not be handed over: %s", len(left), error)
                return left
            await asyncio.sleep(_PAUSE_S)
            continue
        for connection in part:
            connection.close()
        del left[: len(part)]
    return left


class Receiver:
    """Takes connections from the worker before as they come. Create and close it on the event loop."""

    def __init__(self, receiving: socket.socket, adopt: Callable[[socket.socket], Awaitable[None]]) -> None:
        """`adopt` owns each socket from then on, also if it raises."""
        self._receiving, self._adopt = receiving, adopt
        self._loop = asyncio.get_running_loop()
        self._adopting: set[asyncio.Task[None]] = set()
        self.received = 0
        self._loop.add_reader(receiving, self._read, _ROUNDS)

    async def close(self) -> None:
        """Take what is there already, then no more."""
        if self._receiving.fileno() >= 0:
            self._read(1 << 16)
        self._end()
        if self._adopting:
            await asyncio.wait(self._adopting)

    def _end(self) -> None:
        if self._receiving.fileno() < 0:
            return
        self._loop.remove_reader(self._receiving)
        self._receiving.close()

    def _read(self, rounds: int) -> None:
        for _ in range(rounds):
            try:
                data, ancillary, flags, _ = self._receiving.recvmsg(1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("the hand-over of connections ended: %s", error)
                data, ancillary, flags = b"", [], 0
            for connection in _connections(ancillary):
                self.received += 1
                task = self._loop.create_task(self._take(connection))
                self._adopting.add(task)
                task.add_done_callback(self._adopting.discard)
            if flags & socket.MSG_CTRUNC:
                log.warning("connections were lost on their way: this process has no room for more descriptors")
            if not data:  # nobody can send any more
                self._end()
                return

    async def _take(self, connection: socket.socket) -> None:
        try:
            await self._adopt(connection)
        except Exception as error:  # one connection's trouble is not the others'
            log.info("a connection could not be taken over: %s", error)
            connection.close()


def _connections(ancillary: Sequence[tuple[int, int, bytes]]) -> list[socket.socket]:
    """The TCP connections among what was sent; anything else is closed."""
    found: list[socket.socket] = []
    for level, kind, data in ancillary:
        if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            continue
        descriptors = array.array("i")
        descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        for descriptor in descriptors:
            try:
                connection = socket.socket(fileno=descriptor)
            except OSError:  # it is not even a socket
                os.close(descriptor)
                continue
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                with contextlib.suppress(OSError):
                    connection.getpeername()
                    connection.setblocking(False)
                    found.append(connection)
                    continue
            connection.close()
    return found
