"""The judgement on a candidate from held-out items: old classes by the paired test, new ones by their recall.

The old classes go through `edgekit.gates.paired` with a limit of one point for all of them together (upper confidence
bound) and for each (lower bound). A new class must be found in `new_recall` of its held-out items and, so that four of
five is not enough, in `new_recall_floor` with 90 % confidence.

Labels can be wrong, by mistake or by intent, and a held-out part drawn from the same batch is wrong in the same way:
it would praise the model that learned the error. Items that were labelled *before* the batch do not share it. They are
judged once more on their own, by what is observed on them, for all classes and for each, and a candidate that is worse
on them is refused whatever the new ones say. Where the scene has changed for good, earlier items mean nothing and are
left out (`earlier` all False); the shadow phase, with audits by another than the author of the labels, is the second
line then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.gates import paired
from edgekit.gates.binomial import clopper_pearson_upper
from edgekit.gates.limits import Limits
from edgekit.gates.paired import Acceptance, Answers
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.records import Fact, failed, points
from edgekit.learning.trial import Verdict

_CONFIDENCE = 0.9
DEFERRAL_ITEMS = 1000
"""Items of the old classes from which what would be sent decides. Below, a few hard items move a certified threshold by
more than the limit: of two models that were equally good and whose scores correlated at .9, one seemed to send over 3
points more in 19 to 27 % of draws of 500 items, in 4 to 11 % of 1,000, in 1 % of 2,000 (accuracy .95 to .9, 150 draws).
The shadow counts what a candidate really would send."""


@dataclass(frozen=True)
class HeldOut:
    """Labelled items that neither model was trained or calibrated on."""

    dataset: str  # digest of the dataset version
    truth: NDArray[np.int64]  # (n,) indices into `classes`
    classes: Sequence[str]  # those of the present model first, in its order
    old: int  # how many of them the present model has
    earlier: NDArray[np.bool_]  # (n,) labelled before the batch that the candidate learned from


@dataclass(frozen=True)
class Cost:
    """Of the present model and of the candidate."""

    p95_ms: tuple[float, float]
    bytes: tuple[int, int]


def judge(
    held: HeldOut,
    present: Answers,
    candidate: Answers,
    limits: JudgingLimits | None = None,
    cost: Cost | None = None,
) -> Verdict:
    """Compare them. `labels` of both are indices into `held.classes`; -1 where one gave no usable answer.

    Raises ValueError for lists that do not fit together.
    """
    limits = JudgingLimits() if limits is None else limits
    n = len(held.truth)
    lists = (held.truth, held.earlier, present.labels, present.hardness, candidate.labels, candidate.hardness)
    if any(one.shape != (n,) for one in lists):
        raise ValueError(f"the lists of a judgement must have one length, not {[one.shape for one in lists]}")
    if not 1 <= held.old <= len(held.classes):
        raise ValueError(f"{held.old} of {len(held.classes)} classes cannot be old ones")
    if n and not 0 <= int(held.truth.min()) <= int(held.truth.max()) < len(held.classes):
        raise ValueError(f"the truth must lie between 0 and {len(held.classes) - 1}")
    old = held.truth < held.old
    facts = [_usable(candidate)]
    facts += _kept(held, present, candidate, old, limits.old)
    if held.earlier.any():
        facts += _earlier(held, present, candidate, old & held.earlier, limits)
    facts += found_facts(held.truth, held.classes, held.old, candidate.labels, limits)
    if cost is not None:
        facts += cost_facts(cost, limits)
    reason = facts[0].text if not facts[0].passed else failed(facts)  # the others only follow from it
    return Verdict(
        accepted=not reason, reason=f"refused: {reason}" if reason else "", dataset=held.dataset, facts=facts
    )


def _usable(candidate: Answers) -> Fact:
    missing = int(((candidate.labels < 0) | ~np.isfinite(candidate.hardness)).sum())
    text = f"it gives no usable answer for {missing} of {len(candidate.labels)} items"
    return Fact(name="answers", value=missing, limit=0, passed=not missing, text=text)


def _kept(held: HeldOut, present: Answers, candidate: Answers, which: NDArray[np.bool_], limits: Limits) -> list[Fact]:
    """What the paired test says about the old classes' items."""
    if not which.any():
        text = "there is no held-out item of the classes that the model had before"
        return [Fact(name="items", value=0, limit=limits.items, passed=False, text=text)]
    facts = [
        Fact(name=one.name, value=one.value, limit=one.limit, passed=one.passed, text=one.text)
        for one in _accept(held, present, candidate, which, limits).criteria
        if one.name != "answers"
    ]
    items = int(which.sum())
    return [_undecided(one, items) if one.name == "deferral" and items < DEFERRAL_ITEMS else one for one in facts]


