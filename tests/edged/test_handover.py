"""Connections move between processes' ends: nothing is lost, nothing blocks, and nobody is left without a word."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

import pytest

from edged import handover


class Adopted:
    """Sockets as a server would own them."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    async def __call__(self, sock: socket.socket) -> None:
        self.sockets.append(sock)

    async def until(self, number: int) -> None:
        async with asyncio.timeout(10):
            while len(self.sockets) < number:
                await asyncio.sleep(0.005)


def connections(number: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """(clients, their accepted ends)"""
    with socket.create_server(("127.0.0.1", 0), backlog=number) as listener:
        clients, accepted = [], []
        for _ in range(number):
            clients.append(socket.create_connection(listener.getsockname()))
            accepted.append(listener.accept()[0])
    return clients, accepted


async def test_what_a_client_sends_meanwhile_waits_in_the_socket() -> None:
    sending, receiving = handover.pair()
    (client,), (accepted,) = connections(1)
    client.sendall(b"before ")
    assert await handover.give(sending, [accepted], asyncio.get_running_loop().time() + 5) == []
    assert accepted.fileno() == -1, "our copy is closed"
    client.sendall(b"on its way ")
    adopted = Adopted()
    receiver = handover.Receiver(receiving, adopt=adopted)
    await adopted.until(1)
    client.sendall(b"after")
    client.shutdown(socket.SHUT_WR)
    with adopted.sockets[0] as taken:
        taken.setblocking(True)
        data = b""
        while part := taken.recv(100):
            data += part
        assert data == b"before on its way after"
        taken.sendall(b"answer")
    assert client.recv(100) == b"answer"
    assert client.recv(100) == b"", "the only copy is closed"
    assert not os.get_inheritable(receiving.fileno())
    await receiver.close()
    sending.close()
    client.close()


async def test_many_more_than_fit_into_one_message() -> None:
    sending, receiving = handover.pair()
    clients, accepted = connections(150)
    adopted = Adopted()
    receiver = handover.Receiver(receiving, adopted)
    assert await handover.give(sending, accepted, asyncio.get_running_loop().time() + 5) == []
    await adopted.until(150)
    assert receiver.received == 150
    peers = {taken.getpeername() for taken in adopted.sockets}
    assert peers == {client.getsockname() for client in clients}
    for sock in (*clients, *adopted.sockets):
        sock.close()
    sending.close()
    await receiver.close()


async def test_what_nobody_receives_comes_back_in_time_and_never_blocks() -> None:
    sending, receiving = handover.pair()
    loop = asyncio.get_running_loop()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    (client,), (accepted,) = connections(1)
    sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    copies = [accepted.dup() for _ in range(600)]
    began = loop.time()
    left = await handover.give(sending, copies, began + 0.5)
    assert left and 0.4 < loop.time() - began < 3
    assert ticks > 10, "the loop went on"
    for copy in left:
        assert copy.fileno() >= 0, "they are still ours"
        copy.close()
    ticking.cancel()
    # The successor is gone, and with it what was on its way: the client hears of that.
    receiving.close()
    accepted.close()
    sending.close()
    client.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    client.close()


async def test_a_successor_that_is_gone_gets_nothing() -> None:
    sending, receiving = handover.pair()
    receiving.close()
    (client,), (accepted,) = connections(1)
    assert await handover.give(sending, [accepted], asyncio.get_running_loop().time() + 5) == [accepted]
    for sock in (client, accepted, sending):
        sock.close()


async def test_what_is_no_connection_is_closed() -> None:
    sending, receiving = handover.pair()
    readable, writable = os.pipe()
    with socket.socket() as unconnected, socket.socketpair()[0] as local:
        socket.send_fds(sending, [b"\0"], [unconnected.fileno(), local.fileno(), readable])
        os.close(readable)
        os.close(writable)
        adopted = Adopted()
        receiver = handover.Receiver(receiving, adopted)
        before = len(list(Path("/proc/self/fd").iterdir()))
        sending.close()
        await receiver.close()
        assert adopted.sockets == []
        assert len(list(Path("/proc/self/fd").iterdir())) < before
        assert receiving.fileno() == -1


async def test_a_connection_that_cannot_be_adopted_is_closed_and_the_next_one_is_not() -> None:
    sending, receiving = handover.pair()
    clients, accepted = connections(2)
    taken: list[socket.socket] = []

    async def adopt(sock: socket.socket) -> None:
        if sock.getpeername() == clients[0].getsockname():
            raise OSError("no room")
        taken.append(sock)

    await handover.give(sending, accepted, asyncio.get_running_loop().time() + 5)
    receiver = handover.Receiver(receiving, adopt)
    await receiver.close()
    clients[0].settimeout(5)
    assert clients[0].recv(1) == b""
    assert [sock.getpeername() for sock in taken] == [clients[1].getsockname()]
    for sock in (*clients, *taken, sending):
        sock.close()


@pytest.mark.parametrize("descriptor", [-1, 9999])
def test_no_descriptor_is_no_end(descriptor: int) -> None:
    assert handover.inherited(descriptor) is None
