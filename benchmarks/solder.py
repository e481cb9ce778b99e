"""The first model of a service on real solder joints: what `cloudd train` makes of them, beside a plain method.

    EDGED_REAL_DATA=... python -m benchmarks.solder [--quick] [--json FILE]

The joints of every fourth board judge (the data's own part `test`); the boards of the part `train` teach, and one in
eight of these chooses the epoch. `insufficient` and `partial` are one label, `defect`, against `normal`. Each network
goes through the whole product step with its default recipe, but for the input of mobilenet_v2, which is as small as
the other one's; the figures are those of the sealed package, at the label that it says, without a threshold of its own.

What the recipe is was chosen by three folds over the boards of `train`, never by the boards that judge. Beside it stand
histograms of oriented gradients with logistic regression on the same pictures, its strength by the same kind of folds.

The goal is a mean F1 of `defect` of 0.95 over five seeds. One CPU, one thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.pictures import data_root
from cloudd.train import Job, Training, Wishes, begin, choose, divide, finish, merged
from cloudd.train.recipe import Architecture
from edgekit.datasets.dataset import Dataset, Picture
from edgekit.datasets.formats import read_dataset
from edgekit.datasets.parts import place
from edgekit.training import StepDone
from edgekit.vision.images import decode

GOAL_F1 = 0.95
MERGE = {"insufficient": "defect", "partial": "defect"}
COLUMNS = ["case", "architecture", "seed", "f1", "recall", "precision", "epoch", "train_s", "cpu_s", "refused"]
_HOG_SIDE, _CELL = 64, 8  # pixels
_BINS = 9  # directions, without their sign
_CLIP = 0.2
_NEWTON_STEPS = 50
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_FOLDS = 3


@dataclass(frozen=True)
class Case:
    """One network and how often it is trained."""

    architecture: Architecture
    seeds: int
    size: int | None = None  # pixels; None: what the recipe takes
    epochs: int | None = None


QUICK = (Case("tiny_cnn", 1, epochs=10),)
FULL = (Case("tiny_cnn", 5), Case("mobilenet_v2", 2, size=64))


def joints(root: Path) -> Dataset:
    """The joints with the labels `normal` and `defect`, by board."""
    return merged(read_dataset(root / "solder-tht" / "labels.csv", "board"), MERGE)


def f1(found: int, wanted: int, said: int) -> float:
    """Harmonic mean of recall and precision: 2 found / (wanted + said)."""
    return 2 * found / (wanted + said) if wanted + said else 0.0


def trained(dataset: Dataset, case: Case, seed: int) -> dict[str, Any]:
    """One row: the whole product step with this seed."""
    parts = divide(dataset)
    size = None if case.size is None else (case.size, case.size)
    wishes = Wishes(architecture=case.architecture, size=size, epochs=case.epochs, seed=seed)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        job = Job(
            name="solder",
            version="1",
            source="",
            group="board",
            merge=MERGE,
            digest=dataset.digest,
            recipe=choose(dataset, parts.train, wishes),
        )
        began, cpu = time.perf_counter(), time.process_time()
        folder = begin(job, out)
        with Training(job, dataset, folder, threads=1, clock=time.perf_counter) as training:
            for event in training.run():
                if isinstance(event, StepDone) and sys.stderr.isatty():
                    print(f"\r{case.architecture} {seed}: epoch {event.epoch}", end="", file=sys.stderr, flush=True)
            outcome = finish(training, out)
        spent = time.perf_counter() - began, time.process_time() - cpu
    figures = outcome.lineage.figures
    defect = next(one for one in figures.labels if one.label == "defect")
    return {
        "case": f"{case.architecture}-{seed}",
        "architecture": case.architecture,
        "seed": seed,
        "f1": f1(defect.recall.hits, defect.recall.trials, defect.precision.trials),
        "recall": defect.recall.value or 0.0,
        "precision": defect.precision.value or 0.0,
        "epoch": outcome.lineage.epoch,
        "train_s": spent[0],
        "cpu_s": spent[1],
        "refused": bool(figures.reason),
    }


def hog(dataset: Dataset) -> dict[str, Any]:
    """One row: the plain method, on all pictures that the networks learn from or choose by."""
    parts = divide(dataset)
    began, cpu = time.perf_counter(), time.process_time()
    learn = (*parts.train, *parts.val)
    x, y = _features(dataset, learn), _defects(learn)
    fold = np.array([int(place(one, "hog") * _FOLDS) for one in learn])

    def quality(strength: float) -> float:
        z = np.zeros(len(y))
        for one in range(_FOLDS):
            z[fold == one] = logits(x[fold == one], logistic(x[fold != one], y[fold != one], strength))
        return f1(int(((z > 0) & (y == 1)).sum()), int(y.sum()), int((z > 0).sum()))

    weights = logistic(x, y, max(_STRENGTHS, key=quality))
    said, wanted = logits(_features(dataset, parts.test), weights) > 0, _defects(parts.test) == 1
    found = int((said & wanted).sum())
    return {
        "case": "hog",
        "architecture": "hog",
        "f1": f1(found, int(wanted.sum()), int(said.sum())),
        "recall": found / int(wanted.sum()),
        "precision": found / max(1, int(said.sum())),
        "train_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
    }


def _features(dataset: Dataset, pictures: Sequence[Picture]) -> NDArray[np.float64]:
    side = (_HOG_SIDE, _HOG_SIDE)
    return np.stack(
        [
            histograms(
                np.asarray(cv2.resize(decode(dataset.read(one), "grey"), side, interpolation=cv2.INTER_AREA), np.uint8)
            )
            for one in pictures
        ]
    )


def _defects(pictures: Sequence[Picture]) -> NDArray[np.float64]:
    return np.array([one.label == "defect" for one in pictures], np.float64)


def logits(x: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x @ weights[:-1] + weights[-1])


def histograms(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of a grey picture whose sides are multiples of _CELL: Dalal and Triggs 2005, with blocks of 2x2 cells.

    Each gradient is shared by the two nearest directions; each block is brought to length 1, clipped and brought to
    length 1 again.
    """
    across = cv2.filter2D(image, cv2.CV_64F, np.array([[-1.0, 0.0, 1.0]]))
    down = cv2.filter2D(image, cv2.CV_64F, np.array([[-1.0], [0.0], [1.0]]))
    strength = np.hypot(across, down)
    place = (np.arctan2(down, across) % np.pi) / np.pi * _BINS - 0.5
    low = np.floor(place)
    upper = place - low
    first = low.astype(int) % _BINS
    rows, columns = image.shape[0] // _CELL, image.shape[1] // _CELL
    cells = np.zeros((rows, columns, _BINS))
    for direction in range(_BINS):
        weight = np.where(first == direction, 1 - upper, 0) + np.where((first + 1) % _BINS == direction, upper, 0)
        parts = (weight * strength).reshape(rows, _CELL, columns, _CELL)
        cells[:, :, direction] = parts.sum(axis=(1, 3))
    blocks = np.concatenate([cells[:-1, :-1], cells[:-1, 1:], cells[1:, :-1], cells[1:, 1:]], axis=2)
    return _unit(np.minimum(_unit(blocks), _CLIP)).ravel()


