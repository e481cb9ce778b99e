"""From pictures to a package that edged loads, without the command line."""

from __future__ import annotations

import time
from pathlib import Path
from shutil import copytree
from typing import Any

import msgspec
import numpy as np
import pytest
from train_pictures import Draw

from cloudd import compress
from cloudd.train import (
    Job,
    Outcome,
    TrainError,
    Training,
    Wishes,
    begin,
    choose,
    divide,
    finish,
    read_job,
    read_lineage,
)
from edgekit.datasets.dataset import Dataset, DatasetError
from edgekit.datasets.formats import read_dataset
from edgekit.packages import PackageError, open_package
from edgekit.training import CheckpointError, Finished, StepDone
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector


def job(dataset: Dataset, source: str = "/pictures", **wishes: Any) -> Job:
    recipe = choose(dataset, divide(dataset).train, Wishes(**{"epochs": 6, **wishes}))
    return Job(name="m", version="1", source=source, group="", merge={}, digest=dataset.digest, recipe=recipe)


def training(dataset: Dataset, folder: Path) -> Training:
    return Training(read_job(folder), dataset, folder, threads=1, clock=time.monotonic)


def made(dataset: Dataset, out: Path, **wishes: Any) -> Outcome:
    with training(dataset, begin(job(dataset, **wishes), out)) as one:
        *_, last = one.run()
        assert isinstance(last, Finished)
        return finish(one, out)


