"""What keeps a model from being made, with a text that says what to do."""

from __future__ import annotations


class TrainError(ValueError):
    """Wishes that contradict each other, or pictures that no model can be made of."""
