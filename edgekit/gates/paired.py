"""The acceptance gate for models: may a new model take the place of an old one? Decided on the same held-out items.

Accuracy is compared pair by pair (McNemar 1947): only items that one model gets right and the other wrong say anything
about the difference. With b items lost (old right, new wrong) and c gained, of n, the drop is (b - c) / n, and
`drop_bound` is an upper confidence bound of the true drop whose coverage holds for every n, not only for large ones.

Accepted is what passes every criterion:

answers   the new model gives a usable, finite answer for every item
items     there are enough items to tell
accuracy  the upper confidence bound of the drop is within the limit: the new model must prove that it is as good
classes   no class is worse than the limit by its *lower* confidence bound, and by more than one item. The burden of
          proof is turned round here: with twenty items of a rare class one item is five points, so a point estimate
          would let luck refuse, and an upper bound could never be met. Small harm to a small class can pass, which is
          why classes with few items are named in the result; harm as a whole is limited by `accuracy`.
deferral  the share of items that a certified threshold would send to the cloud, averaged over the risks of
          DEFERRAL_RISKS, has not grown by more than the limit. One risk alone would be decided by where a single
          item happens to stand: on one trained model and its quantised copy, 500 items and a risk of 2 %, the share
          differs by more than 3 points in 6 % of draws; the mean did in none of 200.
latency   the 95th percentile of its run time is better by the limit (only where times are given)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.certified import Certificate, calibrate
from edgekit.gates.limits import LIMITS, Limits

DEFERRAL_RISKS = (0.01, 0.02, 0.03, 0.05)
"""Risks at which the deferral curves are compared."""
DEFERRAL_DELTA = 0.1
"""The thresholds of that comparison hold with probability 1 - DEFERRAL_DELTA, as a service's own by default."""
FEW = 50
"""A class with fewer items is named in the result: one item is more than two points of it."""

CLASS_CONFIDENCE = 0.9
"""Of the lower bound by which a class is judged."""
_SPENT_ON_DISCORDANCE = 0.2  # share of delta; between 0.1 and 0.3 the bound is tightest and hardly changes

Name = Literal["answers", "items", "accuracy", "classes", "deferral", "latency"]


@dataclass(frozen=True)
class Answers:
    """What one model said about n items, in their order."""

    labels: NDArray[np.int64]  # (n,) index of the label; -1 where it gave no usable answer
    hardness: NDArray[np.float64]  # (n,) 0 (sure) to 1, see edgekit.gates.scores; 1 where it gave none


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was compared. `text` is a clause for people, with the numbers in it."""

    name: Name
    value: float
    limit: float
    passed: bool
    text: str


class Acceptance(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict with every number that led to it."""

    accepted: bool
    reason: str  # "" or "refused: ...", one sentence
    items: int
    lost: int  # the old model was right and the new one is wrong
    gained: int
    old_accuracy: float
    new_accuracy: float
    drop_bound: float  # the accuracy falls by at most this, with probability `confidence`
    confidence: float
    few: dict[str, int]  # classes with fewer than FEW items, and how many they have: hardly judged on their own
    criteria: list[Criterion]

    @property
    def drop(self) -> float:
        """The observed drop of accuracy, negative for a gain."""
        return (self.lost - self.gained) / self.items


def drop_bound(lost: int, gained: int, n: int, delta: float) -> float:
    """Upper confidence bound of P(old right, new wrong) - P(old wrong, new right) after n items.

    Holds with probability >= 1 - delta for every n and every pair of models. Each item counts +1, -1 or 0, so the sum
    D = lost - gained follows a law that the drop d and the discordance r = P(lost) + P(gained) fix. The bound is the
    largest d under which a D as small as this one still has a probability over delta' for some r that is not ruled
    out. What rules r out is its Clopper-Pearson upper bound, which costs a fifth of delta; delta' is the rest (Berger
    and Boos 1994). For r <= 1/2 that probability rises with r: its derivative is n/2 (P(S = D + 1) - P(S = D)) with S
    the sum of n - 1 items, which is unimodal then (a sum of Bernoulli variables, by the real roots of its generating
    polynomial) with its mode beyond D. So the largest r decides; beyond 1/2 Hoeffding's inequality stands in.

    Raises ValueError for impossible arguments.
    """
    if not (lost >= 0 and gained >= 0 and n > 0 and lost + gained <= n and 0.0 < delta < 1.0):
        raise ValueError(f"no drop can be bounded with lost={lost}, gained={gained}, n={n}, delta={delta}")
    most = clopper_pearson_upper(lost + gained, n, _SPENT_ON_DISCORDANCE * delta)
    left = (1 - _SPENT_ON_DISCORDANCE) * delta
    difference = lost - gained
    if most > 0.5:
        return min(most, difference / n + math.sqrt(2 * math.log(1 / left) / n))
    low, high = difference / n, most
    if _at_most(difference, n, high, most) > left:
        return high
    while high - low > 1e-7:
        middle = (low + high) / 2
        if _at_most(difference, n, middle, most) > left:
            low = middle
        else:
            high = middle
    return high


