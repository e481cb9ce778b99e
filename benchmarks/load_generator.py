"""Replays prepared HTTP/1.1 requests from one thread and says what came back: for benchmarks and tests.

    request = post("/v2/models/m/infer", body, {"Content-Type": "application/octet-stream"})
    result = run(("127.0.0.1", 8700), [Client(request)] * 4, seconds=1.0)             # closed loop, 4 at once
    result = run(("127.0.0.1", 8700), [Client(request)] * 4, seconds=1.0, rate=60.0)  # open loop, 60 a second

A client in the closed loop sends its next request when the answer to the last one is there (and its pause is over). In
the open loop requests are due at fixed times whatever the server does, and a latency counts from that time, so that a
server that stalls is charged for everything that it kept waiting. The requests are bytes made beforehand, so that a
request costs this process 20 to 40 us.
"""

from __future__ import annotations

import heapq
import math
import selectors
import socket
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

REQUEST_TIMEOUT_S = 30.0
"""An answer that takes longer does not come any more."""
_LAST_S = 2.0  # open loop: how long after the end what was due before it may take
_RETRY_S = 0.005  # before a connection that was refused or lost is opened again
_LOOK_S = 0.1  # how often `stop` is looked at when nothing happens
_READ = 262_144

Address = tuple[str, int]


@dataclass(frozen=True)
class Client:
    """One caller with one connection."""

    request: bytes
    fresh: bool = False  # a new connection for every request
    pause_s: float = 0.0  # closed loop: between an answer and the next request


