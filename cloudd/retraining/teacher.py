"""The larger network: one of ours, of a width that leaves the device's network far behind, trained on the labels.

It begins with no weights of any other training: what it knows comes from this device's pictures alone.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.retraining import course
from cloudd.retraining.course import Pausing, Say
from cloudd.retraining.errors import Unteachable
from cloudd.retraining.lineage import Run
from cloudd.retraining.material import Answers, Material
from edgekit import atomic
from edgekit.architectures import ArchitectureError, Spec, build
from edgekit.architectures.network import INPUT
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.step import build_step
from edgekit.runtimes import SessionOptions, open_session
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    ForwardModel,
    StepEngine,
    replace_weights,
    write_plan,
)

LARGER = 4.0
"""Times the multiply-accumulates of the device's network: a teacher that is hardly larger knows hardly more."""
WEIGHT_DECAY, CLIP = 0.02, 5.0
FOLDER = "teacher"
_PLAN, _DONE = "plan", "done.json"


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    spec: Spec
    macs: int
    run: Run


@dataclass(frozen=True)
class Teacher:
    """A trained one. `answers`: pictures [n, c, h, w] as it wants them -> its outputs."""

    spec: Spec
    macs: int
    run: Run
    digest: str  # of its weights
    answers: Answers
    close: Callable[[], None]


def teach(
    material: Material, macs: int, work: Path, seconds: float, threads: int, pausing: Pausing, say: Say
) -> Teacher:
    """Train it, go on with it, or load it. `macs`: of the device's network.

    Raises Unteachable where nothing here is larger or the time does not suffice, Interrupted, and as Trainer.run.
    """
    folder = work / FOLDER
    folder.mkdir(exist_ok=True)
    if not (folder / _DONE).exists():
        _train(material, macs, folder, seconds, threads, pausing, say)
    done = msgspec.json.decode((folder / _DONE).read_bytes(), type=_Done)
    session = open_session(folder / MODEL_FILE, "onnxruntime", SessionOptions(threads=threads), [WEIGHTS_FILE])
    digest = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()

    def answers(batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        return [np.asarray(one, np.float32) for one in session.run({INPUT: batch})]

    return Teacher(done.spec, done.macs, done.run, digest, answers, session.close)


def larger(material: Material, macs: int, work: Path) -> tuple[Spec, int]:
    """The first network of the ladder that is LARGER times as large, and what it costs; Unteachable without one."""
    request, spec, cost = material.request, material.teacher_spec, 0
    for architecture, width in material.ladder():
        try:
            tried = Spec(
                architecture=architecture,
                classes=len(request.labels),
                input_width=spec.width,
                input_height=spec.height,
                channels=1 if spec.colour == "grey" else 3,
                width=width,
                seed=request.seed,
            )
            path = work / "larger.onnx"
            path.write_bytes(build(msgspec.convert(msgspec.to_builtins(tried), Spec)).model.SerializeToString())
        except (ArchitectureError, msgspec.ValidationError) as error:
            raise Unteachable(
                f"no larger network is here for an input of {spec.width}x{spec.height}: {error}"
            ) from None
        cost = material.macs(path, INPUT, spec)
        path.unlink()
        if cost >= LARGER * macs:
            return tried, cost
    raise Unteachable(
        f"the device's network needs {macs:,} multiply-adds for one picture and the largest one here {cost:,}, less "
        f"than {LARGER:g} times as many: it has little to teach"
    )


def _train(
    material: Material, macs: int, folder: Path, seconds: float, threads: int, pausing: Pausing, say: Say
) -> None:
    spec, cost = larger(material, macs, folder)
    path = folder / _PLAN
    if not path.exists():
        network = build(spec)
        step = build_step(
            network.model,
            material.loss(material.made_outputs),
            Clipped(AdamW(weight_decay=WEIGHT_DECAY), CLIP),
            network.parameters(),
            batch_norm="train",
        )
        with atomic.whole_folder(path) as staged:
            write_plan(step, staged)
    engine = StepEngine(StepRunner(path / STEP_FOLDER, threads=threads, spin=False))
    examples = material.examples(material.teaching, material.teacher_spec, INPUT, changed=True)
    settings = course.plan(
        engine, examples, folder, material.teaching_pace, seconds=seconds, seed=material.request.seed
    )
    with closing(ForwardModel(path / FORWARD_FILE, threads)) as forward:
        evaluator = material.evaluator(forward, material.teacher_spec, INPUT, material.made_outputs)
        weights, run = course.train(engine, examples, evaluator, settings, folder, (FOLDER,), pausing, say)
    for name in (MODEL_FILE, WEIGHTS_FILE):
        shutil.copyfile(path / name, folder / name)
    replace_weights(folder / WEIGHTS_FILE, weights)
    atomic.write_file(folder / _DONE, msgspec.json.encode(_Done(spec=spec, macs=cost, run=run)))
