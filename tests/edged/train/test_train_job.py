"""Whole jobs in this process; what a process adds is in test_train_process."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from train_bench import (
    DEFINITION,
    DEVICE,
    EASY,
    NEW,
    OLD,
    SERVICE,
    accuracy,
    base_package,
    broken_png,
    device,
    fill,
    open_writing,
    order,
    png,
    workplace,
)

from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.train import head, tuning
from edged.train.job import run
from edged.train.lessons import load_lessons, open_samples
from edged.train.lineage import read_lineage
from edged.train.network import read_network
from edged.train.pace import Pace
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.optimisers import AdamW
from edgekit.autodiff.step import build_step
from edgekit.learning.budget import Budget, Reading
from edgekit.messages.learning import TrainDone, TrainOrder, TrainProgress, TrainStopped
from edgekit.packages import Package, open_package
from edgekit.services import parse_service
from edgekit.vision.classification import Classifier
from tests.support.disk import fill as fill_disk

LATER = range(500, 540)


def work(job: TrainOrder, reading: Reading | None = None, pause_at: int = 0) -> TrainDone | TrainStopped:
    Path(job.scratch).mkdir(parents=True, exist_ok=True)
    seen: list[TrainProgress] = []

    def say(progress: TrainProgress) -> None:
        seen.append(progress)
        if pause_at and progress.step == "training" and progress.done >= pause_at:
            pace.pause("it was asked to pause")

    pace = Pace(job.budget, lambda: reading or Reading(), time.monotonic, time.sleep, say)
    return run(job, pace, time.monotonic, lambda: reading or Reading())


def done(outcome: TrainDone | TrainStopped) -> TrainDone:
    assert isinstance(outcome, TrainDone), outcome
    return outcome


def stopped(outcome: TrainDone | TrainStopped) -> TrainStopped:
    assert isinstance(outcome, TrainStopped), outcome
    return outcome


def test_twenty_labels_of_a_new_class_make_a_head_that_finds_it(base: Package, state: Path, tmp_path: Path) -> None:
    assert accuracy(base, [NEW], LATER) == 0.0
    found = done(work(order(state, base, tmp_path / "job", "head")))
    assert found.verdict.accepted, found.verdict.reason
    package = open_package(Path(found.directory))
    assert package.ref == found.ref == f"patterns.{SERVICE}@1-1" and package.digest == found.digest
    assert package.labels == [*OLD, NEW]
    assert accuracy(package, [NEW], LATER) >= 0.8 and accuracy(package, OLD, LATER) >= 0.9
    assert Path(found.directory).is_relative_to(tmp_path / "job") and found.seconds > 0
    assert "new: spot" in found.notes

    lineage = read_lineage(package)
    assert lineage is not None and lineage.base.model == "patterns@1" and lineage.base.digest == base.digest
    assert lineage.classes == [NEW] and lineage.verdict == found.verdict and lineage.rung == "head"
    assert sum(part.pictures for part in lineage.data.parts.values()) == 30 * len(OLD) + 20
    assert {one.file for one in package.manifest.samples} <= {one.file for one in base.manifest.samples}
    assert len(package.manifest.samples) >= 3, "its own proof is that of its base, by its own answers"


def test_a_mislabelled_batch_is_refused_by_the_gate(base: Package, tmp_path: Path) -> None:
    """Somebody takes stripes for bars: the held-out part of the batch is wrong in the same way and would agree."""
    store = open_writing(tmp_path / "state")
    fill(store, dict.fromkeys(OLD, 24), at=1000.0)
    fill(store, {"stripe": 45, "bar": 45}, at=2000.0, first=200, says={"stripe": "bar", "bar": "stripe"})
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    job = order(tmp_path / "state", base, tmp_path / "job", "head", earlier_before=1500.0)
    found = done(work(job))
    assert not found.verdict.accepted and "labelled before this batch" in found.verdict.reason
    assert open_package(Path(found.directory)).digest == found.digest, "it is there to be looked at"


def test_new_statistics_bring_back_a_scene_that_lost_its_contrast(base: Package, tmp_path: Path) -> None:
    store = open_writing(tmp_path / "state")
    fill(store, dict.fromkeys(OLD, 20), contrast=0.2)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    fill(store, dict.fromkeys(OLD, 12), first=100, contrast=0.2, labelled=False)
    store.close()
    before = accuracy(base, OLD, LATER, 0.2)
    found = done(work(order(tmp_path / "state", base, tmp_path / "job", "batchnorm")))
    package = open_package(Path(found.directory))
    after = accuracy(package, OLD, LATER, 0.2)
    assert before < 0.6 and after > before + 0.2, (before, after)
    assert package.labels == list(OLD)
    lineage = read_lineage(package)
    assert lineage is not None and 80 <= lineage.data.scene <= 256


@pytest.mark.parametrize("rung", ["last-blocks", "full"])
def test_gradient_steps_learn_old_and_new_classes(rung: str, base: Package, state: Path, tmp_path: Path) -> None:
    found = done(work(order(state, base, tmp_path / "job", rung)))
    package = open_package(Path(found.directory))
    assert accuracy(package, [NEW], LATER) >= 0.8 and accuracy(package, OLD, LATER) >= 0.9, found.verdict
    lineage = read_lineage(package)
    assert lineage is not None and lineage.recipe is not None
    everything = sum(np.prod(shape) for shape in _shapes(package))
    assert 0 < lineage.recipe.trained < everything
    if rung == "last-blocks":
        assert lineage.recipe.trained < 0.8 * everything


def _shapes(package: Package) -> list[tuple[int, ...]]:
    from edgekit.training import read_weights

    return [one.shape for one in read_weights(package.root / "weights.safetensors").values()]


def test_a_paused_training_goes_on_to_the_same_weights(base: Package, small: Path, tmp_path: Path) -> None:
    whole = done(work(order(small, base, tmp_path / "whole", "last-blocks")))
    job = order(small, base, tmp_path / "paused", "last-blocks")
    for at in (3, 30):
        outcome = stopped(work(job, pause_at=at))
        assert outcome.kind == "paused" and outcome.resumable and outcome.reason == "it was asked to pause"
    rest = done(work(job))
    weights = [Path(one.directory) / "weights.safetensors" for one in (whole, rest)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_held_out_picture_that_nobody_can_look_at_judges_nobody(base: Package, tmp_path: Path) -> None:
    store = open_writing(tmp_path / "state")
    fill(store, dict.fromkeys(OLD, 20))
    new = NewSample(service=SERVICE, source="import", captured_at=1.7e9, part="test")
    record = LabelRecord(label=Label(label="bar"), kind="import", author="a.csv", at=1.0)
    store.add(new, broken_png("bar", 900), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    found = done(work(order(tmp_path / "state", base, tmp_path / "job", "head")))
    (fact,) = [one for one in found.verdict.facts if one.name == "answers"]
    assert fact.passed and fact.value == 0


def test_too_little_memory_stops_a_training_where_it_can_go_on(base: Package, small: Path, tmp_path: Path) -> None:
    job = order(small, base, tmp_path / "job", "last-blocks", budget=Budget(max_memory=1 << 20))
    outcome = stopped(work(job, Reading(memory=5 << 20)))
    assert outcome.kind == "failed" and outcome.resumable and "5 MiB of memory; 1 MiB are allowed" in outcome.reason


def test_a_full_disk_stops_the_job_with_a_sentence_and_it_goes_on_later(
    base: Package, small: Path, tmp_path: Path, small_disk: Path
) -> None:
    job = order(small, base, small_disk / "job", "last-blocks")
    assert stopped(work(job, pause_at=3)).kind == "paused"
    hog = fill_disk(small_disk)
    assert os.statvfs(small_disk).f_bavail == 0
    outcome = stopped(work(job))
    assert (outcome.kind, outcome.resumable) == ("failed", True)
    assert outcome.reason == "the disk refuses it: No space left on device"
    hog.unlink()
    found = done(work(job))
    assert open_package(Path(found.directory)).labels == [*OLD, NEW]


def test_other_labels_make_another_job_that_does_not_take_the_checkpoint(
    base: Package, small: Path, tmp_path: Path
) -> None:
    job = order(small, base, tmp_path / "job", "last-blocks")
    assert stopped(work(job, pause_at=3)).kind == "paused"
    device(tmp_path / "state", dict.fromkeys(OLD, 10))
    other = order(tmp_path / "state", base, tmp_path / "job", "last-blocks")
    outcome = stopped(work(other))
    assert (outcome.kind, outcome.resumable) == ("failed", False) and "belongs to the job" in outcome.reason


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"dataset": "gone"}, "refused", "no dataset version 'gone'"),
        ({"base": "/nowhere"}, "failed", "cannot be opened as a package directory"),
        ({"definition": 'name = "x"\nmodel = "m"\n'}, "refused", "the order is for solder and patterns@1, not x"),
        ({"definition": "name = 3"}, "refused", "name"),
        ({"name": "No Name"}, "failed", "No Name"),
    ],
)
def test_an_order_that_cannot_be_done_is_answered(
    changes: dict[str, object], kind: str, says: str, base: Package, state: Path, tmp_path: Path
) -> None:
    outcome = stopped(work(order(state, base, tmp_path / "job", "head", **changes)))
    assert outcome.kind == kind and says in outcome.reason, outcome
    assert not outcome.resumable and not outcome.reason.endswith(".")


def test_a_slower_or_larger_candidate_is_refused(base: Package, state: Path, tmp_path: Path) -> None:
    import msgspec

    strict = msgspec.structs.replace(EASY, larger=0.0)
    found = done(work(order(state, base, tmp_path / "job", "head", limits=strict)))
    (size,) = [one for one in found.verdict.facts if one.name == "size"]
    assert not found.verdict.accepted and not size.passed and "its size is" in found.verdict.reason


@pytest.fixture(scope="module")
def wide(base: Package, state: Path, place: Path) -> Package:
    """A candidate whose last layer reads earlier maps, too."""
    found = done(work(order(state, base, place / "wide", "head")))
    package = open_package(Path(found.directory))
    width = [read_network(one).last_layer().weight.shape[1] for one in (base, package)]
    assert width[1] > width[0] and any("features of earlier maps" in note for note in found.notes), found.notes
    return package


@pytest.mark.parametrize("widen", [False, True])
def test_a_head_reads_more_only_if_it_may(widen: bool, base: Package, state: Path, tmp_path: Path) -> None:
    network = read_network(base)
    store = open_samples(state, DEVICE)
    lessons = load_lessons(store, "lessons", parse_service(DEFINITION, "test"), base.labels, 20)
    made, notes = head.relearned(network, lessons, base.manifest.input, workplace(tmp_path / "work"), widen=widen)
    store.close()
    layers = [one.last_layer().weight for one in (network, made)]
    assert len(layers[1]) == len(layers[0]) + 1
    assert (layers[1].shape[1] > layers[0].shape[1]) == widen == any("earlier maps" in note for note in notes)


def test_a_candidate_can_learn_again(wide: Package, state: Path, tmp_path: Path) -> None:
    again = order(state, wide, tmp_path / "second", "head", version="1-2")
    second = done(work(again))
    learned = open_package(Path(second.directory))
    assert learned.labels == wide.labels and second.verdict.accepted, second.verdict.reason
    lineage = read_lineage(learned)
    assert lineage is not None and lineage.base.model == wide.ref and lineage.classes == []
    layers = [read_network(one).last_layer() for one in (wide, learned)]
    assert layers[0].weight.shape == layers[1].weight.shape


def test_a_candidate_learns_one_more_class_later(wide: Package, tmp_path: Path) -> None:
    """A class of a shade that no other has."""
    store = open_writing(tmp_path / "state")
    fill(store, dict.fromkeys((*OLD, NEW), 20))
    for number in range(20):
        new = NewSample(service=SERVICE, source="asked", captured_at=1.7e9 + number)
        record = LabelRecord(label=Label(label="dark"), kind="operator", author="anna", at=1.0)
        store.add(new, png("plain", 3000 + number, 0.2), record)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    store.close()
    found = done(work(order(tmp_path / "state", wide, tmp_path / "job", "head", version="1-2")))
    learned = open_package(Path(found.directory))
    assert learned.labels == [*OLD, NEW, "dark"]
    assert accuracy(learned, [*OLD, NEW], LATER) >= 0.85
    model = Classifier.load(learned)
    assert sum(model.classify(png("plain", number, 0.2)).label == "dark" for number in LATER) >= 0.8 * len(LATER)
    model.close()


def test_a_candidate_takes_the_statistics_of_another_scene(wide: Package, state: Path, tmp_path: Path) -> None:
    found = done(work(order(state, wide, tmp_path / "job", "batchnorm", version="1-2")))
    package = open_package(Path(found.directory))
    assert accuracy(package, [*OLD, NEW], LATER) >= 0.85, found.verdict


@pytest.mark.parametrize("rung", ["last-blocks", "full"])
def test_gradient_steps_go_on_from_a_candidate(
    rung: tuning.TuningRung, wide: Package, small: Path, tmp_path: Path
) -> None:
    network = read_network(wide)
    chosen = tuning.last_blocks(network) if rung == "last-blocks" else ".*"
    step = build_step(network.model, CrossEntropy(output=network.logits), AdamW(), chosen, batch_norm="frozen")
    splits = [node for node in step.graph.graph.node if node.op_type == "Split"]
    assert splits and all(all(node.output) for node in splits), "onnxruntime crashes where an output has no name"
    found = done(work(order(small, wide, tmp_path / "job", rung, version="1-2")))
    package = open_package(Path(found.directory))
    assert accuracy(package, [NEW], LATER) >= 0.8 and accuracy(package, OLD, LATER) >= 0.8, found.verdict


def test_a_model_that_gives_probabilities_learns_and_gives_logits(state: Path, tmp_path: Path) -> None:
    import onnx
    import onnx.helper

    from edgekit import packages

    root = tmp_path / "patterns@1"
    plain = base_package(root)
    (root / "package.toml").unlink()
    model = onnx.load(str(root / "model.onnx"), load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("Softmax", ["logits"], ["shares"], axis=1))
    model.graph.output[0].name = "shares"
    (root / "model.onnx").write_bytes(model.SerializeToString())
    import msgspec

    manifest = msgspec.structs.replace(
        plain.manifest, output=packages.OutputSpec(kind="probabilities", name="shares"), files={}
    )
    base = packages.seal_package(root, manifest)
    found = done(work(order(state, base, tmp_path / "job", "head")))
    learned = open_package(Path(found.directory))
    assert learned.manifest.output.kind == "logits" and found.verdict.accepted, found.verdict.reason
    model_ = Classifier.load(learned)
    assert model_.prove() >= 3
    model_.close()
