"""A federated job of a detector: devices learn from boxes, judge by boxes, and the mean becomes a package."""

from __future__ import annotations

import secrets
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from boxes_bench import DEFINITION, OLD, counted, device
from train_bench import DEVICE, SERVICE

from cloudd.federation.definition import read
from cloudd.federation.errors import FederationError
from cloudd.federation.lineage import Job, Order
from cloudd.federation.merging import merge
from cloudd.federation.preparing import prepare
from edged.federation.files import JobFolder
from edged.federation.local import LocalTrainer
from edged.federation.shared import Shared
from edged.federation.updates import SourceError
from edged.train.box_lessons import BoxLessons, load_box_lessons
from edged.train.lessons import open_samples
from edgekit import tensors
from edgekit.federated.sums import Mean
from edgekit.messages.federation import FederatedJob
from edgekit.packages import DetectionSpec, Package
from edgekit.services import parse_service
from tests.support.federation import definition

FAINT = 0.35
ROUNDS = 3
TABLES = (
    '[local]\noptimiser = "adamw"\nlearning_rate = 0.002\nbatch = 4\nepochs = 2\n'
    '[plan.strategy]\nstrategy = "fedavg"\nclip = 1000.0\n'
)


def shared_of(root: Path, package: Package) -> tuple[Shared, JobFolder]:
    parsed, plan = read(definition(None, TABLES, service=SERVICE, model=package.ref, rounds=ROUNDS, least=2))
    folder = JobFolder(root, secrets.token_hex(16), lambda data, name: data, lambda data, name: data)
    folder.files.rmdir()
    prepare(package, parsed, plan, folder.files)
    job = FederatedJob(
        id=folder.path.name,
        service=SERVICE,
        model=package.ref,
        package=package.digest,
        task="detection",
        labels=tuple(package.labels),
        plan=msgspec.json.encode(plan).decode(),
        local=parsed.local,
        rounds=ROUNDS,
        secure=False,
        least=2,
        most=4,
    )
    return Shared(job, folder), folder


def lessons_of(state: Path, package: Package) -> BoxLessons:
    service = parse_service(DEFINITION, "test")
    with closing(open_samples(state, DEVICE)) as store:
        return load_box_lessons(store, "lessons", service, tuple(package.labels))


def test_two_devices_with_faint_boards_find_more_together_and_the_mean_is_a_detector(
    detector: Package, tmp_path: Path
) -> None:
    trainers, shared = [], None
    for name in ("one", "two"):
        device(tmp_path / name, 32, 24, OLD, contrast=FAINT)
        shared, folder = shared_of(tmp_path / f"job-{name}", detector)
        lessons = lessons_of(tmp_path / name, detector)
        spec, detection = detector.manifest.input, detector.manifest.detection
        trainers.append(LocalTrainer(shared, folder, lessons, spec, detection=detection))
    assert shared is not None

    def judged() -> np.ndarray:
        found = [trainer.evaluate(state) for trainer in trainers]
        assert all(matrix.shape == (len(OLD) + 1,) * 2 and 0 <= loss <= 1 for matrix, loss in found)
        return np.sum([matrix for matrix, _ in found], axis=0)

    state, strategy = shared.state, shared.rules.strategy
    before = judged()
    for version in range(ROUNDS):
        results = [trainer.train(state, strategy.term(state), version) for trainer in trainers]
        state = strategy.apply(state, Mean(np.mean([one.delta for one in results], axis=0, dtype=np.float32), 2))
    after = judged()
    assert before[:-1].sum() == after[:-1].sum(), "the same boxes judge"
    assert np.trace(after) > np.trace(before) and np.trace(after) > 0.7 * after[:-1].sum()

    (tmp_path / "merged").write_bytes(tensors.save(strategy.layout.unflatten(state.model)))
    made = merge(
        Order(
            base=str(detector.root),
            plan=str(folder.files),
            tensors=str(tmp_path / "merged"),
            out=str(tmp_path / "out"),
            name="boards.together",
            version="1",
            job=Job(
                name="job",
                id=folder.path.name,
                service=SERVICE,
                plan=msgspec.Raw(shared.job.plan.encode()),
                local=shared.job.local,
                secure=False,
                sums=ROUNDS,
                least=2,
                rosters=(),
            ),
            state="0" * 64,
        )
    )
    assert made.labels == list(OLD) and made.manifest.detection == detector.manifest.detection
    hits = counted(made, OLD, contrast=FAINT).recall
    assert hits is not None and hits > (counted(detector, OLD, contrast=FAINT).recall or 0.0)


def test_a_detector_with_another_head_is_refused_on_both_sides(detector: Package, tmp_path: Path) -> None:
    shared, folder = shared_of(tmp_path / "job", detector)
    device(tmp_path / "one", 12, 8, OLD)
    lessons = lessons_of(tmp_path / "one", detector)
    with pytest.raises(SourceError, match="only centre-point detectors"):
        LocalTrainer(shared, folder, lessons, detector.manifest.input, detection=DetectionSpec(head="ssd"))
    head = '[plan.strategy]\nstrategy = "additive-head"\n'
    with pytest.raises(FederationError):
        prepare(detector, *read(definition(None, head, service=SERVICE, model=detector.ref)), tmp_path / "head")
