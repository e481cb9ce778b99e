"""Thresholds of their own for groups of labels, because a missed defect costs more than a false alarm.

Each sample goes to the gate of the group that the *edge's* label belongs to, for instance "clean" and "defect". Every
group has its own risk target, calibration, audits and drift alarm; each is a `Gate` as everywhere else.

What is promised. A group's certificate speaks of that group's traffic only: with the group's confidence, at most `risk`
of the samples *to which the edge gives one of the group's labels* are answered here and differ. It is not a share of
all traffic. For all traffic follows: when the certificates hold together, the risk is at most the mean of the bounds,
weighted by how often each group comes, and so never more than the largest of them. They hold together with a
confidence of 1 minus the sum of what the groups' confidences leave open (union bound); for two groups at 95 % that is
90 %. And a group that is rare calibrates slowly: until its certificate is there, all of its samples are sent.

Two ways of being wrong are counted apart, from the audits of what was answered here:

escape    the edge says good, the cloud says defect
overkill  the edge says defect, the cloud says good

Not safe for threads: call it from one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Literal

import msgspec

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.policy import Gate, GateDecision, GateSettings, GateSnapshot, GateStatus
from edgekit.messages import GateFacts, SendReason

MAX_GROUPS = 16
AUDITS = 1000
"""Last audits of a group that its escapes and overkill are counted in."""

Compare = Literal["label", "group"]

_SAME, _ESCAPE, _OVERKILL, _OTHER = "seox"
_KINDS = frozenset((_SAME, _ESCAPE, _OVERKILL, _OTHER))


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Labels that share a risk target. Exactly one group has no labels: it takes every label that no other names."""

    name: str
    labels: list[str] = []
    good: bool = False  # what has one of these labels passes; the cloud's labels are judged by the same list
    gate: GateSettings = GateSettings()


class ClasswiseSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The groups, and what differs: `label`: another label; `group`: only a label of another group.

    Raises ValueError for groups that share a name or label, none or two that take the rest, or no or too many groups.
    """

    groups: list[Group]
    compare: Compare = "label"

    def __post_init__(self) -> None:
        if not 1 <= len(self.groups) <= MAX_GROUPS:
            raise ValueError(f"{len(self.groups)} groups; 1 to {MAX_GROUPS} are allowed")
        for kind, values in (
            ("name", [group.name for group in self.groups]),
            ("label", [label for group in self.groups for label in group.labels]),
        ):
            twice = next((value for i, value in enumerate(values) if value in values[:i]), None)
            if twice is not None:
                raise ValueError(f"two groups have the {kind} {twice!r}; each belongs to one")
        rest = [group.name for group in self.groups if not group.labels]
        if len(rest) != 1:
            raise ValueError(
                f"{len(rest)} groups have no labels; exactly one must, to take the labels that no other names"
            )


class Rate(msgspec.Struct, frozen=True):
    """Audited answers that were of one kind, and the Clopper-Pearson upper bound of their share; None before any."""

    count: int
    audits: int
    bound: float | None


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    share: float  # of the samples seen so far
    gate: GateStatus  # its bound is a share of this group's samples
    escape: Rate  # of the group's samples that were answered here
    overkill: Rate


class ClasswiseStatus(msgspec.Struct, frozen=True, kw_only=True):
    groups: list[GroupStatus]
    bound: float | None  # of the risk of all traffic however often each group comes; None unless every group has one
    expected: float | None  # the same with the groups' shares as they were so far
    confidence: float  # with which all groups' bounds hold together
    sentence: str


class GroupSnapshot(msgspec.Struct, kw_only=True):
    """What is stored of a group."""

    gate: GateSnapshot
    seen: int = 0
    audits: str = ""  # one letter each, see _Group


class ClasswiseSnapshot(msgspec.Struct, kw_only=True):
    """Everything that is known, to be stored and restored."""

    settings: ClasswiseSettings
    groups: list[GroupSnapshot] = []


class ClasswiseGate:
    """See the module's docstring. A new one knows nothing: every group is calibrating."""

    def __init__(self, settings: ClasswiseSettings) -> None:
        self.settings = settings
        self._groups = [_Group(group) for group in settings.groups]
        self._rest = next(group for group in self._groups if not group.settings.labels)
        self._by_label = {label: group for group in self._groups for label in group.settings.labels}

    def decide(self, label: str, margin: float, u: float, sample_id: str) -> GateDecision:
        """Decide about the next sample, which the edge gave `label`. Otherwise as `Gate.decide`."""
        group = self._of(label)
        group.seen += 1
        return group.gate.decide(margin, u, sample_id)

    def learn(self, label: str, answered: str, score: float, reason: SendReason, sample_id: str) -> None:
        """Take an answer: `label` is the edge's, `answered` the cloud's. Otherwise as `Gate.learn`."""
        group = self._of(label)
        if reason == "audit":
            group.audits.append(self._kind(label, answered))
        group.gate.learn(score, self.differs(label, answered), reason, sample_id)

    def lost(self, sample_id: str) -> None:
        """As `Gate.lost`; a sample is known to one group only."""
        for group in self._groups:
            group.gate.lost(sample_id)

    def differs(self, label: str, answered: str) -> bool:
        """Whether the cloud's answer counts as another one, by `settings.compare`."""
        if self.settings.compare == "group":
            return self._of(label) is not self._of(answered)
        return label != answered

    def recalibrate(self) -> None:
        """Begin anew with every group: a person asked, or the cloud's model changed."""
        for group in self._groups:
            group.gate.recalibrate()
            group.seen = 0
            group.audits.clear()

    def snapshot(self) -> ClasswiseSnapshot:
        return ClasswiseSnapshot(
            settings=self.settings,
            groups=[
                GroupSnapshot(gate=group.gate.snapshot(), seen=group.seen, audits="".join(group.audits))
                for group in self._groups
            ],
        )

    def restore(self, snapshot: ClasswiseSnapshot, waiting: Container[str] = ()) -> bool:
        """Go on from a snapshot; False (and no change) if it belongs to other settings. Otherwise as `Gate.restore`."""
        stored = snapshot.groups
        if snapshot.settings != self.settings or len(stored) != len(self._groups):
            return False
        if any(one.gate.settings != group.settings.gate for one, group in zip(stored, self._groups, strict=True)):
            return False
        for one, group in zip(stored, self._groups, strict=True):
            group.gate.restore(one.gate, waiting)
            group.seen = one.seen
            group.audits = deque((kind for kind in one.audits if kind in _KINDS), maxlen=AUDITS)
        return True

    def facts(self) -> GateFacts | None:
        """What the groups know, for the triggers of learning; None where no group promises or measures anything.

        Alarms add up and the most looks count. The rest is of the group whose bound is nearest to its risk, or furthest
        above it: among all samples a rare group's audits would not be noticed.
        """
        found = [facts for group in self._groups if (facts := group.gate.facts()) is not None]
        if not found:
            return None
        return msgspec.structs.replace(
            max(found, key=_nearness),
            alarms=sum(facts.alarms for facts in found),
            looks=max(facts.looks for facts in found),
        )

    def status(self) -> ClasswiseStatus:
        """Where every group stands, what follows for all traffic, and sentences for people."""
        seen = sum(group.seen for group in self._groups)
        groups = [group.status(seen) for group in self._groups]
        bounds = [one.gate.bound for one in groups if one.gate.bound is not None]
        complete = len(bounds) == len(groups)
        confidence = max(0.0, 1.0 - sum(1.0 - group.settings.gate.confidence for group in self._groups))
        largest = max(bounds) if complete else None
        expected = (
            sum(one.share * bound for one, bound in zip(groups, bounds, strict=True)) if complete and seen else None
        )
        sentences = [group.sentence(one) for group, one in zip(self._groups, groups, strict=True)]
        if largest is not None:
            mix = "" if expected is None else f", about {expected:.1%} with the present mix"
            sentences.append(
                f"Together: at most {largest:.1%} of all samples{mix}, at {confidence:.0%} confidence for all groups."
            )
        return ClasswiseStatus(
            groups=groups, bound=largest, expected=expected, confidence=confidence, sentence=" ".join(sentences)
        )

    def _of(self, label: str) -> _Group:
        return self._by_label.get(label, self._rest)

    def _kind(self, label: str, answered: str) -> str:
        """One of _KINDS."""
        good, passed = self._of(answered).settings.good, self._of(label).settings.good
        if good != passed:
            return _ESCAPE if passed else _OVERKILL
        return _SAME if label == answered else _OTHER


