"""Learning-rate schedules as pure functions of the step. Needs nothing but msgspec, so that a device can use it."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """How the learning rate moves over a training: up in a line for `warm_up` steps, then as `shape` says.

    "constant"; "cosine": down to `final` of the peak (Loshchilov and Hutter 2017, arXiv 1608.03983); "linear": down to
    `final` in a line; "steps": times `factor` at each of the `milestones`, shares of all steps.
    """

    peak: Annotated[float, Meta(gt=0.0, le=100.0)]
    shape: Literal["constant", "cosine", "linear", "steps"] = "cosine"
    warm_up: Annotated[int, Meta(ge=0)] = 0
    final: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    factor: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.1
    milestones: tuple[Annotated[float, Meta(gt=0.0, lt=1.0)], ...] = (0.5, 0.75)


def learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    """The learning rate of `step` (0-based) of `steps` in all. A later step than the last has the last one's rate."""
    if step < schedule.warm_up:
        return schedule.peak * (step + 1) / (schedule.warm_up + 1)
    share = min(1.0, (step - schedule.warm_up) / max(1, steps - schedule.warm_up - 1))
    if schedule.shape == "cosine":
        return schedule.peak * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * share)) / 2)
    if schedule.shape == "linear":
        return schedule.peak * (1 + (schedule.final - 1) * share)
    if schedule.shape == "steps":
        passed = sum(step >= milestone * steps for milestone in schedule.milestones)
        return schedule.peak * schedule.factor**passed
    return schedule.peak
