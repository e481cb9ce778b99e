"""From a service's `[learning]` table to the settings of `edgekit.learning`, and to the limits of a training job."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Literal

from edgekit.gates.limits import Limits as OldLimits
from edgekit.learning import ladder, learner
from edgekit.learning.band import Band
from edgekit.learning.budget import Budget
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import TrialLimits
from edgekit.learning.triggers import (
    Audits,
    Drift,
    LabelCount,
    NewClass,
    Offload,
    Schedule,
    Unattainable,
)
from edgekit.learning.watch import Triggers
from edgekit.packages import split_ref
from edgekit.services import HardSamples, Learning, Service

_DAY, _HOUR = 86_400.0, 3600.0
_BACK = 1.25
JUDGE_SHARE = 0.3
"""Of the labelled pictures of a service, by chance: those that judge (`edged.train.lessons.SHARES`)."""
MAX_NAME, MAX_VERSION = 64, 32
"""Characters of a package's name and version."""


def learner_settings(service: Service, learning: Learning) -> learner.Settings:
    """How this service learns."""
    shadow, probation = learning.shadow, learning.probation
    return learner.Settings(
        triggers=_triggers(service, learning),
        ladder=ladder.Limits(jobs=learning.jobs, seconds=learning.hours * _HOUR),
        trial=TrialLimits(
            shadow_items=shadow.items,
            shadow_audits=shadow.audits if audited(service) else 0,
            shadow_longest=shadow.days * _DAY,
            drop=shadow.drop,
            agreement=shadow.agreement,
            offload=shadow.offload,
            probation_items=probation.items,
            probation=probation.hours * _HOUR,
            failures=probation.failures,
        ),
    )


def judging_limits(learning: Learning) -> JudgingLimits:
    """What a candidate must show on held-out pictures."""
    judging = learning.judging
    return JudgingLimits(
        old=OldLimits(items=judging.items, drop=judging.drop, class_drop=judging.class_drop),
        earlier=judging.earlier,
        new_recall=judging.new_recall,
        new_recall_floor=judging.new_recall_floor,
        slower=judging.slower,
        larger=judging.larger,
    )


def labels_wanted(learning: Learning) -> int:
    """Labelled pictures of the model's own labels that a judgement needs, about: rounded up to two digits.

    Which of them judge falls by chance, and all of one board or lot together. 0 where nothing is ever judged.
    """
    if learning.rungs == ["recalibrate"]:
        return 0
    need = math.ceil(learning.judging.items / JUDGE_SHARE)
    step: int = 10 ** max(0, len(str(need)) - 2)
    return math.ceil(need / step) * step


def never_trains(service: Service) -> str:
    """A clause: why no job can ever train the model of this service, "" if one can."""
    if service.task not in ("classification", "detection"):
        return f'models of task = "{service.task}" cannot be trained on a device yet'
    return ""


def label_kind(service: Service) -> Literal["labels", "boxes"]:
    """What its model learns from: labels of whole pictures, or boxes in them."""
    return "boxes" if service.task == "detection" or _ranks_tiles(service) else "labels"


def never_asks(service: Service) -> str:
    """A clause: why cloudd is never asked to retrain the model of this service, "" if it may be.

    That sends every labelled picture, as the model sees it: the definition must say so, beside letting pictures leave.
    """
    if service.learning is None or "cloud" not in (service.learning.rungs or ()):
        return 'learning.rungs does not name "cloud", which sends labelled pictures to cloudd'
    if service.may_leave != "raw":
        return f'no picture may leave (may_leave = "{service.may_leave}")'
    return never_trains(service)


def budget_of(learning: Learning) -> Budget:
    """What a job may take from the machine."""
    return Budget(cpu_share=learning.cpu_share, max_memory=learning.memory_mb << 20, max_celsius=learning.max_celsius)


def audited(service: Service) -> bool:
    """Whether the cloud's answers tell how good a candidate's answers are: of parts of a picture they do not."""
    return service.hard_samples.asks and service.may_leave != "nothing" and service.regions is None


def certified(hard: HardSamples) -> bool:
    """Whether there is a threshold that could be calibrated anew."""
    return hard.asks and hard.mode == "risk"


def candidate_name(root: str, service: str, number: int) -> tuple[str, str]:
    """Name and version of the service's candidate of this number, of the model `root` (name@version).

    Too long a name is cut, with a hash so that two services never share one.
    """
    base, version = split_ref(root)
    name = f"{base}.{service}"
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    suffix = f"-{number}"
    return name, f"{(version or '')[: MAX_VERSION - len(suffix)]}{suffix}"


def next_number(root: str, service: str, used: int, installed: Iterable[str]) -> int:
    """The lowest number above `used` that no installed package (name@version) has."""
    taken, number = set(installed), used + 1
    while "@".join(candidate_name(root, service, number)) in taken:
        number += 1
    return number


def _ranks_tiles(service: Service) -> bool:
    """Whether it cuts pictures into tiles and takes the worst of their labels, by an order that names them."""
    tiles = service.pipeline.tiles if service.pipeline is not None else None
    return service.task == "classification" and tiles is not None and tiles.aggregate == "worst"


def _triggers(service: Service, learning: Learning) -> Triggers:
    """An operator may always ask. A class whose rank nobody knows is none that tiles could get."""
    if learning.start == "operator":
        return Triggers(
            new_class=None, unattainable=None, audits=None, drift=None, offload=None, labels=None, schedule=None
        )
    set_off = learning.triggers
    return Triggers(
        new_class=NewClass(labels=set_off.new_class) if set_off.new_class and not _ranks_tiles(service) else None,
        unattainable=Unattainable(looks=set_off.unattainable) if set_off.unattainable else None,
        audits=Audits(audits=set_off.audits) if set_off.audits else None,
        drift=Drift() if set_off.drift else None,
        offload=Offload(band=Band(leave=set_off.offload, back=_BACK, seconds=_HOUR)) if set_off.offload else None,
        labels=LabelCount(labels=set_off.labels) if set_off.labels else None,
        schedule=Schedule(every=set_off.every_days * _DAY) if set_off.every_days else None,
    )
