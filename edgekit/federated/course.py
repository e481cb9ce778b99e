"""How the local training of a device goes on over the rounds of a job: how far each round goes, and its learning rates.

All rounds together are one training. Where a round stands in it follows from the version (sums published so far)
alone, so a device that was away, or was killed, does what it would have done.
"""

from __future__ import annotations

from edgekit.autodiff.schedules import Schedule, learning_rate
from edgekit.messages.federation import LocalTraining


def steps_of(local: LocalTraining, pictures: int) -> int:
    """Steps of one round on a device with so many pictures to learn from."""
    return local.steps or local.epochs * max(1, pictures // local.batch)


def schedule_of(local: LocalTraining, steps: int) -> Schedule:
    """The learning rate over `whole(rounds, steps)` steps."""
    return Schedule(peak=local.learning_rate, shape=local.schedule, warm_up=local.warm_up * steps)


def whole(rounds: int, steps: int) -> int:
    """Steps of all rounds, and one more: a cosine ends at 0, and no step is to be made with that."""
    return rounds * steps + 1


def rates(local: LocalTraining, version: int, rounds: int, steps: int) -> list[float]:
    """Of each step of the round that makes sum `version` + 1 of `rounds`; all above 0."""
    schedule, first = schedule_of(local, steps), version * steps
    return [learning_rate(schedule, first + at, whole(rounds, steps)) for at in range(steps)]
