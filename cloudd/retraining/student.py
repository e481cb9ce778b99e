"""The device's own network, taught by the larger one: it learns to answer as that does, from where it stands.

The teacher answers exactly what the student sees, changes and mixtures of pictures included (`cloudd.compress.distil`),
so no label is needed and none is overfitted.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from cloudd.compress.distil import Lessons
from cloudd.compress.maker import Training
from cloudd.retraining import course
from cloudd.retraining.course import Pausing, Say
from cloudd.retraining.lineage import Figures, Run
from cloudd.retraining.material import Material
from cloudd.retraining.teacher import Teacher
from edgekit.autodiff.losses import CrossEntropy, Distillation
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    ClassifierEvaluator,
    ForwardModel,
    StepEngine,
    read_weights,
    write_plan,
)

TEMPERATURE = 2.0
SHOWN = 40_000
"""Pictures that it sees, each as often as it takes; changes and mixtures make them many."""
BATCH, PEAK = 32, 3e-3
"""As `cloudd compress` teaches. On `pcb-bare` a third of the rate left 4 points behind after 24,000 pictures."""
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
            Distillation(hard=CrossEntropy(output=material.request.logits), temperature=TEMPERATURE, share=1.0),
            Clipped(AdamW(weight_decay=WEIGHT_DECAY), CLIP),
            batch_norm="train" if normalised else "frozen",
        )
        staged = folder / f".{_PLAN}"
        shutil.rmtree(staged, ignore_errors=True)
        write_plan(step, staged)
        staged.rename(path)
    return path


def before(material: Material, plan: Path, threads: int) -> Figures:
    """Of the network as it came."""
    with closing(ForwardModel(plan / FORWARD_FILE, threads)) as forward:
        return course.figures(_evaluator(material, forward), read_weights(plan / WEIGHTS_FILE))


def learn(
    material: Material, teacher: Teacher, plan: Path, seconds: float, threads: int, pausing: Pausing, say: Say
) -> tuple[dict[str, NDArray[Any]], Run]:
    """Its new weights. Raises Unteachable, Interrupted, and as Trainer.run."""
    request = material.request
    training = Training(
        source=material.folder / MODEL_FILE,
        output=request.logits,
        spec=material.spec,
        count=len(material.teaching),
        read=material.reader(material.teaching),
        seconds=seconds,
        progress=lambda step, done, total: None,
    )
    examples = Lessons(training, lambda batch: teacher.answers(material.for_teacher(batch)), request.image)
    engine = StepEngine(StepRunner(plan / STEP_FOLDER, threads=threads, spin=False))
    settings = course.plan(
        engine,
        examples,
        plan.parent,
        shown=SHOWN,
        batch=BATCH,
        peak=PEAK,
        seconds=seconds,
        seed=request.seed,
    )
    with closing(ForwardModel(plan / FORWARD_FILE, threads)) as forward:
        evaluator = _evaluator(material, forward)
        return course.train(engine, examples, evaluator, settings, plan.parent, (FOLDER, teacher.digest), pausing, say)


def _evaluator(material: Material, forward: ForwardModel) -> ClassifierEvaluator:
    request = material.request
    chosen = material.examples(material.choosing, material.spec, request.image)
    return ClassifierEvaluator(forward, chosen, output=request.logits, image=request.image, score="loss")
