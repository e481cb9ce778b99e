"""The load generator against scripted servers on real sockets: what it counts, and from when."""

from __future__ import annotations

import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from benchmarks.load_generator import Address, Client, Result, nearest_rank, post, run

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = post("/x", b"body", {"Content-Type": "text/plain"})

Answer = Callable[[int], bytes | None]
"""The bytes for the n-th request of the server; None hangs up without an answer."""


class Scripted:
    """Reads requests of len(REQUEST) bytes and answers each as told."""

    def __init__(self, answer: Answer) -> None:
        self.connections = self.requests = 0
        self.bodies: set[bytes] = set()
        lock, outer = threading.Lock(), self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with lock:
                    outer.connections += 1
                while True:
                    data = b""
                    while len(data) < len(REQUEST):
                        got = self.request.recv(len(REQUEST) - len(data))
                        if not got:
                            return
                        data += got
                    with lock:
                        number = outer.requests
                        outer.requests += 1
                        outer.bodies.add(data)
                    reply = answer(number)
                    if reply is None:
                        return
                    self.request.sendall(reply)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address: Address = ("127.0.0.1", self.server.server_address[1])


@contextmanager
def scripted(answer: Answer) -> Iterator[Scripted]:
    one = Scripted(answer)
    thread = threading.Thread(target=one.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.server.shutdown()
        one.server.server_close()
        thread.join(5)


def test_a_closed_loop_keeps_its_connections_and_sends_the_request_as_it_is() -> None:
    with scripted(lambda number: OK) as server:
        result = run(server.address, [Client(REQUEST)] * 3, 0.2)
        assert server.connections == 3 and server.bodies == {REQUEST}
    assert len(result.latencies) > 10 and result.failed == 0 and result.closed == 0
    assert len(result.latencies) == len(result.done_at) and result.rps > 50
    assert 0 < result.percentile_ms(0.5) <= result.percentile_ms(0.99) < 200


def test_a_fresh_client_connects_each_time_and_pauses() -> None:
    with scripted(lambda number: OK) as server:
        result = run(server.address, [Client(REQUEST, fresh=True, pause_s=0.02)], 0.3)
        assert server.connections == server.requests
    assert 3 <= len(result.latencies) <= 15 and result.closed == 0


def test_other_statuses_are_no_answers() -> None:
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy"
    with scripted(lambda number: busy if number % 2 else OK) as server:
        result = run(server.address, [Client(REQUEST)], 0.1)
    assert result.statuses[503] > 0 and result.failed == sum(result.statuses.values())
    assert b"busy" in result.sample and result.closed == 0


def test_a_connection_that_ends_without_an_answer_is_a_failed_request() -> None:
    with scripted(lambda number: None if number == 3 else OK) as server:
        result = run(server.address, [Client(REQUEST)], 0.2)
        assert server.connections == 2
    assert result.broken == 1 and result.closed == 1 and result.failed == 1
    assert len(result.latencies) > 5, "it goes on afterwards"


def test_an_announced_end_is_a_closed_connection_but_no_failed_request() -> None:
    last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    with scripted(lambda number: last if number == 3 else OK) as server:
        result = run(server.address, [Client(REQUEST)], 0.2)
        assert server.connections == 2
    assert result.closed == 1 and result.failed == 0


def test_nobody_listens() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address: Address = ("127.0.0.1", one.getsockname()[1])
        result = run(address, [Client(REQUEST)], 0.1)
    assert result.refused > 2 and not result.latencies and math.isnan(result.percentile_ms(0.5))


def test_chunked_answers_and_answers_in_pieces() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\n" + b"x" * 900_000
    with scripted(lambda number: large if number % 2 else chunked) as server:
        result = run(server.address, [Client(REQUEST)], 0.2)
    assert len(result.latencies) > 4 and result.failed == 0


def test_an_open_loop_sends_at_its_rate() -> None:
    with scripted(lambda number: OK) as server:
        result = run(server.address, [Client(REQUEST)] * 2, 0.5, warm_s=0.1, rate=100)
    assert 48 <= len(result.latencies) <= 51 and result.unsent == 0 and result.failed == 0


def test_an_open_loop_charges_a_stall_to_all_that_it_kept_waiting() -> None:
    def stall(number: int) -> bytes:
        time.sleep(0.3 if number == 10 else 0.0)
        return OK

    with scripted(stall) as server:
        result = run(server.address, [Client(REQUEST)], 0.8, rate=100)
    assert result.failed == 0 and len(result.latencies) >= 75
    # 300 ms at 100 a second: some thirty requests were due meanwhile; a closed loop would have seen one slow answer.
    assert sum(latency > 0.05 for latency in result.latencies) >= 20
    assert result.percentile_ms(1.0) >= 290


def test_only_what_ends_after_the_warm_up_counts() -> None:
    with scripted(lambda number: OK) as server:
        result = run(server.address, [Client(REQUEST, pause_s=0.01)], 0.1, warm_s=0.3)
        assert server.requests > 2 * len(result.latencies)
    assert 0.09 < result.seconds < 0.3


def test_it_stops_when_told() -> None:
    stop = threading.Event()
    found: list[Result] = []
    with scripted(lambda number: OK) as server:
        thread = threading.Thread(target=lambda: found.append(run(server.address, [Client(REQUEST)], 60, stop=stop)))
        thread.start()
        time.sleep(0.1)
        stop.set()
        thread.join(5)
    assert found and found[0].latencies


def test_the_cpu_of_the_server_is_that_of_the_window() -> None:
    readings = iter([3.0, 3.5])
    with scripted(lambda number: OK) as server:
        result = run(server.address, [Client(REQUEST)], 0.05, warm_s=0.05, server_cpu=lambda: next(readings))
    assert result.server_cpu_s == pytest.approx(0.5) and result.client_cpu_s > 0


def test_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert nearest_rank(values, 0.5) == 50 and nearest_rank(values, 0.99) == 99 and nearest_rank(values, 1.0) == 100
    assert math.isnan(nearest_rank([], 0.5))
