"""What benchmarks.collab computes from answers alone: accuracy, escape, overkill, and image-level rules.

Arrays have the shape (frames, tiles) unless it is said: the label's index that somebody gave each tile, its score (the
label's probability) and margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.collab_boards import CLEAN, Frame

Labels = NDArray[np.int64]
Numbers = NDArray[np.float64]
Row = dict[str, Any]

GOAL_ACCURACY = 0.99
"""Of the cloud's."""
GOAL_BYTES = 0.5
"""Of the best image-level rule's."""
ORACLE = "oracle, knows the truth"


@dataclass(frozen=True)
class Looked:
    """One model's answers to all tiles of all frames, and the frames' own answers of shape (frames,), as a service
    without regions gives them."""

    label: Labels
    score: Numbers
    margin: Numbers
    frame_label: Labels
    frame_margin: Numbers  # what the daemons' gate judges a whole frame by

    def only(self, frames: Sequence[int]) -> Looked:
        """The answers to these frames alone."""
        rows = list(frames)
        return Looked(
            self.label[rows], self.score[rows], self.margin[rows], self.frame_label[rows], self.frame_margin[rows]
        )


def balanced_accuracy(said: Labels, truth: Labels) -> float:
    """Mean over the labels of the share of their tiles that were called so; ignored tiles do not count.

    Of a board's tiles nine in ten are clean, so plain accuracy would praise a model that finds nothing.
    """
    return float(np.mean([np.mean(said[truth == label] == label) for label in np.unique(truth[truth >= 0])]))


def figures(said: Labels, frames: Sequence[Frame]) -> Row:
    """Accuracy, and both ways of being wrong, by defects and tiles and by boards.

    escape          defects of which no tile that holds their centre was called defective (whatever label it got)
    overkill        clean tiles called defective
    escape_boards   boards with defects of which every tile was called clean
    overkill_boards good boards of which a tile was called defective; None without good boards
    """
    truth = np.stack([frame.truth for frame in frames])
    refused = said != CLEAN
    good = np.array([frame.good for frame in frames])
    missed = [not refused[i, held].any() for i, frame in enumerate(frames) for held in frame.holders]
    return {
        "accuracy": balanced_accuracy(said, truth),
        "tile_accuracy": float(np.mean(said[truth >= 0] == truth[truth >= 0])),
        "escape_rate": float(np.mean(missed)),
        "overkill_rate": float(np.mean(refused[truth == CLEAN])),
        "escape_boards": float(np.mean(~refused.any(axis=1)[~good])),
        "overkill_boards": float(np.mean(refused.any(axis=1)[good])) if good.any() else None,
    }


# --- image-level rules -----------------------------------------------------------------------------------------------

Rule = Callable[[Looked], Numbers]
"""The hardness of each frame (frames,), by the edge's answers alone; any scale, larger is asked first."""

RULES: dict[str, Rule] = {
    "margin of the frame's answer": lambda edge: 1 - edge.frame_margin,
    "least margin of any tile": lambda edge: 1 - edge.margin.min(axis=1),
    "sum of (1 - margin)^2": lambda edge: ((1 - edge.margin) ** 2).sum(axis=1),
    "sum of 1 - margin": lambda edge: (1 - edge.margin).sum(axis=1),
    "tiles with a score in 0.2 to 0.8": lambda edge: ((edge.score > 0.2) & (edge.score < 0.8)).sum(axis=1) * 1.0,
    "tiles called defective": lambda edge: (edge.label != CLEAN).sum(axis=1) * 1.0,
    "Sedna Threshold (mean score)": lambda edge: 1 - edge.score.mean(axis=1),
    "Sedna IBT (share of scores up to 0.5)": lambda edge: (edge.score <= 0.5).mean(axis=1),
}
"""Those of research/algorithms.md 1.3, and what the daemons do with whole frames (the first)."""


@dataclass(frozen=True)
class Point:
    """The frames that are asked at one threshold of a rule."""

    asked: NDArray[np.bool_]  # (frames,)
    bytes: float  # up, of all frames together
    accuracy: float

    @property
    def share(self) -> float:
        return float(self.asked.mean())


def mixed(asked: NDArray[np.bool_], edge: Labels, cloud: Labels) -> Labels:
    """The cloud's labels where it was asked; `asked` has the shape (frames,) or (frames, tiles)."""
    return np.where(asked if asked.ndim == 2 else asked[:, None], cloud, edge)