def _nearness(facts: GateFacts) -> float:
    """The bound in terms of the risk; what has no bound or promises none comes last."""
    return facts.audit_bound / facts.alpha if facts.audit_bound is not None and facts.alpha else -1.0


class _Group:
    """One group's gate, and its last audits: a letter of _KINDS for each."""

    def __init__(self, settings: Group) -> None:
        self.settings = settings
        self.gate = Gate(settings.gate)
        self.seen = 0
        self.audits: deque[str] = deque(maxlen=AUDITS)

    def status(self, all_seen: int) -> GroupStatus:
        return GroupStatus(
            name=self.settings.name,
            share=self.seen / all_seen if all_seen else 0.0,
            gate=self.gate.status(),
            escape=self._rate(_ESCAPE),
            overkill=self._rate(_OVERKILL),
        )

    def _rate(self, kind: str) -> Rate:
        count, audits = self.audits.count(kind), len(self.audits)
        bound = clopper_pearson_upper(count, audits, 1 - self.settings.gate.confidence) if audits else None
        return Rate(count, audits, bound)

    def sentence(self, status: GroupStatus) -> str:
        """The gate's own sentence speaks of all samples; here they are the group's."""
        gate, confidence = status.gate, f"{self.settings.gate.confidence:.0%} confidence"
        match gate.state:
            case "certified" | "budget" if gate.bound is not None:
                differing = f"at most {gate.bound:.1%} of them are answered here and differ from the cloud's answer"
                text = f"{differing}, at {confidence}"
            case "budget":
                text = "the hardest of them are sent; nothing is known yet about the answers made here"
            case "off":
                text = "none of them is sent"
            case _:
                text = f"{gate.state}: all of them are sent, {gate.missing:,} answers are missing"
        kind, rate = ("escaped", status.escape) if self.settings.good else ("overkill", status.overkill)
        if rate.bound is not None:
            text += f"; {rate.count} of {rate.audits:,} audits were {kind}, at most {rate.bound:.1%}"
        return f"{self.settings.name} ({status.share:.0%} of the samples): {text}."