def _unit(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(blocks / np.sqrt((blocks**2).sum(axis=2, keepdims=True) + 1e-6))


def logistic(x: NDArray[np.float64], y: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Weights [d + 1], the last one the bias, of sum log(1 + exp(-(2y - 1) z)) + |w|^2 / (2 strength).

    Newton's method on the n samples (the weights lie in their span), for n much smaller than d. `y` [n] is 0 or 1.
    """
    rows = np.column_stack([x, np.ones(len(x))])
    kernel = rows @ rows.T
    shares = np.zeros(len(y))
    for _ in range(_NEWTON_STEPS):
        z = kernel @ shares
        p = 1 / (1 + np.exp(-np.clip(z, -30, 30)))
        spread = np.maximum(p * (1 - p), 1e-9)
        new = np.linalg.solve(kernel + np.diag(1 / (strength * spread)), z + (y - p) / spread)
        done = float(np.abs(new - shares).max()) < 1e-9
        shares = new
        if done:
            break
    return np.asarray(rows.T @ shares)


def summary(rows: Sequence[dict[str, Any]], architecture: str) -> dict[str, float]:
    """Mean and spread over the seeds of one network."""
    own = [row for row in rows if row["architecture"] == architecture]
    scores = [row["f1"] for row in own]
    return {
        "f1_mean": statistics.mean(scores),
        "f1_min": min(scores),
        "f1_max": max(scores),
        "recall_mean": statistics.mean(row["recall"] for row in own),
        "precision_mean": statistics.mean(row["precision"] for row in own),
        "train_s": statistics.mean(row["train_s"] for row in own),
    }


def verdict(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of tiny_cnn and of the plain method, those of each network, and whether the goal is met."""
    names = [name for name in dict.fromkeys(row["architecture"] for row in rows) if name != "hog"]
    networks = {name: summary(rows, name) for name in names}
    tiny = networks["tiny_cnn"]
    plain = next(row for row in rows if row["architecture"] == "hog")
    return {**tiny, "hog_f1": plain["f1"], "networks": networks, "f1_met": tiny["f1_mean"] >= GOAL_F1}


def main(argv: list[str] | None = None) -> None:
    options = report.arguments((__doc__ or "").splitlines()[0]).parse_args(argv)
    cv2.setNumThreads(1)
    dataset = joints(data_root())
    rows = [hog(dataset)]
    for case in QUICK if options.quick else FULL:
        for seed in range(case.seeds):
            rows.append(trained(dataset, case, seed))
            print(report.table(rows[-1:], COLUMNS), flush=True)
    found = verdict(rows)
    print()
    print(report.table(rows, COLUMNS))
    print()
    print(report.transposed([{"figure": "found", **{k: v for k, v in found.items() if k != "networks"}}], "figure"))
    report.write_json(options.json, "solder", {"cases": rows, **found}, quick=options.quick)


if __name__ == "__main__":
    main()
