"""What the shadow phase of a candidate counts, as edgekit.learning.trial.Tally wants it. Pure."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from functools import lru_cache

from edged.serve.shadow.wire import Look
from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.messages import ShadowReport
from edgekit.services import HardSamples

MAX_AWAITED = 10_000
"""Items that still wait for the cloud's answer; with a link that is down for days the oldest are given up."""
_MAX_LABELS = 10_000
_TIMES = 512
_DELTA = 0.05

_OCTAVES, _PER_OCTAVE = 20, 8
_BINS = _OCTAVES * _PER_OCTAVE + 2  # of hardness: sure answers are within a millionth of 0, so their width is relative


@dataclass(frozen=True, slots=True)
class Said:
    """What the candidate says about a picture."""

    label: str
    hardness: float  # 0 (sure) .. 1
    hard: bool  # by the service's filter; False without one
    infer_ms: float  # of the model alone


@dataclass(frozen=True, slots=True)
class _Awaited:
    """An item about which the cloud was asked and has not answered yet."""

    present: str
    candidate: str
    audit: bool
    bin: int


class Figures:
    """Counts since the process started. `known`: labels of the present model; `asks`: items may be sent, as a whole."""

    def __init__(self, candidate: str, hard: HardSamples, known: list[str], asks: bool) -> None:
        self._candidate, self._hard, self._asks = candidate, hard, asks
        self._known = set(known[:_MAX_LABELS])
        self._items = self._agreeing = self._unusable = self._audits = self._lost = self._gained = 0
        self._sent = self._called_hard = 0
        self._awaited: dict[str, _Awaited] = {}
        self._times: deque[float] = deque(maxlen=_TIMES)
        self._bins = [_Bin() for _ in range(_BINS)]

    def looked(self, look: Look, said: Said | None) -> None:
        """Count an item; `said` is None where the candidate gave no usable answer."""
        self._items += 1
        self._sent += look.sent is not None and look.sent != "audit"
        if said is None:
            self._unusable += 1
            return
        self._agreeing += said.label == look.present
        self._called_hard += said.hard
        self._times.append(said.infer_ms)
        place = _bin(said.hardness)
        self._bins[place].items += 1
        if look.sent is None or not self._asks:
            return
        audit = look.sent == "audit"
        self._bins[place].asked += not audit
        item = _Awaited(look.present, said.label, audit, place)
        if look.cloud is not None:
            self._judge(item, look.cloud)
            return
        while len(self._awaited) >= MAX_AWAITED:
            del self._awaited[next(iter(self._awaited))]
        self._awaited[look.sample_id] = item

    def answered(self, sample_id: str, cloud: str) -> None:
        """The cloud's answer to an item came later; one that the candidate has not seen is ignored."""
        item = self._awaited.pop(sample_id, None)
        if item is not None:
            self._judge(item, cloud)

    def report(self) -> ShadowReport:
        """The counts until now."""
        times = sorted(self._times)
        return ShadowReport(
            candidate=self._candidate,
            items=self._items,
            agreeing=self._agreeing,
            unusable=self._unusable,
            audits=self._audits,
            lost=self._lost,
            gained=self._gained,
            sent=self._sent,
            would_send=self._would_send(),
            p95_ms=times[math.ceil(0.95 * len(times)) - 1] if times else None,
        )

    def _judge(self, item: _Awaited, cloud: str) -> None:
        place, differs = self._bins[item.bin], item.candidate != cloud
        if item.audit:
            place.audits += 1
            place.differing_audits += differs
        else:
            place.differing += differs
        if len(self._known) < _MAX_LABELS:
            self._known.add(cloud)
        # A cloud that has never heard of the candidate's new class cannot say that it is wrong.
        if item.candidate in self._known:
            self._audits += 1
            self._lost += item.present == cloud != item.candidate
            self._gained += item.candidate == cloud != item.present

    def _would_send(self) -> int:
        """Items that the service's policy would send if the candidate decided.

        In budget mode that is the share that was asked for, whatever the model. A filter says it of every item. In risk
        mode it takes the loosest threshold that the answers do not speak against: see _least_risk.
        """
        if not self._asks:
            return 0
        if self._hard.mode == "budget":
            return self._sent
        if self._hard.mode == "filter":
            return self._called_hard + self._unusable
        under = _Bin()
        for one in self._bins:
            under.add(one, 1)
        for one in reversed(self._bins):
            if _least_risk(under, self._items) <= self._hard.risk:
                break
            under.add(one, -1)
        return self._items - under.items


class _Bin:
    """Items of about the same hardness by the candidate."""

    __slots__ = ("asked", "audits", "differing", "differing_audits", "items")

    def __init__(self) -> None:
        self.items = 0
        self.asked = 0  # sent, and no audits
        self.differing = 0  # of these: the cloud's answer is not the candidate's
        self.audits = 0  # answered ones
        self.differing_audits = 0

    def add(self, other: _Bin, sign: int) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))


def _least_risk(under: _Bin, items: int) -> float:
    """Lower bound of the share of all items that a threshold keeps and whose answer differs, 95 % sure of it.

    What was asked is known of every item. Of what was kept only a random part was audited, and Clopper and Pearson's
    lower bound speaks for the rest: few audits forbid no threshold, so that luck does not refuse a candidate.
    """
    if not items:
        return 0.0
    kept = (under.items - under.asked) * _at_least(under.differing_audits, under.audits)
    return (under.differing + kept) / items


@lru_cache(maxsize=1024)
def _at_least(hits: int, trials: int) -> float:
    """Lower confidence bound of a share: 1 minus the upper bound of the others'."""
    return 1.0 - clopper_pearson_upper(trials - hits, trials, _DELTA) if hits else 0.0


def _bin(hardness: float) -> int:
    if not hardness > 2.0**-_OCTAVES:
        return 0
    return min(_BINS - 1, 1 + int((math.log2(hardness) + _OCTAVES) * _PER_OCTAVE))
