"""An anomaly package from good parts only.

Features are frozen (`cloudd.frozen.features`); learned is what good parts look like: where parts lie alike, place by
place (`GaussianMap`, after PaDiM), else a thinned bank of places (`NearestMap`, after PatchCore). The limit is the
conformal quantile of scores of good parts that were held out: every part is once, in one of FOLDS, by lots where the
pictures come in folders of lots. The package's map has learned from all of them, so a later part scores a little lower
than a held-out one did: the share of false alarms that was asked for is met on the safe side.

Nothing is chosen by anomalous parts. If some are there, they only tell how many are found.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cv2
import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from cloudd.derived import Progress
from cloudd.frozen.features import (
    FEATURES,
    INPUT,
    LARGEST,
    PLACE,
    SMALLEST,
    VALUES,
    Graph,
    decoded,
    input_spec,
    open_features,
)
from cloudd.frozen.package import MODEL_FILE, SAMPLE_BYTES, Made, keep_sample, made, record_of
from cloudd.train.errors import TrainError
from cloudd.train.figures import Share, share
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.heads.anomaly import AnomalyModel, GaussianMap, NearestMap, limit, part_scores
from edgekit.heads.statistics import HeadError
from edgekit.packages import AnomalySpec, Manifest, OutputSpec, Package, ProofSample, Variant
from edgekit.runtimes import Session
from edgekit.vision.anomaly import MIN_CORRELATION, AnomalyDetector, Registration, usual_spread
from edgekit.vision.detection.alignment import Limits
from edgekit.vision.preprocess import fit, prepare

MOST = 2000
"""Good parts that are learned from; more change nothing that matters."""
FOLDS = 5
GOOD, ANOMALOUS = "normal", "anomaly"
"""Labels of a package whose data has none."""
LABELS_FILE, REFERENCE_FILE = "labels.txt", "reference.png"
_SIDE = 256  # pixels of the longer side at most
_BANK, _SEEN = 1000, 50_000  # places of a NearestMap, and those that it is chosen from
_CANDIDATES, _LOOKED_AT = 3, 24  # references that are tried, and parts that are laid over each
_ALIKE = 0.8  # correlation of all parts from which no other reference is tried
_SAMPLES = 2  # of each label
_TOLERANCE = 0.15
_UNLIKE = (
    "{} of {} good parts cannot be laid over the one that was chosen as reference, so they do not lie alike; "
    "--placement free compares places wherever they are"
)
_FEWEST_JUDGED = 5  # anomalous parts from which "no better than chance" is a reason

Maps = NDArray[np.float32]


class AnomalyWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for; None: what suits the pictures."""

    size: tuple[int, int] | None = None  # width and height of the input, pixels
    placement: Literal["fixed", "free"] | None = None  # parts lie alike (or can be laid so), or anywhere
    false_alarms: Annotated[float, Meta(gt=0.0, lt=0.5)] = 0.05  # share of good parts that may be called anomalous
    good: str = ""  # the label of good parts; "": all pictures show good ones
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class AnomalyFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How well it does. Ranges are those of `cloudd.train.figures`, at 95 % confidence."""

    good: int  # parts that were learned from
    limit: float
    false_alarms: Share  # of held-out good parts
    unlike: int  # good parts that could not be laid over the reference
    found: dict[str, Share]  # of the anomalous parts of each label
    auroc: float | None  # that an anomalous part scores above a held-out good one; None without any


@dataclass(frozen=True)
class _Recipe:
    width: int
    height: int
    fixed: bool
    reference: NDArray[np.uint8] | None  # [height, width, 3]
    registration: Registration | None


def learn_anomaly(
    name: str, version: str, dataset: Dataset, wishes: AnomalyWishes, out: Path, progress: Progress
) -> Made:
    """Learn from the good parts of `dataset`, judge, and put the package NAME@VERSION into `out` unless it is refused.

    Raises DatasetError for pictures that cannot be used or are too few, TrainError for wishes that cannot be met,
    PackageError, ModelError, OSError.
    """
    good, others = _sides(dataset, wishes)
    recipe = _recipe(dataset, good, wishes, progress)
    with tempfile.TemporaryDirectory(prefix="cloudd-frozen-") as folder:
        session = open_features(recipe.width, recipe.height, Path(folder))
        try:
            maps, laid = _all_maps(dataset, good, recipe, session, "learning", progress)
            other_maps, others_laid = _all_maps(dataset, others, recipe, session, "judging", progress)
        finally:
            session.close()
    held_out = _held_out(maps, laid, _folds(good), recipe, wishes.seed)
    try:
        edge = limit(held_out, wishes.false_alarms)
    except HeadError as error:
        raise DatasetError(f"{error}. Bring more pictures of good parts, or allow more --false-alarms") from None
    if not math.isfinite(edge):
        raise TrainError(_UNLIKE.format(int((~laid).sum()), len(laid)))
    scale = _scale(maps[laid])
    model = _fitted(maps[laid] / scale, recipe.fixed, wishes.seed)
    scores = _scores(model, other_maps, others_laid, scale)
    spec = AnomalySpec(
        limit=edge,
        spread=usual_spread(edge, held_out[np.isfinite(held_out)]),
        reference=REFERENCE_FILE if recipe.fixed else "",
    )
    figures = _figures(held_out, edge, laid, others, scores)
    record = record_of("anomaly", good, _said(wishes, recipe), figures)
    labels = (wishes.good or GOOD, ANOMALOUS if wishes.good != ANOMALOUS else "other")
    draft = Manifest(
        name=name,
        version=version,
        task="anomaly",
        description=f"{'parts that lie alike' if recipe.fixed else 'parts that lie anywhere'}, learned from "
        f"{len(good)} good ones by cloudd",
        labels=LABELS_FILE,
        input=input_spec(recipe.width, recipe.height),
        output=OutputSpec(kind="none", name="map"),
        anomaly=spec,
        variants=[Variant(file=MODEL_FILE)],
    )

    def write(root: Path) -> None:
        write_model(root / MODEL_FILE, recipe.width, recipe.height, model, scale)
        (root / LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), "utf-8")
        if recipe.reference is not None:
            cv2.imwrite(str(root / REFERENCE_FILE), recipe.reference[:, :, ::-1])

    def samples(root: Path, package: Package) -> list[ProofSample]:
        return _samples(root, AnomalyDetector.load(package), dataset, good, others)

    return made(out, record, _reason(figures, others, wishes), draft, write, samples, AnomalyDetector.load)


def write_model(path: Path, width: int, height: int, model: AnomalyModel, scale: NDArray[np.float64]) -> None:
    """Features and map as one ONNX file: [1, 3, height, width] -> "map" [1, rows, columns].

    `model` was learned from features divided by `scale` [VALUES]; here the division goes into its weights. The distance
    to the nearest of a bank is sqrt(|x|^2 + min over b of (|b|^2 - 2 x.b)).
    """
    graph = Graph(width, height)
    places = graph.node("Transpose", FEATURES, perm=[0, 2, 3, 1])
    axes = graph.constant([3], np.int64)
    if isinstance(model, GaussianMap):
        moved = graph.node("Sub", places, graph.constant(model.means * scale))
        white = graph.node("MatMul", moved, graph.constant(model.whitening / scale[:, np.newaxis]))
        total = graph.node("ReduceSum", graph.node("Mul", white, white), axes, keepdims=0)
    else:
        assert isinstance(model, NearestMap)
        scaled = graph.node("Mul", places, graph.constant(1.0 / scale))
        own = graph.node("ReduceSum", graph.node("Mul", scaled, scaled), axes, keepdims=0)
        crossed = graph.node("MatMul", scaled, graph.constant(-2.0 * model.bank.T))
        apart = graph.node("Add", crossed, graph.constant(np.square(model.bank).sum(axis=1)))
        total = graph.node("Add", own, graph.node("ReduceMin", apart, axes, keepdims=0))
    graph.node("Sqrt", graph.node("Max", total, graph.constant(0.0)), name="map")
    graph.write(path, {"map": (1, *graph.places)})


# --- the pictures -----------------------------------------------------------------------------------------------------


def _sides(dataset: Dataset, wishes: AnomalyWishes) -> tuple[list[Picture], list[Picture]]:
    """Good and anomalous parts, each in the order of their hashes."""
    if dataset.detection:
        raise TrainError("the data has boxes; an anomaly detector learns from whole pictures of good parts")
    ordered = sorted(dataset.pictures, key=lambda one: one.sha256)
    if not wishes.good and len(dataset.labels) > 1:
        known = ", ".join(dataset.labels[:20])
        raise TrainError(f"the data has several labels ({known}); say which one good parts have: --good LABEL")
    if wishes.good and wishes.good not in dataset.labels:
        known = ", ".join(dataset.labels[:20])
        raise DatasetError(f"no picture has the label {wishes.good!r} of --good; there are {known}")
    good = [one for one in ordered if not wishes.good or one.label == wishes.good][:MOST]
    return good, [one for one in ordered if wishes.good and one.label != wishes.good][:MOST]


def _folds(good: Sequence[Picture]) -> NDArray[np.int64]:
    """The fold of each part; lots stay together where there are three or more."""
    groups = sorted({one.group for one in good})
    if len(groups) >= 3:
        return np.array([groups.index(one.group) % min(FOLDS, len(groups)) for one in good])
    return np.arange(len(good)) % FOLDS


def _recipe(dataset: Dataset, good: Sequence[Picture], wishes: AnomalyWishes, progress: Progress) -> _Recipe:
    if len(good) < 2:
        raise DatasetError(f"{len(good)} pictures of good parts; at least 20 should be there")
    width, height = wishes.size or _size(good[0])
    if any(side % PLACE or not SMALLEST <= side <= LARGEST for side in (width, height)):
        raise TrainError(
            f"--size {width}x{height}: sides that are multiples of {PLACE} from {SMALLEST} to {LARGEST} pixels "
            "belong there"
        )
    if wishes.placement == "free":
        return _Recipe(width, height, False, None, None)
    spec = input_spec(width, height)
    looked_at = [fit(decoded(dataset, one, spec), spec) for one in good[:_LOOKED_AT]]
    limits = _limits()
    best: tuple[float, float, int] = (-1.0, -1.0, 0)
    for place in range(min(_CANDIDATES, len(looked_at))):
        progress("aligning", place + 1, _CANDIDATES)
        tried = Registration(looked_at[place], limits)
        found = np.array([tried.lay(one)[2] for at, one in enumerate(looked_at) if at != place])
        best = max(best, (float((found >= MIN_CORRELATION).mean()), float(np.median(found)), -place))
        if found.min() >= _ALIKE:
            break
    reference = looked_at[-best[2]]
    if wishes.placement is None and best[0] < 1.0 - wishes.false_alarms / 2:
        return _Recipe(width, height, False, None, None)
    return _Recipe(width, height, True, reference, Registration(reference, limits))


def _limits() -> Limits:
    usual = AnomalySpec(limit=1.0, spread=1.0)
    return Limits(usual.max_shift, usual.max_rotation, usual.max_scale)


def _size(picture: Picture) -> tuple[int, int]:
    """With the longer side of _SIDE pixels at most, in the shape of the pictures."""
    factor = min(1.0, _SIDE / max(picture.width, picture.height))
    width, height = (
        min(LARGEST, max(SMALLEST, round(side * factor / PLACE) * PLACE)) for side in (picture.width, picture.height)
    )
    return width, height


def _all_maps(
    dataset: Dataset, pictures: Sequence[Picture], recipe: _Recipe, session: Session, step: str, progress: Progress
) -> tuple[Maps, NDArray[np.bool_]]:
    """Maps [n, rows, columns, VALUES], and whether each part could be laid over the reference."""
    spec = input_spec(recipe.width, recipe.height)
    rows, columns = recipe.height // PLACE, recipe.width // PLACE
    maps, laid = np.empty((len(pictures), rows, columns, VALUES), np.float32), np.ones(len(pictures), bool)
    for at, picture in enumerate(pictures):
        progress(step, at + 1, len(pictures))
        part = fit(decoded(dataset, picture, spec), spec)
        if recipe.registration is not None:
            part, _, correlation = recipe.registration.lay(part)
            laid[at] = correlation >= MIN_CORRELATION
        tensor = prepare(part, spec, session.inputs[0])
        maps[at] = session.run({INPUT: tensor})[0][0].transpose(1, 2, 0)
    return maps, laid


# --- what is learned --------------------------------------------------------------------------------------------------


def _scale(maps: Maps) -> NDArray[np.float64]:
    """Of each value, so that none rules by its unit."""
    return np.asarray(maps.std(axis=(0, 1, 2), dtype=np.float64) + 1e-6, np.float64)


def _fitted(maps: NDArray[np.floating], fixed: bool, seed: int) -> AnomalyModel:
    if fixed:
        return GaussianMap.of(maps)
    rng = np.random.default_rng(seed)
    places = np.asarray(maps, np.float32).reshape(-1, 1, 1, maps.shape[-1])
    if len(places) > _SEEN:
        places = places[np.sort(rng.choice(len(places), _SEEN, replace=False))]
    return NearestMap.of(places, _BANK, rng)


def _held_out(
    maps: Maps, laid: NDArray[np.bool_], folds: NDArray[np.int64], recipe: _Recipe, seed: int
) -> NDArray[np.float64]:
    """The score of each good part under a model that has not learned from it; infinite where it cannot be laid."""
    scores = np.full(len(maps), np.inf)
    for fold in np.unique(folds):
        learn, judge = laid & (folds != fold), folds == fold
        if learn.sum() < 2:
            raise TrainError(_UNLIKE.format(int((~laid).sum()), len(laid)))
        scale = _scale(maps[learn])
        scores[judge] = _scores(_fitted(maps[learn] / scale, recipe.fixed, seed), maps[judge], laid[judge], scale)
    return scores


def _scores(
    model: AnomalyModel, maps: Maps, laid: NDArray[np.bool_], scale: NDArray[np.float64]
) -> NDArray[np.float64]:
    if not len(maps):
        return np.empty(0)
    found = np.concatenate([part_scores(model.scores(one[np.newaxis] / scale)) for one in maps])
    return np.where(laid, found, np.inf)


# --- what is said about it --------------------------------------------------------------------------------------------


def _figures(
    held_out: NDArray[np.float64],
    edge: float,
    laid: NDArray[np.bool_],
    others: Sequence[Picture],
    scores: NDArray[np.float64],
) -> AnomalyFigures:
    labels = sorted({one.label for one in others})
    mine = np.array([one.label for one in others])
    higher = scores[:, np.newaxis] > held_out[np.newaxis]
    equal = scores[:, np.newaxis] == held_out[np.newaxis]
    return AnomalyFigures(
        good=len(held_out),
        limit=edge,
        false_alarms=share(int((held_out >= edge).sum()), len(held_out)),
        unlike=int((~laid).sum()),
        found={
            label: share(int((scores[mine == label] >= edge).sum()), int((mine == label).sum())) for label in labels
        },
        auroc=float((higher + 0.5 * equal).mean()) if len(others) else None,
    )


def _reason(figures: AnomalyFigures, others: Sequence[Picture], wishes: AnomalyWishes) -> str:
    hits = sum(one.hits for one in figures.found.values())
    if len(others) < _FEWEST_JUDGED or share(hits, len(others)).low > wishes.false_alarms:
        return ""
    return (
        f"of {len(others)} anomalous parts it finds {hits}, which may as well be chance where {wishes.false_alarms:g} "
        "of the good ones are called anomalous; another --size, more light on the difference, or a classifier that is "
        "trained on labelled pictures may see it"
    )


def _said(wishes: AnomalyWishes, recipe: _Recipe) -> dict[str, object]:
    return {
        "size": [recipe.width, recipe.height],
        "features": "statistics",
        "map": "gaussian" if recipe.fixed else "nearest",
        "placement": "fixed" if recipe.fixed else "free",
        "false_alarms": wishes.false_alarms,
        "folds": FOLDS,
        "bank": 0 if recipe.fixed else _BANK,
        "seed": wishes.seed,
    }


def _samples(
    root: Path, model: AnomalyDetector, dataset: Dataset, good: Sequence[Picture], others: Sequence[Picture]
) -> list[ProofSample]:
    """The surest pictures of each label that the model gets right."""
    samples: list[ProofSample] = []
    try:
        for label, pictures in zip(model.labels, (good, others), strict=True):
            sure = []
            for picture in pictures[: 4 * _LOOKED_AT]:
                data = dataset.read(picture)
                answer = model.classify(data)
                if answer.label == label and len(data) <= SAMPLE_BYTES and answer.margin > 0:
                    sure.append((answer.score, picture))
            for score, picture in sorted(sure, key=lambda one: (-one[0], one[1].sha256))[:_SAMPLES]:
                file = keep_sample(root, len(samples), dataset.read(picture))
                samples.append(ProofSample(file=file, label=label, score=round(score, 3), tolerance=_TOLERANCE))
    finally:
        model.close()
    return samples
