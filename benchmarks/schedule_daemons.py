"""The research's trace on real daemons: edged with one model thread, cloudd, and a shaped uplink, all on loopback.

Time is stretched: runs, deadlines and round trips are SLOW times those of the trace and the uplink has as much less, so
all ratios are the trace's and a shared machine's noise of some milliseconds counts less. Outages are shorter than the
trace's minute, one in each run. Models are convolutions that onnxruntime runs on one thread, with as many layers as
take their time here; the cloud's have a sixth. What those of the device do:

    onnx    the same. edged needs a core of its own, or run times say more about the machine's other users than about
            the rules
    paced   they stand for an accelerator's: one layer, and then the run waits until its time is over (`paced`)

So run times vary as this machine makes them, and not by the trace's distribution. The work that comes is a multiple of
what the device was measured to do alone, by the daemon's own times.

A latency counts from when the request was due. The first requests of each run (WARM) are not counted: neither side
knows anything yet, and cloudd loads its models. Rules of others are edged without `[dispatch]`: `FIFO` has one class
and no deadlines, `priority` has classes and no deadlines, `priority + shed` is what edged does on its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from benchmarks.adapt_models import Net
from benchmarks.daemons import Edge, Fleet
from benchmarks.load_generator import post
from benchmarks.schedule_sim import (
    BYTES_PER_S,
    CLOUD_SPEED,
    CLOUD_WORKERS,
    KINDS,
    MEAN_RUN_S,
    ROUND_TRIP_S,
    Count,
    Kind,
    Request,
    Scenario,
    trace,
)
from benchmarks.serving_models import SCALE, picture
from benchmarks.shaped_link import ShapedLink
from edgekit.dispatch.policy import Priority
from edgekit.messages import UNSEEN, Decision
from edgekit.packages import InputSpec, Manifest, Package, ProofSample, Variant, seal_package
from edgekit.vision.classification import Classifier

SLOW = 4.0
SIDE, CHANNELS, PIXELS, LABELS = 64, 64, 16, 5
LAYERS = 60  # of the model that is timed first
PACED = Path(__file__).with_name("paced")
WARM = 60
BLOCK = 50  # requests with the same rate: a short trace is to have more than one
PERIOD_S = 15.0
"""Times SLOW: the link is down for a share of each such time, in its middle. About the length of a run."""
NO_DEADLINE_MS = 600_000
PATIENCE_S = 20.0
"""After the last request was due; what has no answer then is late."""

Models = Literal["paced", "onnx"]


# --- models ---------------------------------------------------------------------------------------------------------


def convolutions(path: Path, layers: int) -> None:
    """So many layers of equal work, all with the same weights: the time of a run is proportional to their number."""
    net = Net(1, labels=LABELS)
    x = net.node("AveragePool", "input", kernel_shape=[SIDE // PIXELS] * 2, strides=[SIDE // PIXELS] * 2)
    x = net.conv(x, 3, CHANNELS)
    # With such a bias the values settle near one, however many layers there are.
    weights, bias = net.weight(0.25 * _kernels()), net.weight(np.full(CHANNELS, 0.5, np.float32))
    for _ in range(layers):
        x = net.node("Relu", net.node("Conv", x, weights, bias, pads=[1] * 4))
    net.classifier(x, CHANNELS)
    net.save(path, SIDE)


def _kernels() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    fan_in = CHANNELS * 9
    return np.random.default_rng(2).normal(0, math.sqrt(2 / fan_in), (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)


def package(folder: Path, name: str, layers: int, file: str = "model.onnx") -> Package:
    """A sealed package of that model."""
    folder.mkdir(parents=True)
    convolutions(folder / file, layers)
    (folder / "labels.txt").write_text("".join(f"class-{index}\n" for index in range(LABELS)))
    (folder / "sample.jpg").write_bytes(picture(SIDE))
    manifest = Manifest(
        name=name,
        version="1.0.0",
        description="Random weights, for benchmarks",
        labels="labels.txt",
        input=InputSpec(width=SIDE, height=SIDE, scale=[SCALE]),
        variants=[Variant(file=file)],
    )
    said = Classifier.load(seal_package(folder, manifest)).classify(picture(SIDE))
    pinned = ProofSample(file="sample.jpg", label=said.label, score=said.score)
    return seal_package(folder, msgspec.structs.replace(manifest, samples=[pinned]))


def layer_s(folder: Path) -> tuple[float, float]:
    """Seconds of one layer on this machine, and of everything else in a run."""
    few, many = (_median_s(package(folder / f"{layers}", "timed", layers)) for layers in (1, LAYERS))
    each = (many - few) / (LAYERS - 1)
    return each, max(0.0, few - each)


def _median_s(package: Package) -> float:
    classifier, times = Classifier.load(package), []
    for _ in range(12):
        began = time.perf_counter()
        classifier.classify(picture(SIDE))
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def padded(size: int) -> bytes:
    """The picture with comments until it has that many bytes."""
    data = picture(SIDE)
    head, rest = data[:2], data[2:]
    while (missing := size - len(head) - len(rest)) >= 4:
        length = min(missing, 60_000)
        head += b"\xff\xfe" + (length - 2).to_bytes(2, "big") + bytes(length - 4)
    return head + rest


# --- the client -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What came of one request: HTTP status (0: nothing in time), seconds since it was due, whose answer."""

    request: Request
    status: int
    latency_s: float
    by_cloud: bool = False


