"""Sedna's filters for hard examples, by their own names: which samples each of them calls hard.

Names, parameters, defaults and formulas are those of Sedna (KubeEdge), `lib/sedna/algorithms/hard_example_mining/
hard_example_mining.py`, commit 2c30e569; written from the formulas, not copied. For scores and probabilities in 0..1
the decision is Sedna's, to the last bit, wherever Sedna's formula is defined. Where it is not, Sedna stops with an
error or calls the sample easy, so that nobody looks at it again. Here **what a filter cannot judge is hard**: no boxes;
no probabilities, only one class, nothing but zeros; NaN, infinity, anything outside 0..1. In the entropy, 0 ln 0 is
its limit, 0.

Pure and without numpy: the service definition imports this module, and with it the supervisor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0.0, le=1.0)]

FILTERS: Mapping[str, Mapping[str, float]] = {
    "IBT": {"threshold_img": 0.5, "threshold_box": 0.5},
    "CrossEntropy": {"threshold_cross_entropy": 0.5},
    "Threshold": {"threshold": 0.5},
    "Random": {"random_ratio": 0.3},
    "EdgeOnly": {},
    "CloudOnly": {},
}
"""Name of each filter -> its parameters with Sedna's defaults."""


class FilterParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of all filters, under Sedna's names; None: not given, so Sedna's default holds."""

    threshold_img: Share | None = None  # IBT: hard if at least a share 1 - threshold_img of the boxes is unsure
    threshold_box: Share | None = None  # IBT: a box is unsure if its score is at or under this
    threshold_cross_entropy: Share | None = None  # CrossEntropy: hard if 1 - normalised entropy is under this
    threshold: Share | None = None  # Threshold: hard if the mean score of the boxes is under this
    random_ratio: Share | None = None  # Random: share of the samples that is hard

    def given(self) -> dict[str, float]:
        """Those that were given."""
        return {key: value for key, value in msgspec.structs.asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Seen:
    """What the edge model said about one picture, as far as a filter looks at it."""

    scores: Collection[float]  # 0..1, one for each box; a classifier's answer is one box around the whole picture
    probabilities: Collection[float] = ()  # 0..1, one for each class; a detector has none


def complete(name: str, given: FilterParameters | None) -> dict[str, float]:
    """What was given, and Sedna's defaults for the other parameters of filter `name`."""
    return {**FILTERS.get(name, {}), **(given.given() if given is not None else {})}


def is_hard(name: str, parameters: Mapping[str, float], seen: Seen, u: float) -> bool:
    """Whether filter `name` calls the sample hard. `parameters`: all that it has; `u`: uniform in [0, 1), for Random.

    Raises ValueError for an unknown filter, never for what was seen.
    """
    match name:
        case "IBT":
            return ibt(seen.scores, parameters["threshold_img"], parameters["threshold_box"])
        case "CrossEntropy":
            return cross_entropy(seen.probabilities, parameters["threshold_cross_entropy"])
        case "Threshold":
            return threshold(seen.scores, parameters["threshold"])
        case "Random":
            return u < parameters["random_ratio"]
        case "EdgeOnly":
            return False
        case "CloudOnly":
            return True
    raise ValueError(f"there is no filter {name!r}")


def ibt(scores: Collection[float], threshold_img: float, threshold_box: float) -> bool:
    """Image-box-thresholds: the share of boxes with a score <= threshold_box is >= 1 - threshold_img."""
    values = _in_range(scores)
    if not values:
        return True
    unsure = [score for score in values if score <= threshold_box]
    return len(unsure) / len(values) >= 1 - threshold_img


def threshold(scores: Collection[float], limit: float) -> bool:
    """The mean score of the boxes is under `limit`."""
    values = _in_range(scores)
    if not values:
        return True
    total = 0.0
    for score in values:  # as Sedna adds: sum() compensates for rounding since Python 3.12
        total += score
    return total / len(values) < limit


def cross_entropy(probabilities: Collection[float], limit: float) -> bool:
    """1 + sum p ln p / ln n, that is 1 - entropy / its maximum over n classes, is under `limit`.

    With two classes, a limit of 0.5 is crossed where the better one has 0.89.
    """
    values = _in_range(probabilities)
    if len(values) < 2 or not any(values):
        return True
    log_sum = 0.0
    for p in values:
        if p > 0.0:
            log_sum += p * math.log(p)
    return 1 + log_sum / math.log(len(values)) < limit


def _in_range(values: Collection[float]) -> list[float]:
    """The values; none at all if one of them is no number in 0..1."""
    found = [float(value) for value in values]
    return found if all(0.0 <= value <= 1.0 for value in found) else []