@pytest.fixture(scope="module")
def classifier(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return made(dataset, tmp_path_factory.mktemp("classifier"))


def test_labelled_pictures_become_a_classifier_that_edged_loads_and_that_proves_itself(
    classifier: Outcome, draw: Draw
) -> None:
    package = open_package(Path(classifier.package))
    assert package.ref == classifier.model == "m@1" and package.labels == ["bad", "good"]
    assert {sample.label for sample in package.manifest.samples} == {"bad", "good"}
    model = Classifier.load(package)
    assert model.prove() == classifier.samples >= 2
    new = read_dataset(draw(20, 20, seed=9))
    right = sum(model.classify(new.read(one)).label == one.label for one in new.pictures)
    model.close()
    assert right >= 36


def test_the_record_says_what_went_in_and_how_it_was_judged(classifier: Outcome, dataset: Dataset) -> None:
    lineage = read_lineage(open_package(Path(classifier.package)))
    assert lineage is not None and lineage == classifier.lineage
    assert lineage.data.digest == dataset.digest
    parts = divide(dataset)
    assert {name: part.pictures for name, part in lineage.data.parts.items()} == {
        name: len(pictures) for name, pictures in parts.items()
    }
    assert lineage.figures.pictures == len(parts.test)
    for one in lineage.figures.labels:
        assert one.recall.low < 1.0 and one.recall.hits <= one.recall.trials
    assert 1 <= lineage.epoch <= 6 and lineage.recipe.network.architecture == "tiny_cnn"


def test_a_package_without_a_record_has_none_and_a_damaged_one_is_refused(classifier: Outcome, tmp_path: Path) -> None:
    models = Path(__file__).resolve().parents[3] / "examples" / "models"
    assert read_lineage(open_package(models / "solder-small")) is None
    copytree(classifier.package, tmp_path / "m")
    package = open_package(tmp_path / "m")
    package.path("trained/lineage.json").write_text("{}")
    with pytest.raises(TrainError, match="cannot be read"):
        read_lineage(package)


def test_the_same_pictures_recipe_and_seed_give_the_same_package(
    classifier: Outcome, dataset: Dataset, tmp_path: Path
) -> None:
    again = made(dataset, tmp_path)
    assert open_package(Path(again.package)).digest == open_package(Path(classifier.package)).digest


def test_a_training_that_stopped_anywhere_goes_on_to_the_same_package(
    classifier: Outcome, dataset: Dataset, tmp_path: Path
) -> None:
    folder = begin(job(dataset), tmp_path)
    with training(dataset, folder) as one:
        for event in one.run():
            if isinstance(event, StepDone) and event.step == 12:
                one.pause("enough")
        assert not one.ended
        with pytest.raises(TrainError, match="not trained to its end"):
            finish(one, tmp_path)
    with training(dataset, folder) as one:
        list(one.run())
        again = finish(one, tmp_path)
    assert open_package(Path(again.package)).digest == open_package(Path(classifier.package)).digest


def test_labels_that_mean_nothing_make_no_model(draw: Draw, tmp_path: Path) -> None:
    outcome = made(read_dataset(draw(150, 60, seed=5, random_labels=True), "board"), tmp_path, epochs=3)
    assert outcome.package == "" and "not better for sure" in outcome.lineage.figures.reason
    assert {one.name for one in tmp_path.iterdir()} == {"m@1.training"}


def test_boxes_become_a_detector_that_edged_loads_and_that_proves_itself(squares: Path, tmp_path: Path) -> None:
    data = read_dataset(squares)
    outcome = made(data, tmp_path, size=(48, 48), epochs=20, macs=2_000_000)
    assert outcome.package, outcome.lineage.figures.reason
    package = open_package(Path(outcome.package))
    model = Detector.load(package)
    assert model.prove() == outcome.samples >= 2
    assert {sample.count for sample in package.manifest.samples} == {None, 0}
    seen = next(one for one in divide(data).test if len(one.boxes or ()) == 2)
    assert len(model.detect(data.read(seen)).reported) == 2
    model.close()
    (figures,) = outcome.lineage.figures.labels
    assert figures.recall.low > 0.5 and figures.ap50 is not None and figures.ap50 > 0.5
    assert outcome.lineage.report == package.manifest.detection.report  # type: ignore[union-attr]


def test_a_trained_package_can_be_compressed(classifier: Outcome, draw: Draw, tmp_path: Path) -> None:
    package = open_package(Path(classifier.package))
    data = compress.read_dataset(draw(400, 400, seed=3), package.labels)
    request = compress.Request(package, data, tmp_path / "small", "1-c1", ("u8s8",), held_out=500)
    outcome = compress.compress(request)
    assert outcome.accepted and outcome.package, outcome.lineage.variants[0].reason
    smaller = open_package(Path(outcome.package))
    assert smaller.manifest.files["trained/lineage.json"] == package.manifest.files["trained/lineage.json"]
    for variant in smaller.manifest.variants:
        model = Classifier.load(smaller, variant=variant)
        assert model.prove() >= 2
        model.close()


def test_a_training_is_not_begun_twice(dataset: Dataset, tmp_path: Path) -> None:
    folder = begin(job(dataset), tmp_path)
    with pytest.raises(TrainError, match=rf"go on with: cloudd train --resume {folder}, or remove"):
        begin(job(dataset), tmp_path)


def test_other_pictures_than_at_the_beginning_are_refused(dataset: Dataset, draw: Draw, tmp_path: Path) -> None:
    folder = begin(job(dataset), tmp_path)
    with pytest.raises(DatasetError, match="changed since this training was begun"):
        training(read_dataset(draw(60, 60, seed=2)), folder)


def test_pictures_that_moved_to_another_part_make_another_training(dataset: Dataset, tmp_path: Path) -> None:
    def said(shift: int) -> Dataset:
        names = ("train", "train", "val", "test")
        return Dataset(
            tuple(
                msgspec.structs.replace(one, group="", part=names[(number + shift) % 4])
                for number, one in enumerate(dataset.pictures)
            ),
            dataset.fetch,
        )

    folder = begin(job(said(0), epochs=1), tmp_path)
    with training(said(0), folder) as one:
        list(one.run())
    assert said(0).digest == said(1).digest
    with training(said(1), folder) as one, pytest.raises(CheckpointError, match="belongs to the job"):
        list(one.run())


def test_a_picture_that_cannot_be_decoded_is_told_by_name_before_anything_is_trained(
    dataset: Dataset, tmp_path: Path
) -> None:
    broken = divide(dataset).train[3]

    def fetch(picture: Any) -> bytes:
        return dataset.fetch(picture)[: 60 if picture.sha256 == broken.sha256 else None]

    folder = begin(job(dataset), tmp_path)
    with pytest.raises(DatasetError, match=rf'"{broken.file}"'):
        training(Dataset(dataset.pictures, fetch), folder)


def test_a_folder_that_is_no_training_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="holds no training that was begun"):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text('{"schema": 2}')
    with pytest.raises(TrainError, match=r"job\.json cannot be read"):
        read_job(tmp_path)


def test_another_package_of_the_same_name_and_version_stays(
    classifier: Outcome, dataset: Dataset, tmp_path: Path
) -> None:
    with training(dataset, begin(job(dataset, epochs=5), tmp_path)) as one:
        list(one.run())
        with pytest.raises(PackageError, match="another package is already installed as m@1"):
            finish(one, Path(classifier.package).parent)


def test_weights_are_finite_float32(dataset: Dataset, tmp_path: Path) -> None:
    with training(dataset, begin(job(dataset, epochs=1), tmp_path)) as one:
        list(one.run())
        weights = one.weights()
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in weights.values())
