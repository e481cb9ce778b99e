"""Rung `batchnorm`: the running statistics of every BatchNormalization anew, from unlabelled pictures of the scene.

AdaBN (Li et al. 2016, arXiv 1603.04779): with 32 / 100 / 300 pictures of a changed scene 0.896 / 0.909 / 0.923 of a
balanced accuracy that had fallen from 0.957 to 0.333 (`research/algorithms.md` 4.4).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edged.collab.sealing import SealError
from edged.samples.reading import Filter
from edged.samples.store import SampleStore
from edged.train.graph import Graph
from edged.train.lessons import is_judging
from edged.train.pace import Workplace
from edged.train.views import Cut, View, Views, views
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_reestimation
from edgekit.datasets.dataset import DatasetError, Picture
from edgekit.graphs.errors import NetworkError
from edgekit.packages import InputSpec
from edgekit.services import Service
from edgekit.training import Pictures, TrainingError
from edgekit.vision.images import ImageError

FEWEST = 32
MOST = 256
"""Pictures: below, the statistics are too rough; above, more gives little."""
BATCH = 32
STEP = "statistics"
"""Folder of the derived step."""

G = TypeVar("G", bound=Graph)


def looked_at(
    store: SampleStore, service: Service, judging: Collection[Picture], spec: InputSpec, cut: Cut, at: Workplace
) -> tuple[Views, list[int]]:
    """What the service looks at in its newest pictures, labelled or not, but for those that judge.

    Returns the views and the places of at most MOST that can be used, the newest first. Raises sqlite3.Error, Halted.
    """
    files = {one.file for one in judging}
    newest = [
        one
        for one in store.select(Filter(service=service.name), 4 * MOST)
        if one.state == "kept" and one.id not in files and not is_judging(Picture(one.id, one.sha256, group=one.group))
    ]
    chosen: list[View] = []
    for place, one in enumerate(newest):
        if len(chosen) >= 4 * MOST:
            break
        with suppress(ImageError):  # it does not fit the pipeline, and serving says so
            chosen += views(place, (one.width, one.height), service.pipeline)
    pictures = Views(lambda place: store.picture(newest[place].id), chosen, spec, cut)
    usable: list[int] = []
    for place in range(len(chosen)):
        if len(usable) == MOST:
            break
        try:
            pictures.fitted(place)
        except (KeyError, SealError, DatasetError, TrainingError):
            continue  # evicted a moment ago, or damaged
        usable.append(place)
        at.pace.turn("reading", len(usable), min(len(chosen), MOST))
    return pictures, usable


def reestimated(network: G, pictures: Pictures, places: Sequence[int], at: Workplace) -> G:
    """The network with the statistics of the pictures at `places`, in equal batches of about BATCH.

    The mean of all batches' means, and by the law of total variance the mean of their variances and the variance of
    their means. Raises NetworkError where nothing is normalised or the step
    cannot be derived, TrainingError, Halted, OSError.
    """
    if not network.normalised:
        raise NetworkError(
            "the model has no BatchNormalization of its own: whoever exported it folded it into other weights; import "
            "it again without folding or with --checkpoint, or train it with cloudd train"
        )
    if len(places) < FEWEST:
        raise NetworkError(f"there are {len(places)} pictures of the present scene, and {FEWEST} are needed")
    folder = at.folder / STEP
    shutil.rmtree(folder, ignore_errors=True)
    try:
        step = build_reestimation(network.model, momentum=0.0)
        step.save(folder)
        runner = StepRunner(folder, threads=at.threads, spin=False)
        found: list[dict[str, NDArray[np.float32]]] = []
        parts = np.array_split(np.asarray(places), max(1, len(places) // BATCH))
        for done, part in enumerate(parts, 1):
            images = np.concatenate([pictures.tensor(pictures.fitted(int(place)).image) for place in part])
            runner.step({network.image: images})
            found.append(runner.parameters())
            at.pace.turn("training", done, len(parts))
    except AutodiffError as error:
        raise NetworkError(f"the statistics cannot be taken: {error}") from None
    layers = [(node.input[3], node.input[4]) for node in step.model.graph.node if node.op_type == "BatchNormalization"]
    return replace(network, model=step.model).with_weights(_pooled(layers, found))


def _pooled(layers: Sequence[tuple[str, str]], found: Sequence[dict[str, NDArray[np.float32]]]) -> dict[str, Any]:
    pooled: dict[str, Any] = {}
    for mean, variance in layers:
        means = np.stack([one[mean] for one in found]).astype(np.float64)
        variances = np.stack([one[variance] for one in found]).astype(np.float64)
        pooled[mean] = means.mean(axis=0)
        pooled[variance] = variances.mean(axis=0) + means.var(axis=0)
    return pooled
