"""Trains a network on labelled pictures: data, augmentation, steps, evaluation, checkpoints, budget, as one iterator.

Nothing in here needs more than numpy, OpenCV, onnxruntime and safetensors, but for what its docstring says.
"""

from __future__ import annotations

from edgekit.learning.budget import Budget, Governor, Reading, Sensors
from edgekit.training.augment import Augmentation, augment
from edgekit.training.checkpoint import Checkpoint, CheckpointFile, Checkpoints, KeptInMemory, Progress
from edgekit.training.early_stopping import Best, EarlyStopping
from edgekit.training.engine import StepEngine
from edgekit.training.errors import CheckpointError, TrainingError
from edgekit.training.evaluation import CentrePointEvaluator, ClassifierEvaluator, Evaluation, Evaluator
from edgekit.training.events import EpochDone, Event, Finished, Paused, Rest, Saved, Started, StepDone
from edgekit.training.examples import BoxedExamples, Examples, LabelledExamples
from edgekit.training.forward import ForwardModel, weights_as_inputs
from edgekit.training.job import job_name
from edgekit.training.order import Balance, class_weights, epoch_order
from edgekit.training.pictures import Fitted, Pictures
from edgekit.training.plan import FORWARD_FILE, STEP_FOLDER, write_plan
from edgekit.training.trainer import Engine, Settings, Stretch, Trainer
from edgekit.training.weights import MODEL_FILE, WEIGHTS_FILE, read_weights, replace_weights, write_model

__all__ = [
    "FORWARD_FILE",
    "MODEL_FILE",
    "STEP_FOLDER",
    "WEIGHTS_FILE",
    "Augmentation",
    "Balance",
    "Best",
    "BoxedExamples",
    "Budget",
    "CentrePointEvaluator",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFile",
    "Checkpoints",
    "ClassifierEvaluator",
    "EarlyStopping",
    "Engine",
    "EpochDone",
    "Evaluation",
    "Evaluator",
    "Event",
    "Examples",
    "Finished",
    "Fitted",
    "ForwardModel",
    "Governor",
    "KeptInMemory",
    "LabelledExamples",
    "Paused",
    "Pictures",
    "Progress",
    "Reading",
    "Rest",
    "Saved",
    "Sensors",
    "Settings",
    "Started",
    "StepDone",
    "StepEngine",
    "Stretch",
    "Trainer",
    "TrainingError",
    "augment",
    "class_weights",
    "epoch_order",
    "job_name",
    "read_weights",
    "replace_weights",
    "weights_as_inputs",
    "write_model",
    "write_plan",
]
