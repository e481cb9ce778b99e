"""A candidate on its way: judged on held-out items, in the shadow of live traffic, on probation; kept or taken back.

    judging --> shadow --> probation --> kept
       |          |            +-------> rolled-back   (the model before it is still on the disk and returns)
       +----------+--------------------> refused

In the shadow the candidate answers live items and nobody acts on it. A look is taken once, when the limits' number of
items is through and enough of them have an audit (the cloud's or a person's answer): a test that looked again and again
would find what it looks for. Refused is what is worse by McNemar's exact test or by more points than allowed, what
agrees too little with the present model where the audits do not take its side, and what fails to answer a single item.

On probation it decides. Taken back is what breaks, what more audits contradict than its certificate allows (Page's
CUSUM, `edgekit.gates.drift`), and what is out of its band of offload or of run time for long. Each band has hysteresis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from edgekit.gates.drift import AuditAlarm
from edgekit.learning.band import Band, BandState
from edgekit.learning.records import Cause, Event, Fact, Record, Rung, duration, failed, points
from edgekit.learning.tally import Tally

Stage = Literal["judging", "shadow", "probation", "kept", "refused", "rolled-back"]
ENDED: frozenset[Stage] = frozenset(("kept", "refused", "rolled-back"))


class TrialLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate must show on live traffic. Shares, not percentages; times in seconds."""

    shadow_items: int = 500
    shadow_audits: int = 100  # 0 for a service that nobody audits: then `agreement` alone decides
    shadow_longest: float = 7 * 86_400.0  # a shadow phase without enough items or audits ends then, refused
    drop: float = 0.02  # by which it may be worse on the audits
    significance: float = 0.05
    agreement: float = 0.8  # with the present model
    offload: float = 0.03  # by which more items may be sent
    probation_items: int = 2000
    probation: float = 86_400.0  # at least
    failures: int = 3  # of the process or of items on probation
    out_of_band: Band = Band(leave=1.5, back=1.25, seconds=3600.0)  # times the offload rate that was expected
    slow: Band = Band(leave=1.5, back=1.2, seconds=600.0)  # times the run time that was expected

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that cannot be."""
        shares = (self.drop, self.significance, self.agreement, self.offload)
        if not all(0.0 <= one <= 1.0 for one in shares):
            raise ValueError("the limits of a trial are shares between 0 and 1")
        if min(self.shadow_items, self.probation_items, self.failures) < 1 or self.shadow_audits < 0:
            raise ValueError("a trial needs items, and at least one failure to be taken back")


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What `edgekit.learning.judging` found on held-out items, and what is expected of the candidate from now on."""

    accepted: bool
    reason: str  # "" or "refused: ..."
    dataset: str  # digest of the held-out dataset version
    facts: list[Fact]


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """How the candidate should behave on live traffic. None: not known, and not watched."""

    differing: float | None = None  # share of the answers given here that may be wrong, by its certificate
    offload: float | None = None  # share of samples sent
    p95_ms: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be expected."""
        if self.differing is not None and not 0.0 < self.differing < 1.0:
            raise ValueError(f"a share of differing answers of {self.differing} cannot be expected")
        for value in (self.offload, self.p95_ms):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{value} cannot be expected of a model; leave out what is not known")


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on probation since the last report."""

    items: int = 0
    audits: Sequence[bool] = ()  # in their order: did the answer given here differ?
    failures: int = 0  # restarts of the process, items without a usable answer
    offload: float | None = None  # share of the last samples that was sent
    p95_ms: float | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one candidate."""

    candidate: str  # digest of its package
    before: str  # digest of the package that it replaces and that a rollback brings back
    rung: Rung
    cause: Cause
    seconds: float  # of work that made it
    since: float  # of this stage
    stage: Stage = "judging"
    expected: Expected = Expected()
    items: int = 0  # on probation
    audits: int = 0
    differing: int = 0
    failures: int = 0
    levels: tuple[float, ...] = ()  # of the audit alarm
    offload: BandState = BandState()
    slow: BandState = BandState()


def begin(candidate: str, before: str, rung: Rung, cause: Cause, seconds: float, now: float) -> Trial:
    """A candidate that nobody has judged yet, made by `seconds` of work."""
    return Trial(candidate=candidate, before=before, rung=rung, cause=cause, seconds=seconds, since=now)


def judged(trial: Trial, verdict: Verdict, expected: Expected, now: float) -> tuple[Trial, Record]:
    """The held-out items have spoken. Raises ValueError in another stage."""
    _in(trial, "judging")
    if not verdict.accepted:
        return _move(trial, "refused", "refused", now, f"The candidate is {verdict.reason}.", verdict.facts)
    sentence = "The candidate passed on held-out items and goes into the shadow of live traffic."
    return _move(msgspec.structs.replace(trial, expected=expected), "shadow", "accepted", now, sentence, verdict.facts)


def shadowed(limits: TrialLimits, trial: Trial, tally: Tally, now: float) -> tuple[Trial, Record | None]:
    """Look at the shadow phase so far; no record while it goes on. Raises ValueError in another stage."""
    _in(trial, "shadow")
    trial = _not_before(trial, now)
    if tally.unusable:
        fact = Fact(
            name="answers",
            value=tally.unusable,
            limit=0,
            passed=False,
            text=f"it gave no usable answer for {tally.unusable} of {tally.items} live items",
        )
        return _move(trial, "refused", "refused", now, f"The candidate is refused: {fact.text}.", [fact])
    if tally.items < limits.shadow_items or tally.audits < limits.shadow_audits:
        if now - trial.since < limits.shadow_longest:
            return trial, None
        fact = _progress(limits, tally)
        sentence = f"The candidate is refused: after {duration(now - trial.since)} {fact.text}."
        return _move(trial, "refused", "refused", now, sentence, [fact])
    facts = _shadow_facts(limits, tally)
    if reason := failed(facts):
        return _move(trial, "refused", "refused", now, f"The candidate is refused: {reason}.", facts)
    sentence = f"The candidate decides from now on, on probation: {facts[0].text}."
    return _move(trial, "probation", "promoted", now, sentence, facts)


def watched(limits: TrialLimits, trial: Trial, watch: Watch, now: float) -> tuple[Trial, Record | None]:
    """Take a report of the probation; no record while it goes on. Raises ValueError in another stage."""
    _in(trial, "probation")
    trial = _not_before(trial, now)
    expected, fact = trial.expected, None
    offload, sent_too_much = limits.out_of_band.look(trial.offload, _ratio(watch.offload, expected.offload), now)
    slow, too_slow = limits.slow.look(trial.slow, _ratio(watch.p95_ms, expected.p95_ms), now)
    levels, alarm = trial.levels, False
    if expected.differing is not None:
        audits = AuditAlarm(expected.differing, levels)
        alarm = any(audits.observe(differs) for differs in watch.audits)
        levels = audits.levels
    trial = msgspec.structs.replace(
        trial,
        items=trial.items + watch.items,
        audits=trial.audits + len(watch.audits),
        differing=trial.differing + sum(watch.audits),
        failures=trial.failures + watch.failures,
        levels=levels,
        offload=offload,
        slow=slow,
    )
    if trial.failures >= limits.failures:
        text = f"it broke {trial.failures} times, {limits.failures} are too many"
        fact = Fact(name="failures", value=trial.failures, limit=limits.failures, passed=False, text=text)
    elif alarm and expected.differing is not None:
        text = (
            f"{trial.differing} of {trial.audits} audits differ from its answers, more than the "
            f"{expected.differing:.1%} that its certificate allows"
        )
        share = trial.differing / trial.audits
        fact = Fact(name="audits", value=share, limit=expected.differing, passed=False, text=text)
    elif sent_too_much and watch.offload is not None and expected.offload is not None:
        text = (
            f"{watch.offload:.0%} of the samples are sent instead of {expected.offload:.0%}, "
            f"out of the band for {duration(limits.out_of_band.seconds)}"
        )
        limit = limits.out_of_band.leave * expected.offload
        fact = Fact(name="offload", value=watch.offload, limit=limit, passed=False, text=text)
    elif too_slow and watch.p95_ms is not None and expected.p95_ms is not None:
        text = (
            f"it takes {watch.p95_ms:.3g} ms instead of {expected.p95_ms:.3g} ms (95th percentile), "
            f"out of the band for {duration(limits.slow.seconds)}"
        )
        limit = limits.slow.leave * expected.p95_ms
        fact = Fact(name="latency", value=watch.p95_ms, limit=limit, passed=False, text=text)
    if fact is not None:
        sentence = f"The model was taken back and the one before it decides again: {fact.text}."
        return _move(trial, "rolled-back", "rolled-back", now, sentence, [fact])
    inside = offload.since is None and slow.since is None
    if trial.items < limits.probation_items or now - trial.since < limits.probation or not inside:
        return trial, None
    facts = [
        Fact(
            name="items",
            value=trial.items,
            limit=limits.probation_items,
            text=f"it decided {trial.items:,} items in {duration(now - trial.since)} without an alarm",
        ),
        Fact(name="audits", value=trial.audits, text=f"{trial.differing} of {trial.audits} audits differed"),
    ]
    sentence = f"The model is kept: {facts[0].text}, and {facts[1].text}."
    return _move(trial, "kept", "kept", now, sentence, facts)


def ordered(trial: Trial, go: bool, by: str, now: float) -> tuple[Trial, Record]:
    """An operator ends the present stage: on to the next one (`go`), or the candidate away.

    What was not judged on held-out items cannot be sent on. Raises ValueError then, and for an ended trial.
    """
    name = by[:64]
    if trial.stage in ENDED or (go and trial.stage == "judging"):
        raise ValueError(f"a candidate that is {trial.stage} cannot be {'sent on' if go else 'taken away'}")
    if trial.stage == "probation":
        if go:
            return _move(trial, "kept", "kept", now, f"The model is kept, because {name} says so.", [])
        return _move(trial, "rolled-back", "rolled-back", now, f"{name} took the model back.", [])
    if go:
        return _move(trial, "probation", "promoted", now, f"{name} ended the shadow phase: it decides now.", [])
    return _move(trial, "refused", "refused", now, f"{name} refused the candidate.", [])


def broken(trial: Trial, why: str, now: float) -> tuple[Trial, Record]:
    """It cannot go on, whatever it has shown: it does not start, or it is not there any more.

    Raises ValueError for an ended trial.
    """
    if trial.stage in ENDED:
        raise ValueError(f"a candidate that is {trial.stage} has ended")
    if trial.stage == "probation":
        sentence = f"The model was taken back and the one before it decides again: {why}."
        return _move(trial, "rolled-back", "rolled-back", now, sentence, [])
    return _move(trial, "refused", "refused", now, f"The candidate is refused: {why}.", [])


def exact_mcnemar(lost: int, gained: int) -> float:
    """P(at least `lost` of all discordant items are lost), were both models equally good: McNemar 1947, exact."""
    n = lost + gained
    total = sum(math.comb(n, k) for k in range(lost, n + 1))
    return total / (1 << n)  # whole numbers until here: right for every n


def _shadow_facts(limits: TrialLimits, tally: Tally) -> list[Fact]:
    n = tally.items
    agreement = tally.agreeing / n
    audited = tally.audits > 0
    drop = (tally.lost - tally.gained) / tally.audits if audited else 0.0
    chance = exact_mcnemar(tally.lost, tally.gained)
    better = audited and tally.gained > tally.lost and exact_mcnemar(tally.gained, tally.lost) <= limits.significance
    more = (tally.would_send - tally.sent) / n
    counts = f"{tally.audits} audits, {tally.lost} lost and {tally.gained} gained"
    return [
        _progress(limits, tally),
        Fact(
            name="drop",
            value=drop,
            limit=limits.drop,
            passed=drop <= limits.drop,
            text=f"by the audits it is {points(drop)} worse ({counts}), {points(limits.drop)} are allowed",
        ),
        Fact(
            name="chance",
            value=chance,
            limit=limits.significance,
            passed=tally.lost <= tally.gained or chance > limits.significance,
            text=f"an equally good model would lose so many audits with a probability of {chance:.2g} ({counts})",
        ),
        Fact(
            name="agreement",
            value=agreement,
            limit=limits.agreement,
            passed=agreement >= limits.agreement or better,
            text=(
                f"it agrees with the present model on {agreement:.1%} of the items, {limits.agreement:.0%} are wanted "
                "unless the audits are clearly on its side"
            ),
        ),
        Fact(
            name="offload",
            value=more,
            limit=limits.offload,
            passed=more <= limits.offload,
            text=f"it would send {points(more)} more of the items, {points(limits.offload)} are allowed",
        ),
    ]


def _progress(limits: TrialLimits, tally: Tally) -> Fact:
    enough = tally.items >= limits.shadow_items and tally.audits >= limits.shadow_audits
    text = f"{tally.items} live items with {tally.audits} audits went through its shadow"
    if not enough:
        text += f", {limits.shadow_items} and {limits.shadow_audits} are needed"
    return Fact(name="items", value=tally.items, limit=limits.shadow_items, passed=enough, text=text)


def _ratio(value: float | None, expected: float | None) -> float | None:
    return None if value is None or expected is None else value / expected


def _not_before(trial: Trial, now: float) -> Trial:
    """A clock that jumped back makes a stage begin anew, never last for ever."""
    return trial if trial.since <= now else msgspec.structs.replace(trial, since=now)


def _in(trial: Trial, stage: Stage) -> None:
    if trial.stage != stage:
        raise ValueError(f"the candidate is in the stage {trial.stage}, not {stage}")


def _move(
    trial: Trial, stage: Stage, event: Event, now: float, sentence: str, facts: list[Fact]
) -> tuple[Trial, Record]:
    record = Record(
        at=now,
        event=event,
        rung=trial.rung,
        cause=trial.cause,
        candidate=trial.candidate,
        sentence=sentence,
        facts=facts,
    )
    return msgspec.structs.replace(trial, stage=stage, since=now), record
