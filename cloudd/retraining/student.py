"""The device's own network, taught by the larger one: it learns to answer as that does, from where it stands."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cloudd.retraining import course
from cloudd.retraining.course import Pausing, Say
from cloudd.retraining.lineage import Figures, Run
from cloudd.retraining.material import Material
from cloudd.retraining.teacher import Teacher
from edgekit import atomic
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from edgekit.training import (
    FORWARD_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    Evaluator,
    ForwardModel,
    StepEngine,
    read_weights,
    write_plan,
)

WEIGHT_DECAY, CLIP = 1e-4, 5.0
FOLDER = "student"
_PLAN = "plan"


def derive(material: Material, work: Path) -> Path:
    """The folder of its plan, made once. Raises AutodiffError where it cannot be trained, OSError."""
    folder = work / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / _PLAN
    if not path.exists():
        normalised = any(node.op_type == "BatchNormalization" for node in material.model.graph.node)
        step = build_step(
            material.model,
            material.taught_loss(),
            Clipped(AdamW(weight_decay=WEIGHT_DECAY), CLIP),
            batch_norm="train" if normalised else "frozen",
        )
        with atomic.whole_folder(path) as staged:
            write_plan(step, staged)
    return path


def before(material: Material, plan: Path, threads: int) -> Figures:
    """Of the network as it came."""
    with closing(ForwardModel(plan / FORWARD_FILE, threads)) as forward:
        return course.figures(_evaluator(material, forward), read_weights(plan / WEIGHTS_FILE))


def learn(
    material: Material, teacher: Teacher, plan: Path, seconds: float, threads: int, pausing: Pausing, say: Say
) -> tuple[dict[str, NDArray[Any]], Run]:
    """Its new weights. Raises Unteachable, Interrupted, and as Trainer.run."""
    lessons = material.lessons(lambda batch: teacher.answers(material.for_teacher(batch)))
    engine = StepEngine(StepRunner(plan / STEP_FOLDER, threads=threads, spin=False))
    settings = course.plan(
        engine, lessons, plan.parent, material.learning_pace, seconds=seconds, seed=material.request.seed
    )
    with closing(ForwardModel(plan / FORWARD_FILE, threads)) as forward:
        evaluator = _evaluator(material, forward)
        return course.train(engine, lessons, evaluator, settings, plan.parent, (FOLDER, teacher.digest), pausing, say)


def _evaluator(material: Material, forward: ForwardModel) -> Evaluator:
    return material.evaluator(forward, material.spec, material.request.image, material.outputs)
