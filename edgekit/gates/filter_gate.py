"""A gate that sends what one of Sedna's filters calls hard: the same calls as `policy.Gate`, and no promise.

A filter looks at one sample at a time and compares it with numbers that somebody typed, so nothing follows about how
often the answers made here differ from the cloud's. That is measured all the same: a share `audit_share` of the samples
that are not hard is sent in the background, and the status reports the bound of the risk that the last audits support,
as budget mode does. Samples that Random sends are themselves an unbiased sample of the traffic, so they are its audits
and no others are drawn. EdgeOnly sends nothing, audits included.

When the hardness scores drift, the audits of before say nothing about the traffic of now and are forgotten; the filter
itself never moves.

Not safe for threads: call it from one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container
from typing import Literal

import msgspec

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.drift import DriftAlarm, Reference, reference
from edgekit.gates.filters import FILTERS, Seen, is_hard
from edgekit.gates.policy import GateDecision, GateStatus
from edgekit.gates.scores import hardness
from edgekit.messages import GateFacts, SendReason

WINDOW = 1000
"""Last samples whose share of hard ones is known."""
AUDITS = 300
"""Last audits that the bound is made of, and audits that may be on their way."""
_REFERENCE = 300  # scores after which the gate knows what normal traffic looks like


class FilterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Raises ValueError for an unknown filter or a number out of range."""

    filter: str  # a name in FILTERS
    parameters: dict[str, float]  # all that the filter has, 0..1
    mode: Literal["filter"] = "filter"
    confidence: float = 0.9  # of the bound that audits support
    audit_share: float = 0.03  # of the samples that are not hard
    pair: str = ""  # names of the edge and the answering model: audits of another pair are worth nothing

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ValueError(f"there is no filter {self.filter!r}; known filters are {', '.join(FILTERS)}")
        if self.parameters.keys() != FILTERS[self.filter].keys():
            raise ValueError(
                f"the filter {self.filter} has the parameters {', '.join(FILTERS[self.filter]) or '(none)'}"
            )
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must be over 0 and under 1, not {self.confidence}")
        for name, value in (*self.parameters.items(), ("audit_share", self.audit_share)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")


class FilterSnapshot(msgspec.Struct, kw_only=True):
    """Everything the gate knows, to be stored and restored."""

    settings: FilterSettings
    alarms: int = 0
    hard: list[bool] = []
    scores: list[float] = []
    ref: Reference | None = None
    drift_scores: list[float] = []
    audits: list[bool] = []
    waiting: list[str] = []


class FilterGate:
    """See the module's docstring. It decides the same way from the first sample on."""

    def __init__(self, settings: FilterSettings) -> None:
        self.settings = settings
        self._alarms = 0
        self._begin()

    def _begin(self) -> None:
        self._hard: deque[bool] = deque(maxlen=WINDOW)  # of the last samples: did the filter call it hard
        self._scores: list[float] = []  # until there are enough for a reference
        self._drift: DriftAlarm | None = None
        self._audits: deque[bool] = deque(maxlen=AUDITS)  # answered ones: did the cloud's answer differ
        self._waiting: dict[str, None] = {}  # ids of audits without an answer, the oldest first

    # --- the three calls of the data plane ------------------------------------------------------------------------

    def decide(self, margin: float, u: float, sample_id: str, seen: Seen) -> GateDecision:
        """Decide about the next sample. Call it exactly once a sample, in the order in which they come.

        `margin`: softmax margin of the edge's answer, for the drift alarm and the spool's order only. `u`: a fresh
        uniform random number in [0, 1), for Random and for audits. `seen`: what the filter looks at.
        """
        name = self.settings.filter
        score = hardness(margin)
        if name == "EdgeOnly":
            return GateDecision(False, None, False, score, 0.0)
        self._watch(score)
        hard = is_hard(name, self.settings.parameters, seen, u)
        self._hard.append(hard)
        if hard and name == "Random":
            self._expect(sample_id)
            return GateDecision(True, "hard", False, score, 1.0)
        if hard:
            return GateDecision(True, "hard", False, score, score)
        if name != "Random" and u < self.settings.audit_share:
            self._expect(sample_id)
            return GateDecision(True, "audit", False, score, 1.0)
        return GateDecision(False, None, False, score, 0.0)

    def learn(self, score: float, differs: bool, reason: SendReason, sample_id: str) -> None:
        """Take an answer of the cloud, in any order, however late. Those to other samples than audits say nothing."""
        if sample_id in self._waiting:
            del self._waiting[sample_id]
            self._audits.append(differs)

    def lost(self, sample_id: str) -> None:
        """Say that no answer will ever come for a sample that was sent: it measures nothing."""
        self._waiting.pop(sample_id, None)

    # --- control ----------------------------------------------------------------------------------------------------

    def recalibrate(self) -> None:
        """Forget what was measured: a person asked, or the cloud's model changed. The filter stays as it is."""
        self._begin()

    def snapshot(self) -> FilterSnapshot:
        drift = self._drift
        return FilterSnapshot(
            settings=self.settings,
            alarms=self._alarms,
            hard=list(self._hard),
            scores=list(self._scores),
            ref=drift.ref if drift else None,
            drift_scores=drift.recent if drift else [],
            audits=list(self._audits),
            waiting=list(self._waiting),
        )

    def restore(self, snapshot: FilterSnapshot, waiting: Container[str] = ()) -> bool:
        """Go on from a snapshot; False (and no change) if it belongs to other settings or another pair of models.

        `waiting`: ids of the samples that still wait in the spool. Others without an answer went down with the power.
        """
        if snapshot.settings != self.settings:
            return False
        self._begin()
        self._alarms = snapshot.alarms
        self._hard.extend(snapshot.hard)
        self._scores = snapshot.scores[-_REFERENCE:]
        self._drift = DriftAlarm(snapshot.ref, snapshot.drift_scores) if snapshot.ref else None
        self._audits.extend(snapshot.audits)
        for sample_id in snapshot.waiting:
            if sample_id in waiting:
                self._expect(sample_id)
        return True

    # --- inside -----------------------------------------------------------------------------------------------------

    def _expect(self, sample_id: str) -> None:
        """An audit is sent. With the link down for days too many are out: the oldest is given up."""
        if len(self._waiting) >= AUDITS:
            del self._waiting[next(iter(self._waiting))]
        self._waiting[sample_id] = None

    def _watch(self, score: float) -> None:
        if self._drift is not None:
            if self._drift.observe(score):
                self._alarms += 1
                self._begin()
            return
        self._scores.append(score)
        if len(self._scores) >= _REFERENCE:
            self._drift = DriftAlarm(reference(self._scores))
            self._scores = []

    def _bound(self) -> float | None:
        """Bound of the risk, P(not hard and differs) = P(not hard) P(differs | not hard), from the last audits.

        Each factor gets half of 1 - confidence: Hoeffding's bound for the share that is not hard (closed, so that a
        status costs nothing), Clopper-Pearson's for the audits, which are few and differ rarely.
        """
        if not self._audits or not self._hard:
            return None
        delta = (1 - self.settings.confidence) / 2
        local = 1 - sum(self._hard) / len(self._hard) + math.sqrt(math.log(1 / delta) / (2 * len(self._hard)))
        return min(1.0, local) * clopper_pearson_upper(sum(self._audits), len(self._audits), delta)

    # --- status -----------------------------------------------------------------------------------------------------

    def facts(self) -> GateFacts | None:
        """What the last audits say, for the triggers of learning: nothing was promised, and nothing calibrated."""
        if self.settings.filter == "EdgeOnly":
            return None
        return GateFacts(alarms=self._alarms, seen=len(self._hard), audits=len(self._audits), audit_bound=self._bound())

    def status(self) -> GateStatus:
        """Where the gate stands, with one sentence for people."""
        name = self.settings.filter
        if name == "EdgeOnly":
            sentence = (
                'EdgeOnly: every sample is answered here and none is sent. It promises no risk, mode "risk" would.'
            )
            return GateStatus("off", 0, None, None, sentence)
        if name == "CloudOnly":
            sentence = (
                "CloudOnly: every sample is sent. It promises no risk for what the cloud does not answer in time; mode"
                ' "risk" sends fewer, with a promise.'
            )
            return GateStatus("filter", 0, None, None, sentence, self._alarms)
        bound = self._bound()
        values = ", ".join(f"{key} {value:g}" for key, value in self.settings.parameters.items())
        sentence = f'{name} ({values}): {self._share()}. It promises no risk, mode "risk" would; {self._known(bound)}.'
        return GateStatus("filter", 0, None, bound, sentence, self._alarms)

    def _share(self) -> str:
        if not self._hard:
            return "no sample has come yet"
        return f"{sum(self._hard) / len(self._hard):.0%} of the last {len(self._hard):,} samples were hard and sent"

    def _known(self, bound: float | None) -> str:
        if bound is not None:
            return (
                f"at most {bound:.1%} of all samples are answered here and differ from the cloud's answer, at"
                f" {self.settings.confidence:.0%} confidence ({len(self._audits):,} audits)"
            )
        if self.settings.filter != "Random" and self.settings.audit_share == 0.0:
            return "without audits (audit_share is 0) nothing is known about the answers made here"
        return "nothing is known yet about the answers made here"
