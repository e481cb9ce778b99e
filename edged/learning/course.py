"""What one look at a service's learning decides: a place and what is seen go in, the next place and records come out.

Pure: who calls stores the place first and lets it count then. Every way that a candidate or a job can end leads through
here, so that its package and its dataset version are never forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec.structs import replace

from edged.learning import facts
from edged.learning.facts import Outside
from edged.learning.place import Candidate, Place, Work
from edged.learning.settings import candidate_name, next_number
from edgekit.learning import learner
from edgekit.learning.ladder import Means, Outcome
from edgekit.learning.learner import Settings, Step
from edgekit.learning.records import Record, duration
from edgekit.learning.triggers import Evidence
from edgekit.messages.learning import TrainDone, TrainStopped

BREAKS = 3
"""Of a job's process: then it has failed."""
SHADOW_TRIES = 3
RETRY_S = 600.0
"""Between two tries of a candidate that ended by itself, or of a job that wanted something of the machine."""
SETTLED_S = 3.0
"""After so long a report shows that a gate has begun anew: the worker sends one a second."""
CALIBRATING_S = 86_400.0
"""Longest wait for a certificate."""
CLOUD_S = 7 * 86_400.0
"""Longest time that cloudd may take with a job, and the link be down meanwhile."""


class Turn(NamedTuple):
    """What comes of a look. `swap`: the worker must be replaced by one that does the same."""

    place: Place
    records: list[Record]
    sentence: str
    swap: bool = False


# --- jobs -------------------------------------------------------------------------------------------------------------


def consider(settings: Settings, place: Place, found: Evidence, means: Means, installed: Iterable[str]) -> Turn:
    """Is there a job to start? Then the place has its Work."""
    step = learner.consider(settings, place.state, found, means)
    place = replace(place, state=step.state)
    if step.job is not None:
        work = Work(number=step.job.number, rung=step.job.rung, begun=found.now, base=place.decides or place.root)
        if work.rung != "recalibrate":
            place = replace(place, made=next_number(place.root, place.service, place.made, installed))
            name, version = candidate_name(place.root, place.service, place.made)
            dataset = dataset_name(place.service, work.number)
            work = replace(work, name=name, version=version, dataset=dataset, earlier_before=place.learned_at)
        place = replace(place, work=work)
    return Turn(place, step.records, step.sentence)


def recalibrating(settings: Settings, place: Place, outside: Outside) -> Turn:
    """The worker was told to calibrate anew: is there a certificate?"""
    work, report, now = _work(place), outside.report, outside.now
    assert work.sent is not None
    gate = report.gate_facts if report is not None and report.model == work.base else None
    waited = now - work.sent
    if waited < 0:  # the clock was set back
        return Turn(replace(place, work=replace(work, sent=now)), [], "The gate calibrates anew.")
    if gate is not None and waited >= SETTLED_S:
        if gate.calibrated is not None:
            return _finish(settings, place, "kept", now, 0.0, "the threshold is certified again")
        if gate.looks >= 1:
            return _finish(settings, place, "refused", now, 0.0, "no threshold could be certified")
    if waited >= CALIBRATING_S:
        return _finish(settings, place, "failed", now, 0.0, "there were too few answers within a day")
    return Turn(place, [], "The gate calibrates anew.")


def stopped(settings: Settings, place: Place, word: TrainStopped, now: float) -> Turn:
    """The job ended without a candidate. What is saved goes on later: a full disk, or little memory, may pass."""
    reason = word.reason.rstrip(".")
    if word.kind == "refused":
        return _finish(settings, place, "refused", now, word.seconds, reason)
    if word.resumable and (again := _again(place, now + RETRY_S, reason)) is not None:
        return again
    return _finish(settings, place, "failed", now, word.seconds, reason)


def died(settings: Settings, place: Place, how: str, now: float) -> Turn:
    """The job's process ended without a last word."""
    if (again := _again(place, now, how)) is not None:
        return again
    return _finish(settings, place, "failed", now, max(0.0, now - _work(place).begun), f"its process broke: {how}")


def at_cloud(settings: Settings, place: Place, word: TrainStopped, now: float) -> Turn:
    """cloudd is at work, or cannot be reached: there is nothing to do for a process now."""
    work, reason = _work(place), word.reason.rstrip(".")
    if not 0 <= now - work.begun < CLOUD_S:
        return _finish(settings, place, "failed", now, word.seconds, f"{duration(CLOUD_S)} did not suffice: {reason}")
    work = replace(work, breaks=0, retry_at=now + min(word.again_s, RETRY_S), why=reason)
    return Turn(replace(place, work=work), [], f"The job is at cloudd: {reason}.")


