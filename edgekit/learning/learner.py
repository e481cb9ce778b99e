"""A service's learning as a whole: triggers, ladder and trial in one state that is stored after every step.

Call `consider` from time to time. Does it start a job, do the job and say how it went: `finished` for one without a
new model (a threshold that was calibrated anew, or a job that broke), `made` for one with a candidate, whose trial then
goes on with `judge`, `shadow`, `probation`, `order` and `broken`. Until that trial has ended no other job starts.
A candidate from elsewhere is `offered`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgekit.learning import ladder, trial, watch
from edgekit.learning.ladder import LadderState, Means, Outcome
from edgekit.learning.records import Record, failed
from edgekit.learning.tally import Tally
from edgekit.learning.trial import ENDED, Expected, Trial, TrialLimits, Verdict, Watch
from edgekit.learning.triggers import Evidence
from edgekit.learning.watch import Triggers, TriggerStates


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a service learns."""

    triggers: Triggers = Triggers()
    ladder: ladder.Limits = ladder.Limits()
    trial: TrialLimits = TrialLimits()


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known, to be stored. A new one knows nothing."""

    triggers: TriggerStates = TriggerStates()
    ladder: LadderState = LadderState()
    evidence: Evidence | None = None  # on which the running job was started
    trial: Trial | None = None  # of the running job's candidate


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The state to store, what was decided, and where learning stands in one sentence. `job`: start it now."""

    state: State
    sentence: str
    records: list[Record] = []
    job: ladder.Job | None = None


def consider(settings: Settings, state: State, evidence: Evidence, means: Means) -> Step:
    """Look at the evidence: is there a job to start?"""
    states, findings = watch.look(settings.triggers, state.triggers, evidence)
    choice = ladder.choose(settings.ladder, state.ladder, findings, evidence, means)
    states = watch.settle(settings.triggers, states, evidence, choice.exhausted)
    started = evidence if choice.job is not None else state.evidence
    state = msgspec.structs.replace(state, triggers=states, ladder=choice.state, evidence=started)
    return Step(state=state, sentence=choice.sentence, records=choice.records, job=choice.job)


def finished(settings: Settings, state: State, outcome: Outcome, now: float, seconds: float, why: str = "") -> Step:
    """The running job has ended. Settles what it served by the evidence that it began with: what came in since counts.

    Raises ValueError if none runs.
    """
    below, settled, record = ladder.ended(settings.ladder, state.ladder, outcome, now, seconds, why)
    triggers = state.triggers
    if state.evidence is not None:
        triggers = watch.settle(settings.triggers, triggers, state.evidence, settled)
    state = msgspec.structs.replace(state, triggers=triggers, ladder=below, evidence=None, trial=None)
    return Step(state=state, sentence=record.sentence, records=[record])


def made(state: State, candidate: str, before: str, now: float, seconds: float) -> State:
    """The running job made a candidate by so many seconds of work.

    Raises ValueError if none runs or one is on trial.
    """
    job = state.ladder.running
    if job is None or state.trial is not None:
        raise ValueError("a candidate comes from a running job, and only one is on trial at a time")
    one = trial.begin(candidate, before, job.rung, job.causes[0], seconds, now)
    return msgspec.structs.replace(state, trial=one)


def offered(state: State, candidate: str, before: str, by: str, now: float, seconds: float) -> Step:
    """A candidate that no rung made goes on trial, with a job of its own. Raises ValueError if one is under way."""
    if state.ladder.running is not None:
        raise ValueError("one job at a time, and the present one has not ended")
    number = state.ladder.number + 1
    sentence = f"A candidate came from {by[:64]}."
    job = ladder.Job(number=number, rung="federated", causes=["federation"], started=now, sentence=sentence)
    below = msgspec.structs.replace(state.ladder, number=number, running=job)
    record = Record(at=now, event="offered", rung=job.rung, cause=job.causes[0], candidate=candidate, sentence=sentence)
    state = made(msgspec.structs.replace(state, ladder=below), candidate, before, now, seconds)
    return Step(state=state, sentence=sentence, records=[record])


def stopped(settings: Settings, state: State, by: str, now: float, seconds: float) -> Step:
    """Somebody ended the running job. What it served is settled: the same evidence does not start it again.

    Raises ValueError if none runs.
    """
    job = state.ladder.running
    step = finished(settings, state, "refused", now, seconds, f"{by[:64]} stopped it")
    assert job is not None
    tried = {cause: rungs for cause, rungs in step.state.ladder.tried.items() if cause not in job.causes}
    below = msgspec.structs.replace(step.state.ladder, tried=tried)
    triggers = step.state.triggers
    if state.evidence is not None:
        triggers = watch.settle(settings.triggers, triggers, state.evidence, job.causes)
    return msgspec.structs.replace(step, state=msgspec.structs.replace(step.state, ladder=below, triggers=triggers))


def superseded(settings: Settings, state: State, why: str, now: float, seconds: float) -> Step:
    """Another model decides now, so what is learned for the one before is void, and every rung may be tried again.

    Nobody's fault: it is no rollback that makes learning pause.
    """
    record = Record(at=now, event="superseded", sentence=f"What was learned is not used any longer: {why}.")
    if state.ladder.running is not None:
        rung, cause = state.ladder.running.rung, state.ladder.running.causes[0]
        record = msgspec.structs.replace(record, rung=rung, cause=cause)
        if state.trial is not None:
            record, seconds = msgspec.structs.replace(record, candidate=state.trial.candidate), state.trial.seconds
        state = finished(settings, state, "refused", now, seconds, why).state
    below = msgspec.structs.replace(state.ladder, tried={}, failures={})
    return Step(state=msgspec.structs.replace(state, ladder=below), sentence=record.sentence, records=[record])


def judge(settings: Settings, state: State, verdict: Verdict, expected: Expected, now: float) -> Step:
    """See `trial.judged`."""
    return _on(settings, state, now, lambda one: trial.judged(one, verdict, expected, now))


def shadow(settings: Settings, state: State, tally: Tally, now: float) -> Step:
    """See `trial.shadowed`."""
    return _on(settings, state, now, lambda one: trial.shadowed(settings.trial, one, tally, now))


def probation(settings: Settings, state: State, report: Watch, now: float) -> Step:
    """See `trial.watched`."""
    return _on(settings, state, now, lambda one: trial.watched(settings.trial, one, report, now))


def order(settings: Settings, state: State, go: bool, by: str, now: float) -> Step:
    """See `trial.ordered`."""
    return _on(settings, state, now, lambda one: trial.ordered(one, go, by, now))


def broken(settings: Settings, state: State, why: str, now: float) -> Step:
    """See `trial.broken`."""
    return _on(settings, state, now, lambda one: trial.broken(one, why, now))


def _on(settings: Settings, state: State, now: float, act: Callable[[Trial], tuple[Trial, Record | None]]) -> Step:
    if state.trial is None:
        raise ValueError("no candidate is on trial")
    after, record = act(state.trial)
    state = msgspec.structs.replace(state, trial=after)
    if record is None:
        return Step(state=state, sentence=f"A candidate is in the stage {after.stage}.")
    if after.stage not in ENDED:
        return Step(state=state, sentence=record.sentence, records=[record])
    outcomes: dict[str, Outcome] = {"kept": "kept", "refused": "refused", "rolled-back": "rolled-back"}
    end = finished(settings, state, outcomes[after.stage], now, after.seconds, failed(record.facts))
    return Step(state=end.state, sentence=record.sentence, records=[record, *end.records])
