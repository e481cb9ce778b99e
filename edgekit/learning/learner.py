"""A service's learning as a whole: triggers, ladder and trial in one state that is stored after every step.

Call `consider` from time to time. Does it start a job, do the job and say how it went: `finished` for one without a
new model (a threshold that was calibrated anew, or a job that broke), `made` for one with a candidate, whose trial then
goes on with `judge`, `shadow`, `probation` and `order`. Until that trial has ended no other job starts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgekit.learning import ladder, trial, watch
from edgekit.learning.ladder import LadderState, Means, Outcome
from edgekit.learning.records import Record
from edgekit.learning.trial import ENDED, Expected, Tally, Trial, TrialLimits, Verdict, Watch
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
    end = finished(settings, state, outcomes[after.stage], now, after.seconds)
    return Step(state=end.state, sentence=record.sentence, records=[record, *end.records])
