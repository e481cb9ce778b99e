"""The ladder: which rung is tried for which cause, what comes next when it fails, and how much may be spent.

One mechanism for everything that learns: findings of the triggers and what the service has (`Means`) go in, one job or
the reason for none comes out. Where a rung stands in a route is measured, not guessed (`research/algorithms.md` 4): a
new class goes into the LDA head first, because fine-tuning from 20 labels forgets the old classes; a new scene is met
by BatchNorm re-estimation first, which is better than fine-tuning below some 50 labels a class.

A dearer rung is never taken because a cheaper one has to wait: it waits. A rung that cannot be climbed at all (no
un-folded BatchNorm, too few labels) is passed over, with the reason on record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from edgekit.learning.records import NAMES, RUNGS, Cause, Fact, Record, Rung, duration, opening
from edgekit.learning.triggers import Evidence, Finding

_DAY = 86_400.0

_SCENE: tuple[Rung, ...] = RUNGS
_LABELS: tuple[Rung, ...] = ("head", "last-blocks", "full", "cloud")
ROUTES: dict[Cause, tuple[Rung, ...]] = {
    "operator": ("head", "last-blocks", "full", "batchnorm", "recalibrate", "cloud"),  # who labels wants it learned
    "new-class": _LABELS,
    "labels": _LABELS,
    "unattainable": RUNGS[1:],  # recalibrating is what just failed
    "audits": _SCENE,
    "drift": _SCENE,
    "offload": _SCENE,
    "schedule": _LABELS,
    "federation": (),  # its candidates come from elsewhere
}
"""For each cause the rungs in the order in which they are tried."""

_COOL_DOWN: dict[Rung, float] = {
    "recalibrate": 600.0,
    "batchnorm": 1800.0,
    "head": 1800.0,
    "last-blocks": 6 * 3600.0,
    "full": 24 * 3600.0,
    "cloud": 24 * 3600.0,
}

Outcome = Literal["kept", "refused", "rolled-back", "failed"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What learning may cost, and what a rung needs."""

    cool_down: dict[Rung, float] = msgspec.field(default_factory=_COOL_DOWN.copy)  # seconds to the next of its rung
    jobs: int = 12  # in 24 hours
    seconds: float = 4 * 3600.0  # of work in 24 hours
    pictures: int = 32  # of the present scene, for BatchNorm (`research/algorithms.md` 4.4)
    head_labels: int = 5  # of the class with fewest
    tuning_labels: int = 50  # of the class with fewest, for fine-tuning (4.3, 4.4)
    attempts: int = 2  # of a job that fails by itself (crash, full disk) before its rung counts as tried
    rollbacks: int = 2  # in `rollback_days`: then only an operator starts another job
    rollback_days: float = 7.0

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that cannot be."""
        if (
            min(self.jobs, self.attempts, self.rollbacks) < 1
            or self.seconds <= 0
            or min(self.cool_down.values(), default=0.0) < 0
        ):
            raise ValueError("a ladder needs at least one job, one attempt, one rollback and some seconds")


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """What the service has to learn with. `never` and `later`: why a rung is impossible, or has to wait."""

    pictures: int = 0  # of the present scene, labelled or not
    fewest: int = 0  # labels of the class with fewest (of those that have any)
    seconds: dict[Rung, float] = {}  # what a job of this rung will take, from the last one or a trial step
    never: dict[Rung, str] = {}  # for instance "the package carries no un-folded checkpoint"
    later: dict[Rung, str] = {}  # for instance "the link is down"


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One rung being climbed. `causes`: every finding that it serves; the first one started it."""

    number: int
    rung: Rung
    causes: list[Cause]
    started: float
    sentence: str


class Spent(msgspec.Struct, frozen=True):
    """A job that ended."""

    rung: Rung
    ended: float
    seconds: float
    outcome: Outcome


class LadderState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the ladder knows."""

    number: int = 0  # of the last job
    running: Job | None = None
    tried: dict[Cause, list[Rung]] = {}  # rungs that did not help this cause since it was last settled
    failures: dict[Rung, int] = {}  # in a row
    spent: list[Spent] = []  # as long as it matters


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now. `exhausted`: causes that nothing is left for; settle their triggers."""

    state: LadderState
    job: Job | None
    sentence: str
    exhausted: list[Cause] = []
    records: list[Record] = []


def choose(limits: Limits, state: LadderState, findings: Sequence[Finding], evidence: Evidence, means: Means) -> Choice:
    """One job for the most urgent finding that can be served, or why there is none."""
    now = evidence.now
    state = _recent(limits, state, now)
    if state.running is not None:
        sentence = f"{opening(NAMES[state.running.rung])} is under way (job {state.running.number}); one at a time."
        return Choice(state=state, job=None, sentence=sentence)
    waiting: list[str] = []
    exhausted: list[Cause] = []
    records: list[Record] = []
    for finding in findings:
        passed_over: list[str] = []
        for rung in _route(finding):
            if rung in state.tried.get(finding.cause, ()):
                passed_over.append(f"{NAMES[rung]} did not help")
                continue
            if reason := _impossible(limits, rung, finding, evidence, means):
                passed_over.append(f"{NAMES[rung]} is out of the question: {reason}")
                continue
            if reason := _must_wait(limits, state, rung, finding, now, means):
                waiting.append(f"{opening(NAMES[rung])} waits: {reason}.")
                break
            job, record = _job(state, rung, finding, findings, now, passed_over)
            state = msgspec.structs.replace(state, number=job.number, running=job)
            return Choice(state=state, job=job, sentence=job.sentence, exhausted=exhausted, records=[*records, record])
        else:
            exhausted.append(finding.cause)
            tried = {cause: rungs for cause, rungs in state.tried.items() if cause != finding.cause}
            state = msgspec.structs.replace(state, tried=tried)
            why = "; ".join(passed_over)
            sentence = f"Nothing is left to try although {finding.sentence}: {why}."
            records.append(Record(at=now, event="exhausted", cause=finding.cause, sentence=sentence))
    said = [*waiting, *(one.sentence for one in records), "Nothing asks for learning."]
    return Choice(state=state, job=None, sentence=said[0], exhausted=exhausted, records=records)


