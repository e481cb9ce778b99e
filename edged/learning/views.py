"""Where a service's learning stands, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from edged.learning.bodies import JobOutcome, LearningStage, LearningState, Stock
from edged.learning.place import Place
from edged.learning.settings import labels_wanted, learner_settings, never_trains
from edgekit.learning.records import NAMES, Record
from edgekit.messages.learning import TrainProgress
from edgekit.services import Learning, Service

FACTS = 20
"""Numbers of the newest decision that go with every status."""


def learning_state(
    place: Place,
    service: Service,
    sentence: str,
    progress: TrainProgress | None,
    last: Record | None,
    stock: Stock | None = None,
    jobs: Mapping[JobOutcome, int] | None = None,
) -> LearningState:
    """`sentence` says where it stands, `progress` is of its training, `last` the newest decision.

    `stock`: its pictures as last counted. `jobs`: those that ended, by outcome.
    """
    learning = service.learning
    limits = learner_settings(service, learning or Learning()).trial
    trial, candidate = place.state.trial, place.candidate
    job = place.state.ladder.running
    return LearningState(
        service=place.service,
        start=learning.start if learning is not None else "off",
        stage=_stage(place),
        sentence=sentence,
        base=place.root,
        learned=place.kept,
        job=place.state.ladder.number,
        rung=NAMES[job.rung] if job is not None else "",
        step=(progress.text or progress.step) if progress is not None else "",
        done=progress.done if progress is not None else 0,
        total=progress.total if progress is not None else 0,
        candidate=candidate.ref if candidate is not None else place.work.ref if place.work and place.work.name else "",
        shadow=candidate.tally if candidate is not None else None,
        shadow_items=limits.shadow_items,
        shadow_audits=limits.shadow_audits,
        probation_items=trial.items if trial is not None else 0,
        probation_wanted=limits.probation_items,
        keep=service.samples.keep,
        stock=stock,
        wanted=labels_wanted(learning) if learning is not None else 0,
        never=never_trains(service),
        jobs=dict(jobs or {}),
        last=_short(last) if last is not None else None,
    )


def _short(record: Record) -> Record:
    """With the numbers that decided first: a judgement has some for each of up to 4096 classes."""
    return replace(record, facts=sorted(record.facts, key=lambda fact: fact.passed)[:FACTS])


def _stage(place: Place) -> LearningStage:
    trial = place.state.trial
    if trial is not None and trial.stage == "probation":
        return "probation"
    if trial is not None:
        return "shadow"
    return "working" if place.work is not None else "waiting"
