"""When training has stopped to help: the best score so far, and how long it has not been beaten."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta


class EarlyStopping(msgspec.Struct, frozen=True, kw_only=True):
    """Stop when `patience` evaluations in a row have not beaten the best score by more than `min_gain`; 0: never."""

    patience: Annotated[int, Meta(ge=0, le=10_000)] = 10
    min_gain: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The best evaluation so far; higher scores are better."""

    score: float | None = None  # None: there was no evaluation yet
    epoch: int = 0
    waited: int = 0  # evaluations since then


def observe(best: Best, score: float, epoch: int, rule: EarlyStopping) -> Best:
    """`best` after one more evaluation. Raises ValueError for a score that is not a number or infinite."""
    if not math.isfinite(score):
        raise ValueError(f"the score of epoch {epoch} is {score}")
    if best.score is None or score > best.score + rule.min_gain:
        return Best(score=score, epoch=epoch)
    return msgspec.structs.replace(best, waited=best.waited + 1)


def exhausted(best: Best, rule: EarlyStopping) -> bool:
    """Whether training should end."""
    return 0 < rule.patience <= best.waited