def surely_worse(lost: int, gained: int, n: int) -> float:
    """Lower confidence bound (CLASS_CONFIDENCE) of P(lost) - P(gained) after n items, 0 at least.

    The better of two, with half of the doubt each: that of `drop_bound`, which is tight where few items differ and says
    nothing where half of them may, and the distance of Clopper and Pearson's bounds of the two shares. Raises
    ValueError for impossible arguments.
    """
    doubt = (1 - CLASS_CONFIDENCE) / 2
    apart = 1 - clopper_pearson_upper(n - lost, n, doubt / 2) - clopper_pearson_upper(gained, n, doubt / 2)
    return max(0.0, -drop_bound(gained, lost, n, doubt), apart)


def _at_most(difference: int, n: int, drop: float, discordance: float) -> float:
    """P(D <= difference) for n items, from the n-th power of the characteristic function. Error below 1e-10."""
    expected = n * discordance
    reach = min(n, math.ceil(expected + 10 * math.sqrt(expected)) + 40)  # |D| beyond it has no probability to speak of
    size = 1 << (2 * reach + 1).bit_length()
    turn = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)
    one = (1 - discordance) + (discordance + drop) / 2 * turn + (discordance - drop) / 2 / turn
    chances = np.fft.irfft(one**n, size)  # of 0, 1 .. reach, and -reach .. -1 at the end
    return float(np.roll(chances, reach)[: reach + difference + 1].sum())


def accept(
    truth: NDArray[np.int64],
    old: Answers,
    new: Answers,
    classes: Sequence[str],
    limits: Limits = LIMITS,
    *,
    p95_ms: tuple[float, float] | None = None,
    cloud: NDArray[np.int64] | None = None,
) -> Acceptance:
    """Compare the new model with the old one on n items that neither was trained nor calibrated on.

    `truth`: (n,) indices into `classes`. `p95_ms`: run time of the old and the new model; without it the latency is not
    judged. `cloud`: the answers of the large model, which the deferral curve is compared against; else the truth is.
    Raises ValueError for lists of different lengths, no items, or times that are no positive numbers.
    """
    n = len(truth)
    reference = truth if cloud is None else cloud
    lists = (truth, reference, old.labels, old.hardness, new.labels, new.hardness)
    if not n or any(one.shape != (n,) for one in lists):
        raise ValueError(f"the lists of a comparison must have one length, not {[one.shape for one in lists]}")
    if truth.min() < 0 or truth.max() >= len(classes):
        raise ValueError(f"the truth must lie between 0 and {len(classes) - 1}")
    right, still = old.labels == truth, new.labels == truth
    lost, gained = right & ~still, ~right & still
    b, c = int(lost.sum()), int(gained.sum())
    bound = drop_bound(b, c, n, 1 - limits.confidence)
    criteria = [
        _answers(new),
        _items(n, limits),
        _accuracy(b, c, n, bound, limits),
        _classes(truth, lost, gained, classes, limits),
        _deferral(old, new, reference, limits),
    ]
    if p95_ms is not None:
        criteria.append(_latency(*p95_ms, limits))
    failed = [one.text for one in criteria if not one.passed]
    if not criteria[0].passed:
        failed = failed[:1]  # the others only follow from it
    counts = np.bincount(truth, minlength=len(classes))
    return Acceptance(
        accepted=not failed,
        reason="refused: " + "; ".join(failed) if failed else "",
        items=n,
        lost=b,
        gained=c,
        old_accuracy=float(right.mean()),
        new_accuracy=float(still.mean()),
        drop_bound=bound,
        confidence=limits.confidence,
        few={name: int(count) for name, count in zip(classes, counts, strict=True) if count < FEW},
        criteria=criteria,
    )


