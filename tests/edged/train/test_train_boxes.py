"""Whole jobs of a detector in this process: labelled boxes in, a judged candidate out."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from boxes_bench import DEFINITION, NEW, OLD, counted, device, fill, kinds_of, order, recall
from train_bench import SERVICE, open_writing
from train_bench import fill as fill_labels

from edged.samples.reading import Filter
from edged.train.detector import read_detector
from edged.train.job import run
from edged.train.lineage import read_lineage
from edged.train.pace import Pace
from edgekit.graphs.errors import NetworkError
from edgekit.learning.budget import Reading
from edgekit.learning.records import Fact
from edgekit.messages.learning import TrainDone, TrainOrder, TrainProgress, TrainStopped
from edgekit.packages import CheckpointSpec, DetectionSpec, Package, open_package, seal_package
from edgekit.runtimes import open_session
from edgekit.training import read_weights, write_model
from edgekit.training.folded import fold


def work(job: TrainOrder, pause_at: int = 0) -> TrainDone | TrainStopped:
    Path(job.scratch).mkdir(parents=True, exist_ok=True)

    def say(progress: TrainProgress) -> None:
        if pause_at and progress.step == "training" and progress.done >= pause_at:
            pace.pause("it was asked to pause")

    pace = Pace(job.budget, Reading, time.monotonic, time.sleep, say)
    return run(job, pace, time.monotonic, Reading)


def done(outcome: TrainDone | TrainStopped) -> TrainDone:
    assert isinstance(outcome, TrainDone), outcome
    return outcome


def stopped(outcome: TrainDone | TrainStopped) -> TrainStopped:
    assert isinstance(outcome, TrainStopped), outcome
    return outcome


def facts(found: TrainDone, name: str) -> list[Fact]:
    return [one for one in found.verdict.facts if one.name == name]


def test_boxes_of_a_new_defect_make_a_detector_that_finds_it(detector: Package, tmp_path: Path) -> None:
    assert recall(detector, OLD) > 0.6
    device(tmp_path / "state", 60, 60, [NEW, *OLD])
    found = done(work(order(tmp_path / "state", detector, tmp_path / "job", "last-blocks")))
    assert found.verdict.accepted, found.verdict.reason
    package = open_package(Path(found.directory))
    assert package.labels == [*OLD, NEW] and package.manifest.task == "detection"
    assert package.manifest.detection == detector.manifest.detection
    assert recall(package, [NEW]) >= 0.7 and recall(package, OLD) >= 0.8
    assert "new: spot" in found.notes

    assert [one.passed for one in facts(found, "new-class")] == [True]
    assert len(facts(found, "recall")) == len(OLD) and len(facts(found, "false-alarms")) == 1
    lineage = read_lineage(package)
    assert lineage is not None and lineage.verdict == found.verdict and lineage.classes == [NEW]
    assert lineage.recipe is not None and lineage.recipe.trained > 0
    boxes = sum(sum(part.labels.values()) for part in lineage.data.parts.values())
    assert boxes == sum(len(kinds_of(number, [NEW, *OLD])) for number in [*range(60), *range(1000, 1060)])
    files = {one.file for one in package.manifest.samples}
    assert files <= {one.file for one in detector.manifest.samples}, "no picture of the plant is in a package"


def test_all_weights_learn_a_scene_that_the_detector_does_not_know(detector: Package, tmp_path: Path) -> None:
    before = recall(detector, OLD, 0.4)
    device(tmp_path / "state", 16, 20, OLD, contrast=0.4)
    found = done(work(order(tmp_path / "state", detector, tmp_path / "job", "full")))
    after = recall(open_package(Path(found.directory)), OLD, 0.4)
    assert after > before + 0.2 and after > 0.6, (before, after)
    lineage = read_lineage(open_package(Path(found.directory)))
    assert lineage is not None and lineage.recipe is not None
    everything = sum(np.prod(one.shape) for one in read_weights(Path(found.directory) / "weights.safetensors").values())
    assert lineage.recipe.trained > 0.9 * everything


def test_new_statistics_bring_back_a_scene_without_a_label(detector: Package, tmp_path: Path) -> None:
    store = open_writing(tmp_path / "state")
    fill(store, range(30), OLD, contrast=0.4)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    fill(store, range(100, 150), OLD, contrast=0.4, labelled=False)
    store.close()
    before = counted(detector, OLD, contrast=0.4)
    found = done(work(order(tmp_path / "state", detector, tmp_path / "job", "batchnorm")))
    package = open_package(Path(found.directory))
    after = counted(package, OLD, contrast=0.4)
    assert before.f1 is not None and after.f1 is not None and after.f1 > before.f1 + 0.1, (before, after)
    lineage = read_lineage(package)
    assert lineage is not None and 32 <= lineage.data.scene <= 256 and lineage.recipe is None


def test_a_batch_with_wrong_boxes_is_refused_by_what_was_labelled_before(detector: Package, tmp_path: Path) -> None:
    """The held-out part of the batch is wrong in the same way and would praise what learned the error."""
    swapped = {"hole": "bar", "bar": "hole"}
    store = open_writing(tmp_path / "state")
    fill(store, range(1000, 1030), OLD, at=1000.0, part="test")
    fill(store, range(1200, 1260), OLD, at=2000.0, says=swapped, part="test")
    fill(store, range(200, 232), OLD, at=2000.0, says=swapped, part="train")
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    job = order(tmp_path / "state", detector, tmp_path / "job", "last-blocks", earlier_before=1500.0)
    found = done(work(job))
    assert not found.verdict.accepted and "labelled before this batch" in found.verdict.reason
    assert facts(found, "accuracy")[0].passed, "by the batch itself it is better than the present model"


def test_a_paused_training_goes_on_to_the_same_weights(detector: Package, tmp_path: Path) -> None:
    device(tmp_path / "state", 8, 6, OLD)
    whole = done(work(order(tmp_path / "state", detector, tmp_path / "whole", "last-blocks")))
    job = order(tmp_path / "state", detector, tmp_path / "paused", "last-blocks")
    for at in (3, 20):
        assert stopped(work(job, pause_at=at)).kind == "paused"
    rest = done(work(job))
    weights = [Path(one.directory) / "weights.safetensors" for one in (whole, rest)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_epoch_and_score_are_chosen_by_boxes_where_there_are_enough_of_them(detector: Package, tmp_path: Path) -> None:
    store = open_writing(tmp_path / "state")
    fill(store, range(8), OLD, part="train")
    fill(store, range(500, 524), OLD, part="val")
    fill(store, range(1000, 1006), OLD, part="test")
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    store.close()
    assert detector.manifest.detection is not None
    spec = msgspec.structs.replace(detector.manifest.detection, report=0.9)
    shutil.copytree(detector.root, tmp_path / "strict")
    (tmp_path / "strict" / "package.toml").unlink()
    manifest = msgspec.structs.replace(detector.manifest, files={}, samples=[], detection=spec)
    strict = seal_package(tmp_path / "strict", manifest)
    found = done(work(order(tmp_path / "state", strict, tmp_path / "job", "last-blocks")))
    package = open_package(Path(found.directory))
    chosen = package.manifest.detection
    assert chosen is not None and chosen.report < 0.9, "a base that reports too little"
    assert msgspec.structs.replace(chosen, report=0.9) == spec
    lineage = read_lineage(package)
    assert lineage is not None and lineage.recipe is not None and lineage.recipe.score is not None
    assert 0.3 < lineage.recipe.score < 1.0, "the mean over overlaps, which small boxes hardly fill"
    assert lineage.recipe.epoch in (15, 30, 45, 60)


def test_a_detector_with_a_checkpoint_learns_on_it_and_carries_it_on(detector: Package, tmp_path: Path) -> None:
    """Served folded, where nothing is left to estimate; learned un-folded."""
    root = tmp_path / "folded"
    shutil.copytree(detector.root, root)
    (root / "package.toml").unlink()
    (root / "checkpoint").mkdir()
    for file in ("model.onnx", "weights.safetensors"):
        (root / file).rename(root / "checkpoint" / file)
    write_model(fold(onnx.load(str(root / "checkpoint" / "model.onnx"))), root)
    manifest = msgspec.structs.replace(
        detector.manifest, files={}, checkpoint=CheckpointSpec(file="checkpoint/model.onnx")
    )
    base = seal_package(root, manifest)
    device(tmp_path / "state", 60, 20, OLD)
    found = done(work(order(tmp_path / "state", base, tmp_path / "job", "batchnorm")))
    package = open_package(Path(found.directory))
    assert package.manifest.checkpoint == base.manifest.checkpoint
    kinds = [
        {node.op_type for node in onnx.load(str(package.root / file), load_external_data=False).graph.node}
        for file in ("model.onnx", "checkpoint/model.onnx")
    ]
    assert "BatchNormalization" not in kinds[0] and "BatchNormalization" in kinds[1]
    assert recall(package, OLD) > 0.5


def test_a_candidate_is_judged_with_the_thresholds_of_the_service(detector: Package, tmp_path: Path) -> None:
    device(tmp_path / "state", 60, 30, OLD)
    strict = DEFINITION + "[detection]\nthresholds = { hole = 0.999 }\n"
    job = order(tmp_path / "state", detector, tmp_path / "job", "batchnorm", definition=strict)
    (hole, bar) = facts(done(work(job)), "recall")
    assert hole.value == 0.0 and bar.value > 0.5, (hole.text, bar.text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rung": "head"}, 'the rung "head" is for classifiers'),
        ({"definition": DEFINITION.replace("detection", "anomaly")}, "is for anomaly"),
        ({"dataset": "labels"}, "has labels of whole pictures"),
        ({"dataset": "empty"}, "has no box"),
    ],
)
def test_what_a_detector_cannot_learn_is_refused_with_the_reason(
    changes: dict[str, str], says: str, detector: Package, tmp_path: Path
) -> None:
    store = open_writing(tmp_path / "state")
    fill(store, range(10), OLD)
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
    fill_labels(store, {"plain": 3})
    store.versions.make("labels", Filter(service=SERVICE), "labels")
    store.close()
    other = open_writing(tmp_path / "other")
    fill(other, range(0, 40, 4), OLD)
    other.versions.make("empty", Filter(service=SERVICE), "boxes")
    other.close()
    state = tmp_path / ("other" if changes.get("dataset") == "empty" else "state")
    outcome = stopped(work(msgspec.structs.replace(order(state, detector, tmp_path / "job", "full"), **changes)))
    assert outcome.kind == "refused" and says in outcome.reason, outcome.reason


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (DetectionSpec(head="yolov8"), 'has the head "yolov8", and only centre-point detectors'),
        (DetectionSpec(head="centernet", scores="probabilities"), "comes as probabilities"),
        (None, "is no detector whose head is known"),
    ],
)
def test_another_head_is_refused_by_its_name(spec: DetectionSpec | None, says: str, detector: Package) -> None:
    package = replace(detector, manifest=msgspec.structs.replace(detector.manifest, detection=spec))
    with pytest.raises(NetworkError, match=says):
        read_detector(package)


def test_a_network_with_room_for_new_classes_says_the_same_of_the_old_ones(detector: Package, tmp_path: Path) -> None:
    network = read_detector(detector)
    image = np.random.default_rng(1).uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    heats = []
    for name, one in (("old", network), ("new", network.with_classes(5))):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
        session = open_session(tmp_path / name / "model.onnx", "onnxruntime", None, ["weights.safetensors"])
        heats.append(session.run({network.image: image})[0])
        session.close()
    old, new = heats
    assert old.shape[1] == 2 and new.shape[1] == 5
    assert np.array_equal(old, new[:, :2])
    assert np.allclose(1 / (1 + np.exp(-new[:, 2:])), 0.01, atol=1e-6)
