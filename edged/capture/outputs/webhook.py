"""Decisions as HTTP POST requests, one at a time, each with its sample id as the idempotency key.

With a secret the receiver can tell that a request is ours, unchanged and new: `Edged-Signature` is `v1=` and the
HMAC-SHA256, in hexadecimal, of the value of `Edged-Timestamp`, a dot, and the body.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hmac
import math
import os
import time
from collections.abc import Callable
from urllib.parse import quote

import aiohttp

from edged.capture.outputs.queue import Message
from edged.capture.outputs.secrets import SecretError, read_secret, tls_context
from edged.capture.outputs.sending import NotDelivered
from edgekit import VERSION
from edgekit.outputs import Output

LONGEST_REST_S = 300.0
"""A `Retry-After` of a day would be an error, not a wish."""
MAX_REPLY = 65_536
BODY_S = 1.0
_EXCERPT = 120
_LATER = frozenset({408, 425, 429})
_CONFIGURATION = frozenset({401, 403, 404, 405, 407, 410, 421, 426, 451})
"""What says that address, rights or credentials are wrong, so that every decision would be refused: the receiver's
trouble, which a person has to end, and no reason to give decisions up."""


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """The value of Edged-Signature."""
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, "sha256").hexdigest()


class WebhookSender:
    """Speaks to one URL over one kept connection."""

    window = 1

    def __init__(self, definition: Output, wall: Callable[[], float] = time.time) -> None:
        """Opens nothing yet."""
        self._definition, self._wall = definition, wall
        self._session: aiohttp.ClientSession | None = None
        self._secret = b""

    async def keep(self) -> None:
        """Read the secrets if they have not been read since the last failure. Raises NotDelivered."""
        if self._session is None:
            try:
                self._session = await self._open()
            except SecretError as error:
                raise NotDelivered(str(error)) from None

    async def send(self, message: Message) -> None:
        """Post one decision. Raises NotDelivered."""
        assert self._session is not None
        try:
            await self._post(self._session, message)
        except NotDelivered:
            await self.close()
            raise
        except TimeoutError:
            await self.close()
            raise NotDelivered(f"no answer within {self._definition.timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            await self.close()
            raise NotDelivered(_words(error)) from None

    async def close(self) -> None:
        """Close the connection."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _open(self) -> aiohttp.ClientSession:
        definition = self._definition
        headers = {"User-Agent": f"edged/{VERSION}", "Content-Type": "application/json"}
        if definition.authorization:
            headers["Authorization"] = await asyncio.to_thread(_header, definition.authorization)
        self._secret = await asyncio.to_thread(read_secret, definition.secret) if definition.secret else b""
        secure = definition.url.startswith("https:")
        context = await asyncio.to_thread(tls_context, definition.ca_file) if secure else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            auto_decompress=False,  # a small reply must not become a large one
        )

    async def _post(self, session: aiohttp.ClientSession, message: Message) -> None:
        headers = {"Idempotency-Key": quote(message.sample_id, safe="")}
        if self._secret:
            timestamp = str(int(self._wall()))
            headers |= {
                "Edged-Timestamp": timestamp,
                "Edged-Signature": signature(self._secret, timestamp, message.content),
            }
        async with (
            asyncio.timeout(self._definition.timeout_s),
            session.post(self._definition.url, data=message.content, headers=headers, allow_redirects=False) as reply,
        ):
            text = await _body(reply)
        if 200 <= reply.status < 300:
            return
        poison = 400 <= reply.status < 500 and reply.status not in _LATER | _CONFIGURATION
        said = _excerpt(text)
        raise NotDelivered(
            f"it answered {reply.status}" + (f": {said}" if said else ""),
            retry_after_s=retry_after(reply.headers.get("Retry-After", ""), self._wall()),
            poison=poison,
        )


async def _body(reply: aiohttp.ClientResponse) -> bytes:
    """What came of the reply's body in time. The status has said it all, so one that does not end changes nothing."""
    text = b""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
        async with asyncio.timeout(BODY_S):
            while len(text) < MAX_REPLY:
                piece = await reply.content.read(MAX_REPLY - len(text))
                if not piece:
                    return text
                text += piece
    reply.close()
    return text


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), 0 to LONGEST_REST_S."""
    seconds = 0.0
    if value.strip().isascii() and value.strip().isdigit():
        seconds = float(value)
    else:
        with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
    return min(max(seconds, 0.0), LONGEST_REST_S) if math.isfinite(seconds) else LONGEST_REST_S


def _header(path: str) -> str:
    value = read_secret(path)
    if not all(0x20 <= byte < 0x7F for byte in value):
        raise SecretError(f"the file {path} must have the value of one header on one line")
    return value.decode("ascii")


def _excerpt(text: bytes) -> str:
    """What a person may want to read of a refusal."""
    flat = "".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT].decode("utf-8", "replace"))
    return " ".join(flat.split())[:_EXCERPT]


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not accepted: {error.certificate_error}"
    inner = getattr(error, "os_error", error)
    if isinstance(inner, OSError) and inner.errno is not None and inner.errno > 0:  # asyncio's own text is no sentence
        return os.strerror(inner.errno).lower()
    return (getattr(inner, "strerror", None) or str(inner) or type(error).__name__)[:300]
