"""The rungs of a detector: statistics of the scene from what it looks at, and gradient steps on boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edged.samples.store import SampleStore
from edged.train import scene, tuning
from edged.train.box_lessons import BoxLessons
from edged.train.candidate import Made
from edged.train.detector import DetectorNetwork, read_detector
from edged.train.graph import NetworkError
from edged.train.pace import Workplace
from edged.train.views import cut_for_detectors
from edgekit.messages.learning import TrainOrder
from edgekit.packages import Package
from edgekit.services import Service


def learn_boxes(
    order: TrainOrder, service: Service, base: Package, store: SampleStore, lessons: BoxLessons, at: Workplace
) -> Made:
    """Climb the rung of the order. Raises NetworkError for one that a detector does not have, and as `tune` does."""
    network, spec = read_detector(base), base.manifest.input
    notes = list(lessons.notes)
    if lessons.new:
        notes.append(f"new: {', '.join(lessons.new)}")
    write: Callable[[Path], None]
    recipe, seen = None, 0
    if order.rung == "batchnorm":
        pictures, usable = scene.looked_at(store, service, lessons.judge.pictures, spec, cut_for_detectors, at)
        write, seen = scene.reestimated(network, pictures, usable, at).save, len(usable)
    elif order.rung in ("last-blocks", "full"):
        if not lessons.learn.boxes:
            raise NetworkError("no box is there to learn from")
        tuned = _tuned(order, order.rung, network, base, lessons, at)
        write, recipe = tuned.write, tuning.recipe_of(tuned)
    else:
        raise NetworkError(f'the rung "{order.rung}" is for classifiers; a detector learns by the last blocks or all')
    return Made(
        base=base,
        service=service,
        name=order.name,
        version=order.version,
        job=order.job,
        rung=order.rung,
        dataset=order.dataset,
        logits="",
        write=write,
        recipe=recipe,
        scene=seen,
        notes=notes,
    )


def _tuned(
    order: TrainOrder,
    rung: tuning.TuningRung,
    network: DetectorNetwork,
    base: Package,
    lessons: BoxLessons,
    at: Workplace,
) -> tuning.Tuned:
    spec, classes = base.manifest.input, len(lessons.classes)
    examples = lessons.examples(lessons.learn, spec, network.stride)
    settings = tuning.settings_for(
        rung,
        len(examples.truths),
        spec,
        seed=order.seed,
        seconds=order.max_seconds,
        budget=order.budget,
        boxes=True,
    )

    def start() -> DetectorNetwork:
        return network.with_classes(classes) if lessons.new else network

    return tuning.tune(rung, network, start, lessons, spec, settings, base.digest, at)