def waiting(place: Place, now: float) -> Turn | None:
    """A job that is to go on later; None if it may go on now."""
    work = _work(place)
    if not now < work.retry_at <= now + RETRY_S:
        return None
    return Turn(place, [], f"The job goes on in {duration(work.retry_at - now)}: {work.why}.")


def _again(place: Place, at: float, why: str) -> Turn | None:
    """The same job once more, unless it broke too often."""
    work = _work(place)
    work = replace(work, breaks=work.breaks + 1, retry_at=at, why=why)
    if work.breaks >= BREAKS:
        return None
    return Turn(replace(place, work=work), [], f"The job broke and goes on later: {why}.")


def stop_work(settings: Settings, place: Place, by: str, now: float) -> Turn:
    """Somebody ends the job."""
    step = learner.stopped(settings, place.state, by, now, max(0.0, now - _work(place).begun))
    return Turn(_without_work(replace(place, state=step.state)), step.records, step.sentence)


# --- candidates -------------------------------------------------------------------------------------------------------


def made(settings: Settings, place: Place, done: TrainDone, before: str, outside: Outside) -> Turn:
    """The job has a candidate, which is installed if it was accepted. `before`: digest of the model that learned."""
    work = _work(place)
    candidate = Candidate(ref=done.ref, before=work.base, begun=work.begun, dataset=work.dataset)
    state = learner.made(place.state, done.digest or done.ref, before, outside.now, done.seconds)
    return _judge(settings, replace(place, state=state, work=None, candidate=candidate), done, outside, [])


def offered(settings: Settings, place: Place, done: TrainDone, by: str, before: str, outside: Outside) -> Turn:
    """A candidate from elsewhere. Raises ValueError if something is under way."""
    candidate = Candidate(ref=done.ref, before=place.decides or place.root, begun=outside.now)
    step = learner.offered(place.state, done.digest or done.ref, before, by, outside.now, done.seconds)
    place = replace(place, state=step.state, candidate=candidate)
    return _judge(settings, place, done, outside, step.records)


def shadow(settings: Settings, place: Place, outside: Outside, fault: str) -> Turn:
    """The candidate looks on. `fault`: why it cannot, "" if it can."""
    if fault:
        return _settled(place, learner.broken(settings, place.state, fault, outside.now))
    candidate = facts.seen_by(_candidate(place), outside)
    place = replace(place, candidate=candidate)
    if candidate.failure and not outside.now < candidate.retry_at <= outside.now + RETRY_S:
        candidate = replace(candidate, failures=candidate.failures + 1, retry_at=outside.now + RETRY_S)
        place = replace(place, candidate=candidate)
        if candidate.failures > SHADOW_TRIES:
            why = f"it could not look on: {candidate.failure.rstrip('.')}"
            return _settled(place, learner.broken(settings, place.state, why, outside.now))
        return Turn(place, [], f"The candidate does not look on ({candidate.failure}); it is tried again.", swap=True)
    turn = _settled(place, learner.shadow(settings, place.state, candidate.tally, outside.now))
    if turn.records or turn.place.candidate is None:
        return turn
    tally, limits = candidate.tally, settings.trial
    audits = f" and {tally.audits} of {limits.shadow_audits} audits" if limits.shadow_audits else ""
    sentence = f"A candidate looks on: {tally.items} of {limits.shadow_items} pictures{audits} so far."
    return turn._replace(sentence=sentence)


def probation(settings: Settings, place: Place, outside: Outside, fault: str) -> Turn:
    """The candidate decides. `fault`: why it cannot, "" if it can."""
    if fault:
        return _settled(place, learner.broken(settings, place.state, fault, outside.now))
    candidate, watch = facts.watched(_candidate(place), outside)
    place = replace(place, candidate=candidate)
    turn = _settled(place, learner.probation(settings, place.state, watch, outside.now))
    trial = turn.place.state.trial
    if turn.records or trial is None:
        return turn
    limits = settings.trial
    hours = f", {max(0.0, (outside.now - trial.since) / 3600):.1f} of {limits.probation / 3600:g} h"
    sentence = f"What was learned decides, on probation: {trial.items} of {limits.probation_items} pictures{hours}."
    return turn._replace(sentence=sentence)


