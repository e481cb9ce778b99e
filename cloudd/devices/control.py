"""The control channel: one WebSocket a device; desired state down, reported state up, a heartbeat that means "online".

hello -> welcome, desired (if it differs from what the device follows), then a report at least every heartbeat. The
newest connection of a device wins: after a power cut the old one may look alive for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from cloudd.devices.fleet import Fleet, revoked_text
from cloudd.web import DEVICE_ID, STORAGE_ERRORS, HttpProblem
from edgekit.messages import PROTOCOL, Desired, Hello, Message, Notice, Report, ToCloud, Welcome

log = logging.getLogger("cloudd.control")

MAX_MESSAGE = 256 * 1024
"""Bytes of one message of a device. A report of 100 services takes 40 KiB."""
_HELLO_S = 10.0
_SEND_S = 10.0
_REPORT_PAUSE_S = 0.1  # a device that sends reports in a loop is read, and written to disk, ten times a second
_MISSED_HEARTBEATS = 3
_DECODER: msgspec.json.Decoder[ToCloud] = msgspec.json.Decoder(ToCloud)

CLOSE_PROTOCOL, CLOSE_SUPERSEDED, CLOSE_REVOKED = 4000, 4001, 4003


class ProtocolError(Exception):
    """The device sent something that does not belong there."""


class _Ending(NamedTuple):
    """The channel shall end: with this close code, and a last word if there is one."""

    code: int
    notice: Notice | None = None


def _revoked(device: str) -> _Ending:
    return _Ending(CLOSE_REVOKED, Notice(code="revoked", text=revoked_text(device)))


class _Channel:
    """One open WebSocket. Sending is serialised and bounded in time, so a device that does not read delays nobody.

    Only the handler closes it, because aiohttp skips the closing handshake when another task does; others ask for it.
    """

    def __init__(self, socket: web.WebSocketResponse, device: str) -> None:
        self.socket, self.device = socket, device
        self.asked: asyncio.Future[_Ending] = asyncio.get_running_loop().create_future()
        self.gone = asyncio.Event()
        # Desired state is read and sent under it: else a slow sender's older state could arrive last and stay.
        self.telling = asyncio.Lock()
        self._lock = asyncio.Lock()

    async def send(self, message: Message) -> None:
        async with asyncio.timeout(_SEND_S), self._lock:
            await self.socket.send_str(msgspec.json.encode(message).decode())

    def ask_to_end(self, ending: _Ending) -> None:
        if not self.asked.done():
            self.asked.set_result(ending)

    async def end(self, ending: _Ending) -> None:
        try:
            if ending.notice is not None:
                await self.send(ending.notice)
            await self.socket.close(code=ending.code)
        except (ConnectionError, TimeoutError, RuntimeError):
            pass  # it is going away anyhow


class ControlHub:
    """Every live control channel of this process."""

    def __init__(
        self, fleet: Fleet, name: str, heartbeat_s: float = 10.0, wall: Callable[[], float] = time.time
    ) -> None:
        self._fleet, self._name, self._heartbeat_s, self._wall = fleet, name, heartbeat_s, wall
        self._channels: dict[str, _Channel] = {}
        self._stopping = False

    def routes(self) -> list[web.RouteDef]:
        """Routes to mount on the device API."""
        return [web.get("/v1/control", self._serve)]

    async def push_desired(self, device: str) -> bool:
        """Send a connected device its desired state; False if it is not connected (it gets it when it connects)."""
        channel = self._channels.get(device)
        if channel is None:
            return False
        try:
            async with channel.telling:
                row = await self._fleet.get(device)
                if row is None or row.desired is None:
                    return False
                await channel.send(Desired(revision=row.revision, services=row.desired))
        except (ConnectionError, TimeoutError, RuntimeError):
            return False
        return True

    def lock_out(self, device: str) -> None:
        """End a revoked device's channel, if it has one. Nothing more is taken from it from now on."""
        channel = self._channels.pop(device, None)
        if channel is not None:
            channel.ask_to_end(_revoked(device))

    async def stop(self) -> None:
        """End every channel; devices connect again to whoever answers next."""
        self._stopping = True
        channels = list(self._channels.values())
        for channel in channels:
            channel.ask_to_end(_Ending(WSCloseCode.GOING_AWAY))
        await asyncio.gather(*(channel.gone.wait() for channel in channels))

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        if self._stopping:
            raise HttpProblem(503, "this cloudd is stopping", 2.0)
        socket = web.WebSocketResponse(max_msg_size=MAX_MESSAGE, timeout=2.0, compress=False)
        await socket.prepare(request)
        channel = _Channel(socket, request[DEVICE_ID])
        talk = asyncio.create_task(self._talk(channel))
        try:
            either: set[asyncio.Future[Any]] = {talk, channel.asked}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if channel.asked.done():
                await _cancelled(talk)
                await channel.end(channel.asked.result())
            else:
                ending = talk.result()
                if ending is not None:
                    await channel.end(ending)
        finally:
            await _cancelled(talk)
            channel.gone.set()
            if self._channels.get(channel.device) is channel:
                del self._channels[channel.device]
                with contextlib.suppress(*STORAGE_ERRORS):  # the heartbeat's deadline says the same a little later
                    await self._fleet.disconnected(channel.device, self._wall())
        return socket

    async def _talk(self, channel: _Channel) -> _Ending | None:
        """The conversation; returns how the channel shall end, None if it has ended."""
        try:
            hello = await self._receive(channel, _HELLO_S)
            if not isinstance(hello, Hello):
                raise ProtocolError("the first message must be hello")
            if hello.protocol != PROTOCOL:
                raise ProtocolError(
                    f"the device speaks protocol {hello.protocol}, this cloudd speaks {PROTOCOL}; "
                    "bring both to the same release"
                )
            self._register(channel)
            return await self._converse(channel, hello)
        except ProtocolError as error:
            log.warning("control channel of %s: %s", channel.device, error)
            return _Ending(CLOSE_PROTOCOL, Notice(code="protocol", text=str(error)))
        except TimeoutError:
            log.info("control channel of %s: nothing heard for too long", channel.device)
            return _Ending(CLOSE_PROTOCOL, Notice(code="silent", text="cloudd heard nothing for too long"))
        except STORAGE_ERRORS as error:
            log.error("control channel of %s: %s", channel.device, error)
            text = "cloudd's storage cannot be used at the moment"
            return _Ending(WSCloseCode.TRY_AGAIN_LATER, Notice(code="storage", text=text))
        except (EOFError, ConnectionError, RuntimeError):
            return None  # closed by the device or with the network

    def _register(self, channel: _Channel) -> None:
        """Make this the device's channel before its row is touched: a revocation from now on finds it and closes it."""
        older = self._channels.get(channel.device)
        self._channels[channel.device] = channel
        if older is not None:
            log.info("device %s connected again; its older connection is closed", channel.device)
            notice = Notice(code="superseded", text="this device opened a newer connection")
            older.ask_to_end(_Ending(CLOSE_SUPERSEDED, notice))

    async def _converse(self, channel: _Channel, hello: Hello) -> _Ending:
        silence_s = _MISSED_HEARTBEATS * self._heartbeat_s
        async with channel.telling:
            row = await self._fleet.connected(channel.device, hello, self._wall(), silence_s)
            if row is None:
                return _revoked(channel.device)
            await channel.send(Welcome(heartbeat_s=self._heartbeat_s, time=self._wall(), name=self._name))
            if row.desired is not None and row.revision != hello.revision:
                await channel.send(Desired(revision=row.revision, services=row.desired))
        while True:
            message = await self._receive(channel, silence_s)
            if isinstance(message, Report):
                if not await self._fleet.reported(channel.device, message, self._wall(), silence_s):
                    return _revoked(channel.device)
                await asyncio.sleep(_REPORT_PAUSE_S)
            elif isinstance(message, Notice):
                log.warning("device %s says (%s): %s", channel.device, message.code[:64], message.text[:500])
            else:
                raise ProtocolError("a second hello on the same connection")

    async def _receive(self, channel: _Channel, timeout_s: float) -> ToCloud:
        """The next message. Raises ProtocolError, TimeoutError, or EOFError when the socket is closed."""
        frame: WSMessage = await channel.socket.receive(timeout=timeout_s)
        if frame.type is not WSMsgType.TEXT:
            if frame.type in (WSMsgType.BINARY, WSMsgType.ERROR):
                raise ProtocolError(f"only text messages of at most {MAX_MESSAGE} bytes belong here")
            raise EOFError
        try:
            return _DECODER.decode(frame.data)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
            raise ProtocolError(f"a message that cannot be read: {error}") from None


async def _cancelled(task: asyncio.Task[_Ending | None]) -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})
