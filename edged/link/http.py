"""HTTPS as the link uses it: bounded sizes and times, no proxy, no cookie, no redirect, errors sorted by kind."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, TypeVar

import aiohttp
import msgspec

from edged.link.errors import LinkError, Refused, Unreachable, WrongAuthority
from edgekit import VERSION
from edgekit.messages import Problem

T = TypeVar("T")

MAX_REPLY: Final = 64 * 1024
"""Bytes of an ordinary JSON reply. A certificate with its authority takes 3 KiB."""
_EXPIRED: Final = 10
"""X509_V_ERR_CERT_HAS_EXPIRED"""
_NOT_YET: Final = 9
"""X509_V_ERR_CERT_NOT_YET_VALID"""


@asynccontextmanager
async def open_session(context: ssl.SSLContext) -> AsyncIterator[aiohttp.ClientSession]:
    """A client session whose every connection uses `context`. A redirect raises Refused: cloudd never sends one."""

    async def refuse(
        _session: aiohttp.ClientSession, _context: object, _params: aiohttp.TraceRequestRedirectParams
    ) -> None:
        raise Refused(302, "cloudd answered with a redirect, which is never followed")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=context, limit=4, ttl_dns_cache=10),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"edged/{VERSION}", "Accept-Encoding": "identity"},
        trace_configs=[trace],
        auto_decompress=False,
        max_line_size=8190,
        max_field_size=8190,
    ) as session:
        yield session


def stranger_context() -> ssl.SSLContext:
    """TLS that trusts nobody and so checks nobody: only for fetching a certificate that is then compared with a pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@contextmanager
def sorted_errors(url: str) -> Iterator[None]:
    """Turn what aiohttp, ssl and the socket raise into LinkErrors that name the address."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        raise _certificate_error(url, error) from error
    except TimeoutError as error:
        raise Unreachable(f"{url} does not answer in time") from error
    except aiohttp.WSServerHandshakeError as error:
        raise problem(url, error.status, b"") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unreachable(f"{url} cannot be reached ({_why(error)})") from error


async def call(
    session: aiohttp.ClientSession,
    url: str,
    path: str,
    reply: type[T],
    body: msgspec.Struct | None = None,
    timeout_s: float = 10.0,
    max_bytes: int = MAX_REPLY,
) -> T:
    """GET, or POST if there is a body, and decode the JSON reply.

    Raises Unreachable, WrongAuthority, or Refused with the sentence that cloudd gave.
    """
    data = None if body is None else msgspec.json.encode(body)
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    with sorted_errors(url):
        async with session.request(
            "GET" if data is None else "POST",
            url + path,
            data=data,
            headers={} if data is None else {"Content-Type": "application/json"},
            timeout=timeout,
        ) as response:
            content = await bounded(response, max_bytes)
            if response.status != 200:
                raise problem(url, response.status, content)
    try:
        return msgspec.json.decode(content, type=reply)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Unreachable(f"{url} does not answer like a cloudd ({error})") from error


async def bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, or Unreachable as soon as it is longer than allowed."""
    content = bytearray()
    async for chunk in response.content.iter_chunked(16_384):
        content += chunk
        if len(content) > max_bytes:
            raise Unreachable(f"{response.url.host} sent more than the {max_bytes} bytes allowed for this reply")
    return bytes(content)


def problem(url: str, status: int, content: bytes) -> LinkError:
    """The error for a reply that is not 200: busy or broken servers are Unreachable, a considered no is Refused."""
    try:
        text = msgspec.json.decode(content, type=Problem).error[:500]
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = f"{url} answered with HTTP status {status}"
    if status == 429 or status >= 500:
        return Unreachable(text)
    return Refused(status, text)


def _why(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ssl.SSLError):
        return f"nothing there speaks TLS as cloudd does: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
        return os.strerror(cause.errno)  # asyncio's own text for it names the call that failed
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__


def _certificate_error(url: str, error: Exception) -> LinkError:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error
    code = getattr(cause, "verify_code", 0)
    if code in (_EXPIRED, _NOT_YET):
        return Unreachable(
            f"the certificate of {url} is not valid at this device's time; check the clocks of both, "
            "then restart cloudd, which renews its certificate"
        )
    return WrongAuthority(f"the server at {url} is not the cloudd that this device trusts; nothing was sent to it")
