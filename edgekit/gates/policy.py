"""The gate of one service: a state machine that says for each sample whether the cloud shall be asked.

risk    Send every sample until a calibration block is answered, then certify a threshold: at most `risk` of all
        traffic is answered locally and differs from the cloud's answer, with probability `confidence`. Accepted
        samples are audited at random. A drift alarm or an audit alarm ends the certificate: safe mode sends
        everything for 400 samples (`safe_mode`) and certifies anew. Nothing else ever moves the threshold, so a few
        lucky audits cannot loosen it.
budget  Send about `budget` of the traffic, the hardest first: the threshold is a quantile of the last scores.
        Promises no risk, but reports the bound that its audits support.
off     Send nothing.

Looking twice at the data would spend the confidence twice. The first look after a start, a recalibration or an alarm
gets four fifths of delta = 1 - confidence, each further look four fifths of what is left; the claim "this certificate
holds" stands with `confidence` however often a block certified nothing and another was needed.

Not safe for threads: call it from one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Literal

import msgspec

from edgekit.gates.audits import Since
from edgekit.gates.binomial import allowed_differences, clopper_pearson_upper, smallest_n
from edgekit.gates.block import Block, BlockState
from edgekit.gates.budget import RecentScores
from edgekit.gates.certified import ACCEPT_NOTHING, Certificate, calibrate
from edgekit.gates.drift import AuditAlarm, DriftAlarm, Reference, reference
from edgekit.gates.scores import hardness
from edgekit.messages import GateFacts, SendReason

SAFE_MODE_SAMPLES = 400
WARM_UP = 50  # samples that budget mode sends before it has a quantile
BUDGET_WINDOW = 1000
_BUDGET_REFERENCE = 300  # scores after which budget mode knows what normal traffic looks like
_BUDGET_AUDITS = 300
_FIRST_LOOK = 0.8

Mode = Literal["risk", "budget", "off"]
State = Literal["calibrating", "certified", "uncertified", "safe-mode", "budget", "filter", "off"]


class GateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; every number is a share between 0 and 1 except `calibration` and `safe_mode`, counts."""

    mode: Mode = "risk"
    risk: float = 0.02
    confidence: float = 0.9
    budget: float = 0.3
    calibration: int = 1000
    audit_share: float = 0.03
    safe_mode: int = SAFE_MODE_SAMPLES  # of the first set after an alarm; more where neighbours resemble each other
    pair: str = ""  # names of the edge and the answering model: a certificate of another pair is worth nothing

    def __post_init__(self) -> None:
        for name, value in (("risk", self.risk), ("confidence", self.confidence)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name} must be over 0 and under 1, not {value}")
        for name, value in (("budget", self.budget), ("audit_share", self.audit_share)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie between 0 and 1, not {value}")
        if self.calibration < 1:
            raise ValueError(f"calibration must be at least 1, not {self.calibration}")
        if self.safe_mode < 1:
            raise ValueError(f"safe_mode must be at least 1, not {self.safe_mode}")


class GateDecision(msgspec.Struct, frozen=True):
    """What to do with one sample. An `audit` is sent without waiting for the answer; the local one counts."""

    send: bool
    reason: SendReason | None  # None when not sent
    certified: bool  # a local answer to this sample is covered by the certificate
    score: float  # hardness, 0..1
    value: float  # of the sample in the spool: higher is kept longer; 2 = part of a calibration block


class GateStatus(msgspec.Struct, frozen=True):
    state: State
    missing: int  # answers still to come until the next certificate (risk), samples until the first quantile (budget)
    threshold: float | None  # hardness score above which samples are sent; None: all of them (or none, in mode off)
    bound: float | None  # upper bound of the risk, None if there is none
    sentence: str
    alarms: int = 0  # drift and audit alarms since the gate began


class GateSnapshot(msgspec.Struct, kw_only=True):
    """Everything the gate knows, to be stored and restored."""

    settings: GateSettings
    alarms: int = 0
    looks: int = 0
    cause: str = ""
    block: BlockState | None = None
    certificate: Certificate | None = None
    ref: Reference | None = None
    drift_scores: list[float] = []
    audit_levels: tuple[float, ...] = ()
    scores: list[float] = []
    audits: list[tuple[float, bool]] = []
    since: Since = msgspec.field(default_factory=Since)


class Gate:
    """See the module's docstring. A new gate knows nothing and is calibrating (or warming up)."""

    def __init__(self, settings: GateSettings) -> None:
        self.settings = settings
        self._alarms = 0
        self._begin()

    def _begin(self) -> None:
        self._looks = 0  # since the last start, recalibration or alarm
        self._cause = ""  # why safe mode was entered
        self._block: Block | None = None
        self._certificate: Certificate | None = None
        self._drift: DriftAlarm | None = None
        self._audit_alarm: AuditAlarm | None = None
        self._since = Since()
        self._scores = RecentScores(BUDGET_WINDOW)
        self._audits: deque[tuple[float, bool]] = deque(maxlen=_BUDGET_AUDITS)
        if self.settings.mode == "risk":
            self._new_block()

    # --- the three calls of the data plane ------------------------------------------------------------------------

    def decide(self, margin: float, u: float, sample_id: str) -> GateDecision:
        """Decide about the next sample of the traffic. Call it exactly once a sample, in the order in which they come.

        `margin`: softmax margin of the edge's answer. `u`: a fresh uniform random number in [0, 1), for audits.
        """
        score = hardness(margin)
        if self.settings.mode == "off":
            return GateDecision(False, None, False, score, 0.0)
        if self.settings.mode == "budget":
            return self._decide_by_budget(score, u)
        if self._drift is not None and self._drift.observe(score):
            self._alarm("the scores have drifted")
        certificate = self._certificate
        if certificate is None:
            return self._send_everything(score, sample_id)
        since = self._since
        since.seen += 1
        if score > certificate.threshold:
            return GateDecision(True, "hard", False, score, score)
        since.kept += 1
        if u < self.settings.audit_share:
            return GateDecision(True, "audit", True, score, 1.0)
        return GateDecision(False, None, True, score, 0.0)

    def learn(self, score: float, differs: bool, reason: SendReason, sample_id: str) -> None:
        """Take an answer of the cloud, in any order, however late. `differs`: its label is not the edge's."""
        if self._block is not None:
            self._block.answer(sample_id, differs)
            self._close_block()
        elif self.settings.mode == "budget":
            if reason != "hard":  # warm-up samples and audits were not chosen for being hard
                self._audits.append((score, differs))
        elif reason == "audit" and self._audit_alarm is not None:
            self._since.audits += 1
            self._since.differing += differs
            if self._audit_alarm.observe(differs):
                self._alarm("too many audited answers differ from the cloud's")

    def lost(self, sample_id: str) -> None:
        """Say that no answer will ever come for a sample that was sent: evicted, purged, or refused by cloudd."""
        if self._block is not None:
            self._block.lose(sample_id)
            self._close_block()

    # --- control ----------------------------------------------------------------------------------------------------

    def recalibrate(self) -> None:
        """Throw the certificate (or the quantile) away and begin anew: a person asked, or the cloud's model changed."""
        self._begin()

    def snapshot(self) -> GateSnapshot:
        drift, audit = self._drift, self._audit_alarm
        return GateSnapshot(
            settings=self.settings,
            alarms=self._alarms,
            looks=self._looks,
            cause=self._cause,
            block=self._block.state() if self._block else None,
            certificate=self._certificate,
            ref=drift.ref if drift else None,
            drift_scores=drift.recent if drift else [],
            audit_levels=audit.levels if audit else (),
            scores=self._scores.arrived,
            audits=list(self._audits),
            since=msgspec.structs.replace(self._since),
        )

    def restore(self, snapshot: GateSnapshot, waiting: Container[str] = ()) -> bool:
        """Go on from a snapshot; False (and no change) if it belongs to other settings or another pair of models.

        `waiting`: ids of the samples that still wait in the spool. Others without an answer went down with the power.
        """
        if snapshot.settings != self.settings:
            return False
        self._alarms, self._looks, self._cause = snapshot.alarms, snapshot.looks, snapshot.cause
        self._block = Block(snapshot.block) if snapshot.block else None
        self._certificate = snapshot.certificate
        self._drift = DriftAlarm(snapshot.ref, snapshot.drift_scores) if snapshot.ref else None
        self._audit_alarm = None
        if self._certificate is not None:
            self._audit_alarm = AuditAlarm(self._audit_limit(self._certificate), snapshot.audit_levels)
        self._since = msgspec.structs.replace(snapshot.since)
        self._scores = RecentScores(BUDGET_WINDOW, snapshot.scores)
        self._audits.clear()
        self._audits.extend(snapshot.audits)
        if self._block is not None:
            self._block.forget_all_but(waiting)
        return True

    # --- risk mode --------------------------------------------------------------------------------------------------

    def _delta(self) -> float:
        """Confidence to spend on the next look; over all looks it adds up to 1 - confidence."""
        return (1 - self.settings.confidence) * _FIRST_LOOK * (1 - _FIRST_LOOK) ** self._looks

    def _new_block(self) -> None:
        wanted = self.settings.safe_mode if self._cause and self._looks == 0 else self.settings.calibration
        size = max(wanted, smallest_n(self.settings.risk, self._delta()))
        affordable = allowed_differences(size, self.settings.risk, self._delta())
        self._block = Block(BlockState(size, most_lost=affordable // 2))

    def _send_everything(self, score: float, sample_id: str) -> GateDecision:
        reason: SendReason = "safe-mode" if self._cause else "calibrating"
        part_of_block = self._block is not None and self._block.take(sample_id, score)
        return GateDecision(True, reason, False, score, 2.0 if part_of_block else score)

    def _close_block(self) -> None:
        block = self._block
        if block is None:
            return
        if block.hopeless:
            self._new_block()
            return
        if not block.closed:
            return
        scores = block.scores
        certificate = calibrate(scores, block.differing, self.settings.risk, self._delta())
        self._looks += 1
        if not isinstance(certificate, Certificate) or certificate.threshold == ACCEPT_NOTHING:
            self._new_block()
            return
        self._block, self._certificate, self._cause, self._since = None, certificate, "", Since()
        self._drift = DriftAlarm(reference(scores))
        self._audit_alarm = AuditAlarm(self._audit_limit(certificate))

    def _audit_limit(self, certificate: Certificate) -> float:
        """Share of the accepted samples that may differ when the risk of all traffic is just kept."""
        return min(0.5, self.settings.risk / (1 - certificate.send_share))

    def _alarm(self, cause: str) -> None:
        self._alarms += 1
        self._looks, self._cause = 0, cause
        self._certificate = self._drift = self._audit_alarm = None
        self._new_block()

    # --- budget mode ------------------------------------------------------------------------------------------------

    def _audit_share(self) -> float:
        """Audits are paid from the budget, and take at most a twentieth of it: hard samples are worth more."""
        return min(self.settings.audit_share, self.settings.budget / 20)

    def _hard_share(self) -> float:
        audit = self._audit_share()
        return (self.settings.budget - audit) / (1 - audit)

    def _decide_by_budget(self, score: float, u: float) -> GateDecision:
        known = len(self._scores)
        threshold = self._scores.threshold(self._hard_share()) if known >= WARM_UP else ACCEPT_NOTHING
        self._scores.add(score)
        if self._drift is None and known + 1 >= _BUDGET_REFERENCE:
            self._drift = DriftAlarm(reference(self._scores.arrived[-_BUDGET_REFERENCE:]))
        elif self._drift is not None and self._drift.observe(score):
            # The quantile follows by itself, but neither the old audits nor the old scores speak for the new traffic.
            self._alarms += 1
            self._audits.clear()
            self._scores = RecentScores(BUDGET_WINDOW, self._drift.recent)
            self._drift = None
        if self.settings.budget == 0.0:
            return GateDecision(False, None, False, score, 0.0)
        if known < WARM_UP:
            return GateDecision(True, "calibrating", False, score, score)
        if score > threshold:
            return GateDecision(True, "hard", False, score, score)
        if u < self._audit_share():
            return GateDecision(True, "audit", False, score, 1.0)
        return GateDecision(False, None, False, score, 0.0)

    def _budget_bound(self, threshold: float) -> tuple[float | None, int]:
        """Bound of the risk at the present threshold from the audits at or under it, and their number."""
        local = [differs for score, differs in self._audits if score <= threshold]
        if not local:
            return None, 0
        upper = clopper_pearson_upper(sum(local), len(local), 1 - self.settings.confidence)
        return upper * (1 - self._hard_share()), len(local)

    # --- status -----------------------------------------------------------------------------------------------------

    def facts(self) -> GateFacts | None:
        """What the gate knows, for the triggers of learning; None in mode off. In budget mode its last audits speak."""
        settings, certificate, since = self.settings, self._certificate, self._since
        if settings.mode == "off":
            return None
        if settings.mode == "budget":
            known = len(self._scores)
            threshold = self._scores.threshold(self._hard_share()) if known >= WARM_UP else ACCEPT_NOTHING
            bound, audits = self._budget_bound(threshold)
            calibrated = settings.budget if known >= WARM_UP else None
            return GateFacts(alarms=self._alarms, seen=known, audits=audits, audit_bound=bound, calibrated=calibrated)
        if certificate is None:
            return GateFacts(alarms=self._alarms, looks=self._looks, alpha=settings.risk)
        hard = certificate.send_share
        return GateFacts(
            alarms=self._alarms,
            alpha=settings.risk,
            seen=since.seen,
            audits=since.audits,
            audit_bound=since.bound(settings.confidence),
            calibrated=hard + (1 - hard) * settings.audit_share,
        )

    def status(self) -> GateStatus:
        """Where the gate stands, with one sentence for people."""
        if self.settings.mode == "off":
            return GateStatus("off", 0, None, None, "Off: every sample is answered here and none is sent.", 0)
        if self.settings.mode == "budget":
            return self._budget_status()
        certificate, confidence = self._certificate, f"{self.settings.confidence:.0%} confidence"
        if certificate is not None:
            sentence = (
                f"Certified: at most {certificate.bound:.1%} of all samples are answered here and differ from the"
                f" cloud's answer, at {confidence} ({certificate.n:,} answers);"
                f" about {certificate.send_share:.0%} are sent."
            )
            return GateStatus("certified", 0, certificate.threshold, certificate.bound, sentence, self._alarms)
        block = self._block
        assert block is not None, "a gate in risk mode has a block or a certificate"
        progress = f"{block.missing:,} answers are missing ({block.awaited:,} of them are on their way)"
        state: State
        if self._cause:
            state = "safe-mode"
            sentence = (
                f"Safe mode, because {self._cause}: every sample is sent, and answers made here are uncertified, until"
                f" the threshold is certified again; {progress}."
            )
        elif self._looks:
            state = "uncertified"
            sentence = (
                f"Uncertified: even the surest answers differ from the cloud's too often for a risk of"
                f" {self.settings.risk:.1%}. Every sample is sent; for the next try {progress}."
            )
        else:
            state = "calibrating"
            sentence = f"Calibrating: every sample is sent; {progress}."
        return GateStatus(state, block.missing, None, None, sentence, self._alarms)

    def _budget_status(self) -> GateStatus:
        known = len(self._scores)
        if known < WARM_UP:
            sentence = (
                f"Warming up: every sample is sent until {WARM_UP} scores are known; {WARM_UP - known} are missing."
            )
            return GateStatus("budget", WARM_UP - known, None, None, sentence, self._alarms)
        threshold = self._scores.threshold(self._hard_share())
        bound, audits = self._budget_bound(threshold)
        if bound is None:
            risk = "nothing is known yet about the answers made here"
        else:
            risk = (
                f"at most {bound:.1%} of all samples are answered here and differ from the cloud's answer, "
                f"at {self.settings.confidence:.0%} confidence ({audits:,} audits)"
            )
        sentence = f"Budget: about {self.settings.budget:.0%} of the samples are sent, the hardest first; {risk}."
        return GateStatus("budget", 0, threshold, bound, sentence, self._alarms)
