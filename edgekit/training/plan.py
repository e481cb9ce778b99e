"""A folder with all graphs that a training needs, derived where the package onnx is and executed where it is not.

step/           the train step, for `StepRunner` and `StepEngine`
forward.onnx    the model with its weights as inputs, for `ForwardModel` and the evaluators
model.onnx      the model as it will be served, and
weights.safetensors     its weights, which `replace_weights` replaces by the trained ones

The weights are on the disk once: the step's file of weights is a second name of `weights.safetensors` as it was
written, and stays when that is replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import atomic
from edgekit.autodiff.manifest import check_absent
from edgekit.training.errors import TrainingError
from edgekit.training.forward import weights_as_inputs
from edgekit.training.weights import WEIGHTS_FILE, write_model

if TYPE_CHECKING:
    from edgekit.autodiff.step import TrainStep

STEP_FOLDER = "step"
FORWARD_FILE = "forward.onnx"
_MODE = 0o644


def write_plan(step: TrainStep, folder: Path) -> None:
    """Write the plan of a derived train step into `folder`, which is made.

    Raises AutodiffError where there is a train step already, TrainingError for weights that are not finite, OSError.
    """
    names = [one.name for one in step.manifest.of("parameter", "batch_norm")]
    if not names:
        raise TrainingError("the train step has no weights to train")
    check_absent(folder / STEP_FOLDER)
    folder.mkdir(parents=True, exist_ok=True)
    write_model(step.model, folder, names=names)
    step.save(folder / STEP_FOLDER, folder / WEIGHTS_FILE)
    forward = weights_as_inputs(step.model, names)
    atomic.write_file(folder / FORWARD_FILE, forward.SerializeToString(deterministic=True), _MODE)
