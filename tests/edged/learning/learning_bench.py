"""A desk of learning with its real stores and real processes, on a virtual clock; the line is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from msgspec.structs import replace
from support import scripted_trainer
from support.models import make_package, picture

from edged.desired import MIGRATIONS, Change, DesiredStore
from edged.health import Health
from edged.learning.bodies import LearningState
from edged.learning.desk import LearningDesk
from edged.learning.parts import Parts
from edged.models import ModelStore
from edged.plan import Choice, make_plan
from edged.samples.bodies import AddHeader
from edged.samples.desk import SampleDesk
from edged.samples.records import Label, LabelRecord, NewSample
from edged.store import Database
from edgekit.learning.records import Record
from edgekit.messages import GateFacts, ServiceReport, ShadowReport
from edgekit.messages.learning import TrainOrder
from edgekit.messages.worker import ToWorker
from edgekit.services import Samples

SERVICE = "solder"
ROOT = "brightness@1"
FIRST = "brightness.solder@1-1"
START = 1_800_000_000.0

DEFINITION = """name = "solder"
model = "brightness"
[hard_samples]
answer_model = "large"
[learning]
{learning}
[learning.triggers]
new_class = 5
"""


class Line:
    """The runner as the desk sees it: what the real plan would run, with the reports that a test sets."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.report = ServiceReport(name=SERVICE, model=ROOT, state="ready")
        self.sent: list[ToWorker] = []
        self.changes = self.swaps = 0
        self.last_good = False
        self.broken: set[str] = set()
        """Models that do not become ready."""

    @property
    def planned(self) -> dict[str, Choice]:
        plan = make_plan(
            self._bench.desired.entries(), self._bench.models.installed(), learned=self._bench.desk.learned()
        )
        return {choice.name: choice._replace(last_good=self.last_good) for choice in plan.choices}

    def running(self, name: str) -> Choice | None:
        return self.planned.get(name)

    def reports(self) -> list[ServiceReport]:
        """As the worker reports it: of the model that the plan runs, with the shadow that it has."""
        choice = self.planned.get(SERVICE)
        if choice is None:
            return []
        shadow = self.report.shadow
        shown = shadow if shadow is not None and shadow.candidate == choice.shadow else None
        state = "failed" if choice.ref in self.broken else self.report.state
        return [replace(self.report, model=choice.ref, shadow=shown, state=state, detail="it says no")]

    def changed(self) -> None:
        self.changes += 1

    def swap(self) -> None:
        self.swaps += 1

    def send(self, message: ToWorker) -> bool:
        self.sent.append(message)
        return True


class Bench:
    """Make it, then `look` as often as a test likes."""

    def __init__(self, directory: Path, learning: str = "", definition: str = DEFINITION) -> None:
        self.directory, self.state = directory, directory / "state"
        self.now = START
        self.script = directory / "script"
        self.script.write_text("good")
        self.state.mkdir(exist_ok=True)
        self.empty = directory / "empty"
        self.empty.mkdir(exist_ok=True)
        self.desired = DesiredStore(Database(self.state / "edged.db", MIGRATIONS), self.state / "services")
        self.models = ModelStore(self.state / "models")
        self.models.open()
        self.define(definition.format(learning=learning))
        if ROOT not in self.models.refs():
            self.models.add(make_package(directory / "package").root)
        self.start()

    def start(self) -> None:
        """A new run of the supervisor on the same directory."""
        self.health = Health(lambda: self.now)
        self.samples = SampleDesk(
            self.state, lambda: "DEVICE", 0, lambda name: Samples(keep="all"), lambda event: None, lambda: self.now
        )
        self.line = Line(self)
        self.desk = LearningDesk(
            Parts(
                state_dir=self.state,
                empty=self.empty,
                entries=self.desired.entries,
                models=self.models,
                samples=self.samples,
                runs=self.line,
                standing=self.line,
                health=self.health,
                device_id=lambda: "DEVICE",
                link_up=lambda: True,
                command=lambda: [sys.executable, scripted_trainer.__file__, str(self.script)],
                wall=lambda: self.now,
                look_s=0.05,
                labels_s=0.0,
            )
        )
        self.desk.open()

    def define(self, text: str) -> None:
        self.desired.apply(Change(put={SERVICE: text}))

    async def label(self, count: int, label: str, first: int = 0, service: str = SERVICE) -> None:
        """Labelled pictures."""
        for number in range(first, first + count):
            new = NewSample(service=service, source="asked", captured_at=self.now + number)
            record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=self.now)
            await self.samples.add(AddHeader(new=new, label=record), picture(0.5, seed=number))

    @property
    def orders(self) -> list[TrainOrder]:
        path = self.script.with_suffix(".orders")
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [msgspec.json.decode(line, type=TrainOrder) for line in lines]

    @property
    def state_of(self) -> LearningState:
        """Where the service stands."""
        return self.desk.state(SERVICE)

    async def records(self) -> list[Record]:
        """The oldest first."""
        return list(reversed(await self.desk.log(SERVICE, 1000)))

    async def events(self) -> list[str]:
        return [record.event for record in await self.records()]

    async def look(self, times: int = 1, seconds: float = 5.0) -> None:
        """Let time pass and look."""
        for _ in range(times):
            self.now += seconds
            await self.desk.look()

    async def until(self, stage: str, seconds: float = 20.0) -> None:
        """Look until the service is in this stage: a process has its own time."""
        async with asyncio.timeout(seconds):
            while self.state_of.stage != stage:
                await self.look()
                await asyncio.sleep(0.02)

    async def until_ordered(self, count: int, seconds: float = 20.0) -> None:
        """Look until so many training processes have begun."""
        async with asyncio.timeout(seconds):
            while len(self.orders) < count:
                await self.look()
                await asyncio.sleep(0.02)

    async def end(self) -> None:
        """The supervisor ends in good order."""
        await self.desk.close()
        await self.samples.close()

    def gate(self, **changes: object) -> None:
        """What the gate says of itself."""
        old = self.line.report.gate_facts or GateFacts(alpha=0.02)
        self.line.report = replace(self.line.report, gate_facts=replace(old, **changes))

    def shadow(self, candidate: str = FIRST, **counters: object) -> None:
        """What the candidate's shadow reports."""
        self.line.report = replace(self.line.report, shadow=ShadowReport(candidate=candidate, **counters))  # type: ignore[arg-type]

    def count(self, **counters: object) -> None:
        """Counters of the service's report."""
        self.line.report = replace(self.line.report, **counters)


@contextlib.asynccontextmanager
async def at(directory: Path, learning: str = "", definition: str = DEFINITION) -> AsyncIterator[Bench]:
    """A bench that has looked once, and is ended whatever happens."""
    bench = Bench(directory, learning, definition)
    try:
        await bench.look()
        yield bench
    finally:
        await bench.end()


async def story(bench: Bench, end: str) -> None:
    """From labels to this event, from wherever it stands; a crash point may end the process anywhere."""
    bench.script.write_text("bad" if end == "refused" else "good")
    await bench.look()
    if not await bench.samples.versions() and not await bench.events():
        await bench.label(5, "bridge")
    async with asyncio.timeout(30):
        while end not in await bench.events():
            bench.shadow(items=10, agreeing=10, audits=2)
            bench.count(inspected=bench.line.report.inspected + 5)
            if end == "rolled-back":
                bench.count(errors=bench.line.report.errors + 1)
            await bench.look(1, 20.0)
            await asyncio.sleep(0.01)
    await bench.look(2)
    await bench.end()


if __name__ == "__main__":
    asyncio.run(story(Bench(Path(sys.argv[1]), sys.argv[2]), sys.argv[3]))