def _answers(new: Answers) -> Criterion:
    missing = int(((new.labels < 0) | ~np.isfinite(new.hardness)).sum())
    text = f"it gives no usable answer for {missing} of {len(new.labels)} pictures"
    return Criterion(name="answers", value=missing, limit=0, passed=not missing, text=text)


def _items(n: int, limits: Limits) -> Criterion:
    text = f"it was compared on {n} held-out pictures, {limits.items} are needed"
    return Criterion(name="items", value=n, limit=limits.items, passed=n >= limits.items, text=text)


def _accuracy(lost: int, gained: int, n: int, bound: float, limits: Limits) -> Criterion:
    text = (
        f"the accuracy may fall by {_points(bound)} ({limits.confidence:.0%} sure; {lost} of {n} pictures lost, "
        f"{gained} gained), {_points(limits.drop)} are allowed"
    )
    if bound > limits.drop and (lost - gained) / n <= limits.drop / 2:
        text += "; more held-out pictures may show that it falls by less"
    return Criterion(name="accuracy", value=bound, limit=limits.drop, passed=bound <= limits.drop, text=text)


def _classes(
    truth: NDArray[np.int64],
    lost: NDArray[np.bool_],
    gained: NDArray[np.bool_],
    classes: Sequence[str],
    limits: Limits,
) -> Criterion:
    worst, text = 0.0, "no class lost more than one picture"
    for index, name in enumerate(classes):
        own = truth == index
        m, b, c = int(own.sum()), int((own & lost).sum()), int((own & gained).sum())
        if b - c < 2:  # one item decides nothing
            continue
        least = surely_worse(b, c, m)
        if least >= worst:
            worst = least
            text = (
                f'the class "{name}" is at least {_points(least)} worse ({CLASS_CONFIDENCE:.0%} sure; {b} of its {m} '
                f"pictures lost, {c} gained), {_points(limits.class_drop)} are allowed"
            )
    return Criterion(name="classes", value=worst, limit=limits.class_drop, passed=worst <= limits.class_drop, text=text)


def _deferral(old: Answers, new: Answers, reference: NDArray[np.int64], limits: Limits) -> Criterion:
    before, after = ([_sent(answers, reference, risk) for risk in DEFERRAL_RISKS] for answers in (old, new))
    more = float(np.mean(after) - np.mean(before))
    text = (
        f"at the same certified risk {_points(more)} more would go to the cloud ({np.mean(after):.1%} instead of "
        f"{np.mean(before):.1%}), {_points(limits.offload)} are allowed"
    )
    return Criterion(name="deferral", value=more, limit=limits.offload, passed=more <= limits.offload, text=text)


def _sent(answers: Answers, reference: NDArray[np.int64], risk: float) -> float:
    """Share that a threshold with this certified risk sends; everything where nothing can be certified."""
    hardness = np.where(np.isfinite(answers.hardness), answers.hardness, 1.0)
    found = calibrate(hardness, answers.labels != reference, risk, DEFERRAL_DELTA)
    return found.send_share if isinstance(found, Certificate) else 1.0


def _latency(old_ms: float, new_ms: float, limits: Limits) -> Criterion:
    if not (math.isfinite(old_ms) and math.isfinite(new_ms) and old_ms > 0 and new_ms > 0):
        raise ValueError(f"run times must be positive numbers, not {old_ms} and {new_ms}")
    gain = 1 - new_ms / old_ms
    text = (
        f"it takes {new_ms:.3g} ms instead of {old_ms:.3g} ms (95th percentile), "
        f"at least {limits.faster:.0%} less is wanted"
    )
    return Criterion(
        name="latency", value=gain, limit=limits.faster, passed=new_ms <= (1 - limits.faster) * old_ms, text=text
    )


def _points(share: float) -> str:
    """Percentage points."""
    return f"{share * 100:.2f} points"