def ended(
    limits: Limits, state: LadderState, outcome: Outcome, now: float, seconds: float, why: str = ""
) -> tuple[LadderState, list[Cause], Record]:
    """The running job came to its end after `seconds` of work.

    `kept`: the threshold is certified again, or the model passed its probation. `refused`: it was worse. `failed`: the
    job itself broke. Returns the state, the causes that are settled by it (settle their triggers) and the record.
    Raises ValueError if no job runs.
    """
    job = state.running
    if job is None:
        raise ValueError("no job is running that could end")
    tried = {cause: list(rungs) for cause, rungs in state.tried.items()}
    failures = dict(state.failures)
    settled: list[Cause] = []
    failures[job.rung] = failures.get(job.rung, 0) + 1 if outcome == "failed" else 0
    if outcome == "kept":
        settled = job.causes
        tried = {cause: rungs for cause, rungs in tried.items() if cause not in settled}
    elif outcome != "failed" or failures[job.rung] >= limits.attempts:
        failures[job.rung] = 0
        for cause in job.causes:
            tried.setdefault(cause, []).append(job.rung)
    spent = Spent(job.rung, now, max(0.0, seconds), outcome)
    state = msgspec.structs.replace(state, running=None, tried=tried, failures=failures, spent=[*state.spent, spent])
    said = {
        "kept": "helped",
        "refused": "did not pass",
        "rolled-back": "had to be taken back",
        "failed": "broke off",
    }[outcome]
    sentence = f"{opening(NAMES[job.rung])} (job {job.number}) {said} after {duration(seconds)}"
    sentence += f": {why}." if why else "."
    facts = [Fact(name="seconds", value=max(0.0, seconds), text=f"it took {duration(seconds)}")]
    return (
        state,
        settled,
        Record(at=now, event=outcome, rung=job.rung, cause=job.causes[0], sentence=sentence, facts=facts),
    )


def _recent(limits: Limits, state: LadderState, now: float) -> LadderState:
    """Without jobs that no rule looks at any more; what ended in the future (a clock jumped back) ended now."""
    longest = max(_DAY, limits.rollback_days * _DAY, *limits.cool_down.values())
    spent = [
        msgspec.structs.replace(one, ended=min(one.ended, now)) for one in state.spent if now - one.ended <= longest
    ]
    return msgspec.structs.replace(state, spent=spent)


def _route(finding: Finding) -> Sequence[Rung]:
    return ROUTES[finding.cause] if finding.rung is None else (finding.rung,)


def _impossible(limits: Limits, rung: Rung, finding: Finding, evidence: Evidence, means: Means) -> str:
    """Why this rung cannot help at all; "" if it can."""
    if rung in means.never:
        return means.never[rung]
    if rung == "recalibrate" and evidence.looks and finding.cause != "operator":
        return f"the last {evidence.looks} calibrations certified nothing"
    if rung == "batchnorm" and means.pictures < limits.pictures:
        return f"it needs {limits.pictures} pictures of the present scene, there are {means.pictures}"
    needed = {"head": limits.head_labels, "last-blocks": limits.tuning_labels, "full": limits.tuning_labels}.get(rung)
    if needed is not None and means.fewest < needed:
        return f"it needs {needed} labels of every class, the rarest has {means.fewest}"
    return ""


def _must_wait(limits: Limits, state: LadderState, rung: Rung, finding: Finding, now: float, means: Means) -> str:
    """Why this rung has to wait; "" if it need not. An operator waits for nothing but what is missing."""
    if rung in means.later:
        return means.later[rung]
    if finding.cause == "operator":
        return ""
    back = [one for one in state.spent if one.outcome == "rolled-back"]
    back = [one for one in back if now - one.ended < limits.rollback_days * _DAY]
    if len(back) >= limits.rollbacks:
        return (
            f"{len(back)} models were rolled back within {limits.rollback_days:g} days; "
            "learning pauses until an operator asks for it"
        )
    own = [one.ended for one in state.spent if one.rung == rung]
    left = max(own) + limits.cool_down.get(rung, 0.0) - now if own else 0.0
    if left > 0:
        return f"it was tried a short while ago, {duration(left)} are left"
    today = [one for one in state.spent if now - one.ended < _DAY]
    if len(today) >= limits.jobs:
        return f"{len(today)} jobs ran within 24 hours, {limits.jobs} are allowed"
    worked = sum(one.seconds for one in today)
    expected = means.seconds.get(rung, 0.0)
    if today and worked + expected > limits.seconds:
        return (
            f"{duration(worked)} were worked within 24 hours, it will take {duration(expected)}, "
            f"and {duration(limits.seconds)} are allowed"
        )
    return ""


def _job(
    state: LadderState, rung: Rung, finding: Finding, findings: Sequence[Finding], now: float, passed_over: list[str]
) -> tuple[Job, Record]:
    served = [finding, *(one for one in findings if one is not finding and rung in _route(one))]
    sentence = f"{opening(NAMES[rung])} is tried, because {finding.sentence}"
    sentence += f" ({'; '.join(passed_over)})." if passed_over else "."
    job = Job(number=state.number + 1, rung=rung, causes=[one.cause for one in served], started=now, sentence=sentence)
    return job, Record(at=now, event="started", rung=rung, cause=finding.cause, sentence=sentence)
