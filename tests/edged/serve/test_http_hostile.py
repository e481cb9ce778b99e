"""Hostile bytes on a real socket: no crash, no hang, and every refusal is JSON."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from hypothesis import HealthCheck, given, settings

from edged.serve.http import Limits
from tests.edged.serve.test_http_heads import HOSTILE
from tests.support.http_junk import check_replies, junk
from tests.support.http_lab import Lab, RawClient, get, lab, post

FAST = Limits(head_s=0.15, body_s=0.15, idle_s=0.15, write_s=0.3, linger_s=0.1, body=1 << 16, bodies=1 << 20)


async def exchange(it: Lab, data: bytes, cut: int = 0) -> bytes:
    """What the server says to `data`, sent in one or two pieces, up to the end of the connection."""
    client = await RawClient.open(it.port)
    try:
        client.send(data[:cut])
        if cut:
            await asyncio.sleep(0.001)
        client.send(data[cut:])
        return await client.ended(5)
    except ConnectionResetError:
        return b""
    finally:
        client.close()


async def test_the_corpus_of_malformed_heads() -> None:
    async with lab() as it:
        for case, (status, data) in HOSTILE.items():
            client = await it.client()
            client.send(data + b"smuggled" + get("/smuggled"))
            raw = await client.ended()
            check_replies(raw)
            assert raw.startswith(b"HTTP/1.1 4" if status in (400, 417, 431) else b"HTTP/1.1 "), (case, raw)
            assert raw.count(b"Connection: close") == 1, f"{case}: what follows a refused request must not be answered"
            assert b"connection: close" in raw.lower()
        assert it.together == [], "no handler saw any of it"


async def test_too_large_heads() -> None:
    async with lab() as it:
        for data in (
            b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 4000 + b"\r\n",
            b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000,
            b"x" * 1_000_000,
        ):
            client = await it.client()
            client.send(data)
            reply = await client.reply()
            assert (reply.status, "exceeds 16384 bytes" in reply.json["error"]) == (431, True)
            assert await client.ended() == b""


async def test_line_breaks_without_end_are_no_request() -> None:
    async with lab(FAST) as it:
        raw = await exchange(it, b"\r\n" * 100_000)
        assert raw.startswith(b"HTTP/1.1 400 ")
        client = await it.client()
        assert (await client.ask(b"\r\n\r\n" + get("/x"))).status == 200


async def test_what_is_smuggled_into_a_body_stays_body() -> None:
    async with lab() as it:
        client = await it.client()
        inner = get("/smuggled")
        assert (await client.ask(post("/echo", inner))).body == inner
        assert (await client.ask(post("/x", inner, method="GET"))).json["size"] == len(inner)
        assert (await client.ask(post("/x", b"", method="GET"))).json["size"] == 0
        head = get("/echo", "Transfer-Encoding: chunked", method="POST")
        assert (await client.ask(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner))).body == inner
        reply = await client.ask(get("/x"))
        assert reply.json["path"] == "/x"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=junk)
def test_any_bytes_on_a_connection(data: bytes) -> None:
    async def run() -> None:
        async with lab(FAST) as it:
            it.release.set()
            raw, cut = await asyncio.gather(exchange(it, data), exchange(it, data, len(data) // 2))
            check_replies(raw)
            check_replies(cut)
            assert b"HTTP/1.1 500" not in raw or b"/bug" in data
            client = await it.client()
            assert (await client.ask(get("/x"))).status == 200

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(run())
    finally:
        logging.disable(logging.NOTSET)


async def test_a_crowd_of_slow_clients_does_not_keep_others_out() -> None:
    async with lab(Limits(head_s=0.5, connections=50)) as it:
        crowd = [await it.client() for _ in range(50)]
        for client in crowd:
            client.send(b"GET / HTTP/1.1\r\nX: ")
        await asyncio.sleep(0.05)
        for _ in range(5):
            client = await it.client()
            assert (await client.ask(get("/x"))).status == 200
        endings = await asyncio.gather(*(client.ended(3) for client in crowd), return_exceptions=True)
        refused = [ending for ending in endings if isinstance(ending, bytes) and ending]
        assert refused
        for ending in refused:
            assert json.loads(ending.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("cut", [1, 20, 60])
async def test_hanging_up_anywhere_leaves_nothing(cut: int) -> None:
    data = post("/echo", bytes(200_000), "Content-Encoding: gzip")
    async with lab() as it:
        for stop in (cut, cut * 100, cut * 3000):
            client = await it.client()
            client.send(data[:stop])
            await asyncio.sleep(0.01)
            client.writer.transport.abort()
        await asyncio.sleep(0.05)
        assert (it.server.held, it.server.in_flight) == (0, 0)
