"""The planner over a real link: real halves, a real cloudd, the daemons' own client, and a relay that shapes the link.

The edge is this process: it runs the heads (and the whole model) that `cloudd split` made, and sleeps after each run
until it has taken a known factor longer than this host at its quickest, where cloudd runs the tails. Everything else is
as in the daemons: TLS, HTTP, the queue and worker process of cloudd, its store, and the estimators and planner of the
edge, which see what an edge sees.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import serving_models
from benchmarks.daemons import Fleet
from benchmarks.link_shaper import LinkShaper
from cloudd.split import Request, split
from edged.collab.uplink import Exchange, Uplink
from edged.link.enroll import enroll
from edgekit.identity import IdentityStore, parse_token
from edgekit.messages import FeaturesHeader, HardSample, Link, Verdict
from edgekit.packages import HeadCut, Package, open_package
from edgekit.planning.estimates import CloudEstimator, LinkEstimator
from edgekit.planning.planner import Planner
from edgekit.planning.recent import quantile
from edgekit.planning.routes import Demand, Estimates, MayLeave, Route, Terms
from edgekit.runtimes import Session, open_session
from edgekit.splitting import features
from edgekit.vision.classification import Classifier

T = TypeVar("T")

PICTURES = 8
_HEADERS = 600  # bytes of envelope, HTTP and TLS around what is sent
_TIMEOUT_S = 10.0
_TIMED = 20
_TRIES = 3  # of which the quickest counts, so that neighbours on this host lengthen no route
_SIDE = 224


def quickest(work: Callable[[], object]) -> float:
    """Seconds of CPU time that the work takes on this host when nothing disturbs it: the best of some runs in a row."""
    times = []
    for _ in range(_TIMED):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return min(times)


@dataclass(frozen=True)
class SlowEdge:
    """A device that takes `slow` times as long for everything as this host does at its quickest."""

    slow: float

    def run(self, work: Callable[[], T], here_s: float) -> T:
        """Do the work, of which `here_s` is the `quickest` time, and go on when the device would have done it."""
        end = time.perf_counter() + here_s * self.slow
        found = work()
        time.sleep(max(0.0, end - time.perf_counter()))
        return found


@dataclass
class Edge:
    """A device with a head package and an uplink. `routes` are as its planner would declare them now."""

    device: SlowEdge
    uplink: Uplink
    whole: Classifier
    heads: Mapping[str, Session]  # by cut
    package: Package  # of the heads
    pictures: Sequence[bytes]
    link: LinkEstimator = field(default_factory=LinkEstimator)
    cloud: CloudEstimator = field(default_factory=CloudEstimator)
    now: float = 0.0  # the clock of its planner: seconds
    here_s: dict[str, float] = field(default_factory=dict)  # by route, of the edge's part on this host
    sizes: dict[str, int] = field(default_factory=dict)  # by route, bytes that leave

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self.uplink.observers.append(self._heard)

    @property
    def cuts(self) -> list[HeadCut]:
        """Those that split."""
        assert self.package.manifest.head is not None
        return [cut for cut in self.package.manifest.head.cuts if not cut.whole]

    def measure(self) -> None:
        """Time what the edge does for each route, as a device does when it loads its heads."""
        for name, work in self._works().items():
            self.here_s[name] = quickest(lambda: work(self.pictures[0]))  # noqa: B023 - called at once
            self.sizes[name] = int(quantile([len(work(picture) or b"") for picture in self.pictures], 0.8))

    def routes(self) -> tuple[Route, ...]:
        """All of them; which one may be taken is the planner's business."""
        spec = self.package.manifest.head
        assert spec is not None
        edge = Route(kind="edge", accuracy="exact", edge_ms=self._edge_ms("edge-whole"))
        frame = Route(
            kind="frame",
            accuracy="exact",
            edge_ms=self._edge_ms("frame"),
            bytes=self.sizes["frame"] + _HEADERS,
            cloud_ms=self.cloud.compute_ms("frame", spec.whole_ms, self.now),
        )
        splits = (
            Route(
                kind="split",
                cut=cut.name,
                accuracy="equal",
                edge_ms=self._edge_ms(f"split@{cut.name}"),
                bytes=self.sizes[f"split@{cut.name}"] + _HEADERS,
                cloud_ms=self.cloud.compute_ms(f"split@{cut.name}", cut.tail_ms, self.now),
            )
            for cut in self.cuts
        )
        return edge, frame, *splits

    async def go(self, route: str, picture: bytes) -> float:
        """Answer a picture by this route; seconds until the answer is there."""
        started = time.perf_counter()
        payload = self.device.run(lambda: self._works()[route](picture), self.here_s[route])
        if route != "edge-whole":
            await self._ask(route, payload or b"")
        return time.perf_counter() - started

    async def _ask(self, route: str, payload: bytes) -> None:
        spec = self.package.manifest.head
        assert spec is not None
        cut = spec.cut(route.removeprefix("split@")) if route != "frame" else None
        header = HardSample(
            sample_id=f"{time.time_ns()}-{next(self._numbers)}",
            service="benchmark",
            reason="hard",
            answer_model=spec.of,
            edge=Verdict(label="class-0", score=0.5, margin=0.1, model=spec.of),
            captured_at=time.time(),
            features=FeaturesHeader(tail=spec.tail, cut=cut.name) if cut is not None else None,
        )
        answer = await self.uplink.ask(header, payload, _TIMEOUT_S)
        declared = cut.tail_ms if cut is not None else spec.whole_ms
        self.cloud.observe(route, declared, answer.compute_ms, answer.waited_ms, self.now)

    def _edge_ms(self, route: str) -> float:
        return self.here_s[route] * self.device.slow * 1e3

    def _works(self) -> dict[str, Callable[[bytes], bytes | None]]:
        """What the edge does with a picture, by route; gives what leaves."""
        return {
            "edge-whole": self._whole,
            "frame": lambda picture: picture,
            **{f"split@{name}": self._head(session) for name, session in self.heads.items()},
        }

    def _whole(self, picture: bytes) -> None:
        self.whole.classify(picture)

    def _head(self, session: Session) -> Callable[[bytes], bytes]:
        def work(picture: bytes) -> bytes:
            given = session.run({session.inputs[0].name: self.whole.tensor(picture)})
            return features.encode({tensor.name: array for tensor, array in zip(session.outputs, given, strict=True)})

        return work

    def _heard(self, exchange: Exchange) -> None:
        """As the collaborator of edged does it: a handshake, or a refusal, says nothing about the link."""
        if exchange.reused and exchange.outcome in ("answered", "timeout"):
            size = exchange.size + (0 if exchange.small else _HEADERS)
            self.link.observe(
                size,
                exchange.seconds,
                self.now,
                outcome="answered" if exchange.outcome == "answered" else "timeout",
                cloud_s=exchange.cloud_ms / 1e3,
            )


