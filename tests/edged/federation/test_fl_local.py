"""The local training of a device: the same bits however often it is interrupted, personal tensors, corrections."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from benchmarks.federated_data import Sample
from benchmarks.federated_round import federated
from benchmarks.federated_site import Machine, Network, Site
from cloudd.federation.definition import read
from cloudd.federation.preparing import prepare
from edged.federation import local
from edged.federation.files import JobFolder
from edged.federation.local import LocalTrainer
from edged.federation.shared import Shared
from edged.federation.updates import SourceError, Stopped
from edged.samples.opening import open_store
from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train.lessons import Lessons, load_lessons, open_samples
from edgekit.federated.strategy import LocalTerm, State
from edgekit.messages.federation import FederatedJob
from edgekit.packages import Package
from edgekit.services import Samples, parse_service
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, read_weights
from tests.support.federation import LABELS, definition, small_package

SERVICE = parse_service('name = "solder"\nmodel = "small"\n[samples]\nkeep = "all"\n', "test")
FEDAVG = '[plan.strategy]\nstrategy = "fedavg"\nclip = 10.0\n'


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory, package: Package) -> Iterator[Lessons]:
    state = tmp_path_factory.mktemp("samples")
    with closing(
        open_store(state, "device", lambda name: Samples(keep="all"), 0, lambda e: None, lambda: 1.0)
    ) as store:
        for number in range(30):
            label = LABELS[number % 2]
            rng = np.random.default_rng(number)
            image = np.clip(rng.normal(60 if number % 2 else 160, 15, (32, 32)), 0, 255).astype(np.uint8)
            record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=1.0)
            new = NewSample(service="solder", source="import", captured_at=float(number), group=f"g{number}")
            store.add(new, bytes(cv2.imencode(".png", image)[1]), record)
        store.versions.make("v", Filter(service="solder"), "labels")
    with closing(open_samples(state, "device")) as store:
        yield load_lessons(store, "v", SERVICE, package.labels)


def shared_of(root: Path, package: Package, plan: str = FEDAVG, settings: str = "") -> tuple[Shared, JobFolder]:
    text = definition(None, f"[local]\nlearning_rate = 0.05\nbatch = 6\nepochs = 2\n{settings}{plan}")
    parsed, found = read(text)
    folder = JobFolder(root, secrets.token_hex(16), lambda data, name: data[::-1], lambda data, name: data[::-1])
    folder.files.rmdir()
    prepare(package, parsed, found, folder.files)
    job = FederatedJob(
        id=folder.path.name, service="solder", model=package.ref, package=package.digest, labels=tuple(package.labels),
        plan=msgspec.json.encode(found).decode(), local=parsed.local, rounds=3, secure=False, least=2, most=4,
    )  # fmt: skip
    return Shared(job, folder), folder


def trainer_of(shared: Shared, folder: JobFolder, lessons: Lessons, package: Package) -> LocalTrainer:
    return LocalTrainer(shared, folder, lessons, package.manifest.input)


def test_training_gives_the_same_bits_again_and_others_in_the_next_round(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    shared, folder = shared_of(tmp_path, package)
    trainer = trainer_of(shared, folder, lessons, package)
    term = shared.rules.strategy.term(shared.state)
    first, again, other = (trainer.train(shared.state, term, version) for version in (0, 0, 1))
    assert np.abs(first.delta).max() > 0 and first.samples == len(lessons.learn.pictures)
    np.testing.assert_array_equal(first.delta, again.delta)
    assert (first.delta != other.delta).any()
    assert first.steps == 2 * (len(lessons.learn.pictures) // 6)


@pytest.mark.parametrize("point", ["fl.step", "fl.checkpoint"])
def test_a_killed_training_goes_on_to_the_same_bits(
    package: Package, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    shared, folder = shared_of(tmp_path, package, settings='batch_norm = "train"\nmomentum = 0.5\n')
    term = shared.rules.strategy.term(shared.state)
    wanted = trainer_of(shared, folder, lessons, package).train(shared.state, term, 0)
    passed = []

    def crash_point(name: str) -> None:
        passed.append(name)
        if name == point and passed.count(point) == 1:
            raise Killed

    monkeypatch.setattr(local, "crash_point", crash_point)
    with pytest.raises(Killed):
        trainer_of(shared, folder, lessons, package).train(shared.state, term, 0)
    found = trainer_of(shared, folder, lessons, package).train(shared.state, term, 0)
    np.testing.assert_array_equal(found.delta, wanted.delta)
    assert found.steps == wanted.steps
    assert not folder.names("training")


def test_a_stopped_training_saves_and_a_stale_checkpoint_is_none(
    package: Package, lessons: Lessons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, folder = shared_of(tmp_path, package)
    term = shared.rules.strategy.term(shared.state)
    trainer = trainer_of(shared, folder, lessons, package)
    monkeypatch.setattr(local, "crash_point", lambda name: trainer.stop() if name == "fl.step" else None)
    with pytest.raises(Stopped):
        trainer.train(shared.state, term, 0)
    assert folder.names("training") == ["training"]
    monkeypatch.undo()
    later = trainer.train(shared.state, term, 1)
    fresh, other = shared_of(tmp_path / "other", package)
    np.testing.assert_array_equal(later.delta, trainer_of(fresh, other, lessons, package).train(
        fresh.state, fresh.rules.strategy.term(fresh.state), 1).delta)  # fmt: skip


# --- many rounds -----------------------------------------------------------------------------------------------------

ADAMW = 'optimiser = "adamw"\nbatch_norm = "train"\nschedule = "cosine"\n'
STATISTICS = f'[plan]\npersonal = ["*.norm.mean", "*.norm.variance"]\n{FEDAVG}'


def job_of(root: Path, package: Package, rounds: int, steps: int, settings: str) -> tuple[Shared, JobFolder]:
    shared, folder = shared_of(root, package, STATISTICS, settings)
    few = msgspec.structs.replace(shared.job.local, epochs=1, steps=steps)
    shared.job = msgspec.structs.replace(shared.job, local=few, rounds=rounds)
    return shared, folder


def after(shared: Shared, folder: JobFolder, lessons: Lessons, package: Package, versions: range) -> dict[str, Any]:
    """The model when this device was alone in these rounds, with a new trainer in each, as after a restart."""
    model = shared.state.model
    for version in versions:
        state = State(model, {}, version)
        term = shared.rules.strategy.term(state)
        found = trainer_of(shared, folder, lessons, package).train(state, term, version)
        assert found.steps == shared.job.local.steps
        model = model + found.delta
    return trainer_of(shared, folder, lessons, package).weights(State(model, {}, versions.stop))


def test_rounds_of_steps_that_keep_their_moments_are_one_long_training(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    assert 6 > len(lessons.learn.pictures) // 6 >= 2  # an epoch ends within a round
    kept = ADAMW + 'moments = "kept"\n'
    whole = after(*job_of(tmp_path / "one", package, 1, 6, kept), lessons, package, range(1))
    cut = after(*job_of(tmp_path / "cut", package, 3, 2, kept), lessons, package, range(3))
    fresh = after(*job_of(tmp_path / "fresh", package, 3, 2, ADAMW), lessons, package, range(3))
    assert whole.keys() == cut.keys()
    for name, tensor in whole.items():
        np.testing.assert_allclose(cut[name], tensor, rtol=1e-4, atol=1e-5, err_msg=name)
    assert max(np.abs(fresh[name] - tensor).max() for name, tensor in whole.items()) > 1e-3


def test_moments_stay_on_the_device_beside_personal_tensors_for_two_rounds(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    shared, folder = job_of(tmp_path, package, 5, 2, ADAMW + 'moments = "kept"\n')
    weights = after(shared, folder, lessons, package, range(4))
    assert folder.names("personal-") == ["personal-000000002", "personal-000000003"]
    assert set(weights) == set(shared.tensors()) | set(shared.rules.strategy.layout.personal)
    assert not any("optimiser" in one.name for one in shared.rules.strategy.layout.slots)


def test_a_round_that_is_trained_again_takes_the_moments_that_it_took_before(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    shared, folder = job_of(tmp_path, package, 3, 2, ADAMW + 'moments = "kept"\n')
    after(shared, folder, lessons, package, range(1))
    state = State(shared.state.model, {}, 1)
    term = shared.rules.strategy.term(state)
    first, again = (trainer_of(shared, folder, lessons, package).train(state, term, 1) for _ in range(2))
    np.testing.assert_array_equal(first.delta, again.delta)


def test_the_learning_rate_falls_over_the_rounds_and_a_strategy_is_told_its_mean(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    shared, folder = job_of(tmp_path, package, 10, 2, 'batch_norm = "train"\nschedule = "cosine"\nwarm_up = 1\n')
    term, trainer = shared.rules.strategy.term(shared.state), trainer_of(shared, folder, lessons, package)
    found = [trainer.train(shared.state, term, version).learning_rate for version in (0, 1, 5, 9)]
    assert found[1] > found[0] > 0 and found[1] > found[2] > found[3] > 0
    assert max(found) <= 0.05


def test_a_device_trains_as_the_benchmark_of_federations_says_it_does(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    shared, folder = job_of(tmp_path / "job", package, 3, 2, ADAMW + 'moments = "kept"\nwarm_up = 1\n')
    found, settings = after(shared, folder, lessons, package, range(3)), shared.job.local
    machine = Machine(tmp_path / "plan", Network(side=32, width=0.25), settings, 2, 1, plan=shared.rules.plan)
    read = lessons.reader(lessons.learn)
    teach = [Sample(read(at), int(label), "", str(at), False) for at, label in enumerate(lessons.learn.labels)]
    site = Site(machine, teach, [], seed=settings.seed)
    measured = federated(machine, [site], rounds=3, looks=1, cohort=None).weights
    statistics = {name: site.state[name] for name in shared.rules.strategy.layout.personal}
    assert {**measured, **statistics}.keys() == found.keys()
    for name, tensor in {**measured, **statistics}.items():
        np.testing.assert_allclose(tensor, found[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_personal_tensors_stay_here_and_go_on_from_round_to_round(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    names = [one.name for one in shared_of(tmp_path, package)[0].rules.strategy.layout.slots]
    personal = names[-1]
    shared, folder = shared_of(tmp_path, package, f'[plan]\npersonal = ["{personal}"]\n{FEDAVG}')
    trainer = trainer_of(shared, folder, lessons, package)
    term = shared.rules.strategy.term(shared.state)
    start = trainer.weights(shared.state)[personal]
    trainer.train(shared.state, term, 0)
    assert personal not in [one.name for one in shared.rules.strategy.layout.slots]
    np.testing.assert_array_equal(trainer.weights(shared.state, 0)[personal], start)
    moved = trainer.weights(shared.state)[personal]
    assert (moved != start).any()
    np.testing.assert_array_equal(trainer_of(shared, folder, lessons, package).weights(shared.state)[personal], moved)


def test_a_correction_goes_against_every_step(package: Package, lessons: Lessons, tmp_path: Path) -> None:
    shared, folder = shared_of(tmp_path, package, settings="augment = false\n")
    few = msgspec.structs.replace(shared.job.local, epochs=1, batch=4096)
    shared.job = msgspec.structs.replace(shared.job, local=few)
    trainer = trainer_of(shared, folder, lessons, package)
    size = shared.rules.strategy.layout.size
    plain = trainer.train(shared.state, LocalTerm(shared.state.model), 0)
    correction = np.full(size, 0.25, np.float32)
    corrected = trainer.train(shared.state, LocalTerm(shared.state.model, 0.0, correction), 0)
    np.testing.assert_allclose(corrected.delta, plain.delta - 0.05 * 0.25, atol=1e-6)


def test_a_proximal_term_holds_the_weights_near_the_round_s_start(
    package: Package, lessons: Lessons, tmp_path: Path
) -> None:
    def moved(plan: str) -> float:
        shared, folder = shared_of(tmp_path, package, plan, settings="augment = false\n")
        long = msgspec.structs.replace(shared.job.local, epochs=30)  # until the pull counts
        shared.job = msgspec.structs.replace(shared.job, local=long)
        term = shared.rules.strategy.term(shared.state)
        return float(np.linalg.norm(trainer_of(shared, folder, lessons, package).train(shared.state, term, 0).delta))

    assert moved(FEDAVG.replace("clip = 10.0", "clip = 10.0\nproximal = 5.0")) < 0.5 * moved(FEDAVG)


def test_evaluation_counts_every_picture_that_was_held_out(package: Package, lessons: Lessons, tmp_path: Path) -> None:
    shared, folder = shared_of(tmp_path, package)
    confusion, loss = trainer_of(shared, folder, lessons, package).evaluate(shared.state)
    assert confusion.sum() == len(lessons.judge.pictures)
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(lessons.judge.labels, minlength=2))
    assert 0 < loss < 10


def test_the_model_that_is_written_has_the_state_s_weights(package: Package, lessons: Lessons, tmp_path: Path) -> None:
    shared, folder = shared_of(tmp_path, package)
    trainer = trainer_of(shared, folder, lessons, package)
    state = State(shared.state.model + np.float32(0.125), {}, 1)
    target = tmp_path / "out"
    target.mkdir()
    trainer.write_model(state, target)
    assert (target / MODEL_FILE).exists()
    written = read_weights(target / WEIGHTS_FILE)
    for name, array in shared.rules.strategy.layout.unflatten(state.model).items():
        np.testing.assert_array_equal(written[name], array)


def test_other_labels_than_the_job_s_are_refused(package: Package, lessons: Lessons, tmp_path: Path) -> None:
    shared, folder = shared_of(tmp_path, package)
    shared.job = msgspec.structs.replace(shared.job, labels=("bad", "good"))
    with pytest.raises(SourceError, match="labels"):
        trainer_of(shared, folder, lessons, package)
