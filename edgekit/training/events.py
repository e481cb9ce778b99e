"""What a training tells while it goes on. Who iterates over it shows progress, rests when asked to, and may stop."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.training.evaluation import Evaluation


@dataclass(frozen=True)
class Started:
    """The training begins, or goes on from a checkpoint where `step` is not 0."""

    step: int
    steps: int  # in all, unless it stops early
    epoch: int
    examples: int


@dataclass(frozen=True)
class StepDone:
    """One batch was learnt from."""

    step: int  # 1-based
    epoch: int  # 1-based
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class EpochDone:
    """All batches of an epoch were learnt from, and the weights were evaluated if it was due."""

    epoch: int  # 1-based
    loss: float  # mean over its batches
    evaluation: Evaluation | None
    improved: bool  # whether these are the best weights so far


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written: a killed training goes on from here."""

    step: int


@dataclass(frozen=True)
class Rest:
    """Compute nothing for so many seconds before the next event is asked for."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Paused:
    """The training was saved and ends for now; another Trainer of the same job goes on from here."""

    reason: str


@dataclass(frozen=True)
class Finished:
    """The training is over."""

    reason: str
    best_epoch: int | None  # None: nothing was evaluated, the last weights count
    score: float | None


Event = Started | StepDone | EpochDone | Saved | Rest | Paused | Finished
