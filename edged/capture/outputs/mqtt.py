"""Decisions as MQTT messages. A status topic says whether this output is there: "online", or its will, "offline"."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from edged.capture.outputs.queue import Message
from edged.capture.outputs.secrets import SecretError, read_credentials, tls_context
from edged.capture.outputs.sending import NotDelivered
from edgekit.messages import Decision
from edgekit.outputs import PLACEHOLDER, Output, destination

if TYPE_CHECKING:  # 3 MB that only a worker with such an output needs
    import aiomqtt

KEEP_ALIVE_S = 15
"""A broker that is gone without a word is noticed after one and a half of these."""
CLOSE_S = 0.3
ONLINE, OFFLINE = b"online", b"offline"

_MAX_TOPIC_BYTES = 65_535


class MqttSender:
    """Speaks to one broker over one connection, with several decisions under way."""

    window = 20

    def __init__(self, service: str, definition: Output, identifier: str) -> None:
        """`identifier`: what the broker knows us by; a second connection with it ends the first. Opens nothing yet."""
        self._service, self._definition, self._identifier = service, definition, identifier
        self._status = topic(definition.status_topic, {"service": service}) if definition.status_topic else ""
        self._client: aiomqtt.Client | None = None
        self._lost: asyncio.Task[None] | None = None  # ends with the connection
        self._broken = False

    async def keep(self) -> None:
        """Be connected. Raises NotDelivered."""
        if self._client is not None and (self._broken or self._lost is None or self._lost.done()):
            await self._drop()
        if self._client is None:
            await self._connect()

    async def send(self, message: Message) -> None:
        """Publish one decision and wait for the broker's word (QoS 1). Raises NotDelivered."""
        import aiomqtt

        client, lost = self._client, self._lost
        if client is None or lost is None:
            raise NotDelivered("the connection was lost")
        try:
            decision = msgspec.json.decode(message.content, type=Decision)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise NotDelivered("it was damaged on the disk", poison=True) from None
        names = {"service": decision.service, "label": decision.label, "decided": decision.decided}
        where = topic(self._definition.topic, names | {"serial": decision.serial})
        publishing = asyncio.ensure_future(
            client.publish(where, message.content, self._definition.qos, self._definition.retain)
        )
        try:
            await asyncio.wait({publishing, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not publishing.done():
                raise NotDelivered("the connection was lost")
            publishing.result()
        except (aiomqtt.MqttError, ValueError) as error:
            raise NotDelivered(_words(error)) from None
        finally:
            if not publishing.done() or publishing.cancelled() or publishing.exception() is not None:
                self._broken = True
            publishing.cancel()

    async def close(self) -> None:
        """Say "offline" and disconnect."""
        import aiomqtt

        if self._client is not None and self._status and not self._broken:
            with contextlib.suppress(aiomqtt.MqttError, TimeoutError):
                async with asyncio.timeout(CLOSE_S / 2):
                    await self._client.publish(self._status, OFFLINE, 1, True)
        await self._drop()

    async def _connect(self) -> None:
        import aiomqtt

        definition = self._definition
        host, port = destination(definition)
        try:
            user, password = None, None
            if definition.credentials:
                user, password = await asyncio.to_thread(read_credentials, definition.credentials)
            context = None
            if urlsplit(definition.url).scheme == "mqtts":
                context = await asyncio.to_thread(
                    tls_context, definition.ca_file, definition.certificate, definition.key
                )
        except SecretError as error:
            raise NotDelivered(str(error)) from None
        heard = _Heard()
        client = aiomqtt.Client(
            host,
            port,
            logger=heard.logger,
            username=user,
            password=password,
            identifier=self._identifier,
            will=aiomqtt.Will(self._status, OFFLINE, 1, True) if self._status else None,
            clean_session=True,  # what is under way when a connection ends comes again from our own queue
            timeout=definition.timeout_s,
            keepalive=KEEP_ALIVE_S,
            max_inflight_messages=self.window,
            tls_context=context,
        )
        client.pending_calls_threshold = 2 * self.window
        await _connected(client, heard)
        self._client, self._broken = client, False
        self._lost = asyncio.create_task(_until_lost(client))
        if self._status:
            try:
                await client.publish(self._status, ONLINE, 1, True)
            except aiomqtt.MqttError as error:
                self._broken = True
                raise NotDelivered(_words(error)) from None

    async def _drop(self) -> None:
        import aiomqtt

        client, self._client = self._client, None
        lost, self._lost = self._lost, None
        if client is not None:
            with contextlib.suppress(aiomqtt.MqttError, OSError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await client.__aexit__(None, None, None)
        if lost is not None:
            lost.cancel()


class _Heard(logging.Handler):
    """What the library complains of. A broker that ends a handshake is only there, and waited for in vain."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._loop = asyncio.get_running_loop()
        self.complaint: asyncio.Future[str] = self._loop.create_future()
        self.logger = logging.Logger("edged.mqtt")  # outside the tree: what is wrong is in the output's report
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """See Handler. The library connects in a thread."""
        self._loop.call_soon_threadsafe(self._take, record.getMessage())

    def _take(self, text: str) -> None:
        if not self.complaint.done():
            self.complaint.set_result(text)


async def _connected(client: aiomqtt.Client, heard: _Heard) -> None:
    """Connect. Raises NotDelivered with the reason, also if that is only in the library's log."""
    import aiomqtt

    connecting = asyncio.ensure_future(client.__aenter__())
    either: set[asyncio.Future[Any]] = {connecting, heard.complaint}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            raise NotDelivered(_words(ConnectionError(heard.complaint.result())))
        connecting.result()
    except (aiomqtt.MqttError, OSError, ValueError) as error:
        raise NotDelivered(_words(error)) from None
    finally:
        connecting.cancel()


async def _until_lost(client: aiomqtt.Client) -> None:
    import aiomqtt

    with contextlib.suppress(aiomqtt.MqttError):
        async for _ in client.messages:  # none comes: nothing is subscribed
            pass


def topic(template: str, names: dict[str, str]) -> str:
    """The template with the names put in; what would change the topic's structure becomes an underscore.

    A name is a label or a serial number, so it comes from outside: no level, wildcard or control character of a topic
    may come from it, and an empty one is an underscore too.
    """
    filled = PLACEHOLDER.sub(lambda found: _level(names[found.group(1)]), template)
    if filled.startswith("$"):  # the broker's own topics
        filled = "_" + filled[1:]
    return filled.encode("utf-8", "replace")[:_MAX_TOPIC_BYTES].decode("utf-8", "ignore")


def _level(text: str) -> str:
    return "".join("_" if c in "/+#" or not c.isprintable() else c for c in text[:256]) or "_"


def _words(error: Exception) -> str:
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return text[:300] or type(error).__name__
