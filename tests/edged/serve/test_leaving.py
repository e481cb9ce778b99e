"""How a draining worker stops accepting, with real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from edged.serve.http import HttpServer, Request, Response
from edged.serve.leaving import stop_accepting
from tests.support.http_lab import RawClient, get
from tests.support.receivers import until


@pytest.mark.parametrize("passes", range(5))
async def test_a_connection_that_was_accepted_a_moment_ago_is_answered(passes: int) -> None:
    """Whatever the loop has done with it by then: nothing yet, accepted it, made its transport."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        duplicate = listener.dup()
        server = HttpServer(_hello)
        listening = await asyncio.get_running_loop().create_server(server, sock=duplicate)
        clients = [socket.create_connection(listener.getsockname(), timeout=5.0) for _ in range(3)]
        for client in clients:
            client.sendall(get("/x"))
        for _ in range(passes):
            await asyncio.sleep(0)
        await stop_accepting(listening)
        left = [one for one in clients if not await _answered(one)]
        if left:  # still in the kernel's queue, for whoever else has the socket
            again = await asyncio.get_running_loop().create_server(server, sock=listener.dup())
            assert all([await _answered(one) for one in left])
            again.close()
        assert not left or passes < 2
        for client in clients:
            client.close()
        await server.shutdown(0.5)


async def test_what_follows_a_reply_is_the_successors() -> None:
    """A client whose request was under way at a swap sends the next one the moment it has its reply."""
    async with _parting() as (leaving, client, answer):
        client.send(get("/first"))
        await until(lambda: leaving.in_flight == 1)
        leaving.part(True)
        answer.set()
        assert (await client.reply()).body == b"old"
        client.send(get("/second"))
        for _ in range(20):  # passes in which it would be read
            await asyncio.sleep(0)
        (given,) = leaving.idle_connections()
        successor = HttpServer(lambda request: Response(200, b"new", "text/plain"))
        await successor.adopt(given)
        assert (await client.reply()).body == b"new"
        await successor.shutdown(0.5)


async def test_without_a_taker_the_connection_is_answered_as_before() -> None:
    async with _parting() as (leaving, client, answer):
        answer.set()
        leaving.part(True)
        assert (await client.ask(get("/first"))).body == b"old"
        client.send(get("/second"))
        await asyncio.sleep(0.02)
        assert leaving.in_flight == 0
        leaving.part(False)
        assert (await client.reply()).body == b"old"
        assert (await client.ask(get("/third"))).body == b"old"


@asynccontextmanager
async def _parting() -> AsyncIterator[tuple[HttpServer, RawClient, asyncio.Event]]:
    """A server that answers when the event is set, and a client of it."""
    answer = asyncio.Event()

    async def handler(request: Request) -> Response:
        await answer.wait()
        return Response(200, b"old", "text/plain")

    server = HttpServer(handler)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    client = await RawClient.open(listening.sockets[0].getsockname()[1])
    yield server, client, answer
    client.writer.close()
    listening.close()
    await server.shutdown(0.5)


def _hello(request: Request) -> Response:
    return Response(200, b"hello", "text/plain")


async def _answered(client: socket.socket) -> bool:
    """Whether an answer comes; a connection that was dropped fails the test."""
    client.settimeout(0.3)
    try:
        data = await asyncio.to_thread(client.recv, 4096)
    except TimeoutError:
        return False
    assert data.startswith(b"HTTP/1.1 200")
    return True
