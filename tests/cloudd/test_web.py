"""The common HTTP layer on a real socket: every error is JSON, bodies and connections are bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web

from cloudd.storage import StorageError
from cloudd.web import HttpProblem, Listener, json_response, listen_tcp, new_app, read_body, read_json, stranger


class Wish(msgspec.Struct):
    """A small body."""

    number: int


async def echo(request: web.Request) -> web.Response:
    return json_response({"bytes": len(await read_body(request, 1000, 0.3))})


async def wish(request: web.Request) -> web.Response:
    return json_response(await read_json(request, Wish, 100))


async def fail(request: web.Request) -> web.Response:
    raise {"bug": ZeroDivisionError("secret"), "disk": StorageError("secret"), "busy": HttpProblem(429, "later", 0.2)}[
        request.match_info["how"]
    ]


@pytest.fixture
async def address() -> AsyncIterator[tuple[str, int]]:
    app = new_app()
    app.add_routes([web.post("/echo", echo), web.post("/wish", wish), web.get("/fail/{how}", fail)])
    sock = listen_tcp("127.0.0.1", 0)
    listener = Listener(app, sock, total=4, shutdown_s=0.5)
    await listener.start()
    yield sock.getsockname()
    await listener.stop()


async def talk(address: tuple[str, int], data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send raw bytes, read one reply: (status, headers in lower case, body)."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(data)
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5.0)).decode().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()


def post(path: str, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (b"GET /fail/bug HTTP/1.1\r\nHost: x\r\n\r\n", 500, "its log says why"),
        (b"GET /fail/disk HTTP/1.1\r\nHost: x\r\n\r\n", 503, "storage"),
        (b"GET /fail/busy HTTP/1.1\r\nHost: x\r\n\r\n", 429, "later"),
        (b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", 404, "nothing at GET /none"),
        (b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", 405, "not possible"),
        (post("/echo", b"x" * 1001), 413, "1000 bytes"),
        (post("/echo", b"", 10**12), 413, "1000 bytes"),
        (post("/echo", b"x", 100), 408, "did not arrive"),
        (post("/wish", b'{"number": "7"}'), 400, "number"),
        (post("/wish", b"\xff"), 400, "JSON"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 400, "not an HTTP request"),
        (b"\x00\x01\x02\r\n\r\n", 400, "not an HTTP request"),
    ],
    ids=range(12),
)
async def test_errors(address: tuple[str, int], data: bytes, status: int, words: str) -> None:
    got, headers, body = await talk(address, data)
    assert got == status and words in json.loads(body)["error"]
    assert b"secret" not in body and headers.get("server", "cloudd") == "cloudd"


async def test_retry_after(address: tuple[str, int]) -> None:
    _, headers, body = await talk(address, b"GET /fail/busy HTTP/1.1\r\nHost: x\r\n\r\n")
    assert headers["retry-after"] == "1" and json.loads(body)["retry_after_s"] == 0.2


async def test_a_chunked_body_is_bounded_too(address: tuple[str, int]) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, _, body = await talk(address, head + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n")
    assert (status, json.loads(body)) == (200, {"bytes": 1000})
    status, _, _ = await talk(address, head + (b"200\r\n" + b"x" * 512 + b"\r\n") * 3)
    assert status == 413


async def test_a_compressed_body_stays_compressed(address: tuple[str, int]) -> None:
    """Nothing is unpacked, so a small body cannot become a large one."""
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n"
    assert json.loads((await talk(address, head + b"12345"))[2]) == {"bytes": 5}


class NoCertificate:
    """TLS with a peer that showed none."""

    def getpeercert(self, binary_form: bool) -> None:
        """As of ssl.SSLObject."""


def peer(address: str) -> asyncio.Transport:
    return asyncio.Transport({"ssl_object": NoCertificate(), "peername": (address, 5000)})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),  # one host owns its whole /64
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_strangers_are_counted_by_what_one_host_owns(one: str, other: str, same: bool) -> None:
    assert (stranger(peer(one)) == stranger(peer(other))) is same


async def test_too_many_connections_are_closed_and_room_is_given_back(address: tuple[str, int]) -> None:
    held = [await asyncio.open_connection(*address) for _ in range(4)]
    for _, writer in held:
        writer.write(post("/wish", b'{"number": 7}'))
    for reader, _ in held:
        assert b"200" in await asyncio.wait_for(reader.readline(), 5.0)
    reader, writer = await asyncio.open_connection(*address)
    with pytest.raises(ConnectionResetError):
        if not await asyncio.wait_for(reader.read(), 5.0):
            raise ConnectionResetError
    writer.close()
    for _, other in held:
        other.close()
        await other.wait_closed()
    await asyncio.sleep(0.1)
    assert (await talk(address, post("/wish", b'{"number": 7}')))[0] == 200
