"""The hard-example rules of Sedna (KubeEdge), their formulas and defaults, to be measured on the same logits as ours.

Written from the formulas in Sedna's `lib/sedna/algorithms/hard_example_mining` (commit 2c30e569), not copied. A
classifier has no boxes, so the box rules see each sample as one box whose score is the best class's probability. The
three traps of the original (ValueError for a probability of 0, ZeroDivisionError for one class, ValueError for numpy
input) are not repeated: they would only make the comparison easier for us.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.floating]
Hard = NDArray[np.bool_]


def threshold(p: Probabilities, t: float = 0.5) -> Hard:
    """Hard when the mean box score is under t. `p`: probabilities of shape (n, classes)."""
    return np.asarray(p.max(axis=1) < t)


def cross_entropy(p: Probabilities, t: float = 0.5) -> Hard:
    """Hard when 1 + sum p ln p / ln(classes), one minus the normalised entropy, is under t."""
    q = np.asarray(p, dtype=np.float64)
    surprise = q * np.log(np.where(q > 0, q, 1.0))
    return np.asarray(1.0 + surprise.sum(axis=1) / np.log(q.shape[1]) < t)


def ibt(p: Probabilities, t_box: float = 0.5, t_img: float = 0.5) -> Hard:
    """Hard when the share of boxes with a score <= t_box is >= 1 - t_img: with one box, when its score is <= t_box."""
    low = (p.max(axis=1) <= t_box).astype(np.float64)
    return np.asarray(low >= 1.0 - t_img)


RULES: dict[str, Callable[[Probabilities], Hard]] = {
    "Sedna IBT (0.5, 0.5)": ibt,
    "Sedna IBT (0.9, 0.9)": lambda p: ibt(p, 0.9, 0.9),
    "Sedna CrossEntropy (0.5)": cross_entropy,
    "Sedna Threshold (0.5)": threshold,
}
"""Name -> rule. IBT twice: with its defaults, and with the values of every Sedna example that uses it."""
