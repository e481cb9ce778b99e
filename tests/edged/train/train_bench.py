"""A device that can learn: a small classifier of patterns, a sample store with labelled pictures, an order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.samples.opening import open_store
from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.samples.store import SampleStore
from edged.train.head import Labelled, new_head
from edged.train.network import Network, features
from edged.train.pace import Pace, Workplace
from edged.train.scene import reestimated
from edgekit import packages
from edgekit.architectures import Spec, build, input_spec
from edgekit.gates.limits import Limits
from edgekit.learning.budget import Budget, unlimited
from edgekit.learning.limits import JudgingLimits
from edgekit.messages.learning import TrainOrder
from edgekit.packages import Manifest, OutputSpec, Package, ProofSample, Variant
from edgekit.services import Samples
from edgekit.training import Pictures
from edgekit.vision.classification import Classifier
from edgekit.vision.images import encode_png

DEVICE = "DEVICE-A"
SERVICE = "solder"
DEFINITION = f'name = "{SERVICE}"\nmodel = "patterns"\n'
SIDE = 32
OLD = ("plain", "stripe", "bar", "check")
NEW = "spot"
EASY = JudgingLimits(old=Limits(items=30, drop=0.12, class_drop=0.1, offload=0.5), earlier=20, slower=9.0, larger=0.5)
"""For the few pictures that a test has time for."""
SPEC = Spec(architecture="tiny_cnn", classes=len(OLD), input_width=SIDE, input_height=SIDE, channels=1, width=0.5)


def pattern(label: str, number: int, contrast: float = 1.0) -> NDArray[np.uint8]:
    """One noisy picture of its own; the same arguments give the same one."""
    rng = np.random.default_rng([number, *label.encode()])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    phase = int(rng.integers(8))
    image = np.full((SIDE, SIDE), 90.0)
    if label == "stripe":
        image += 70 * ((columns + phase) // 4 % 2)
    elif label == "bar":
        image += 70 * ((rows + phase) // 4 % 2)
    elif label == "check":
        image += 70 * (((rows + phase) // 4 + (columns + phase) // 4) % 2)
    elif label == NEW:
        y, x = rng.integers(8, SIDE - 8, 2)
        image += 110 * ((rows - y) ** 2 + (columns - x) ** 2 < 36)
    image = (image + rng.normal(0, 6, image.shape) - 127) * contrast + 127
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8)


def png(label: str, number: int, contrast: float = 1.0) -> bytes:
    return encode_png(pattern(label, number, contrast))


def broken_png(label: str, number: int) -> bytes:
    """Its size and its chunks can be read, its pixels cannot."""
    data = png(label, number)
    at = data.index(b"IDAT") + 4
    return data[:at] + bytes(40) + data[at + 40 :]


def workplace(folder: Path) -> Workplace:
    folder.mkdir(exist_ok=True)
    pace = Pace(Budget(), unlimited, time.monotonic, time.sleep, lambda progress: None)
    return Workplace(folder, 1, pace, time.monotonic, unlimited)


def base_package(root: Path, version: str = "1", probabilities: bool = False) -> Package:
    """A classifier of OLD: random features, normalised as trained ones are, and a head in closed form."""
    root.mkdir(parents=True)
    spec = input_spec(SPEC)
    numbers = [(label, 10_000 + number) for number in range(30) for label in OLD]
    pictures = Pictures(lambda at: png(*numbers[at]), spec)
    network = Network(build(SPEC).model, "image", "logits")
    network = reestimated(network, pictures, range(len(numbers)), workplace(root.parent / "work"))
    tensors = (pictures.tensor(pictures.fitted(at).image) for at in range(len(numbers)))
    with network.feature_session(root.parent / "features", 1) as session:
        rows = np.stack(list(features(session, "image", tensors)))
    classes = np.array([OLD.index(label) for label, _ in numbers])
    learn = Labelled(rows, classes)
    head = new_head(network.last_layer(), OLD, learn, learn)
    network = network.with_last_layer(head.weight, head.bias)
    network.save(root)
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in OLD))
    (root / "samples").mkdir()
    samples = []
    for label in OLD:
        (root / "samples" / f"{label}.png").write_bytes(png(label, 20_000))
        samples.append(ProofSample(file=f"samples/{label}.png", label=label))
    manifest = Manifest(
        name="patterns",
        version=version,
        labels="labels.txt",
        input=spec,
        output=OutputSpec(),
        variants=[Variant(file="model.onnx")],
        samples=samples,
    )
    package = packages.seal_package(root, manifest)
    model = Classifier.load(package)
    assert sum(model.classify(png(*one)).label == one[0] for one in numbers) > 0.95 * len(numbers)
    model.close()
    return package


def open_writing(state: Path) -> SampleStore:
    return open_store(state, DEVICE, lambda service: Samples(keep="all"), 0, lambda event: None, lambda: 1.8e9)


def fill(
    store: SampleStore,
    counts: Mapping[str, int],
    at: float = 1000.0,
    first: int = 0,
    says: Mapping[str, str] | None = None,
    contrast: float = 1.0,
    labelled: bool = True,
) -> None:
    """Pictures of patterns, labelled at `at` with their own label, or with the one that `says` gives instead."""
    for label, count in counts.items():
        for number in range(first, first + count):
            told = (says or {}).get(label, label)
            record = LabelRecord(label=Label(label=told), kind="operator", author="anna", at=at)
            new = NewSample(service=SERVICE, source="asked", captured_at=1.7e9 + number, sample_id=f"{label}{number}")
            store.add(new, png(label, number, contrast), record if labelled else None)


def device(state: Path, counts: Mapping[str, int], name: str = "lessons") -> None:
    """A state directory whose store has a dataset version of such pictures."""
    store = open_writing(state)
    fill(store, counts)
    store.versions.make(name, Filter(service=SERVICE), "labels")
    store.close()


def order(state: Path, package: Package, scratch: Path, rung: str, **changes: object) -> TrainOrder:
    made = TrainOrder(
        state_dir=str(state),
        device_id=DEVICE,
        service=SERVICE,
        definition=DEFINITION,
        job=1,
        rung=rung,  # type: ignore[arg-type]
        base=str(package.root),
        base_ref=package.ref,
        name=f"patterns.{SERVICE}",
        version="1-1",
        dataset="lessons",
        scratch=str(scratch),
        limits=EASY,
    )
    return msgspec.structs.replace(made, **changes)


def accuracy(package: Package, labels: Sequence[str], numbers: range, contrast: float = 1.0) -> float:
    """Of pictures that nobody learned from."""
    model = Classifier.load(package)
    right = [model.classify(png(label, number, contrast)).label == label for label in labels for number in numbers]
    model.close()
    return sum(right) / len(right)
