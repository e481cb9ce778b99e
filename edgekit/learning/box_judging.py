"""The judgement on a detector's candidate from held-out pictures: labelled boxes pair by pair, and false alarms.

Found and missed are said of each labelled box: found is one that a reported box of its own label overlaps enough. For
the old classes the paired test of `edgekit.gates.paired` is asked, with the same limits as for a classifier: all of
them together may lose one point by the upper confidence bound, each by the lower one. A reported box that finds nothing
is a false alarm. A picture counts against the candidate where it raises more of them than the present model, and for it
where it raises fewer; more pictures against it than for it are allowed up to the limit of a class, by the lower bound,
because held-out pictures are fewer than boxes and a wide bound must not refuse a model that is as good.

Boxes of one picture are not independent of each other, so with many boxes a picture the bounds are somewhat too narrow.

Labels can be wrong here, too, and missing boxes are the likeliest fault; `edgekit.learning.judging` says why what was
labelled before the batch judges once more on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgekit.gates.limits import Limits
from edgekit.gates.paired import CLASS_CONFIDENCE, drop_bound, surely_worse
from edgekit.learning.judging import Cost, cost_facts, found_facts
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.records import Fact, failed, points
from edgekit.learning.trial import Verdict


@dataclass(frozen=True)
class HeldOutBoxes:
    """n labelled boxes on m pictures that neither model was trained or calibrated on."""

    dataset: str  # digest of the pictures
    classes: Sequence[str]  # those of the present model first, in its order
    old: int  # how many of them the present model has
    truth: NDArray[np.int64]  # (n,) indices into `classes`
    picture: NDArray[np.int64]  # (n,) on which picture it is, 0 to m - 1
    earlier: NDArray[np.bool_]  # (m,) pictures that were labelled before the batch that the candidate learned from


@dataclass(frozen=True)
class Found:
    """What one model reports of them."""

    found: NDArray[np.bool_]  # (n,)
    false: NDArray[np.int64]  # (m,) reported boxes that find nothing
    unusable: int = 0  # pictures without a usable answer


def judge_boxes(
    held: HeldOutBoxes, present: Found, candidate: Found, limits: JudgingLimits | None = None, cost: Cost | None = None
) -> Verdict:
    """Compare them. Raises ValueError for lists that do not fit together."""
    limits = JudgingLimits() if limits is None else limits
    _check(held, present, candidate)
    n, m = len(held.truth), len(held.earlier)
    old = held.truth < held.old
    text = f"it gives no usable answer for {candidate.unusable} of {m} pictures"
    facts = [Fact(name="answers", value=candidate.unusable, limit=0, passed=not candidate.unusable, text=text)]
    facts += _kept(held, present, candidate, old, limits.old)
    if m:
        facts.append(_false_alarms(present, candidate, np.ones(m, np.bool_), limits.old))
    before = held.earlier[held.picture] if n else np.zeros(0, np.bool_)
    if held.earlier.any():
        facts += _earlier(held, present, candidate, old & before, limits)
    said = np.where(candidate.found, held.truth, len(held.classes))
    facts += found_facts(held.truth, held.classes, held.old, said, limits)
    if cost is not None:
        facts += cost_facts(cost, limits)
    reason = facts[0].text if not facts[0].passed else failed(facts)  # the others only follow from it
    return Verdict(
        accepted=not reason, reason=f"refused: {reason}" if reason else "", dataset=held.dataset, facts=facts
    )


def _kept(held: HeldOutBoxes, present: Found, candidate: Found, which: NDArray[np.bool_], limits: Limits) -> list[Fact]:
    """What the paired test says about the boxes of old classes."""
    n = int(which.sum())
    text = f"it was compared on {n} held-out boxes of the classes that the model had before, {limits.items} are needed"
    facts = [Fact(name="items", value=n, limit=limits.items, passed=n >= limits.items, text=text)]
    if not n:
        return facts
    lost, gained = _pairs(present.found[which], candidate.found[which])
    bound = drop_bound(lost, gained, n, 1 - limits.confidence)
    text = (
        f"the share of boxes that are found may fall by {points(bound)} ({limits.confidence:.0%} sure; {lost} of {n} "
        f"boxes lost, {gained} gained), {points(limits.drop)} are allowed"
    )
    if bound > limits.drop and (lost - gained) / n <= limits.drop / 2:
        text += "; more held-out boxes may show that it falls by less"
    facts.append(Fact(name="accuracy", value=bound, limit=limits.drop, passed=bound <= limits.drop, text=text))
    facts.append(_classes(held, present, candidate, which, limits))
    for index in range(held.old):
        own = which & (held.truth == index)
        if total := int(own.sum()):
            right, was = int(candidate.found[own].sum()), int(present.found[own].sum())
            text = f'"{held.classes[index][:64]}" is found in {right} of {total} boxes, by the present model in {was}'
            facts.append(Fact(name="recall", value=right / total, text=text))
    return facts


def _classes(held: HeldOutBoxes, present: Found, candidate: Found, which: NDArray[np.bool_], limits: Limits) -> Fact:
    """No class may be worse than the limit by its lower bound, and by more than one box."""
    worst, text = 0.0, "no class lost more than one box"
    for index in range(held.old):
        own = which & (held.truth == index)
        total = int(own.sum())
        lost, gained = _pairs(present.found[own], candidate.found[own])
        if lost - gained < 2:  # one box decides nothing
            continue
        least = surely_worse(lost, gained, total)
        if least >= worst:
            worst = least
            text = (
                f'the class "{held.classes[index][:64]}" is at least {points(least)} worse '
                f"({CLASS_CONFIDENCE:.0%} sure; {lost} of its {total} boxes lost, {gained} gained), "
                f"{points(limits.class_drop)} are allowed"
            )
    return Fact(name="classes", value=worst, limit=limits.class_drop, passed=worst <= limits.class_drop, text=text)


def _false_alarms(present: Found, candidate: Found, which: NDArray[np.bool_], limits: Limits) -> Fact:
    before, after = present.false[which], candidate.false[which]
    m = len(before)
    more, fewer = int((after > before).sum()), int((after < before).sum())
    # One picture decides nothing.
    least = surely_worse(more, fewer, m) if more - fewer >= 2 else 0.0
    text = (
        f"it raises {after.mean():.2f} false alarms a picture, the present model {before.mean():.2f}; more of them on "
        f"{more} of {m} pictures and fewer on {fewer}, a surplus of at least {points(least)} "
        f"({CLASS_CONFIDENCE:.0%} sure), {points(limits.class_drop)} are allowed"
    )
    passed = least <= limits.class_drop
    return Fact(name="false-alarms", value=least, limit=limits.class_drop, passed=passed, text=text)


def _earlier(
    held: HeldOutBoxes, present: Found, candidate: Found, which: NDArray[np.bool_], limits: JudgingLimits
) -> list[Fact]:
    """What boxes labelled before the batch say. The burden of proof was met on all; what is observed decides here."""
    n = int(which.sum())
    enough = (
        f"{n} held-out boxes were labelled before this batch, {limits.earlier} are needed to find wrong labels in it"
    )
    facts = [Fact(name="earlier-items", value=n, limit=limits.earlier, passed=n >= limits.earlier, text=enough)]
    if n:
        lost, gained = _pairs(present.found[which], candidate.found[which])
        drop = (lost - gained) / n
        text = (
            f"of {n} boxes labelled before this batch {lost} are lost and {gained} gained, {points(limits.old.drop)} "
            "are allowed: labels of the batch may be wrong"
        )
        kept = lost - gained < 2 or drop <= limits.old.drop
        facts.append(Fact(name="earlier", value=drop, limit=limits.old.drop, passed=kept, text=text))
        facts.append(_renamed("earlier-classes", _classes(held, present, candidate, which, limits.old)))
    facts.append(_renamed("earlier-false-alarms", _false_alarms(present, candidate, held.earlier, limits.old)))
    return facts


def _renamed(name: str, fact: Fact) -> Fact:
    text = f"on pictures labelled before this batch {fact.text}"
    return Fact(name=name, value=fact.value, limit=fact.limit, passed=fact.passed, text=text)


def _pairs(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> tuple[int, int]:
    """How many are lost, and how many gained."""
    return int((before & ~after).sum()), int((after & ~before).sum())


def _check(held: HeldOutBoxes, present: Found, candidate: Found) -> None:
    n, m = len(held.truth), len(held.earlier)
    boxes = (held.truth, held.picture, present.found, candidate.found)
    pictures = (held.earlier, present.false, candidate.false)
    if any(one.shape != (n,) for one in boxes) or any(one.shape != (m,) for one in pictures):
        raise ValueError("the lists of a judgement must have one length for boxes, and one for pictures")
    if not 1 <= held.old <= len(held.classes):
        raise ValueError(f"{held.old} of {len(held.classes)} classes cannot be old ones")
    for what, values, end in (("truth", held.truth, len(held.classes)), ("picture", held.picture, m)):
        if n and not 0 <= int(values.min()) <= int(values.max()) < end:
            raise ValueError(f"the {what} of a box must lie between 0 and {end - 1}")
    if min(present.false.min(initial=0), candidate.false.min(initial=0), present.unusable, candidate.unusable) < 0:
        raise ValueError("there cannot be fewer than no false alarms, or pictures without an answer")
