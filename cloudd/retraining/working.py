"""One job from its files to its package. Every step can be done again; what is saved is gone on with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec

from cloudd.derived import tools
from cloudd.retraining import student, teacher
from cloudd.retraining.boxes import BoxMaterial
from cloudd.retraining.course import Interrupted, Pausing
from cloudd.retraining.errors import Unteachable
from cloudd.retraining.folders import REQUEST, RESULT, WORK
from cloudd.retraining.labels import TEMPERATURE, LabelMaterial
from cloudd.retraining.lineage import RECORD, Figures, Lineage
from cloudd.retraining.order import Ended, WorkOrder
from edgekit import atomic, packages
from edgekit.autodiff.errors import AutodiffError
from edgekit.faults import crash_point
from edgekit.messages.retraining import RetrainRequest
from edgekit.packages import PackageError
from edgekit.packages.records import record_bytes
from edgekit.runtimes import ModelError
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, CheckpointError, TrainingError, replace_weights

_TEACHING = 0.6
"""Share of the time that the larger network may take."""

Say = Callable[[str, int, int], None]
"""Hears what is done, how much of it is, and of how much."""


def run(order: WorkOrder, pausing: Pausing, say: Say) -> Ended:
    """Do the job. Exceptions that are faults of this program come through; everything else is a clause."""
    try:
        _run(order, pausing, say)
    except Interrupted as error:
        return Ended(kind="paused", reason=str(error))
    except (Unteachable, AutodiffError, TrainingError) as error:
        if isinstance(error, CheckpointError):
            return Ended(kind="failed", reason=str(error))
        return Ended(kind="refused", reason=str(error))
    except (ModelError, PackageError) as error:
        return Ended(kind="failed", reason=str(error))
    except OSError as error:
        return Ended(kind="failed", reason=f"the disk refuses it: {error.strerror or error}")
    except MemoryError:
        return Ended(kind="failed", reason="there is not enough memory for it")
    return Ended(kind="done")


def _run(order: WorkOrder, pausing: Pausing, say: Say) -> None:
    folder = Path(order.folder)
    if (folder / RESULT).is_dir():
        return
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=RetrainRequest)
    work = folder / WORK
    work.mkdir(exist_ok=True)
    say("looks at what came", 0, 0)
    kind = LabelMaterial if request.detection is None else BoxMaterial
    material = kind(request, Path(order.files), work)
    plan = student.derive(material, work)
    came = student.before(material, plan, order.threads)
    macs = material.macs(material.folder / MODEL_FILE, request.image, material.spec)
    large = teacher.teach(
        material,
        macs,
        work,
        _TEACHING * order.seconds,
        order.threads,
        pausing,
        lambda done, total: say("trains a larger network", done, total),
    )
    with closing(large):
        crash_point("retraining.taught")
        _check(large.run.figures, came, len(material.choosing))
        weights, learned = student.learn(
            material,
            large,
            plan,
            (1.0 - _TEACHING) * order.seconds,
            order.threads,
            pausing,
            lambda done, total: say("teaches the device's network", done, total),
        )
    lineage = Lineage(
        base=request.base,
        base_digest=request.base_digest,
        network={one.path: one.sha256 for one in request.network},
        dataset=request.dataset,
        teaching=material.counts(material.teaching),
        choosing=material.counts(material.choosing),
        seed=request.seed,
        before=came,
        teacher=large.spec,
        teacher_macs=large.macs,
        network_macs=macs,
        taught=large.run,
        learned=learned,
        temperature=TEMPERATURE if request.detection is None else None,
        tools=tools(),
    )
    with atomic.whole_folder(folder / RESULT) as staged:
        for name in (MODEL_FILE, WEIGHTS_FILE):
            shutil.copyfile(plan / name, staged / name)
        replace_weights(staged / WEIGHTS_FILE, weights)
        (staged / RECORD).write_bytes(record_bytes(lineage))
        packages.seal_package(staged, material.draft(staged, _story(lineage, len(material.teaching))))
        crash_point("retraining.sealed")


def _check(taught: Figures, came: Figures, pictures: int) -> None:
    """A teacher that knows less has nothing to teach. Raises Unteachable."""
    if taught.quality < came.quality:
        raise Unteachable(
            f"on the {pictures} pictures that choose the larger network {_said(taught)} and the model itself "
            f"{_said(came)}: it has nothing to teach"
        )


def _said(figures: Figures) -> str:
    if figures.ap50 is not None:
        return f"has an average precision of {figures.ap50:.1%}"
    return f"finds {figures.quality:.1%} of a class"


def _story(lineage: Lineage, pictures: int) -> str:
    return (
        f"a {lineage.teacher.architecture} of width {lineage.teacher.width:g}, "
        f"{lineage.teacher_macs / max(1, lineage.network_macs):.0f} times as large, learned from "
        f"{pictures} of them and taught the device's network; on those that choose it "
        f"{_said(lineage.taught.figures)}, the device's network {_said(lineage.learned.figures)} "
        f"(before, it {_said(lineage.before)})"
    )
