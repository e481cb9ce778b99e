"""What benchmarks.collab makes of the answers of both models: the cases, and what each image-level rule would cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import train_pair
from benchmarks.collab_boards import Frame
from benchmarks.collab_rules import (
    GOAL_ACCURACY,
    ORACLE,
    RULES,
    Labels,
    Looked,
    Numbers,
    Row,
    balanced_accuracy,
    best,
    best_keeping,
    cheapest,
    curve,
    figures,
    mixed,
    oracle,
    verdict,
)
from edgekit.regions.mosaic import Mosaic, whole
from edgekit.vision.images import decode
from edgekit.vision.sniff import sniff


@dataclass(frozen=True)
class Setting:
    """What is inspected, by which models, and what these say without any daemon: to the test frames, and (`known_...`)
    to the calibration frames."""

    pair: train_pair.Pair
    labels: list[str]
    calibration: list[Frame]
    test: list[Frame]
    edge: Looked
    cloud: Looked
    known_edge: Looked
    known_cloud: Looked

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of every board, pixels."""
        info = sniff(self.test[0].data)
        return info.width, info.height

    @property
    def truth(self) -> Labels:
        return np.stack([frame.truth for frame in self.test])

    def only(self, wanted: Callable[[Frame], bool]) -> Setting:
        """The same with the wanted frames alone, in both parts."""
        known, test = ([i for i, one in enumerate(part) if wanted(one)] for part in (self.calibration, self.test))
        return replace(
            self,
            calibration=[self.calibration[i] for i in known],
            test=[self.test[i] for i in test],
            edge=self.edge.only(test),
            cloud=self.cloud.only(test),
            known_edge=self.known_edge.only(known),
            known_cloud=self.known_cloud.only(known),
        )

    def accuracy(self, said: Labels) -> float:
        return balanced_accuracy(said, self.truth)

    def case(self, name: str, said: Labels, asked: float, bytes_a_board: float) -> Row:
        """The figures of final labels `said`. `asked`: share of the regions or boards that left."""
        found = figures(said, self.test)
        share = found["accuracy"] / self.accuracy(self.cloud.label)
        return {"case": name, "asked": asked, "bytes_a_board": bytes_a_board, "share_of_cloud": share, **found}


def sweep(setting: Setting, cost: Numbers, accuracy: float) -> list[Row]:
    """A row for each image-level rule, the daemons' own first, then for what knows the truth: the cheapest threshold
    that reaches `accuracy`, which is the cloud's or less. `cost` (frames,): bytes of a frame that is asked."""
    edge, cloud, truth = setting.edge, setting.cloud.label, setting.truth
    hardness = {name: rule(edge) for name, rule in RULES.items()}
    hardness[ORACLE] = oracle(edge.label, cloud, truth, cost)
    rows = []
    for name, one in hardness.items():
        point = cheapest(curve(one, cost, edge.label, cloud, truth), accuracy)
        assert point is not None, "asking about every board gives the cloud's accuracy"
        said = mixed(point.asked, edge.label, cloud)
        rows.append(setting.case(name, said, point.share, point.bytes / len(truth)))
    return rows


def defective_only(setting: Setting, cost: Numbers, regions: Row) -> Row:
    """The headline figures where every board has defects, the setting of research/algorithms.md 1.3: so the gate and
    the rules that carry over their thresholds know such boards only."""
    target = min(regions["accuracy"], GOAL_ACCURACY * setting.accuracy(setting.cloud.label))
    rules = sweep(setting, cost, target)
    found = verdict([regions], rules, rules, carried_over(setting, cost))
    wanted = ["region_share", "image_share", "region_bytes", "image_bytes", "share_of_cloud_accuracy", "escape_rate"]
    wanted += ["overkill_rate", "image_rule", "bytes_ratio", "bytes_ratio_carried_over"]
    return {f"defective_{name}": found[name] for name in wanted}


def same_coding(setting: Setting, cost: Numbers, target: float, region_bytes: float) -> Row:
    """What the image-level rules would cost if the device coded a board anew, in the way of its mosaics."""
    recoded = cost.copy()
    for i, frame in enumerate(setting.test):
        anew = Mosaic(decode(frame.data, "grey"), whole(setting.size, [])).encode(webp=True)
        recoded[i] += len(anew) - len(frame.data)
    cheap, other = best(sweep(setting, recoded, target)), best_keeping(carried_over(setting, recoded))
    return {
        "image_bytes_same_coding": cheap["bytes_a_board"],
        "bytes_ratio_same_coding": region_bytes / cheap["bytes_a_board"],
        "image_bytes_carried_over_same_coding": None if other is None else other["bytes_a_board"],
        "bytes_ratio_carried_over_same_coding": None if other is None else region_bytes / other["bytes_a_board"],
    }


def carried_over(setting: Setting, cost: Numbers) -> list[Row]:
    """A row for each image-level rule with the threshold that is cheapest for the goal on the calibration boards, which
    is how the regions get theirs, and how a plant must do it."""
    edge, cloud = setting.known_edge, setting.known_cloud.label
    truth = np.stack([frame.truth for frame in setting.calibration])
    sizes = np.array([len(frame.data) for frame in setting.calibration], float)
    rows = []
    for name, rule in RULES.items():
        points = curve(rule(edge), sizes, edge.label, cloud, truth)
        point = cheapest(points, GOAL_ACCURACY * balanced_accuracy(cloud, truth))
        assert point is not None, "asking about every board gives the cloud's accuracy"
        asked = rule(setting.edge) >= rule(edge)[point.asked].min(initial=np.inf)
        said = mixed(asked, setting.edge.label, setting.cloud.label)
        rows.append(setting.case(name, said, float(asked.mean()), float(cost[asked].sum()) / len(cost)))
    return rows