@dataclass
class Result:
    """What happened in the measured window. Times are of time.perf_counter."""

    latencies: array[float] = field(default_factory=lambda: array("d"))  # seconds, of answers with status 200
    done_at: array[float] = field(default_factory=lambda: array("d"))  # when each of those was complete
    statuses: Counter[int] = field(default_factory=Counter)  # of the other answers
    other_latencies: array[float] = field(default_factory=lambda: array("d"))  # of those, and when each was complete
    other_at: array[float] = field(default_factory=lambda: array("d"))
    refused: int = 0  # connections that were not accepted
    broken: int = 0  # requests whose connection ended before the answer was complete
    timed_out: int = 0
    closed: int = 0  # kept connections that the server ended, with or without saying so
    unsent: int = 0  # open loop: due, but without an answer long after the end
    seconds: float = 0.0
    client_cpu_s: float = 0.0
    server_cpu_s: float = 0.0  # as `server_cpu` counted it
    sample: bytes = b""  # the beginning of the last answer that was not 200

    @property
    def failed(self) -> int:
        """Requests without an answer of status 200."""
        return sum(self.statuses.values()) + self.refused + self.broken + self.timed_out

    @property
    def rps(self) -> float:
        """Answers of status 200 a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def percentile_ms(self, share: float) -> float:
        """The latency below which `share` of the answers lie, nearest rank; NaN without any answer."""
        return nearest_rank(sorted(self.latencies), share) * 1e3


def nearest_rank(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie; NaN if there are none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


class _Connection:
    __slots__ = ("buffer", "busy", "client", "due", "need", "out", "socket", "writing")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.socket: socket.socket | None = None
        self.buffer = bytearray()
        self.out = memoryview(b"")
        self.need = -1  # bytes of the whole answer; -1: unknown yet, -2: it is chunked
        self.due = 0.0  # when the present request was due
        self.busy = False
        self.writing = False


def run(
    address: Address,
    clients: Sequence[Client],
    seconds: float,
    *,
    warm_s: float = 0.0,
    rate: float = 0.0,
    server_cpu: Callable[[], float] | None = None,
    stop: threading.Event | None = None,
    gap: Callable[[], float] | None = None,
) -> Result:
    """Load the server for `warm_s` and then for `seconds`, which are counted; `stop` ends it earlier.

    `rate` > 0: an open loop with so many requests a second, in turn on whichever connection is free. With `gap` they
    are not evenly spaced, but each is due `gap()` seconds after the last. `server_cpu` tells the CPU seconds that the
    server has used so far.
    """
    return _Load(address, clients, rate, stop, gap).run(seconds, warm_s, server_cpu or (lambda: 0.0))


class _Load:
    def __init__(
        self,
        address: Address,
        clients: Sequence[Client],
        rate: float,
        stop: threading.Event | None,
        gap: Callable[[], float] | None,
    ) -> None:
        self._address, self._rate, self._stop = address, rate, stop
        self._gap = gap or (lambda: 1.0 / rate)
        # epoll waits in whole milliseconds, select in microseconds: what is due must not be sent late.
        self._selector = selectors.SelectSelector() if rate else selectors.DefaultSelector()
        self._connections = [_Connection(client) for client in clients]
        self._idle = deque(self._connections) if rate else deque()
        self._later: list[tuple[float, int, _Connection]] = []  # closed loop: when who sends next
        self._waiting: deque[float] = deque()  # open loop: due, and no connection free
        self._count_from = math.inf
        self._result = Result()

    def run(self, seconds: float, warm_s: float, server_cpu: Callable[[], float]) -> Result:
        began = time.perf_counter()
        self._count_from = began + warm_s
        end = self._count_from + seconds
        next_due = began
        cpu = server = math.nan
        result = self._result
        if not self._rate:
            for connection in self._connections:
                self._send_at(began, connection)
        try:
            while (now := time.perf_counter()) < end and not (self._stop is not None and self._stop.is_set()):
                if math.isnan(cpu) and now >= self._count_from:
                    server, cpu = server_cpu(), time.thread_time()
                if self._rate:
                    while next_due <= now:
                        self._waiting.append(next_due)
                        next_due += self._gap()
                    while self._waiting and self._idle:
                        self._send(self._idle.popleft(), self._waiting.popleft())
                while self._later and self._later[0][0] <= now:
                    connection = heapq.heappop(self._later)[2]
                    self._send(connection, now)
                wait = min(end - now, _LOOK_S)
                if self._rate:
                    wait = min(wait, next_due - now)
                if self._later:
                    wait = min(wait, self._later[0][0] - now)
                self._turn(max(0.0, wait))
            result.client_cpu_s, result.server_cpu_s = time.thread_time() - cpu, server_cpu() - server
            result.seconds = time.perf_counter() - self._count_from
            if self._rate:
                result.unsent = self._finish(end + _LAST_S)
        finally:
            for connection in self._connections:
                if connection.socket is not None:
                    connection.socket.close()
            self._selector.close()
        return result

    def _finish(self, until: float) -> int:
        """Open loop: let what is due be answered; returns how much was not."""
        while (now := time.perf_counter()) < until:
            while self._waiting and self._idle:
                self._send(self._idle.popleft(), self._waiting.popleft())
            if len(self._idle) == len(self._connections) and not self._waiting:
                return 0
            self._turn(min(_LOOK_S, until - now))
        return len(self._waiting) + sum(connection.busy for connection in self._connections)

    def _turn(self, wait_s: float) -> None:
        if self._rate and not self._selector.get_map():
            time.sleep(wait_s)
            return
        for key, events in self._selector.select(wait_s):
            connection: _Connection = key.data
            if events & selectors.EVENT_WRITE and connection.socket is key.fileobj:
                self._push(connection)
            if events & selectors.EVENT_READ and connection.socket is key.fileobj:
                self._read(connection)
        now = time.perf_counter()
        for connection in self._connections:
            if connection.busy and now - connection.due > REQUEST_TIMEOUT_S:
                self._result.timed_out += 1
                self._hang_up(connection)
                self._free(connection, now + _RETRY_S)

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_at(self, at: float, connection: _Connection) -> None:
        heapq.heappush(self._later, (at, id(connection), connection))

    def _send(self, connection: _Connection, due: float) -> None:
        connection.busy, connection.due = True, due
        connection.out, connection.need = memoryview(connection.client.request), -1
        connection.buffer.clear()
        if connection.socket is None and not self._open(connection):
            return
        self._push(connection)

    def _open(self, connection: _Connection) -> bool:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket, connection.writing = one, False
        self._selector.register(one, selectors.EVENT_READ, connection)
        try:
            one.connect(self._address)
        except BlockingIOError:
            return True
        except OSError:
            self._fail_to_connect(connection)
            return False
        return True

    def _push(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            sent = connection.socket.send(connection.out)
        except BlockingIOError:
            sent = 0
        except ConnectionRefusedError:
            self._fail_to_connect(connection)
            return
        except OSError:
            self._lost(connection)
            return
        connection.out = connection.out[sent:]
        writing = bool(connection.out)
        if writing is not connection.writing:
            connection.writing = writing
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self._selector.modify(connection.socket, wanted, connection)

    def _fail_to_connect(self, connection: _Connection) -> None:
        self._result.refused += 1
        self._hang_up(connection)
        self._free(connection, time.perf_counter() + _RETRY_S)

    # --- receiving --------------------------------------------------------------------------------------------------

    def _read(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(_READ)
        except BlockingIOError:
            return
        except ConnectionRefusedError:
            self._fail_to_connect(connection)
            return
        except OSError:
            data = b""
        if not data:
            self._lost(connection)
            return
        connection.buffer += data
        if connection.busy and self._complete(connection):
            self._answered(connection)

    @staticmethod
    def _complete(connection: _Connection) -> bool:
        buffer = connection.buffer
        if connection.need == -1:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            head = bytes(buffer[:end]).lower()
            at = head.find(b"\r\ncontent-length:")
            if at >= 0:
                connection.need = end + 4 + int(head[at + 17 :].split(b"\r\n", 1)[0])
            else:
                connection.need = -2 if b"\r\ntransfer-encoding:" in head else end + 4
        if connection.need == -2:
            return buffer.endswith(b"\r\n0\r\n\r\n")
        return len(buffer) >= connection.need

    def _answered(self, connection: _Connection) -> None:
        now = time.perf_counter()
        head = bytes(connection.buffer[: connection.buffer.find(b"\r\n\r\n") + 2]).lower()
        status = int(head[9:12])
        # The closed loop counts whatever ends in the window: at many callers most of it began before.
        if (connection.due if self._rate else now) >= self._count_from:
            if status == 200:
                self._result.latencies.append(now - connection.due)
                self._result.done_at.append(now)
            else:
                self._result.statuses[status] += 1
                self._result.other_latencies.append(now - connection.due)
                self._result.other_at.append(now)
                self._result.sample = bytes(connection.buffer[:400])
        if connection.client.fresh:
            self._hang_up(connection)
        elif b"\r\nconnection: close\r\n" in head:
            self._result.closed += 1
            self._hang_up(connection)
        self._free(connection, now + connection.client.pause_s)

    def _lost(self, connection: _Connection) -> None:
        """The server ended the connection."""
        if not connection.client.fresh:
            self._result.closed += 1
        was_busy = connection.busy
        self._hang_up(connection)
        if was_busy:
            self._result.broken += 1
            self._free(connection, time.perf_counter() + _RETRY_S)

    def _free(self, connection: _Connection, next_at: float) -> None:
        connection.busy = False
        if self._rate:
            self._idle.append(connection)
        elif next_at <= time.perf_counter():
            self._send(connection, time.perf_counter())
        else:
            self._send_at(next_at, connection)

    def _hang_up(self, connection: _Connection) -> None:
        if connection.socket is not None:
            self._selector.unregister(connection.socket)
            connection.socket.close()
            connection.socket = None
