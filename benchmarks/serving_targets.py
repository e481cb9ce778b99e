"""What the serving benchmark measures side by side: edged, raw onnxruntime and the peers, each behind `burst`."""

from __future__ import annotations

import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import processes, serving_requests
from benchmarks.daemons import Edge
from benchmarks.load_generator import Address, Client, run
from benchmarks.peers import Peer
from benchmarks.raw_floor import Floor, Order
from benchmarks.serving_models import MODELS
from benchmarks.serving_requests import How

OPEN_LOOP_CONNECTIONS = 4
"""A camera that is kept waiting sends its next frame all the same."""
FIRST_ANSWER_LIMIT_S = 60.0


@dataclass(frozen=True)
class Case:
    """One way of asking: closed loop with `callers`, or an open loop with `rate` requests a second."""

    model: str
    how: How
    callers: int = 1
    rate: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.model} {self.how} " + (f"{self.rate:.0f}/s" if self.rate else f"c={self.callers}")


@dataclass(frozen=True)
class Burst:
    """What one burst gave. CPU in us of a request; NaN where nothing was answered."""

    rps: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    client_cpu_us: float
    failed: int = 0
    sample: str = ""  # the beginning of an answer that was none


class Target(Protocol):
    """Something that can be loaded."""

    @property
    def name(self) -> str: ...

    def burst(self, case: Case, seconds: float, warm_s: float) -> Burst:
        """Load it alone for this long."""
        ...


class RawTarget:
    """onnxruntime itself; more callers than cores would only wait for each other."""

    name = "raw"

    def __init__(self, floor: Floor, cores: int) -> None:
        self._floor, self._cores = floor, cores

    def burst(self, case: Case, seconds: float, warm_s: float) -> Burst:
        """See Target."""
        callers = min(case.callers, self._cores)
        got = self._floor.run(Order(case.model, case.how, callers, seconds, warm_s, case.rate))
        return Burst(got.rps, got.p50_ms, got.p99_ms, got.cpu_us, 0.0)


class EdgedTarget:
    """A running edged."""

    name = "edged"

    def __init__(self, edge: Edge) -> None:
        self.edge = edge

    def burst(self, case: Case, seconds: float, warm_s: float) -> Burst:
        """See Target."""
        request = serving_requests.edged(MODELS[case.model], case.how)
        return _burst(inference_address(self.edge), request, processes.tree(self.edge.pid), case, seconds, warm_s)

    def rss_mb(self) -> tuple[float, float]:
        """Memory of the worker and of the supervisor."""
        worker = self.edge.status().worker.pid
        return processes.rss_mb([worker] if worker else []), processes.rss_mb([self.edge.pid])


class PeerTarget:
    """A running peer."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    @property
    def name(self) -> str:
        return self.peer.name

    def burst(self, case: Case, seconds: float, warm_s: float) -> Burst:
        """See Target."""
        request = self.peer.request(MODELS[case.model], case.how)
        return _burst(self.peer.address(case.model), request, self.peer.pids(case.model), case, seconds, warm_s)


def _burst(address: Address, request: bytes, pids: list[int], case: Case, seconds: float, warm_s: float) -> Burst:
    connections = OPEN_LOOP_CONNECTIONS if case.rate else case.callers
    result = run(
        address,
        [Client(request)] * connections,
        seconds,
        warm_s=warm_s,
        rate=case.rate,
        server_cpu=lambda: processes.cpu_s(pids),
    )
    count = len(result.latencies)
    return Burst(
        rps=result.rps,
        p50_ms=result.percentile_ms(0.5),
        p99_ms=result.percentile_ms(0.99),
        server_cpu_us=result.server_cpu_s / count * 1e6 if count else math.nan,
        client_cpu_us=result.client_cpu_s / count * 1e6 if count else math.nan,
        failed=result.failed + result.unsent,
        sample=result.sample.decode("utf-8", "replace"),
    )


def inference_address(edge: Edge) -> Address:
    """Where it answers."""
    host, _, port = edge.status().addresses.inference.rpartition(":")
    return host, int(port)


def definition(name: str, model: str, deadline_ms: float = 2000.0) -> str:
    """A service that asks no cloud. The deadline leaves room for sixteen callers of the large model."""
    return f'name = "{name}"\nmodel = "{model}"\ndeadline_ms = {deadline_ms}\n'


def set_up(edge: Edge, packages: Path) -> None:
    """Install the packages NAME in the folder and run a service NAME with each."""
    for name in MODELS:
        edge.add_model(packages / name)
    for name in MODELS:
        edge.add_service(definition(name, name))


def first_answer_s(edge: Edge, address: Address) -> tuple[float, float]:
    """Start the stopped daemon; seconds until its first inference, from the start of it and of its worker.

    Its files are in the page cache, its services in its state, and all of its models loaded before it answers.
    """
    request = serving_requests.edged(MODELS["tiny64"], "jpeg")
    began = time.monotonic()
    edge.start(wait=False)
    while not _answers(address, request):
        if time.monotonic() - began > FIRST_ANSWER_LIMIT_S:
            raise TimeoutError(f"no answer after {FIRST_ANSWER_LIMIT_S:.0f} s\n{edge.log_tail()}")
        time.sleep(0.002)
    answered = time.monotonic()
    edge.wait_for(edge.is_ready, "to become ready")
    worker = edge.status().worker.pid
    assert worker is not None
    return answered - began, processes.age_s(worker) - (time.monotonic() - answered)


def _answers(address: Address, request: bytes) -> bool:
    try:
        with socket.create_connection(address, timeout=FIRST_ANSWER_LIMIT_S) as one:
            one.sendall(request)
            return one.recv(65_536).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
