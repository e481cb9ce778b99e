"""A package whose BatchNormalization is folded learns on its un-folded checkpoint, and so does its candidate."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from train_bench import NEW, OLD, SERVICE, accuracy, fill, open_writing, order, png

from edged.samples.reading import Filter
from edged.train import folding
from edged.train.job import run
from edged.train.lineage import read_lineage
from edged.train.network import read_network
from edged.train.pace import Pace
from edgekit.learning.budget import unlimited
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.packages import CheckpointSpec, Package, Variant, open_package, seal_package
from edgekit.runtimes import ModelError
from edgekit.training import read_weights, replace_weights, write_model
from edgekit.training.folded import LIMIT, difference, fold, normalisations
from edgekit.vision.classification import Classifier

LATER = range(500, 530)
CHECKPOINT = CheckpointSpec(file="checkpoint/model.onnx")


def work(job: TrainOrder) -> TrainDone | TrainStopped:
    Path(job.scratch).mkdir(parents=True, exist_ok=True)
    pace = Pace(job.budget, unlimited, time.monotonic, time.sleep, lambda progress: None)
    return run(job, pace, time.monotonic, unlimited)


def learned(job: TrainOrder) -> Package:
    found = work(job)
    assert isinstance(found, TrainDone), found
    return open_package(Path(found.directory))


def folded_package(base: Package, root: Path, keep: bool = True) -> Package:
    """`base` as an exporter would give it, with or without what it was made of."""
    root.mkdir()
    for file in base.manifest.files:
        target = root / ("checkpoint" if file.startswith(("model", "weights")) else "") / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base.path(file), target)
    write_model(fold(onnx.load(str(root / CHECKPOINT.file))), root)
    if not keep:
        shutil.rmtree(root / "checkpoint")
    return seal_package(root, msgspec.structs.replace(base.manifest, checkpoint=CHECKPOINT if keep else None))


def count(package: Package, file: str) -> int:
    return normalisations(onnx.load(str(package.path(file)), load_external_data=False))


def apart(package: Package, labels: tuple[str, ...]) -> float:
    """The largest difference of both forms on pictures that nobody learned from."""
    forms = [Classifier.load(package), Classifier.load(package, variant=Variant(file=CHECKPOINT.file))]
    worst = 0.0
    for label in labels:
        for number in range(900, 905):
            tensor = forms[0].tensor(png(label, number))
            one, other = (model.session.run({model.session.inputs[0].name: tensor})[0] for model in forms)
            worst = max(worst, difference(one, other))
    for model in forms:
        model.close()
    return worst


@pytest.fixture(scope="module")
def folded(base: Package, place: Path) -> Package:
    return folded_package(base, place / "folded")


@pytest.fixture(scope="module")
def faded(place: Path) -> Path:
    """A device before a scene that has lost its contrast."""
    state = place / "faded"
    store = open_writing(state)
    fill(store, dict.fromkeys(OLD, 20), contrast=0.2)
    store.versions.make("lessons", Filter(service=SERVICE), "labels")
    fill(store, dict.fromkeys(OLD, 12), first=100, contrast=0.2, labelled=False)
    store.close()
    return state


def test_a_folded_package_without_a_checkpoint_cannot_take_new_statistics(
    base: Package, faded: Path, tmp_path: Path
) -> None:
    plain = folded_package(base, tmp_path / "plain", keep=False)
    found = work(order(faded, plain, tmp_path / "job", "batchnorm"))
    assert isinstance(found, TrainStopped) and found.kind == "refused"
    assert "folded it into other weights; import it again without folding or with --checkpoint" in found.reason


def test_new_statistics_are_taken_on_the_checkpoint_and_folded_anew(
    folded: Package, faded: Path, tmp_path: Path
) -> None:
    assert count(folded, "model.onnx") == 0 and count(folded, CHECKPOINT.file) == 4
    package = learned(order(faded, folded, tmp_path / "job", "batchnorm"))
    assert accuracy(package, OLD, LATER, 0.2) > accuracy(folded, OLD, LATER, 0.2) + 0.2
    assert package.manifest.checkpoint == CHECKPOINT
    assert count(package, "model.onnx") == 0 and count(package, CHECKPOINT.file) == 4
    assert apart(package, OLD) < LIMIT
    lineage = read_lineage(package)
    assert lineage is not None and lineage.base.file == CHECKPOINT.file
    assert lineage.base.sha256 == folded.manifest.files[CHECKPOINT.file]


def test_a_candidate_carries_its_checkpoint_on_and_the_next_one_learns_on_it(
    folded: Package, small: Path, tmp_path: Path
) -> None:
    first = learned(order(small, folded, tmp_path / "first", "head"))
    assert first.labels == [*OLD, NEW] and count(first, "model.onnx") == 0
    assert apart(first, (*OLD, NEW)) < LIMIT
    second = learned(order(small, first, tmp_path / "second", "batchnorm", version="1-2"))
    assert second.manifest.checkpoint == CHECKPOINT and apart(second, (*OLD, NEW)) < LIMIT
    assert accuracy(second, (*OLD, NEW), LATER) > 0.7


def test_gradient_steps_on_the_checkpoint_learn_what_they_learn_where_nothing_is_folded(
    base: Package, folded: Package, small: Path, tmp_path: Path
) -> None:
    """The digest of the base seeds nothing: equal networks give equal weights."""
    plain, kept = (learned(order(small, one, tmp_path / name, "full")) for name, one in (("a", base), ("b", folded)))
    one, other = (
        read_weights(plain.root / "weights.safetensors"),
        read_weights(kept.root / "checkpoint/weights.safetensors"),
    )
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name])


def test_a_checkpoint_of_another_network_is_found_by_the_packages_own_samples(
    folded: Package, small: Path, tmp_path: Path
) -> None:
    root = tmp_path / "wrong"
    shutil.copytree(folded.root, root)
    weights = root / "checkpoint" / "weights.safetensors"
    last = next(name for name, one in read_weights(weights).items() if one.shape[:1] == (len(OLD),) and one.ndim == 2)
    replace_weights(weights, {last: -read_weights(weights)[last]})
    wrong = seal_package(root, folded.manifest)
    with pytest.raises(ModelError, match=r"the sample .* should be"):
        read_network(wrong)
    found = work(order(small, wrong, tmp_path / "job", "batchnorm"))
    assert isinstance(found, TrainStopped) and found.kind == "failed"


def test_forms_that_differ_are_no_candidate(folded: Package, tmp_path: Path) -> None:
    root = tmp_path / "bent"
    shutil.copytree(folded.root, root)
    bias = next(name for name in read_weights(root / "weights.safetensors") if name.endswith(".bias"))
    replace_weights(root / "weights.safetensors", {bias: read_weights(root / "weights.safetensors")[bias] + 0.2})
    bent = seal_package(root, folded.manifest)
    for package, right in ((folded, True), (bent, False)):
        model = Classifier.load(package)
        if right:
            folding.check_folded(folded, package, model.session)
        else:
            with pytest.raises(ModelError, match="does not answer as its un-folded checkpoint does"):
                folding.check_folded(folded, package, model.session)
        model.close()
