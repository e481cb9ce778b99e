"""One body at a time on the uplink: who decides whose turn it is, and how to know that a body has left the device."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from edgekit.messages import HardSample

LOOK_S = 0.002
"""How often to look whether a body has left. No event of the kernel says so."""

_TCP_INFO_SIZE = 256
_BYTES_ACKED = struct.Struct("=120xQ")  # tcpi_bytes_acked in Linux' struct tcp_info, from 4.1 on


class Turns(Protocol):
    """Who may send a body now. Every `begin` that returns is followed by one `end`, with at most one `sent` between."""

    async def begin(self, header: HardSample, size: int) -> object:
        """Wait until this body of about `size` bytes is next; gives a key for it. Raises UplinkError if it never is."""
        ...

    def sent(self, key: object, fresh: bool) -> None:
        """All of it has left the device: cloudd's host has acknowledged it, or answered. The next one may go.

        `fresh`: its connection was opened for it, so its time holds a handshake.
        """
        ...

    def end(self, key: object) -> None:
        """Its request is over, however it ended."""
        ...


class Leaving:
    """Watches one body leave: `sent` is called once, as soon as its bytes are acknowledged."""

    def __init__(self, size: int, sent: Callable[[bool], None]) -> None:
        """`size`: bytes of the body. Those of TLS and HTTP are a few hundred more and are not told apart."""
        self._size, self._sent = size, sent
        self._fresh = False
        self._task: asyncio.Task[None] | None = None

    def connected(self, transport: asyncio.BaseTransport | None, fresh: bool) -> None:
        """It will go over this connection, from now on. A second call means that it starts again on a fresh one."""
        self.stop()
        self._fresh = fresh
        self._task = asyncio.create_task(self._watch(transport))

    def over(self) -> None:
        """The reply is there, so the body is too."""
        if self._task is not None and not self._task.done():
            self.stop()
            self._sent(self._fresh)

    def stop(self) -> None:
        """Nobody wants to know any more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, transport: asyncio.BaseTransport | None) -> None:
        end = acknowledged(transport) + self._size
        while not transport_is_closing(transport):
            await asyncio.sleep(LOOK_S)
            if acknowledged(transport) >= end:
                self._sent(self._fresh)
                return


def acknowledged(transport: asyncio.BaseTransport | None) -> int:
    """Bytes of this connection that the other host has acknowledged since it was opened; 0 if nobody knows."""
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return 0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:
        return 0
    return int(_BYTES_ACKED.unpack_from(info)[0]) if len(info) >= _BYTES_ACKED.size else 0


def transport_is_closing(transport: asyncio.BaseTransport | None) -> bool:
    """Nothing more will be acknowledged."""
    return transport is None or transport.is_closing()
