"""One running service: its model, its gate's collaborator, its outputs and its statistics, behind `inspect`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Literal

import msgspec

from edged.capture.folder import NotNow, Refused
from edged.capture.outputs import Notify, Output
from edged.collab.regions import LocalRegions, clean_label
from edged.serve.engine import Elsewhere, Engine, EngineStopped, NotRun, Outcome
from edged.serve.inspecting import Identifying, Inspect, Local, identity_verdict, local_decision, located, verdict
from edged.serve.loading import LoadedModel
from edged.serve.offloading import Flight, Offloader
from edged.serve.preview import Preview
from edged.serve.refusals import Kept
from edged.serve.sample_id import timed_id
from edged.serve.settings import Watch
from edged.serve.settles import Settles
from edged.serve.shadow.shadow import Shadow
from edged.serve.statistics import ServiceStatistics
from edged.serve.unseen import cloud_decision, may_leave, unseen
from edgekit.dispatch.policy import Job
from edgekit.messages import NOTHING_FOUND, Answer, Decision, HardSample, OutputReport, ServiceReport
from edgekit.runtimes import ModelError
from edgekit.services import Service
from edgekit.vision.anomaly import Examined
from edgekit.vision.classification import Classified
from edgekit.vision.embedding import KNOWN, RESERVED, UNKNOWN
from edgekit.vision.images import ImageError

log = logging.getLogger("edged.serve")


class ServiceFailed(Exception):
    """The service has no usable model; the text is the sentence that its report shows."""


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
        offloader: Offloader | None = None,
        keep: Callable[[Decision, bytes], None] = lambda decision, picture: None,
        shadow: Shadow | None = None,
    ) -> None:
        """`keep` is offered every decided picture, for learning. `shadow` is only asked for its report.

        Without `offloader` every picture is looked at here, whatever the engine's rules say.
        """
        self.service, self.model, self.failure = service, model, failure
        self.outputs = outputs
        self.preview = Preview(service.decision, clean_label(service))
        self.statistics = ServiceStatistics(_labels(service, model))
        self._inspect = inspect
        self._engine, self._collaborator, self._notify = engine, collaborator, notify
        self._clock, self._wall = clock, wall
        self._watch = watch
        self._offloader = offloader
        self._keep = keep
        self._shadow = shadow
        self._may_leave = may_leave(service)
        self._settling: set[asyncio.Task[Decision]] = set()
        self._cores = float(len(os.sched_getaffinity(0)))
        if collaborator is not None:
            collaborator.measure(lambda: self.statistics.demand(self._cores, self._clock()))
        self._model_troubled = False

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def looks(self) -> Inspect | None:
        """What it does with each picture; None without a model."""
        return self._inspect

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
        dropped for being late. Raises ServiceFailed, ImageError, ModelError, NotRun, EngineStopped. By the rules of
        dispatch, if there are any, the cloud may decide instead of the model here; a picture that is kept on the disk
        for it is a Kept.

        A caller that is cancelled before the model has answered takes its picture back; after that the decision is
        finished and recorded without it.
        """
        if self.model is None or self._collaborator is None or self._inspect is None:
            raise ServiceFailed(f"{self.name} cannot run: {self.failure}")
        received = self._clock()
        job = None if patient else self._job(picture, received, deadline)
        try:
            outcome = await self._look(picture, deadline, stream, patient, job)
        except Elsewhere as away:
            header = unseen(self.service, self.model.ref, sample_id, captured_at, serial, deadline - received)
            assert job is not None, "jobs that the rules do not know stay here"
            try:
                found = await self._elsewhere(away, header, picture, job)
            except Kept:
                raise
            except NotRun:
                self.statistics.shed += 1
                raise
            if isinstance(found, Decision):
                return self._finish(found, picture, received, patient)
            outcome = found
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
        decision = msgspec.structs.replace(
            decision,
            timings_ms={"queue": outcome.queue_ms, **local.timings_ms, **decision.timings_ms},
            region=list(local.region or ()) if isinstance(local, Classified) else [],
        )
        return self._finish(decision, picture, received, patient, local)

    def _finish(
        self, decision: Decision, picture: bytes, received: float, patient: bool, local: Local | None = None
    ) -> Decision:
        """Judge, count, show and record what was decided. `local`: what the model here said, if it was asked."""
        now = self._clock()
        total_ms = (now - received) * 1000
        timings = {**decision.timings_ms, "total": total_ms}
        decision = msgspec.structs.replace(
            decision,
            timings_ms={name: round(value, 3) for name, value in timings.items()},
            verdict=self._verdict(decision),
        )
        told = self._told(decision)
        self.statistics.decided(told, total_ms, now, self._wall())
        if isinstance(local, LocalRegions):
            self.statistics.regions(len(local.candidates), decision)
        self._keep(told, picture)
        decision = located(decision, local)
        self.preview.keep(picture, decision, local.heat if isinstance(local, Examined) else None, told)
        if not patient and self.outputs:
            line = msgspec.json.encode(decision)
            for output in self.outputs.values():
                output.write(decision, line)
        return decision

    # --- elsewhere ----------------------------------------------------------------------------------------------------

    def _job(self, picture: bytes, received: float, deadline: float) -> Job | None:
        """The request as the rules of dispatch see it; None: there are no rules."""
        if self._offloader is None or self._offloader.policy is None:
            return None
        leaves = self._may_leave and self._offloader.takes(self.name)
        return Job(self.name, self.service.priority, received, deadline, len(picture), leaves)

    async def _look(
        self, picture: bytes, deadline: float, stream: str, patient: bool, job: Job | None, returned: bool = False
    ) -> Outcome[Local]:
        """Have the model here look at it."""
        assert self._inspect is not None
        return await self._engine.submit(
            self.name,
            self.service.priority,
            deadline,
            partial(self._inspect, picture),
            stream=stream,
            may_expire=not patient,
            job=job,
            returned=returned,
        )

    async def _elsewhere(
        self, away: Elsewhere, header: HardSample, picture: bytes, job: Job
    ) -> Outcome[Local] | Decision:
        """What the rules of dispatch want, until somebody has decided. Raises Kept, and what the engine raises."""
        assert self._offloader is not None
        while away.place == "offload":
            asked_at = self._clock()
            left_ms = round(max(0.0, job.deadline - asked_at) * 1e3, 1)
            header = msgspec.structs.replace(header, left_ms=left_ms)
            flight = self._offloader.send(away.key, header, picture, job.deadline)
            try:
                found = await flight.outcome() or await self._here_or_there(flight, picture, job)
            except Elsewhere as again:
                away = again
                continue
            finally:
                flight.forget()
            if isinstance(found, Answer):
                return cloud_decision(self.service, header, found, (self._clock() - asked_at) * 1e3)
            return found
        lost = await self._offloader.keep(header, picture, job.deadline)
        if lost:
            raise NotRun(f"{away}, but it was not stored, because {lost}")
        raise Kept(header.sample_id, f"{away}; it waits on the disk for the cloud")

    async def _here_or_there(self, flight: Flight, picture: bytes, job: Job) -> Outcome[Local] | Answer:
        """Look at it here after all, unless the answer that is not waited for any more comes first."""
        here = asyncio.create_task(self._look(picture, job.deadline, "", False, job, returned=True))
        waiting: set[asyncio.Task[Any]] = {here, flight.task} if flight.alive else {here}
        try:
            while True:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if here.done():
                    return here.result()
                if (answer := flight.answer()) is not None:
                    return answer
                waiting = {here}
        finally:
            here.cancel()

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
        gate = self._inspect.sentence() if isinstance(self._inspect, Identifying) else self._collaborator.sentence()
        report = self.statistics.report(self.name, self.model.ref, gate, waiting, self._clock())
        counts = self._engine.counts(self.name)
        audited, differing = self._collaborator.audited()
        not_run = {why: getattr(counts, why) for why in ("full", "overloaded", "expired", "stale", "cancelled", "kept")}
        return msgspec.structs.replace(
            report,
            not_run=not_run,
            runs=counts.runs,
            inline_runs=counts.inline_runs,
            preview=self.preview.text,
            outputs=self._output_reports(),
            plan=self._collaborator.plan_report(),
            audited=audited,
            audited_differing=differing,
            gate_facts=self._collaborator.facts(),
            shadow=self._shadow.report() if self._shadow is not None else None,
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
        if rules is None:
            return ""
        if self.service.task == "embedding":
            return identity_verdict(rules, decision)
        return verdict(rules, decision, clean_label(self.service))

    def _told(self, decision: Decision) -> Decision:
        """As it is counted, kept for learning and reported: the name of an identity stays out of all that."""
        if self.service.task != "embedding" or decision.label == UNKNOWN:
            return decision
        edge = msgspec.structs.replace(decision.edge, label=KNOWN)
        return msgspec.structs.replace(decision, label=KNOWN, edge=edge)

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
    if service.task == "embedding":
        return list(RESERVED)
    return [NOTHING_FOUND, *model.vision.labels] if service.task == "detection" else model.vision.labels
