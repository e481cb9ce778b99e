"""Anomalies without a defect picture: how well are good parts told from others that nobody has ever shown?

    EDGED_REAL_DATA=... python -m benchmarks.anomaly [--quick] [--json FILE]

Products of `products-aws` (circuit board, cookie, toy) and the bare boards of `pcb-bare`. Learned is from good parts
only; judged are good parts that were held out, and the anomalous ones. Each good part is held out once: the folds go by
its place in the list, and a bare board is judged together with its own defective twin, so that neither was ever seen.
Parts that lie under the camera a little differently each time are aligned to the first good one (`aligned`), which
teaches in every fold and is never judged; the bare boards show different places and are not.

Features: the last three stages of the built-in `tiny_cnn`, trained on solder joints (`trained`) or not at all
(`random`, the floor), and statistics of colour and gradients by OpenCV (`statistics`). Models: a Gaussian a place and a
coreset of places (`edgekit.heads.anomaly`). AUROC of the part scores: the probability that an anomalous part scores
above a good one, the mean over the folds. `auroc` of a product is that of the trained features with the model that
`edgekit.heads.anomaly` names for such parts: the Gaussian where parts lie alike (here: are aligned), the coreset where
they do not. The others stand beside it.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.anomaly_features import Extractor, Maps, Network, Pixels, Statistics, solder_weights
from benchmarks.pictures import data_root
from edgekit.heads.anomaly import AnomalyModel, GaussianMap, NearestMap, part_scores
from edgekit.vision.detection.alignment import Aligner, Limits
from edgekit.vision.images import decode

BOARDS = "pcb-bare"
COLUMNS = ["case", "product", "features", "model", "auroc", "auroc_min", "good", "anomalous", "fit_s", "score_ms"]
_SEED = 1


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    folds: int
    bank: int  # places
    epochs: int  # of the network
    side: int  # pixels of a picture
    board_side: int  # the same of bare boards, whose defects are small


FULL = Effort(folds=4, bank=500, epochs=10, side=256, board_side=320)
QUICK = Effort(folds=2, bank=200, epochs=4, side=192, board_side=192)
_REACH = Limits(shift=30, rotation=15, scale=0.1)


@dataclass(frozen=True)
class Product:
    """Pictures [side, side, 3] of good and anomalous parts.

    `twins`: anomalous part i belongs to good part i; else the first good part is what the others are aligned to.
    """

    name: str
    good: list[Pixels]
    anomalous: list[Pixels]
    twins: bool


def products(root: Path, effort: Effort, only: str | None = None) -> Iterable[Product]:
    """One after the other, so that only one is in memory."""
    with (root / "products-aws" / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in sorted({row["factory"] for row in rows if only in (None, row["factory"])}):
        own = [row for row in rows if row["factory"] == name]
        sides = [
            [_picture(root / "products-aws" / row["file"], effort.side) for row in own if row["label"] == label]
            for label in ("normal", "anomaly")
        ]
        aligner = Aligner(_grey(sides[0][0]), _REACH)
        good, anomalous = ([_aligned(aligner, one) for one in side] for side in sides)
        yield Product(name, good, anomalous, twins=False)
    if only not in (None, BOARDS):
        return
    images = json.loads((root / "pcb-bare" / "coco.json").read_text())["images"]
    pairs = [
        [_picture(root / "pcb-bare" / one[key], effort.board_side) for one in images]
        for key in ("template", "file_name")
    ]
    yield Product(BOARDS, pairs[0], pairs[1], twins=True)


def auroc(good: Sequence[float] | NDArray[np.floating], anomalous: Sequence[float] | NDArray[np.floating]) -> float:
    """P(an anomalous one is above a good one), equal ones half: Mann and Whitney's U over n m."""
    low, high = np.asarray(good, np.float64)[None, :], np.asarray(anomalous, np.float64)[:, None]
    return float(((high > low) + 0.5 * (high == low)).mean())


