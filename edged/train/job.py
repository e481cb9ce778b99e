"""One order from its beginning to its end: a judged candidate, or an exception that says why there is none."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from edged.collab.sealing import SealError
from edged.learning.settings import never_asks
from edged.store import StoreError
from edged.train.box_lessons import BoxLessons, load_box_lessons
from edged.train.candidate import finish
from edged.train.climbing import climb
from edged.train.lessons import LessonError, Lessons, check_service, load_lessons, open_samples
from edged.train.pace import Halted, Pace, Workplace
from edged.train.retraining_client import CloudFailed, Waiting, over, waiting
from edged.train.tile_lessons import load_tile_lessons
from edgekit.atomic import sweep
from edgekit.autodiff.errors import AutodiffError
from edgekit.datasets.dataset import DatasetError
from edgekit.graphs.errors import NetworkError
from edgekit.learning.budget import Sensors
from edgekit.learning.trial import Expected
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.packages import PackageError, check_name, check_version, open_package
from edgekit.runtimes import ModelError
from edgekit.services import Service, ServiceError, parse_service
from edgekit.training import CheckpointError, TrainingError

MAX_REASON = 1000
"""Characters of a reason."""


def run(order: TrainOrder, pace: Pace, clock: Callable[[], float], sensors: Sensors) -> TrainDone | TrainStopped:
    """Do the job. Exceptions that are faults of this program come through; everything else is a sentence."""
    try:
        return _run(order, Workplace(Path(order.scratch), order.threads, pace, clock, sensors))
    except Halted as error:
        # Over its budget it breaks off: more time would not help, more memory might.
        return _stopped("paused" if error.asked else "failed", str(error), pace, resumable=True)
    except Waiting as error:
        return waiting(order, str(error))
    except (CheckpointError, CloudFailed) as error:
        return _stopped("failed", str(error), pace)
    except (LessonError, NetworkError, TrainingError, AutodiffError, ServiceError) as error:
        return _stopped("refused", str(error), pace)
    except (DatasetError, PackageError, ModelError) as error:
        return _stopped("failed", str(error), pace)
    except (SealError, StoreError, sqlite3.Error) as error:
        return _stopped("failed", f"the sample store cannot be read: {error}", pace, resumable=True)
    except OSError as error:
        return _stopped("failed", f"the disk refuses it: {error.strerror or error}", pace, resumable=True)
    except MemoryError:
        return _stopped("failed", "there is not enough memory for it", pace, resumable=True)


def _stopped(kind: str, reason: str, pace: Pace, resumable: bool = False) -> TrainStopped:
    return TrainStopped(
        kind=kind,  # type: ignore[arg-type]
        reason=reason[:MAX_REASON].removesuffix("."),
        resumable=resumable,
        seconds=pace.seconds,
    )


def _run(order: TrainOrder, at: Workplace) -> TrainDone:
    check_name(order.name)
    check_version(order.version)
    service = parse_service(order.definition, "order")
    check_service(service)
    if order.rung == "cloud" and (reason := never_asks(service)):  # whatever the order says
        raise LessonError(reason)
    sweep(at.folder)
    base = open_package(Path(order.base))
    if service.name != order.service or base.ref != order.base_ref:
        raise LessonError(f"the order is for {order.service} and {order.base_ref}, not {service.name} and {base.ref}")
    with closing(open_samples(Path(order.state_dir), order.device_id)) as store:
        at.pace.turn("reading", 0, 0)
        growing = None if order.rung == "batchnorm" else order.new_class
        lessons = _loader(service)(store, order.dataset, service, base.labels, growing)
        if order.rung != "batchnorm":
            lessons = lessons.readable(base.manifest.input, lambda done, total: at.pace.turn("reading", done, total))
        made = climb(order, service, base, store, lessons, at)
        package, verdict = finish(made, lessons, order.limits, order.earlier_before, at)
    if order.rung == "cloud":
        over(order)
    hard = service.hard_samples
    return TrainDone(
        directory=str(package.root),
        ref=package.ref,
        digest=package.digest,
        seconds=at.pace.seconds,
        verdict=verdict,
        # What it sends and how long it takes beside the line only the shadow can tell.
        expected=Expected(differing=hard.risk if hard.asks and hard.mode == "risk" else None),
        notes=list(made.notes),
    )


def _loader(service: Service) -> Callable[..., Lessons | BoxLessons]:
    """What reads the lessons of this service."""
    if service.task == "detection":
        return load_box_lessons
    return load_lessons if service.pipeline is None or service.pipeline.tiles is None else load_tile_lessons
