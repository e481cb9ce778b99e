"""One conversation on the control channel: hello, welcome, then reports up and desired state down until it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol

import aiohttp
import msgspec

from edged.link.errors import LinkError, Refused, Unreachable
from edged.link.http import call, sorted_errors
from edgekit.messages import Desired, Hello, Level, Notice, Problem, Report, ToCloud, ToEdge, Welcome

MAX_MESSAGE: Final = 4 * 1024 * 1024
"""Bytes of one message of cloudd. A device with 100 services has a desired state of 100 KiB."""
_SEND_S: Final = 10.0
_CLOSE_REVOKED: Final = 4003
_MIN_HEARTBEAT_S, _MAX_HEARTBEAT_S = 0.05, 60.0


class Host(Protocol):
    """What a conversation asks and tells its owner."""

    def hello(self) -> Hello:
        """The first message."""

    def state(self) -> Report:
        """The present reported state."""

    def welcomed(self, welcome: Welcome) -> None:
        """The link is up."""

    def desired(self, desired: Desired) -> None:
        """cloudd wants this."""

    def notice(self, level: Level, code: str, text: str) -> None:
        """Something for a person."""


async def converse(
    session: aiohttp.ClientSession,
    url: str,
    host: Host,
    ended: asyncio.Event,
    nudge: asyncio.Event,
    attempt_s: float = 5.0,
    ping_s: float = 10.0,
) -> None:
    """Hold the control channel to the cloudd at `url`; return when `ended` is set, raise when it breaks.

    A ping goes out after `ping_s` seconds of silence and must be answered within half of that: a half-open connection,
    which TCP alone would keep for hours, ends after 1.5 * `ping_s`. Setting `nudge` sends a report at once. Raises
    Unreachable, WrongAuthority, or Refused when cloudd does not want this device.
    """
    try:
        with sorted_errors(url):
            async with asyncio.timeout(attempt_s):
                socket = await session.ws_connect(
                    f"{url}/v1/control",
                    heartbeat=ping_s,
                    max_msg_size=MAX_MESSAGE,
                    timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
                )
    except Refused as refused:
        raise await _in_words(session, url, refused, attempt_s) from None
    async with socket:
        with sorted_errors(url):
            async with asyncio.timeout(2 * attempt_s):
                await _send(socket, host.hello())
                welcome = await _await_welcome(socket, host)
        host.welcomed(welcome)
        heartbeat = min(max(welcome.heartbeat_s, _MIN_HEARTBEAT_S), _MAX_HEARTBEAT_S)
        await _first_of(_receive(socket, host), _report(socket, url, host, heartbeat, nudge), ended.wait())


async def _in_words(session: aiohttp.ClientSession, url: str, refused: Refused, timeout_s: float) -> Refused:
    """Why cloudd refuses: a handshake tells only a number, but the same question as a plain request is answered."""
    try:
        await call(session, url, "/v1/control", Problem, timeout_s=timeout_s)
    except Refused as error:
        if error.status == refused.status:
            return error
    except LinkError:
        pass
    return refused


async def _first_of(*works: Coroutine[Any, Any, object]) -> None:
    """Run until one ends, and end as that one did."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _await_welcome(socket: aiohttp.ClientWebSocketResponse, host: Host) -> Welcome:
    while True:
        message = await _next(socket, host)
        if isinstance(message, Welcome):
            return message
        _handle(message, host)


async def _receive(socket: aiohttp.ClientWebSocketResponse, host: Host) -> None:
    while True:
        _handle(await _next(socket, host), host)


async def _next(socket: aiohttp.ClientWebSocketResponse, host: Host) -> ToEdge:
    """The next message that can be understood; one that cannot (of a newer cloudd) is named and skipped."""
    while True:
        frame = await socket.receive()
        if frame.type is aiohttp.WSMsgType.TEXT:
            try:
                message: ToEdge = msgspec.json.decode(frame.data, type=ToEdge)
                return message
            except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
                host.notice("warning", "link.message", f"cloudd sent a message that this edged cannot read: {error}")
        elif frame.type is not aiohttp.WSMsgType.BINARY:
            raise _closed(socket)


def _handle(message: ToEdge, host: Host) -> None:
    if isinstance(message, Desired):
        host.desired(message)
    elif isinstance(message, Notice):
        host.notice("warning", f"cloudd.{message.code[:64]}", message.text[:500])


async def _report(
    socket: aiohttp.ClientWebSocketResponse, url: str, host: Host, heartbeat_s: float, nudge: asyncio.Event
) -> None:
    while True:
        nudge.clear()
        report = host.state()
        with sorted_errors(url):
            await _send(socket, report)
        try:
            async with asyncio.timeout(heartbeat_s):
                await nudge.wait()
        except TimeoutError:
            continue
        await asyncio.sleep(min(1.0, heartbeat_s / 4))  # a burst of changes is one report


async def _send(socket: aiohttp.ClientWebSocketResponse, message: ToCloud) -> None:
    async with asyncio.timeout(_SEND_S):
        await socket.send_str(msgspec.json.encode(message).decode())


def _closed(socket: aiohttp.ClientWebSocketResponse) -> LinkError:
    if socket.close_code == _CLOSE_REVOKED:
        return Refused(403, "this device was revoked; `cloudd devices restore` lets it in again, a new token does not")
    error = socket.exception()
    if error is not None:
        return Unreachable(f"the control channel broke ({error})")
    return Unreachable("cloudd closed the control channel")