def measured(product: Product, extractor: Extractor, effort: Effort) -> list[dict[str, Any]]:
    """One row for each model."""
    began = time.perf_counter()
    good = np.stack([extractor(one) for one in product.good])
    anomalous = np.stack([extractor(one) for one in product.anomalous])
    extract_ms = (time.perf_counter() - began) * 1000 / (len(good) + len(anomalous))
    fold = np.arange(len(good)) % effort.folds
    if not product.twins:
        fold[0] = -1
    rows = []
    for model in ("gaussian", "nearest"):
        found, fit_s, score_s, scored = [], 0.0, 0.0, 0
        for number in range(effort.folds):
            held = fold == number
            judged = anomalous[held] if product.twins else anomalous
            began = time.perf_counter()
            scale = good[~held].std(axis=(0, 1, 2)) + 1e-6  # of each feature, so that none rules by its unit
            fitted = _fitted(model, good[~held] / scale, effort.bank)
            between = time.perf_counter()
            scores = [part_scores(fitted.scores(maps / scale)) for maps in (good[held], judged)]
            fit_s, score_s = fit_s + between - began, score_s + time.perf_counter() - between
            scored += len(judged) + int(held.sum())
            found.append(auroc(*scores))
        rows.append(
            {
                "case": f"{product.name}, {extractor.name}, {model}",
                "product": product.name,
                "features": extractor.name,
                "model": model,
                "auroc": statistics.mean(found),
                "auroc_min": min(found),
                "good": len(good),
                "anomalous": len(anomalous),
                "fits": extractor.name == "trained" and (model == "nearest") == product.twins,
                "fit_s": fit_s / effort.folds,
                "score_ms": extract_ms + 1000 * score_s / scored,
            }
        )
    return rows


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each product's figure and their mean, by the method that fits the product; and the mean of every method."""
    methods = dict.fromkeys((row["features"], row["model"]) for row in rows)
    means = {
        f"{features}, {model}": statistics.mean(
            row["auroc"] for row in rows if (row["features"], row["model"]) == (features, model)
        )
        for features, model in methods
    }
    own = {row["product"]: row["auroc"] for row in rows if row["fits"]}
    return {
        "auroc_mean": statistics.mean(own.values()),
        "auroc_min": min(own.values()),
        "auroc": own,
        "methods": means,
    }


def _fitted(model: str, maps: Maps, bank: int) -> AnomalyModel:
    if model == "gaussian":
        return GaussianMap.of(maps)
    return NearestMap.of(maps, bank, np.random.default_rng(_SEED))


def _picture(path: Path, side: int) -> Pixels:
    picture = decode(path.read_bytes(), "rgb")
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _grey(picture: Pixels) -> Pixels:
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), np.uint8)


def _aligned(aligner: Aligner, picture: Pixels) -> Pixels:
    warp, _ = aligner.align(_grey(picture))
    size = (picture.shape[1], picture.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, warp, size, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def main(argv: list[str] | None = None) -> None:
    parser = report.arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--product", metavar="NAME", help="only this one")
    options = parser.parse_args(argv)
    cv2.setNumThreads(1)
    effort = QUICK if options.quick else FULL
    root = data_root()
    weights = solder_weights(root, effort.epochs)
    rows: list[dict[str, Any]] = []
    for product in products(root, effort, options.product):
        side = len(product.good[0])
        for extractor in (Network("trained", weights, side), Network("random", {}, side), Statistics()):
            rows += measured(product, extractor, effort)
            print(report.table(rows[-2:], COLUMNS), flush=True)
    if not rows:
        raise SystemExit(f"there is no product {options.product}")
    found = verdict(rows)
    print()
    print(report.table(rows, COLUMNS))
    print()
    flat = {"auroc_mean": found["auroc_mean"], **found["auroc"], **found["methods"]}
    print(report.transposed([{"figure": "found", **flat}], "figure"))
    report.write_json(options.json, "anomaly", {"cases": rows, **found}, quick=options.quick)


if __name__ == "__main__":
    main()
