"""What comes back from cloudd is weights for the device's own network, and nothing else of it is used."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from train_bench import DEFINITION, OLD, device, order

from edged.train.job import run
from edged.train.pace import Pace
from edgekit.learning.budget import Budget, unlimited
from edgekit.messages.learning import TrainDone, TrainOrder, TrainStopped
from edgekit.messages.retraining import RetrainRequest
from edgekit.packages import Manifest, OutputSpec, Package, Variant, open_package, seal_package
from edgekit.training import read_weights, write_model

RECORD = b'{"schema": 1}\n'


def worked(job: TrainOrder) -> TrainDone | TrainStopped:
    Path(job.scratch).mkdir(exist_ok=True)
    pace = Pace(Budget(), unlimited, time.monotonic, time.sleep, lambda progress: None)
    return run(job, pace, time.monotonic, unlimited)


@pytest.fixture(scope="module")
def asked(place: Path, base: Package) -> TrainOrder:
    """A job that has made its request and waits, because the device has joined no cloudd."""
    state = place / "asked"
    device(state, dict.fromkeys(OLD, 45))
    job = order(state, base, place / "asked-job", "cloud", definition=DEFINITION + '[learning]\nrungs = ["cloud"]\n')
    last = worked(job)
    assert isinstance(last, TrainStopped) and last.kind == "waiting" and "joined no cloudd" in last.reason
    return job


def given(asked: TrainOrder, tmp_path: Path, **changes: object) -> TrainOrder:
    """The same job in a folder of its own, with a package from cloudd: the base's weights, a little changed."""
    scratch = tmp_path / "job"
    shutil.copytree(asked.scratch, scratch)
    folder = scratch / "cloud"
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=RetrainRequest)
    root = folder / "package"
    root.mkdir()
    model = onnx.load(str(folder / "network" / "model.onnx"))
    weights = read_weights(folder / "network" / "weights.safetensors")
    name = min(weights)
    weights = {**weights, name: weights[name] * np.float32(changes.pop("factor", 1.001))}
    write_model(model, root, weights)
    labels = changes.pop("labels", request.labels)
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in labels))  # type: ignore[union-attr]
    if not changes.pop("silent", False):
        (root / "retrained.json").write_bytes(RECORD)
    manifest = Manifest(
        name=str(changes.pop("name", request.name)),
        version=request.version,
        description="a larger network taught it",
        labels="labels.txt",
        input=request.input,
        output=OutputSpec(kind="logits", name=request.logits),
        variants=[Variant(file="model.onnx")],
    )
    if changes.pop("other_graph", False):
        other = onnx.load(str(root / "model.onnx"), load_external_data=False)
        other.doc_string = "made by somebody else"
        (root / "model.onnx").write_bytes(other.SerializeToString())
    assert not changes
    seal_package(root, manifest)
    return msgspec.structs.replace(asked, scratch=str(scratch))


def test_the_weights_are_taken_and_the_graph_stays_the_devices_own(asked: TrainOrder, tmp_path: Path) -> None:
    job = given(asked, tmp_path, other_graph=True)
    done = worked(job)
    assert isinstance(done, TrainDone), done
    made = open_package(Path(done.directory))
    own = Path(job.scratch) / "cloud" / "network"
    assert made.path("model.onnx").read_bytes() == (own / "model.onnx").read_bytes()
    found, old = read_weights(made.path("weights.safetensors")), read_weights(own / "weights.safetensors")
    name = min(old)
    np.testing.assert_array_equal(found[name], old[name] * np.float32(1.001))
    assert made.path("retrained.json").read_bytes() == RECORD
    assert done.notes[-1].endswith("pictures went to cloudd: a larger network taught it")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("one", "two", "three", "four")}, "other labels or another name"),
        ({"name": "somebody.else"}, "other labels or another name"),
        ({"silent": True}, "lacks"),
    ],
)
def test_a_package_that_was_not_asked_for_ends_the_job(
    asked: TrainOrder, tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    last = worked(given(asked, tmp_path, **changes))
    assert isinstance(last, TrainStopped) and (last.kind, last.resumable) == ("failed", False)
    assert told in last.reason


def test_weights_that_are_no_numbers_end_the_job(asked: TrainOrder, tmp_path: Path) -> None:
    job = given(asked, tmp_path)
    root = Path(job.scratch) / "cloud" / "package"
    path = root / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(bytes(data))
    manifest = open_package(root, verify=False).manifest
    (root / "package.toml").unlink()
    seal_package(root, manifest)
    last = worked(job)
    assert isinstance(last, TrainStopped) and last.kind == "failed" and "do not fit" in last.reason


def test_a_damaged_package_ends_the_job(asked: TrainOrder, tmp_path: Path) -> None:
    job = given(asked, tmp_path)
    path = Path(job.scratch) / "cloud" / "package" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    last = worked(job)
    assert isinstance(last, TrainStopped) and last.kind == "failed" and "package from cloudd" in last.reason


def test_what_is_asked_for_is_the_pictures_as_the_model_sees_them_without_those_that_judge(
    asked: TrainOrder, base: Package
) -> None:
    folder = Path(asked.scratch) / "cloud"
    request = msgspec.json.decode((folder / "request.json").read_bytes(), type=RetrainRequest)
    total = 45 * len(OLD)
    assert 0.5 * total < len(request.pictures) < 0.85 * total
    assert request.base == base.ref and request.labels == OLD and request.input == base.manifest.input
    assert {one.label for one in request.pictures} == set(range(len(OLD)))
    assert any(one.chooses for one in request.pictures)
    before = (folder / "request.json").read_bytes()
    last = worked(asked)
    assert isinstance(last, TrainStopped) and last.kind == "waiting"
    assert (folder / "request.json").read_bytes() == before, "every start asks for the same"