@dataclass
class Client:
    """Sends requests when they are due, over as many kept connections as are needed."""

    address: tuple[str, int]
    bodies: dict[Priority, bytes]
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def run(self, requests: Sequence[Request], stretch: float) -> list[Seen]:
        """All of them, `stretch` times as slowly as the trace says."""
        began, tasks = time.monotonic() + 0.2, []
        for request in requests:
            due = began + request.job.arrived * stretch
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(self._one(request, due)))
        await asyncio.wait(tasks, timeout=PATIENCE_S)
        for task in tasks:
            task.cancel()
        seen = await asyncio.gather(*tasks, return_exceptions=True)
        for _, writer in self.free:
            writer.transport.abort()
        return [
            one if isinstance(one, Seen) else Seen(request, 0, math.inf)
            for request, one in zip(requests, seen, strict=True)
        ]

    async def _one(self, request: Request, due: float) -> Seen:
        reader, writer = self.free.pop() if self.free else await asyncio.open_connection(*self.address)
        try:
            writer.write(self.bodies[request.job.priority])
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(length)
        except BaseException:
            writer.transport.abort()
            raise
        latency = time.monotonic() - due
        self.free.append((reader, writer))
        status = int(head[9:12])
        by_cloud = status == 200 and msgspec.json.decode(body, type=Decision).edge.label == UNSEEN
        return Seen(request, status, latency, by_cloud)


# --- a run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """How the daemons are set up for some rules."""

    dispatch: bool = False
    classes: bool = True
    deadlines: bool = True


class _OneThread(Edge):
    """An edged with one model thread."""

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "--threads", "1"]


