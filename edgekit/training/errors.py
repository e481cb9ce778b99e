"""What goes wrong in training, with a text that says what to do."""

from __future__ import annotations


class TrainingError(ValueError):
    """Data, settings or a train graph that cannot be trained with, or a training that diverged."""


class CheckpointError(TrainingError):
    """A checkpoint that is damaged or belongs to another job."""
