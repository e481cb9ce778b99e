"""The `[learning]` table: whether and when a service's model learns on the device, and what it must show to stay."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit import toml

LearningRung = Literal["recalibrate", "batchnorm", "head", "last-blocks", "full", "cloud"]
"""What may be done (`edgekit.learning.records.Rung`); all but `cloud` a device does by itself."""

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Below1 = Annotated[float, Meta(ge=0.0, lt=1.0)]
Count = Annotated[int, Meta(ge=0, le=10_000_000)]
Some = Annotated[int, Meta(ge=1, le=10_000_000)]


class _Table(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every table below."""


class LearningTriggers(_Table, frozen=True, kw_only=True):
    """What sets learning off; 0 (or false) switches one off."""

    new_class: Annotated[int, Meta(ge=0, le=1_000_000)] = 20  # confirmed labels of a class that the model lacks
    labels: Count = 300  # labels since it last learned
    unattainable: Annotated[int, Meta(ge=0, le=1000)] = 2  # calibrations in a row that certified nothing
    audits: Count = 100  # fewest audits by which the risk may be found broken
    drift: bool = True  # the gate's alarm
    offload: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.5  # times the calibrated share that is sent, for an hour
    every_days: Annotated[float, Meta(ge=0.0, le=3650.0)] = 0.0


class LearningJudging(_Table, frozen=True, kw_only=True):
    """What a candidate must show on held-out pictures."""

    items: Some = 500  # fewest
    drop: Below1 = 0.01  # of accuracy on the old classes, by its upper confidence bound
    class_drop: Below1 = 0.01  # of any old class, by its lower bound
    earlier: Count = 100  # fewest that were labelled before the batch, where there are any
    new_recall: Share = 0.8  # of a new class
    new_recall_floor: Share = 0.5  # with 90 % confidence
    slower: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.1  # by which its 95th percentile may be longer
    larger: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.1  # and its files


class LearningShadow(_Table, frozen=True, kw_only=True):
    """What it must show on live pictures while the present model decides."""

    items: Some = 500
    audits: Count = 100  # answers of the cloud among them; counts as 0 where nobody is asked
    days: Annotated[float, Meta(gt=0.0, le=365.0)] = 7.0  # then it is refused for want of them
    drop: Share = 0.02  # by which it may be worse on the audits
    agreement: Share = 0.8  # with the present model
    offload: Share = 0.03  # by which more may be sent


class LearningProbation(_Table, frozen=True, kw_only=True):
    """How long it is watched once it decides."""

    items: Some = 2000
    hours: Annotated[float, Meta(ge=0.0, le=8760.0)] = 24.0  # at least
    failures: Annotated[int, Meta(ge=1, le=1000)] = 3  # deaths of its worker, pictures without an answer


class Learning(_Table, frozen=True, kw_only=True):
    """Learning on the device. A service without this table learns nothing."""

    start: Literal["automatic", "operator"] = "automatic"  # by triggers, or only when somebody asks
    rungs: list[LearningRung] | None = None  # what may be done; None: all that a device does by itself
    jobs: Annotated[int, Meta(ge=1, le=1000)] = 12  # in 24 hours
    hours: Annotated[float, Meta(gt=0.0, le=24.0)] = 4.0  # of work in 24 hours
    cpu_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5  # of the time that a job may be computing
    memory_mb: Annotated[int, Meta(ge=64, le=1_048_576)] = 1024  # of a job
    max_celsius: Annotated[float, Meta(gt=0.0, le=150.0)] | None = None  # hotter: it waits
    triggers: LearningTriggers = LearningTriggers()
    judging: LearningJudging = LearningJudging()
    shadow: LearningShadow = LearningShadow()
    probation: LearningProbation = LearningProbation()


def check_learning(learning: Learning) -> None:
    """Raise TomlError for keys that contradict each other."""
    rungs = learning.rungs
    if rungs is not None and not rungs:
        raise toml.TomlError('"learning.rungs" is empty', "name what may be done, or leave the table [learning] out")
    twice = [one for index, one in enumerate(rungs or []) if one in (rungs or [])[:index]]
    if twice:
        raise toml.TomlError(f'"learning.rungs" has {toml.show(twice[0])} twice', "each belongs there once")
    judging = learning.judging
    if judging.new_recall_floor > judging.new_recall:
        raise toml.TomlError(
            f'"learning.judging.new_recall_floor" is {judging.new_recall_floor:g}',
            f"it must not be above learning.judging.new_recall, which is {judging.new_recall:g}",
        )
    offload = learning.triggers.offload
    if 0.0 < offload < 1.25:
        raise toml.TomlError(
            f'"learning.triggers.offload" is {offload:g}', "0 (never) or a number of at least 1.25 belongs there"
        )
    if 0 < learning.triggers.new_class < 5:
        raise toml.TomlError(
            f'"learning.triggers.new_class" is {learning.triggers.new_class}', "0 (never) or at least 5 belongs there"
        )