def curve(hardness: Numbers, cost: Numbers, edge: Labels, cloud: Labels, truth: Labels) -> list[Point]:
    """Every threshold of a rule, from nobody asked to everybody. Frames of one hardness are asked together.

    `cost` (frames,): bytes up if the frame is asked.
    """
    points = []
    for threshold in [np.inf, *sorted(set(hardness.tolist()), reverse=True)]:
        asked = hardness >= threshold
        accuracy = balanced_accuracy(mixed(asked, edge, cloud), truth)
        points.append(Point(asked, float(cost[asked].sum()), accuracy))
    return points


def cheapest(points: Sequence[Point], accuracy: float) -> Point | None:
    """The point with the fewest bytes that reaches `accuracy`; None if none does."""
    return min((p for p in points if p.accuracy >= accuracy), key=lambda p: p.bytes, default=None)


def oracle(edge: Labels, cloud: Labels, truth: Labels, cost: Numbers) -> Numbers:
    """What knows the truth: how many more tiles of a frame the cloud gets right, for each byte, rare labels weighing
    more as in the accuracy."""
    weight = np.zeros(truth.shape)
    for label in np.unique(truth[truth >= 0]):
        weight[truth == label] = 1 / (truth == label).sum()
    gain: Numbers = (((cloud == truth) * 1.0 - (edge == truth)) * weight).sum(axis=1) / cost
    return gain


def region_share(edge: Looked, cloud: Labels, truth: Labels, accuracy: float) -> float | None:
    """The smallest share of the tiles, by least margin, with which `accuracy` is reached; None if it never is."""
    order = np.argsort(edge.margin, axis=None, kind="stable")
    asked = np.zeros(order.shape, bool)
    for count in range(len(order) + 1):
        if count:
            asked[order[count - 1]] = True
            if edge.label.flat[order[count - 1]] == cloud.flat[order[count - 1]]:
                continue  # nothing has changed
        if balanced_accuracy(mixed(asked.reshape(truth.shape), edge.label, cloud), truth) >= accuracy:
            return count / len(order)
    return None


def best(rules: Sequence[Row]) -> Row:
    """The cheapest rule; the oracle is none."""
    return min((row for row in rules if row["case"] != ORACLE), key=lambda row: float(row["bytes_a_board"]))


def best_keeping(rules: Sequence[Row]) -> Row | None:
    """The cheapest of the rules that keep the goal's accuracy; None if none does."""
    keeping = [row for row in rules if row["share_of_cloud"] >= GOAL_ACCURACY]
    return best(keeping) if keeping else None


def verdict(cases: Sequence[Row], rules: Sequence[Row], same: Sequence[Row], carried: Sequence[Row]) -> Row:
    """The headline figures. `rules` reach the goal's accuracy, `same` that of the regions; the oracle is no rule.

    `carried`: rules with thresholds of other boards; the best is the cheapest of those that keep the goal's accuracy.
    """
    regions = next(case for case in cases if case["case"] == "regions")
    cheap, level, other = best(rules), best(same), best_keeping(carried)
    ratio = regions["bytes_a_board"] / cheap["bytes_a_board"]
    return {
        "region_share": regions["asked"],
        "image_share": cheap["asked"],
        "region_bytes": regions["bytes_a_board"],
        "image_bytes": cheap["bytes_a_board"],
        "share_of_cloud_accuracy": regions["share_of_cloud"],
        "escape_rate": regions["escape_rate"],
        "overkill_rate": regions["overkill_rate"],
        "image_rule": cheap["case"],
        "bytes_ratio": ratio,
        "image_share_same_accuracy": level["asked"],
        "bytes_ratio_same_accuracy": regions["bytes_a_board"] / level["bytes_a_board"],
        "image_rule_carried_over": None if other is None else other["case"],
        "image_share_carried_over": None if other is None else other["asked"],
        "image_bytes_carried_over": None if other is None else other["bytes_a_board"],
        "bytes_ratio_carried_over": None if other is None else regions["bytes_a_board"] / other["bytes_a_board"],
        "accuracy_met": regions["share_of_cloud"] >= GOAL_ACCURACY,
        "bytes_met": ratio <= GOAL_BYTES,
    }
