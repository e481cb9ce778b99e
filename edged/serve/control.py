"""The worker's end of the control channel: envelopes over the socket pair that the supervisor made."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator

import msgspec

from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.messages import Event, FromWorker, Level, ToWorker, WorkerReport

log = logging.getLogger("edged.serve")

MAX_UNSENT = 1 << 20
"""Bytes that may wait for a supervisor that does not read; reports are skipped beyond that."""
_READ = 65_536

_decoder: msgspec.json.Decoder[ToWorker] = msgspec.json.Decoder(ToWorker)


class ControlChannel:
    """Messages to and from the supervisor. Created on the event loop by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, descriptor: int) -> ControlChannel:
        """Take over the inherited descriptor. Raises OSError if it is no connected unix socket."""
        control = socket.socket(fileno=descriptor)
        control.setblocking(False)
        control.set_inheritable(False)
        return cls(*await asyncio.open_unix_connection(sock=control))

    async def messages(self) -> AsyncIterator[ToWorker]:
        """Every message until the supervisor closes its end. Raises EnvelopeError or DecodeError for nonsense."""
        frames = FrameReader(max_payload=0)
        while True:
            try:
                data = await self._reader.read(_READ)
            except ConnectionError:
                return
            if not data:
                return
            for header, _ in frames.feed(data):
                yield _decoder.decode(header)

    def send(self, message: FromWorker) -> None:
        """Queue one message; from the event loop only. A supervisor that is gone does not mind."""
        if self._writer.is_closing():
            return
        if isinstance(message, WorkerReport) and self._writer.transport.get_write_buffer_size() > MAX_UNSENT:
            return
        try:
            self._writer.write(seal(message))
        except EnvelopeError as error:
            log.error("a message to the supervisor is too large: %s", error)

    def notify(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        """Send an Event; from any thread."""
        self.tell(Event(level=level, code=code, text=text, at=time.time(), passing=passing))

    def tell(self, message: FromWorker) -> None:
        """`send` from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.send, message)
        except RuntimeError:  # the loop is closed: there is nobody to tell
            log.warning("%s", message)

    async def flush(self) -> None:
        """Wait until what was sent has left, then close."""
        try:
            async with asyncio.timeout(1.0):
                await self._writer.drain()
                self._writer.close()
                await self._writer.wait_closed()
        except (TimeoutError, ConnectionError):
            return
