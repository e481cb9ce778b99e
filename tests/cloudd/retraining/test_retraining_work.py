"""What the process of a job makes of a network and pictures."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from retraining_bench import LABELS, SPEC, Asked, plan, png

from cloudd.retraining.course import Pausing
from cloudd.retraining.lineage import RECORD, Lineage
from cloudd.retraining.order import Ended, WorkOrder
from cloudd.retraining.teacher import LARGER
from cloudd.retraining.working import run
from edgekit.packages import Package, open_package
from edgekit.training import read_weights
from edgekit.vision.classification import Classifier


def done(order: WorkOrder) -> tuple[Ended, Package | None]:
    ended = run(order, Pausing(), lambda text, done, total: None)
    result = Path(order.folder) / "result"
    return ended, open_package(result) if result.exists() else None


def accuracy(package: Package) -> float:
    with closing(Classifier.load(package)) as model:
        asked = [(label, number) for label in range(len(LABELS)) for number in range(900, 920)]
        return float(np.mean([model.classify(png(*one)).label == LABELS[one[0]] for one in asked]))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asked, WorkOrder, Package]:
    """A job that was done."""
    root = tmp_path_factory.mktemp("taught")
    asked = Asked(root / "network")
    order = asked.lie(root)
    plan(order, teacher=30, student=8)
    ended, package = done(order)
    assert ended == Ended(kind="done") and package is not None
    return asked, order, package


def test_a_larger_network_learns_from_the_labels_and_teaches_the_devices_own(
    tmp_path: Path, taught: tuple[Asked, WorkOrder, Package]
) -> None:
    asked, order, package = taught
    assert (package.ref, package.labels) == ("patterns.solder@1-1", list(LABELS))
    told = msgspec.json.decode(package.path(RECORD).read_bytes(), type=Lineage)
    assert accuracy(package) > 0.9, (told.before, told.taught, told.learned)
    weights = read_weights(package.path("weights.safetensors"))
    came = read_weights(Asked(tmp_path).place / "weights.safetensors")
    assert {name: array.shape for name, array in weights.items()} == {name: array.shape for name, array in came.items()}
    assert told.network_macs * LARGER <= told.teacher_macs
    assert told.network == {one.path: one.sha256 for one in asked.request.network}
    assert told.teaching == dict.fromkeys(LABELS, 12) and told.choosing == dict.fromkeys(LABELS, 2)
    assert told.before.quality < told.learned.figures.quality == told.learned.figures.balanced_accuracy
    assert "taught the device's network" in package.manifest.description
    assert done(order)[0] == Ended(kind="done"), "asked again it has nothing to do"


def test_a_network_that_knows_more_than_the_larger_one_is_left_alone(
    tmp_path: Path, taught: tuple[Asked, WorkOrder, Package]
) -> None:
    """It was taught already; a larger one that saw the pictures once, hardly moving, cannot teach it anything."""
    asked = Asked(tmp_path / "network")
    asked.replace("weights.safetensors", taught[2].path("weights.safetensors").read_bytes())
    order = asked.lie(tmp_path)
    plan(order, teacher=1, student=1, peak=1e-9)
    ended, package = done(order)
    assert package is None and ended.kind == "refused" and "nothing to teach" in ended.reason


def test_too_little_time_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    order = msgspec.structs.replace(Asked(tmp_path / "network").lie(tmp_path), seconds=1e-6)
    ended, _ = done(order)
    assert ended.kind == "refused" and "retraining_hours" in ended.reason


def test_what_fits_into_the_time_is_planned(tmp_path: Path) -> None:
    order = msgspec.structs.replace(Asked(tmp_path / "network").lie(tmp_path), seconds=4.0)
    ended, _ = done(order)
    assert ended.kind in ("done", "refused"), ended
    for name in ("teacher", "student"):
        path = Path(order.folder) / "work" / name / "planned.json"
        if path.exists():
            planned = msgspec.json.decode(path.read_bytes())
            assert planned["epochs"] >= 1 and planned["schedule"]["final"] == 0.01


def test_a_hostile_network_is_refused_before_it_is_computed_with(tmp_path: Path) -> None:
    model = onnx.load(str(Asked(tmp_path / "model").place / "model.onnx"), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../../../../etc/passwd"
    for name, data in (("no-network", b"this is no network"), ("outside", model.SerializeToString())):
        asked = Asked(tmp_path / name / "network")
        asked.replace("model.onnx", data)
        ended, package = done(asked.lie(tmp_path / name))
        assert package is None and ended.kind == "refused" and "the network cannot be used" in ended.reason, ended
    other = Asked(tmp_path / "other" / "network", logits="answers")
    ended, _ = done(other.lie(tmp_path / "other"))
    assert ended.kind == "refused" and 'no output "answers"' in ended.reason


def test_a_network_as_large_as_any_here_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudd.retraining.labels.LADDER", (("tiny_cnn", 0.5), ("resnet18", 0.1)))
    large = msgspec.structs.replace(SPEC, width=2.0)
    ended, _ = done(Asked(tmp_path / "network", spec=large).lie(tmp_path))
    assert ended.kind == "refused" and "little to teach" in ended.reason, ended