@dataclass(frozen=True)
class Stage:
    """A cloudd with the model, its tail and its head; and what an edge needs to be one."""

    link: LinkShaper
    connection: Link
    whole: Package
    head: Package

    @contextmanager
    def edge(self, edge_ms: float) -> Iterator[Edge]:
        """A device on which the whole model takes `edge_ms`; it has measured its own times and knows nothing else."""
        with ExitStack() as opened:
            whole = opened.enter_context(closing(Classifier.load(self.whole)))
            assert self.head.manifest.head is not None
            heads = {
                cut.name: opened.enter_context(closing(open_session(self.head.path(cut.file), "onnxruntime")))
                for cut in self.head.manifest.head.cuts
                if not cut.whole
            }
            pictures = [serving_models.picture(_SIDE, seed) for seed in range(PICTURES)]
            tensor = whole.tensor(pictures[0])
            device = SlowEdge(edge_ms / 1e3 / quickest(lambda: whole.classify_tensor(tensor)))
            edge = Edge(device, Uplink(self.connection), whole, heads, self.head, pictures)
            edge.measure()
            yield edge


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Make and split the model, start cloudd with it, enrol a device, and lay the link between them."""
    whole = serving_models.package(folder / "mnv2", serving_models.MODELS["mnv2"])
    outcome = split(Request(whole, folder / "halves", whole.manifest.version, whole=True))
    with Fleet(folder) as fleet:
        cloud = fleet.start_cloud()
        for directory in (str(whole.root), outcome.tail_package, outcome.head_package):
            cloud.add_model(Path(directory))
        host, _, port = cloud.url.removeprefix("https://").rpartition(":")
        store = IdentityStore(folder / "identity")
        certificate = asyncio.run(enroll(cloud.url, parse_token(cloud.invite("slow")), store, "slow"))
        identity = store.install(certificate.certificate_pem, certificate.authority_pem)
        link = LinkShaper(host, int(port), mbit=1000.0, rtt_ms=0.0)
        try:
            connection = Link(url=f"https://127.0.0.1:{link.port}", up=True, identity=str(identity.directory))
            yield Stage(link, connection, whole, open_package(Path(outcome.head_package)))
        finally:
            link.close()


async def exhaustive(edge: Edge, rounds: int) -> dict[str, float]:
    """Milliseconds of every route, all taken in turn: the median over the rounds, the first of which warms up."""
    names = [route.name for route in edge.routes()]
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names:
            took = [await edge.go(name, edge.pictures[number % len(edge.pictures)]) for _ in range(_TRIES)]
            if number:
                times[name].append(min(took) * 1e3)
    return {name: statistics.median(found) for name, found in times.items()}


async def planned(edge: Edge, may_leave: MayLeave, steps: int) -> str:
    """The route that the planner has chosen after so many seconds of its own clock, with nothing known before.

    In each of them it sees a round trip, and the sample of its present route if that leaves the device.
    """
    edge.link, edge.cloud = LinkEstimator(), CloudEstimator()
    planner = Planner(Terms(deadline_ms=60_000.0, may_leave=may_leave))
    for number in range(steps):
        edge.now += 1.0
        await edge.uplink.check(_TIMEOUT_S)
        estimates = Estimates(
            link=edge.link.estimate(edge.now),
            demand=Demand(frames_per_s=0.0),
            routes=edge.routes(),
            wait=edge.cloud.wait(edge.now),
        )
        planner.observe(estimates, edge.now)
        assert planner.plan is not None
        for route in (planner.plan.route, planner.probe(estimates, edge.now)):
            if route is not None and route.kind != "edge":
                await edge.go(route.name, edge.pictures[number % len(edge.pictures)])
    assert planner.plan is not None
    return planner.plan.route.name


def measure(
    folder: Path, links: Sequence[tuple[float, float]], edges_ms: Sequence[float], rounds: int, steps: int
) -> list[dict[str, Any]]:
    """One row for each edge (ms of the whole model), link (Mbit/s, round trip in ms) and policy of what may leave."""
    rows = []
    with stage(folder) as found:
        for edge_ms in edges_ms:
            with found.edge(edge_ms) as edge:
                some = asyncio.run(_rows(found.link, edge, links, rounds, steps))
            rows += [{**row, "edge_ms": edge_ms} for row in some]
    return rows


async def _rows(
    link: LinkShaper, edge: Edge, links: Sequence[tuple[float, float]], rounds: int, steps: int
) -> list[dict[str, Any]]:
    rows = []
    try:
        for mbit, rtt_ms in links:
            link.set(mbit, rtt_ms)
            times = await exhaustive(edge, rounds)
            for may_leave in ("features", "raw"):
                chosen = await planned(edge, may_leave, steps)
                rows.append(_row(edge, mbit, rtt_ms, may_leave, chosen, times))
    finally:
        await edge.uplink.close()
    return rows


def _row(
    edge: Edge, mbit: float, rtt_ms: float, may_leave: MayLeave, chosen: str, times: Mapping[str, float]
) -> dict[str, Any]:
    allowed = [name for name in times if name != "frame" or may_leave == "raw"]
    best = min(allowed, key=lambda name: times[name])
    return {
        "how": "shaped",
        "net": edge.whole.package.ref,
        "may_leave": may_leave,
        "mbit": mbit,
        "rtt_ms": rtt_ms,
        "slow": edge.device.slow,
        "chosen": chosen,
        "best": best,
        "planner_regret": times[chosen] / times[best] - 1,
        "split_speedup": times["edge-whole"] / times[chosen] if chosen.startswith("split@") else None,
        "all_edge_ms": times["edge-whole"],
        "chosen_ms": times[chosen],
        "best_ms": times[best],
        "ms": {name: round(value, 2) for name, value in times.items()},
    }
