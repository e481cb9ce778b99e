"""The HTTP server over real sockets: framing, order, limits, hang-ups, streams, hand-over."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import socket
import zlib

import pytest

from edged.serve.http import HttpError, Limits, Request, Response, json_response
from tests.support.http_lab import Lab, RawClient, get, lab, post

FAST = Limits(head_s=0.2, body_s=0.2, idle_s=0.4, write_s=0.3, linger_s=0.2)


async def settled(what: str, condition: object) -> None:
    for _ in range(300):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0.01)
    raise AssertionError(what)


@pytest.mark.parametrize("size", [0, 1, 49_152, 256 << 10, 602_112, 3_000_001, 16 << 20])
async def test_bodies_of_all_sizes_come_back_as_they_were(size: int) -> None:
    body = os.urandom(size)
    async with lab() as it:
        client = await it.client()
        for _ in range(2):
            reply = await client.ask(post("/echo", body))
            assert (reply.status, reply.body == body) == (200, True)
        client.send(
            get("/echo", "Transfer-Encoding: chunked", method="POST")
            + b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in _cut(body, 70_001))
            + b"0\r\nTrailer: yes\r\n\r\n"
        )
        assert (await client.reply()).body == body
        assert (await client.ask(get("/x"))).status == 200


@pytest.mark.parametrize("split", [0, 1, 163, 164, 4096])
async def test_what_lies_behind_the_split_of_a_large_body_is_aligned(split: int) -> None:
    async with lab() as it:
        client = await it.client()
        for size in (602_275, 602_275, 1_200_000, 3_000_001):  # the second one lands in the buffer of the first
            body = os.urandom(size)
            reply = await client.ask(post("/echo", body, f"Split: {split}"))
            assert reply.body == body
            reply = await client.ask(post("/address", body, f"Split: {split}"))
            assert reply.json % 16 == 0


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_a_byte_at_a_time_is_the_same_request() -> None:
    async with lab() as it:
        client = await it.client()
        for data in (
            post("/echo", b"hello"),
            get("/echo", "Transfer-Encoding: chunked", method="POST") + b"2\r\nhe\r\n3;x\r\nllo\r\n0\r\na: b\r\n\r\n",
        ):
            for byte in data:
                client.send(bytes([byte]))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            assert (await client.reply()).body == b"hello"


async def test_a_head_that_comes_again_is_understood_as_before() -> None:
    """A connection recognises the head of its last request; whatever differs must make a difference."""
    async with lab() as it:
        client = await it.client()
        first = post("/echo", b"12345678")
        for data, body in (
            (first, b"12345678"),
            (first.replace(b"12345678", b"87654321"), b"87654321"),
            (post("/echo", b"1234567"), b"1234567"),
            (first, b"12345678"),
            (post("/echo", b"12345678", "Connection: keep-alive"), b"12345678"),
        ):
            assert (await client.ask(data)).body == body
        client.send(first + first)
        assert ((await client.reply()).body, (await client.reply()).body) == (b"12345678", b"12345678")
        for cut in (3, len(first) - 9, len(first) - 8, len(first) - 1):
            client.send(first[:cut])
            await asyncio.sleep(0.01)
            assert (await client.ask(first[cut:])).body == b"12345678"
        again = get("/x?a=1", "X-One: 1")
        assert (await client.ask(again)).json == (await client.ask(again)).json
        head = get("/json?size=1", method="HEAD")
        for _ in range(2):
            client.send(head)
            assert (await client.reply(head_only=True)).body == b""
        over = Limits(bodies=4000)
    async with lab(over) as it:
        clients = [await it.client() for _ in range(3)]
        it.release.set()
        for client in clients:
            await client.ask(post("/slow", bytes(1500)))
        it.release.clear()
        for client in clients:
            client.send(post("/slow", bytes(1500)))
        await settled("two are held", lambda: it.server.in_flight == 2)
        await asyncio.sleep(0.05)
        it.release.set()
        assert sorted([(await client.reply()).status for client in clients]) == [200, 200, 503]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with lab() as it:
        client = await it.client()
        client.send(
            get("/slow")
            + post("/echo", b"second")
            + b"\r\n"
            + get("/echo", "Transfer-Encoding: chunked", method="POST")
            + b"5\r\nthird\r\n0\r\n\r\n"
            + get("/fourth")
            + get("/half-a-head")[:-10]
        )
        await asyncio.sleep(0.05)
        it.release.set()
        assert (await client.reply()).json == {"size": 0}
        assert (await client.reply()).body == b"second"
        assert (await client.reply()).body == b"third"
        assert (await client.reply()).json["path"] == "/fourth"
        client.send(get("/half-a-head")[-10:])
        assert (await client.reply()).json["path"] == "/half-a-head"


async def test_a_client_that_pipelines_without_end_is_made_to_wait() -> None:
    async with lab() as it:
        client = await it.client()
        request = post("/echo", bytes(1000))
        client.send(get("/slow") + request * 4000)
        await asyncio.sleep(0.3)
        (connection,) = it.server.connections
        assert len(connection._ahead) < 512 << 10
        it.release.set()
        await client.reply()
        for _ in range(4000):
            assert (await client.reply()).status == 200


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with lab() as it:
        client = await it.client()
        client.send(get("/json?size=100", method="HEAD") + get("/json?size=100"))
        head = await client.reply(head_only=True)
        full = await client.reply()
        assert head.headers == full.headers
        assert int(head.headers["content-length"]) == len(full.body) > 100


async def test_headers_path_and_query_as_handlers_see_them() -> None:
    async with lab() as it:
        client = await it.client()
        reply = await client.ask(get("/a%20b/%2F/c%25?x=1&x=2&y=%C3%A9&z", "X-One: 1", "x-one:2 ", "Edged-Serial: Ä"))
        assert (reply.json["path"], reply.json["query"]) == ("/a b/%2F/c%", {"x": "2", "y": "é", "z": ""})
        assert reply.json["headers"]["x-one"] == "1, 2"
        assert reply.json["headers"]["edged-serial"] == "Ä"
        assert {"server", "date"}.isdisjoint(reply.headers)
        latin = b"GET /x HTTP/1.1\r\nEdged-Serial: Pr\xfcfling\r\n\r\n"
        assert (await client.ask(latin)).json["headers"]["edged-serial"] == "Prüfling"
        assert (await client.ask(get("http://elsewhere/x?y=1"))).json["path"] == "/x"
        assert (await client.ask(get("HTTP://elsewhere?y=1"))).json["query"] == {"y": "1"}
        assert (await client.ask(get("*", method="OPTIONS"))).json["path"] == "*"
        assert (await client.ask(get("/x?" + "&".join("a=1" for _ in range(40))))).status == 400


async def test_keep_alive_follows_version_and_connection_header() -> None:
    async with lab() as it:
        for head, stays in (
            (b"GET / HTTP/1.1\r\n\r\n", True),
            (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\n\r\n", False),
            (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
            (b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", True),
        ):
            client = await it.client()
            reply = await client.ask(head)
            assert reply.status == 200
            if stays:
                assert (await client.ask(get("/again"))).status == 200
            else:
                assert reply.headers["connection"] == "close"
                assert await client.ended() == b""


async def test_expect_100_continue() -> None:
    async with lab() as it:
        client = await it.client()
        client.send(b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n")
        assert (await client.reply()).status == 100
        assert (await client.ask(b"hello")).body == b"hello"
        # The body is there already, or is not wanted: no interim reply.
        assert (await client.ask(post("/echo", b"at once", "Expect: 100-continue"))).body == b"at once"
        client.send(b"POST /refused HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, reply.json["error"], reply.headers["connection"]) == (404, "Not Found", "close")


async def test_a_refusal_arrives_although_the_client_goes_on_sending() -> None:
    async with lab() as it:
        for head in (
            b"POST /refused HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n",
            b"POST /echo HTTP/1.1\r\nContent-Length: 16777217\r\n\r\n",
            b"POST /refused HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ):
            client = await it.client()
            client.send(head)
            for _ in range(100):
                client.send(b"10000\r\n" + bytes(65_536) + b"\r\n")
            reply = await client.reply()
            assert reply.status in (404, 413)
            assert reply.json["error"]
            assert reply.headers["connection"] == "close"


async def test_compressed_bodies_and_their_bounds() -> None:
    async with lab(Limits(body=1 << 20)) as it:
        client = await it.client()
        plain = b"tensor " * 1000
        bare = zlib.compressobj(wbits=-15)
        for encoding, body in (
            ("gzip", gzip.compress(plain)),
            ("GZip", gzip.compress(plain)),
            ("deflate", zlib.compress(plain)),
            ("deflate", bare.compress(plain) + bare.flush()),
            ("identity", plain),
        ):
            assert (await client.ask(post("/echo", body, f"Content-Encoding: {encoding}"))).body == plain
        for status, encoding, body in (
            (413, "gzip", gzip.compress(bytes(50 << 20), 1)),
            (400, "gzip", b"not gzip at all"),
            (400, "gzip", gzip.compress(plain)[:-9]),
            (400, "gzip", gzip.compress(plain) + b"more"),
            (400, "deflate", b"\x00\xff"),
            (501, "br", plain),
            (501, "gzip, gzip", plain),
        ):
            client = await it.client()
            reply = await client.ask(post("/echo", body, f"Content-Encoding: {encoding}"))
            assert (reply.status, bool(reply.json["error"])) == (status, True), reply.body
            assert it.server.held == 0


async def test_only_large_json_is_compressed_and_only_if_asked() -> None:
    async with lab() as it:
        client = await it.client()
        for path, asked, encoding in (
            ("/json?size=9000", "gzip, deflate, br", "gzip"),
            ("/json?size=9000", "deflate;q=1.0, gzip;q=0", "deflate"),
            ("/json?size=9000", "br, gzip;q=0.0", None),
            ("/json?size=9000", "identity", None),
            ("/json?size=8000", "gzip", None),
            ("/parts?size=90000", "gzip, deflate", None),
        ):
            reply = await client.ask(get(path, f"Accept-Encoding: {asked}"))
            assert reply.headers.get("content-encoding") == encoding, (path, asked)
            if encoding:
                plain = zlib.decompress(reply.body, 32 + zlib.MAX_WBITS)
                assert json.loads(plain) == {"data": "x" * 9000}
                assert len(reply.body) < 1000
        assert "content-encoding" not in (await client.ask(get("/json?size=9000"))).headers


async def test_a_reply_in_parts_is_one_body() -> None:
    async with lab() as it:
        client = await it.client()
        for size in (10, 100_000):
            assert (await client.ask(get(f"/parts?size={size}"))).body == b"head" + bytes(size)


async def test_faults_of_handlers_are_json(caplog: pytest.LogCaptureFixture) -> None:
    async with lab() as it:
        client = await it.client()
        for path in ("/bug", "/bad-header"):
            reply = await client.ask(get(path))
            assert (reply.status, "internal error" in reply.json["error"]) == (500, True)
            assert "set-cookie" not in reply.headers
        assert (await client.ask(get("/x"))).status == 200
    assert "a bug" in caplog.text


async def test_requests_of_one_pass_know_how_many_they_are() -> None:
    async with lab() as it:
        clients = [await it.client() for _ in range(4)]
        await clients[0].ask(get("/x"))
        assert it.together == [1]
        # Sent while the loop is kept from looking, so that one pass sees them all.
        for client in clients:
            client.send(get("/x"))
        for client in clients:
            await client.reply()
        assert it.together[1:] == [4] * 4


async def test_a_later_reply_and_one_that_nobody_waits_for() -> None:
    async with lab() as it:
        client = await it.client()
        client.send(get("/later"))
        await settled("the request came", lambda: it.kept)
        assert it.server.in_flight == 1
        it.kept[0].respond(json_response("here"))
        assert (await client.reply()).json == "here"
        it.kept[0].respond(json_response("twice"))  # goes nowhere
        client.send(get("/later"))
        await settled("the request came", lambda: len(it.kept) == 2)
        client.close()
        await settled("the hang-up was noticed", lambda: it.gone == 1)
        assert it.kept[1].closed
        it.kept[1].respond(Response())
        called = []
        it.kept[1].on_close(lambda: called.append(True))
        assert called == [True]


async def test_an_answered_request_is_freed_at_once() -> None:
    """Bodies are large: they must not wait for the garbage collector."""
    async with lab() as it:
        client = await it.client()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.send(post("/later", bytes(1000)))
                await settled("it came", lambda: it.kept)
                request = it.kept.pop()
                request.on_close(lambda request=request: request.body)  # type: ignore[misc] # a circle
                request.respond(json_response(1))
                del request
                await client.reply()
                await client.ask(get("/x"))
            assert sum(isinstance(one, Request) and len(one.body) > 0 for one in gc.get_objects()) <= 1
        finally:
            gc.enable()


async def test_the_task_of_a_client_that_hung_up_is_cancelled() -> None:
    async with lab() as it:
        client = await it.client()
        client.send(get("/slow"))
        await settled("the request came", lambda: it.server.in_flight)
        client.writer.write_eof()  # half-closed: it sends nothing more, which is hanging up
        await settled("the task was cancelled", lambda: it.cancelled == 1)
        assert await client.ended() == b""
        assert it.server.in_flight == 0
        # What can be answered at once is, also to a client that sends and closes its side.
        client = await it.client()
        client.send(get("/quick"))
        client.writer.write_eof()
        assert (await client.reply()).json["path"] == "/quick"
        assert await client.ended() == b""


async def test_slow_and_silent_clients_end() -> None:
    async with lab(FAST) as it:
        cases = {
            b"": None,
            b"GET / HT": 408,
            b"POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhello": 408,
            b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel": 408,
            b"POST /stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n": 408,
        }
        it.release.set()
        clients = [await it.client() for _ in cases]
        for client, data in zip(clients, cases, strict=True):
            client.send(data)
        for client, status in zip(clients, cases.values(), strict=True):
            if status is not None:
                reply = await client.reply(timeout_s=2)
                assert (reply.status, "not" in reply.json["error"]) == (status, True)
            assert await client.ended(2) == b""
        # Trickling does not help: the header as a whole has its time.
        client = await it.client()
        started = asyncio.get_running_loop().time()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, TimeoutError)):
            while asyncio.get_running_loop().time() < started + 2:
                client.send(b"G")
                await client.reply(timeout_s=0.05)
                raise ConnectionError("refused, as it should be")
        await settled("all are gone", lambda: not it.server.connections)


async def test_a_client_that_takes_no_reply_is_cut_off() -> None:
    async with lab(FAST) as it:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", it.port))
            sock.send(get("/parts?size=14000000") + get("/x"))
            await settled("the reply waits", lambda: any(one._stuffed for one in it.server.connections))
            assert it.together == [1]  # and the next request waits for it
            await settled("it was cut off", lambda: not it.server.connections)


async def test_bodies_together_are_bounded() -> None:
    async with lab(Limits(bodies=1 << 20)) as it:
        clients = [await it.client() for _ in range(4)]
        for client in clients:
            client.send(post("/slow", bytes(300_000)))
        await settled("three are held", lambda: it.server.in_flight == 3)
        replies = [asyncio.create_task(client.reply()) for client in clients]
        done, _ = await asyncio.wait(replies, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        it.release.set()
        assert sorted(reply.status for reply in await asyncio.gather(*replies)) == [200, 200, 200, 503]


async def test_connections_are_bounded_and_idle_ones_make_room() -> None:
    async with lab(Limits(connections=4)) as it:
        idle = [await it.client() for _ in range(4)]
        for client in idle:
            await client.ask(get("/x"))
        late = await it.client()
        assert (await late.ask(get("/x"))).status == 200
        assert await idle[0].ended() == b""
        for client in (*idle[1:], late):
            client.send(get("/slow"))
        await settled("all are busy", lambda: it.server.in_flight == 4)
        reply = await (await it.client()).reply()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        it.release.set()
        for client in (*idle[1:], late):
            assert (await client.reply()).status == 200


async def test_drain_closes_after_the_reply() -> None:
    async with lab() as it:
        busy, idle = await it.client(), await it.client()
        busy.send(get("/slow"))
        await settled("busy", lambda: it.server.in_flight)
        ending = asyncio.create_task(it.server.shutdown(2))
        assert await idle.ended() == b""
        it.release.set()
        reply = await busy.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert await busy.ended() == b""
        await ending


async def test_idle_connections_move_to_another_server_without_a_lost_byte() -> None:
    async with lab() as old, lab() as new:
        clients = [await old.client() for _ in range(3)]
        fresh, half, busy = await old.client(), await old.client(), await old.client()
        for client in clients:
            await client.ask(get("/before"))
        half.send(get("/half")[:7])
        busy.send(get("/slow"))
        await settled("busy and half", lambda: old.server.in_flight and not all(c.idle for c in old.server.connections))
        await asyncio.sleep(0.05)
        # A request that is on its way while the socket moves:
        clients[0].send(post("/echo", b"on its way"))
        moved = old.server.idle_connections()
        assert len(moved) == 4
        await asyncio.sleep(0.05)
        for sock in moved:
            await new.server.adopt(sock)
        assert (await clients[0].reply()).body == b"on its way"
        for client in (*clients, fresh):
            assert (await client.ask(get("/after"))).json["path"] == "/after"
        assert (len(old.server.connections), len(new.server.connections)) == (2, 4)
        half.send(get("/half")[7:])
        old.release.set()
        assert (await half.reply()).json["path"] == "/half"
        assert (await busy.reply()).status == 200


async def test_a_stream_is_read_while_it_comes() -> None:
    async with lab() as it:
        it.release.set()
        client = await it.client()
        client.send(b"POST /stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.reply()).status == 100
        for number in range(3):
            client.send(b"6\r\nframe%d\r\n" % number)
            await settled("it came", lambda: b"".join(it.streamed).count(b"frame") == number + 1)  # noqa: B023
        client.send(b"0\r\n\r\n" + get("/next"))
        assert (await client.reply()).json == {"size": 18}
        assert (await client.reply()).json["path"] == "/next"
        assert (await client.ask(post("/stream", b"length"))).json == {"size": 24}
        # A handler that has enough ends the connection; one whose client leaves hears of it.
        client.send(b"POST /stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nenough\r\n")
        reply = await client.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        broken = await it.client()
        reply = await broken.ask(b"POST /stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n")
        assert (reply.status, reply.headers["connection"]) == (400, "close")


async def test_a_stream_waits_for_its_reader() -> None:
    async with lab() as it:
        client = await it.client()
        size = 20 << 20
        client.send(get("/stream", f"Content-Length: {size}", method="POST"))
        for _ in range(20):
            client.send(bytes(1 << 20))
        await asyncio.sleep(0.2)
        (connection,) = it.server.connections
        assert connection._stream is not None
        assert connection._stream._size < 1 << 20
        it.release.set()
        assert (await client.reply(timeout_s=10)).json == {"size": size}


async def test_what_is_wrong_with_a_stream_is_said() -> None:
    async with lab() as it:
        client = await it.client()
        head = get("/stream", "Content-Encoding: gzip", "Content-Length: 5", method="POST")
        assert (await client.ask(head)).status == 501


def test_a_request_needs_no_connection_to_be_looked_at() -> None:
    request = Request("POST", "/x?a=1", "/x", "a=1", {"content-type": "Image/JPEG; q=1"})
    assert (request.content_type, request.query["a"]) == ("image/jpeg", "1")
    request.respond(Response())
    assert HttpError(400, "x").close is False


async def test_the_lab_is_what_it_seems(tmp_path: object) -> None:
    """The client of these tests fails where a reply is missing."""
    async with lab() as it:
        client = await it.client()
        client.send(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        await client.reply()
        with pytest.raises(asyncio.IncompleteReadError):
            await client.reply()
        assert isinstance(client, RawClient)
        assert isinstance(it, Lab)
