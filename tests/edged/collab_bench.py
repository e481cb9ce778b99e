"""A device with a certified gate, its cloud and its line, for tests of the collaboration."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edged.collab.breaker import BreakerSettings
from edged.collab.collaboration import Collaboration
from edged.collab.collaborator import Collaborator
from edgekit.messages import Decision, Event, Link
from edgekit.services import HardSamples, Service
from tests.edged.collab_cloud import FaultyCloud, make_link

PICTURE = b"\xff\xd8" + bytes(20_000)
CALIBRATION = 20
HARD, EASY = 0.2, 0.95


@dataclass(frozen=True)
class Local:
    """What an edge model said."""

    label: str
    score: float
    margin: float
    probabilities: tuple[float, ...] = ()


def service(**changes: object) -> Service:
    hard = HardSamples(
        mode="risk", risk=0.3, confidence=0.6, answer_model="large", calibration=CALIBRATION, audit_share=0.0
    )
    return msgspec.structs.replace(Service(name="solder", model="small", hard_samples=hard), **changes)


class Line:
    """A production line: it makes samples and keeps the decisions."""

    def __init__(self, collaborator: Collaborator, prefix: str = "s") -> None:
        self.collaborator = collaborator
        self.prefix = prefix
        self.count = 0

    async def one(self, margin: float = HARD, deadline_s: float = 1.0, label: str = "ok") -> Decision:
        self.count += 1
        return await self.collaborator.settle(
            Local(label, 0.5 + margin / 2, margin),
            PICTURE + self.count.to_bytes(4, "big"),
            f"{self.prefix}{self.count}",
            1_800_000_000.0,
            "board-7",
            time.monotonic() + deadline_s,
        )

    async def calibrate(self) -> None:
        """Until the gate is certified, with a cloud that agrees with everything."""
        for _ in range(CALIBRATION):
            await self.one(0.9, deadline_s=5.0)
        await until(lambda: self.collaborator.status().state == "certified")


async def until(condition: Callable[[], object], within: float = 30.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)


class Bench:
    """A device with its cloud."""

    def __init__(self, state: Path, cloud: FaultyCloud) -> None:
        self.state = state
        self.cloud = cloud
        self.events: list[Event] = []
        self.compared: list[bool] = []
        self.link = make_link(state, cloud.url, cloud.authority)

    @contextlib.asynccontextmanager
    async def hub(
        self,
        link: Link | None = None,
        quota: int = 1 << 26,
        rng: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        strikes: int = 3,
    ) -> AsyncIterator[Collaboration]:
        async with Collaboration(
            self.state,
            "DEVICE",
            link or self.link,
            quota=quota,
            reserve=0,
            on_event=self.events.append,
            on_compared=lambda name, agrees: self.compared.append(agrees),
            clock=clock,
            wall=wall,
            rng=lambda: rng,
            breaker=BreakerSettings(strikes=strikes, first_backoff=0.2, longest_backoff=0.4),
            drain_per_second=200.0,
        ) as hub:
            yield hub

    async def ready(self, hub: Collaboration, wanted: Service | None = None) -> Line:
        """A line whose gate is certified and whose breaker is closed."""
        line = Line(await hub.add(wanted or service(), "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        self.cloud.label = "ok"
        await line.calibrate()
        self.cloud.label = "bad"
        return line

    @property
    def codes(self) -> list[str]:
        return [f"{event.level}:{event.code}" for event in self.events]
