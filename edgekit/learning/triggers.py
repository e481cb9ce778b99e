"""What sets learning off. Each trigger is a pure object: evidence and its own state in, its state and a finding out.

A trigger goes on firing until it is settled: a model was kept, or the ladder has nothing left to try. After that it
fires again on *more* evidence only, so that the same labels or the same alarm never start the same job for ever.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar

import msgspec

from edgekit.learning.band import Band, BandState
from edgekit.learning.records import Cause, Rung, duration

MORE = 1.5
"""By this factor the labels of a class must have grown before a settled trigger fires again."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asked for. `rung`: None leaves the choice to the ladder."""

    number: int  # of this request, rising from 1
    by: str
    rung: Rung | None = None


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a service at a moment. Counts and bounds come from the sample store and the gate."""

    now: float
    labels: dict[str, int] = {}  # confirmed labels in the sample store
    known: list[str] = []  # labels of the present model
    alarms: int = 0  # drift and audit alarms of the gate since it began
    looks: int = 0  # calibration blocks in a row that certified nothing
    alpha: float | None = None  # the risk that was asked for
    audits: int = 0  # answers given here whose truth is known, since the threshold was certified
    audit_bound: float | None = None  # upper confidence bound of the share of all samples decided here and differing
    offload: float | None = None  # share of the last samples that was sent
    calibrated: float | None = None  # the same when the threshold was certified
    request: Request | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a number that cannot be."""
        shares = (self.alpha, self.audit_bound, self.offload, self.calibrated)
        if not math.isfinite(self.now) or any(one is not None and not 0.0 <= one <= 1.0 for one in shares):
            raise ValueError("evidence needs a time and shares between 0 and 1")
        if min(self.alarms, self.looks, self.audits, *self.labels.values()) < 0:
            raise ValueError("evidence with a negative count")

    @property
    def total(self) -> int:
        """Confirmed labels of all classes."""
        return sum(self.labels.values())

    @property
    def unknown(self) -> dict[str, int]:
        """Labels that the present model does not have, the most frequent first."""
        rest = {label: count for label, count in self.labels.items() if label not in self.known}
        return dict(sorted(rest.items(), key=lambda item: (-item[1], item[0])))


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger fired, and why in one sentence."""

    cause: Cause
    sentence: str
    rung: Rung | None = None  # asked for by an operator


StateT = TypeVar("StateT")


class Trigger(Protocol[StateT]):
    """What every trigger is."""

    def look(self, state: StateT, evidence: Evidence) -> tuple[StateT, Finding | None]:
        """The state after this evidence, and a finding if the trigger fires."""
        ...

    def settle(self, state: StateT, evidence: Evidence) -> StateT:
        """The state after its cause was dealt with on this evidence."""
        ...


class Count(msgspec.Struct, frozen=True):
    """A count of the evidence when the trigger was last settled."""

    settled: int = 0


class NewClassState(msgspec.Struct, frozen=True):
    settled: dict[str, int] = {}  # labels of each unknown class at the last time


class NewClass(msgspec.Struct, frozen=True, kw_only=True):
    """A class that the model does not have has enough confirmed labels."""

    labels: int = 20

    def look(self, state: NewClassState, evidence: Evidence) -> tuple[NewClassState, Finding | None]:
        ripe = {label: count for label, count in evidence.unknown.items() if count >= self._needed(state, label)}
        if not ripe:
            return state, None
        named = ", ".join(f'"{label[:64]}" has {count}' for label, count in list(ripe.items())[:5])
        more = f" and {len(ripe) - 5} more have enough" if len(ripe) > 5 else ""
        sentence = (
            f"the model does not know these classes, and {self.labels} confirmed labels are enough: {named}{more}"
        )
        return state, Finding(cause="new-class", sentence=sentence)

    def settle(self, state: NewClassState, evidence: Evidence) -> NewClassState:
        return NewClassState({label: count for label, count in evidence.unknown.items() if count >= self.labels})

    def _needed(self, state: NewClassState, label: str) -> int:
        return max(self.labels, math.ceil(MORE * state.settled.get(label, 0)))


class LabelCount(msgspec.Struct, frozen=True, kw_only=True):
    """Enough labels came in since the model last learned."""

    labels: int = 300

    def look(self, state: Count, evidence: Evidence) -> tuple[Count, Finding | None]:
        state = Count(min(state.settled, evidence.total))  # labels that were withdrawn or evicted
        new = evidence.total - state.settled
        if new < self.labels:
            return state, None
        return state, Finding(cause="labels", sentence=f"{new} labels are new, {self.labels} are enough to learn from")

    def settle(self, state: Count, evidence: Evidence) -> Count:
        return Count(evidence.total)


class Drift(msgspec.Struct, frozen=True):
    """The gate raised an alarm: the scores, or too many audits, are not what they were."""

    def look(self, state: Count, evidence: Evidence) -> tuple[Count, Finding | None]:
        state = Count(min(state.settled, evidence.alarms))  # the gate began anew
        new = evidence.alarms - state.settled
        if not new:
            return state, None
        times = "once" if new == 1 else f"{new} times"
        return state, Finding(cause="drift", sentence=f"the drift alarm went off {times} since the model last learned")

    def settle(self, state: Count, evidence: Evidence) -> Count:
        return Count(evidence.alarms)


class Unattainable(msgspec.Struct, frozen=True, kw_only=True):
    """No threshold keeps the risk that was asked for: the model is too weak for the traffic as it is."""

    looks: int = 2

    def look(self, state: Count, evidence: Evidence) -> tuple[Count, Finding | None]:
        state = Count(min(state.settled, evidence.looks))
        if evidence.looks - state.settled < self.looks:
            return state, None
        risk = "the risk that was asked for" if evidence.alpha is None else f"a risk of {evidence.alpha:.1%}"
        sentence = f"{evidence.looks} calibrations in a row could not certify {risk}, so every sample is sent"
        return state, Finding(cause="unattainable", sentence=sentence)

    def settle(self, state: Count, evidence: Evidence) -> Count:
        return Count(evidence.looks)


class Offload(msgspec.Struct, frozen=True, kw_only=True):
    """More is sent than when the threshold was certified, for long."""

    band: Band = Band(leave=1.5, back=1.25, seconds=3600.0)  # times the calibrated rate

    def look(self, state: BandState, evidence: Evidence) -> tuple[BandState, Finding | None]:
        ratio = None
        if evidence.offload is not None and evidence.calibrated:
            ratio = evidence.offload / evidence.calibrated
        state, out = self.band.look(state, ratio, evidence.now)
        if not out or ratio is None:
            return state, None
        sentence = (
            f"{evidence.offload:.0%} of the samples are sent instead of {evidence.calibrated:.0%}, "
            f"more than {self.band.leave:g} times as many for {self.band.seconds / 60:.0f} min"
        )
        return state, Finding(cause="offload", sentence=sentence)

    def settle(self, state: BandState, evidence: Evidence) -> BandState:
        return BandState()


class Audits(msgspec.Struct, frozen=True, kw_only=True):
    """The bound that the audits support is above the risk that was asked for.

    An upper bound from few audits is high for a faultless model, too: -ln(0.1)/alpha audits without a fault bring it
    down to alpha (`edgekit.gates.certified.smallest_n`). Three times as many, and no fewer than `audits`, must speak.
    """

    audits: int = 100

    def look(self, state: Count, evidence: Evidence) -> tuple[Count, Finding | None]:
        state = Count(min(state.settled, evidence.audits))
        bound, alpha = evidence.audit_bound, evidence.alpha
        if bound is None or not alpha or bound <= alpha:
            return state, None
        if evidence.audits - state.settled < max(self.audits, math.ceil(-3 * math.log(0.1) / alpha)):
            return state, None
        sentence = (
            f"by {evidence.audits} audits up to {bound:.1%} of the samples may be decided here and wrongly, "
            f"{alpha:.1%} was asked for"
        )
        return state, Finding(cause="audits", sentence=sentence)

    def settle(self, state: Count, evidence: Evidence) -> Count:
        return Count(evidence.audits)


class ScheduleState(msgspec.Struct, frozen=True):
    last: float | None = None
    labels: int = 0  # that there were at the last time


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Time has passed and there is something new to learn from. `every`: seconds; None: never."""

    every: float | None = None

    def look(self, state: ScheduleState, evidence: Evidence) -> tuple[ScheduleState, Finding | None]:
        last = evidence.now if state.last is None else min(state.last, evidence.now)
        state = ScheduleState(last, min(state.labels, evidence.total))
        new = evidence.total - state.labels
        if self.every is None or evidence.now - last < self.every or not new:
            return state, None
        sentence = (
            f"{duration(evidence.now - last)} have passed since the last scheduled time, and {new} labels are new"
        )
        return state, Finding(cause="schedule", sentence=sentence)

    def settle(self, state: ScheduleState, evidence: Evidence) -> ScheduleState:
        return ScheduleState(evidence.now, evidence.total)


class Operator(msgspec.Struct, frozen=True):
    """Somebody asked."""

    def look(self, state: Count, evidence: Evidence) -> tuple[Count, Finding | None]:
        request = evidence.request
        if request is None or request.number <= state.settled:
            return state, None
        return state, Finding(cause="operator", sentence=f"{request.by[:64]} asked for it", rung=request.rung)

    def settle(self, state: Count, evidence: Evidence) -> Count:
        return state if evidence.request is None else Count(evidence.request.number)