def _undecided(deferral: Fact, items: int) -> Fact:
    text = f"{deferral.text}; chance moves that on {items} items, so it decides from {DEFERRAL_ITEMS:,} on"
    return msgspec.structs.replace(deferral, passed=True, text=text)


def _earlier(
    held: HeldOut, present: Answers, candidate: Answers, which: NDArray[np.bool_], limits: JudgingLimits
) -> list[Fact]:
    """What the earlier items say. As the burden of proof was met on all of them, what is observed decides here."""
    n = int(which.sum())
    enough = (
        f"{n} held-out items were labelled before this batch, {limits.earlier} are needed to find wrong labels in it"
    )
    facts = [Fact(name="earlier-items", value=n, limit=limits.earlier, passed=n >= limits.earlier, text=enough)]
    if not n:
        return facts
    found = _accept(held, present, candidate, which, limits.old)
    net = found.lost - found.gained
    text = (
        f"of {n} items labelled before this batch {found.lost} are lost and {found.gained} gained, "
        f"{points(limits.old.drop)} are allowed: labels of the batch may be wrong"
    )
    kept = net < 2 or found.drop <= limits.old.drop  # one item decides nothing
    facts.append(Fact(name="earlier", value=found.drop, limit=limits.old.drop, passed=kept, text=text))
    classes = next(one for one in found.criteria if one.name == "classes")
    text = f"on items labelled before this batch {classes.text}"
    facts.append(
        Fact(name="earlier-classes", value=classes.value, limit=classes.limit, passed=classes.passed, text=text)
    )
    return facts


def _accept(
    held: HeldOut, present: Answers, candidate: Answers, which: NDArray[np.bool_], limits: Limits
) -> Acceptance:
    old, new = (Answers(one.labels[which], one.hardness[which]) for one in (present, candidate))
    return paired.accept(held.truth[which], old, new, list(held.classes[: held.old]), limits)


def found_facts(
    truth: NDArray[np.int64], classes: Sequence[str], old: int, said: NDArray[np.int64], limits: JudgingLimits
) -> list[Fact]:
    """How much of each new class is found: `truth` and `said` (n,) are indices into `classes`, the `old` ones first."""
    facts = []
    for index in range(old, len(classes)):
        own = truth == index
        total, right = int(own.sum()), int((said[own] == index).sum())
        recall = right / total if total else 0.0
        floor = 1.0 - clopper_pearson_upper(total - right, total, 1 - _CONFIDENCE) if total else 0.0
        text = (
            f'the new class "{classes[index][:64]}" is found in {right} of {total} held-out items, at least '
            f"{floor:.0%} ({_CONFIDENCE:.0%} sure); {limits.new_recall:.0%} and "
            f"{limits.new_recall_floor:.0%} are wanted"
        )
        passed = total > 0 and recall >= limits.new_recall and floor >= limits.new_recall_floor
        facts.append(Fact(name="new-class", value=recall, limit=limits.new_recall, passed=passed, text=text))
    return facts


def cost_facts(cost: Cost, limits: JudgingLimits) -> list[Fact]:
    """Run time and size. Raises ValueError for numbers that cannot be."""
    facts = []
    for name, (before, after), share, unit in (
        ("latency", cost.p95_ms, limits.slower, "ms (95th percentile)"),
        ("size", cost.bytes, limits.larger, "bytes"),
    ):
        if not (np.isfinite([before, after]).all() and before > 0 and after > 0):
            raise ValueError(f"the {name} of two models must be positive numbers, not {before} and {after}")
        more = after / before - 1
        shown = f"{after:,} {unit} instead of {before:,}" if name == "size" else f"{after:.3g} {unit} not {before:.3g}"
        text = f"its {name} is {shown}, {share:.0%} more are allowed"
        facts.append(Fact(name=name, value=more, limit=share, passed=more <= share, text=text))
    return facts
