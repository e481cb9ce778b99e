"""One running service: its model, its gate's collaborator, its outputs and its statistics, behind `inspect`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from edged.capture.folder import NotNow, Refused
from edged.capture.outputs import Notify, Output
from edged.collab.regions import LocalRegions, clean_label
from edged.serve.engine import Engine, EngineStopped, NotRun, Outcome
from edged.serve.inspecting import Inspect, Local, local_decision, verdict
from edged.serve.loading import LoadedModel
from edged.serve.preview import Preview
from edged.serve.sample_id import timed_id
from edged.serve.settings import Watch
from edged.serve.statistics import ServiceStatistics
from edgekit.messages import NOTHING_FOUND, Decision, OutputReport, ServiceReport
from edgekit.runtimes import ModelError
from edgekit.services import Service
from edgekit.vision.classification import Classified
from edgekit.vision.images import ImageError

log = logging.getLogger("edged.serve")


class ServiceFailed(Exception):
    """The service has no usable model; the text is the sentence that its report shows."""


_Said = TypeVar("_Said", contravariant=True)


class Settles(Protocol[_Said]):
    """Decides whether the local answer stands or the cloud is asked; never fails for want of a link.

    What it takes is what the service's `inspect` gives: see edged.collab.regions.takes_regions.
    """

    async def settle(
        self,
        local: _Said,
        picture: bytes,
        sample_id: str,
        captured_at: float,
        serial: str,
        deadline: float,
    ) -> Decision:
        """The final decision; `deadline` is a time of the monotonic clock."""
        ...

    def sentence(self) -> str:
        """Where the gate stands, for people."""
        ...


class ServiceRuntime:
    """A service that is ready, or failed with a reason. Use it on the event loop."""

    def __init__(
        self,
        service: Service,
        model: LoadedModel | None,
        inspect: Inspect | None,
        failure: str,
        engine: Engine,
        collaborator: Settles[Any] | None,
        outputs: dict[str, Output],
        notify: Notify,
        watch: Watch | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.service, self.model, self.failure = service, model, failure
        self.outputs = outputs
        self.preview = Preview(service.decision, clean_label(service))
        self.statistics = ServiceStatistics(_labels(service, model))
        self._inspect = inspect
        self._engine, self._collaborator, self._notify = engine, collaborator, notify
        self._clock, self._wall = clock, wall
        self._watch = watch
        self._settling: set[asyncio.Task[Decision]] = set()
        self._model_troubled = False

    @property
    def name(self) -> str:
        return self.service.name

    async def inspect(
        self,
        picture: bytes,
        *,
        sample_id: str,
        captured_at: float,
        serial: str,
        deadline: float,
        patient: bool = False,
        stream: str = "",
    ) -> Decision:
        """Decide about one encoded picture; `deadline` is a time of the monotonic clock.

        Of pictures with the same `stream` only the newest waits for the model; the others get StaleFrame.

        The decision also goes to the outputs, except for a `patient` caller, which records it itself and is never
        dropped for being late. Raises ServiceFailed, ImageError, ModelError, NotRun, EngineStopped.
        A caller that is cancelled before the model has answered takes its picture back; after that the decision is
        finished and recorded without it.
        """
        if self.model is None or self._collaborator is None or self._inspect is None:
            raise ServiceFailed(f"{self.name} cannot run: {self.failure}")
        received = self._clock()
        try:
            outcome = await self._engine.submit(
                self.name,
                self.service.priority,
                deadline,
                partial(self._inspect, picture),
                stream=stream,
                may_expire=not patient,
            )
        except NotRun:
            self.statistics.shed += 1
            raise
        except ImageError:
            self.statistics.refused += 1
            raise
        except ModelError as error:
            self.statistics.errors += 1
            self._model_trouble(error)
            raise
        self._model_works()
        task = asyncio.create_task(
            self._settle(outcome, picture, sample_id, captured_at, serial, deadline, received, patient)
        )
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        return await asyncio.shield(task)

    async def _settle(
        self,
        outcome: Outcome[Local],
        picture: bytes,
        sample_id: str,
        captured_at: float,
        serial: str,
        deadline: float,
        received: float,
        patient: bool,
    ) -> Decision:
        assert self.model is not None and self._collaborator is not None
        local = outcome.value
        if patient:  # the time in the queue is not taken from the cloud's: nobody waits
            deadline = max(deadline, self._clock() + self.service.deadline_ms / 1000)
        try:
            decision = await self._collaborator.settle(local, picture, sample_id, captured_at, serial, deadline)
        except Exception as error:
            # The local answer stands whatever the rest does; the line must not pay for our fault.
            log.exception("%s: a sample could not be settled", self.name)
            self.statistics.errors += 1
            decision = msgspec.structs.replace(
                local_decision(self.service, local, self.model.ref, sample_id),
                decided="edge-degraded",
                reason=f"the hard-sample policy failed: {error}",
                serial=serial,
                captured_at=captured_at,
            )
        now = self._clock()
        total_ms = (now - received) * 1000
        timings = {"queue": outcome.queue_ms, **local.timings_ms, **decision.timings_ms, "total": total_ms}
        decision = msgspec.structs.replace(
            decision,
            timings_ms={name: round(value, 3) for name, value in timings.items()},
            verdict=self._verdict(decision),
            region=list(local.region or ()) if isinstance(local, Classified) else [],
        )
        self.statistics.decided(decision, total_ms, now, self._wall())
        if isinstance(local, LocalRegions):
            self.statistics.regions(len(local.candidates), decision)
        self.preview.keep(picture, decision)
        if not patient and self.outputs:
            line = msgspec.json.encode(decision)
            for output in self.outputs.values():
                output.write(decision, line)
        return decision

    async def inspect_file(self, picture: bytes, *, sample_id: str, captured_at: float, serial: str) -> Decision:
        """`inspect` for the folder source, where nobody waits. Raises Refused, or NotNow if it can be tried again."""
        deadline = self._clock() + self.service.deadline_ms / 1000
        try:
            return await self.inspect(
                picture, sample_id=sample_id, captured_at=captured_at, serial=serial, deadline=deadline, patient=True
            )
        except (ImageError, ModelError) as error:
            raise Refused(str(error)) from error
        except (NotRun, EngineStopped, ServiceFailed) as error:
            raise NotNow(str(error)) from error

    async def inspect_frame(self, picture: bytes, *, captured_at: float, serial: str, stream: str) -> Decision:
        """`inspect` for cameras and streams: the newest frame wins, and the deadline counts from now."""
        return await self.inspect(
            picture,
            sample_id=timed_id(self._wall(), os.urandom(10)),
            captured_at=captured_at,
            serial=serial,
            deadline=self._clock() + self.service.deadline_ms / 1000,
            stream=stream,
        )

    async def record(self, decision: Decision, outputs: Collection[str]) -> None:
        """Write a decision durably to these of the service's outputs. Raises OutputError."""
        line = msgspec.json.encode(decision)
        await asyncio.gather(*(self.outputs[key].write_durably(decision, line) for key in outputs))

    def report(self) -> ServiceReport:
        """What the supervisor shows."""
        if self.model is None or self._collaborator is None:
            return ServiceReport(
                name=self.name,
                model=self.service.model,
                state="failed",
                detail=self.failure,
                outputs=self._output_reports(),
            )
        waiting = self._engine.waiting(self.name)
        if self._watch is not None:
            self._watch.running(self._engine.longest_run_s(self.name))
        gate = self._collaborator.sentence()
        report = self.statistics.report(self.name, self.model.ref, gate, waiting, self._clock())
        counts = self._engine.counts(self.name)
        not_run = {why: getattr(counts, why) for why in ("full", "overloaded", "expired", "stale", "cancelled")}
        return msgspec.structs.replace(
            report,
            not_run=not_run,
            runs=counts.runs,
            inline_runs=counts.inline_runs,
            preview=self.preview.text,
            outputs=self._output_reports(),
        )

    def _output_reports(self) -> list[OutputReport]:
        return [output.report() for output in self.outputs.values()]

    async def settled(self) -> None:
        """Wait until no decision is under way."""
        while self._settling:
            await asyncio.wait(self._settling)

    def _verdict(self, decision: Decision) -> Literal["", "pass", "fail", "review"]:
        """What the service's rules make of the final answer, wherever it was made."""
        rules = self.service.decision
        return verdict(rules, decision, clean_label(self.service)) if rules is not None else ""

    def _model_trouble(self, error: ModelError) -> None:
        if self._watch is not None:
            self._watch.failed(str(error))
        if not self._model_troubled:
            self._model_troubled = True
            self._notify("error", f"model-failing:{self.name}", f"the model of {self.name} fails: {error}")

    def _model_works(self) -> None:
        if self._watch is not None:
            self._watch.worked()
        if self._model_troubled:
            self._model_troubled = False
            self._notify("ok", f"model-failing:{self.name}", f"the model of {self.name} works again")


def _labels(service: Service, model: LoadedModel | None) -> list[str]:
    """The labels that decisions of this service may have."""
    if model is None:
        return []
    return [NOTHING_FOUND, *model.vision.labels] if service.task == "detection" else model.vision.labels