def order(settings: Settings, place: Place, go: bool, by: str, now: float) -> Turn:
    """An operator ends the present stage of the candidate. Raises ValueError if that cannot be."""
    return _settled(place, learner.order(settings, place.state, go, by, now))


# --- ends -------------------------------------------------------------------------------------------------------------


def superseded(settings: Settings, place: Place, root: str, why: str, now: float) -> Turn:
    """Another model decides (`root`): job and candidate are over, and what was kept with them."""
    seconds = max(0.0, now - place.work.begun) if place.work is not None else 0.0
    step = learner.superseded(settings, place.state, why, now, seconds)
    place = _without_candidate(_without_work(replace(place, state=step.state)), [place.kept])
    place = replace(place, root=root, kept="", learned_at=None, dataset="", old_datasets=_and(place, [place.dataset]))
    return Turn(place, step.records, step.sentence)


def abandoned(settings: Settings, place: Place, why: str, now: float) -> Turn:
    """The service learns no longer: job and candidate are over, what was kept before goes on."""
    if place.candidate is not None:
        return _settled(place, learner.broken(settings, place.state, why, now))
    return _finish(settings, place, "refused", now, max(0.0, now - _work(place).begun), why)


def taken_back(place: Place, why: str, now: float) -> Turn:
    """What was kept decides no longer; the model of the definition does."""
    sentence = f"The learned model {place.kept} was taken back and {place.root} decides again: {why}."
    record = Record(at=now, event="rolled-back", sentence=sentence)
    place = replace(
        place,
        kept="",
        leavings=[*place.leavings, place.kept],
        dataset="",
        old_datasets=_and(place, [place.dataset]),
        learned_at=None,
    )
    return Turn(place, [record], sentence)


def dataset_name(service: str, number: int) -> str:
    """Of the dataset version of a job: a name as `edged.samples` wants it."""
    suffix = f"-{number}"
    return f"learning.{service}"[: 64 - len(suffix)] + suffix


def _finish(settings: Settings, place: Place, outcome: Outcome, now: float, seconds: float, why: str) -> Turn:
    step = learner.finished(settings, place.state, outcome, now, seconds, why)
    return Turn(_without_work(replace(place, state=step.state)), step.records, step.sentence)


def _judge(settings: Settings, place: Place, done: TrainDone, outside: Outside, records: list[Record]) -> Turn:
    expected = facts.expected(done.expected, outside.report)
    step = learner.judge(settings, place.state, done.verdict, expected, outside.now)
    turn = _settled(place, step)
    return turn._replace(records=[*records, *turn.records])


def _settled(place: Place, step: Step) -> Turn:
    """The place after a step of its trial. If that ended, it is known what is to be kept, and what to be removed."""
    place, candidate = replace(place, state=step.state), _candidate(place)
    if step.state.trial is not None:
        return Turn(place, step.records, step.sentence)
    if any(record.event == "kept" for record in step.records):
        place = replace(
            place,
            kept=candidate.ref,
            candidate=None,
            leavings=[*place.leavings, *filter(None, [place.kept])],
            learned_at=candidate.begun,
            dataset=candidate.dataset,
            old_datasets=_and(place, [place.dataset]),
        )
    else:
        place = _without_candidate(place)
    return Turn(place, step.records, step.sentence)


def _without_work(place: Place) -> Place:
    work = place.work
    if work is None:
        return place
    leavings = [work.ref] if work.done is not None and work.name else []  # it may be installed already
    return replace(place, work=None, leavings=[*place.leavings, *leavings], old_datasets=_and(place, [work.dataset]))


def _without_candidate(place: Place, more: Iterable[str] = ()) -> Place:
    gone = [*([place.candidate.ref] if place.candidate is not None else []), *filter(None, more)]
    dataset = [place.candidate.dataset] if place.candidate is not None else []
    return replace(place, candidate=None, leavings=[*place.leavings, *gone], old_datasets=_and(place, dataset))


def _and(place: Place, more: Iterable[str]) -> list[str]:
    return [*place.old_datasets, *filter(None, more)]


def _work(place: Place) -> Work:
    assert place.work is not None, "a job is being done"
    return place.work


def _candidate(place: Place) -> Candidate:
    assert place.candidate is not None, "a candidate is on trial"
    return place.candidate