def run(
    scenario: Scenario, setup: Setup, models: Models = "paced", slow: float = SLOW
) -> tuple[dict[Priority, Count], dict[str, float]]:
    """What became of the requests of a scenario's trace, and what was measured beside."""
    with tempfile.TemporaryDirectory(prefix="schedule-") as name, Fleet(Path(name)) as fleet:
        folder = Path(name)
        each, rest = layer_s(folder / "timed")
        cloud = fleet.start_cloud(flags=["--answer-workers", str(CLOUD_WORKERS)])
        for kind in KINDS:
            layers = (slow * kind.run_s - rest) / each
            if models == "onnx":
                package(folder / kind.priority, kind.priority, max(1, round(layers)))
            else:
                package(folder / kind.priority, kind.priority, 1, f"model-{slow * kind.run_s * 1e3:g}ms.onnx")
            package(folder / f"{kind.priority}-large", f"{kind.priority}-large", max(1, round(layers / CLOUD_SPEED)))
            cloud.add_model(folder / f"{kind.priority}-large")
        host, _, port = cloud.url.removeprefix("https://").rpartition(":")
        link = ShapedLink(host, int(port), BYTES_PER_S / slow, slow * ROUND_TRIP_S / 2)
        try:
            environ = {"PYTHONPATH": f"{PACED}:{os.environ.get('PYTHONPATH', '')}"} if models == "paced" else None
            edge = _OneThread(folder / "edge", config="[dispatch]\n" if setup.dispatch else "", environ=environ)
            fleet.edges.append(edge)
            edge.start()
            edge.join(cloud, url=f"https://{host}:{link.port}")
            for kind in KINDS:
                edge.add_model(folder / str(kind.priority))
            for kind in KINDS:
                file = edge.state_dir / "services" / f"{kind.priority}.toml"
                file.write_text(_service(kind, setup, slow), encoding="utf-8")
            os.kill(edge.pid, signal.SIGHUP)  # one swap of its worker for all of them
            edge.wait_for(lambda: _serves_all(edge), "to serve the trace", 60.0)
            alone = {kind.priority: _alone_s(edge, kind) for kind in KINDS}
            mean_s = sum(kind.share * alone[kind.priority] for kind in KINDS)
            requests = trace(scenario)
            outages = scenario.down * PERIOD_S * slow, PERIOD_S * slow
            with _outages(link, *outages) if scenario.down else contextlib.nullcontext():
                client = Client(_address(edge), {kind.priority: _request(kind, setup, slow) for kind in KINDS})
                stretch = mean_s / MEAN_RUN_S * _load(requests[WARM:]) / scenario.load
                seen = asyncio.run(client.run(requests, stretch))
        finally:
            link.close()
    measured = {f"{priority}_ms": seconds * 1e3 for priority, seconds in alone.items()}
    return _counts(seen[WARM:], slow), {**measured, "stretched": mean_s / MEAN_RUN_S}


def _load(requests: Sequence[Request]) -> float:
    """What comes by a trace, as a multiple of what the device can do: a short one has its luck, and is corrected."""
    work = sum(KINDS[request.rank].run_s for request in requests)
    return work / (requests[-1].job.arrived - requests[0].job.arrived)


def _serves_all(edge: Edge) -> bool:
    status = edge.status()
    ready = [service for service in status.services if service.report.state == "ready"]
    return len(ready) == len(KINDS) and status.worker.state == "ready" and not status.worker.swapping


def _service(kind: Kind, setup: Setup, slow: float) -> str:
    return (
        f'name = "{kind.priority}"\nmodel = "{kind.priority}"\n'
        f'priority = "{kind.priority if setup.classes else "inline"}"\ndeadline_ms = {slow * kind.deadline_s * 1e3}\n'
        f'[hard_samples]\nmode = "off"\nanswer_model = "{kind.priority}-large"\n'
    )


def _request(kind: Kind, setup: Setup, slow: float) -> bytes:
    deadline_ms = slow * kind.deadline_s * 1e3 if setup.deadlines else NO_DEADLINE_MS
    path = f"/v1/services/{kind.priority}/inspect?deadline_ms={deadline_ms:g}"
    return post(path, padded(kind.size), {"Content-Type": "image/jpeg"})


def _alone_s(edge: Edge, kind: Kind) -> float:
    """Seconds for which one request of a service keeps the model thread busy when nothing else comes."""
    body, times = padded(kind.size), []
    for _ in range(12):
        decision = edge.inspect(kind.priority, body)
        times.append(sum(decision.timings_ms.get(stage, 0.0) for stage in ("decode", "infer")) / 1e3)
    return statistics.median(times[2:])


def _address(edge: Edge) -> tuple[str, int]:
    host, _, port = edge.status().addresses.inference.rpartition(":")
    return host, int(port)


@contextlib.contextmanager
def _outages(link: ShapedLink, down_s: float, period_s: float) -> Iterator[None]:
    """The link is down in the middle of each period."""
    over = threading.Event()

    def work() -> None:
        while not over.wait((period_s - down_s) / 2):
            link.drop()
            over.wait(down_s)
            link.restore()
            over.wait((period_s - down_s) / 2)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _counts(seen: Sequence[Seen], slow: float) -> dict[Priority, Count]:
    counts = {kind.priority: Count() for kind in KINDS}
    for one in seen:
        kind, count = KINDS[one.request.rank], counts[one.request.job.priority]
        count.requests += 1
        count.met += one.status == 200 and one.latency_s <= slow * kind.deadline_s
        count.offloaded += one.by_cloud
        count.spooled += one.status == 202
        count.refused += one.status in (0, 503)
    return counts
