"""A device with a detector: drawn boards with defects, a centre-point detector that was trained on them, an order."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from train_bench import DEVICE, SERVICE, open_writing

from edged.samples.reading import Filter
from edged.samples.records import Label, LabelRecord, NewSample
from edged.samples.store import SampleStore
from edgekit import packages
from edgekit.architectures import Spec, build, detection_spec, input_spec
from edgekit.autodiff.losses import CentrePointLoss
from edgekit.autodiff.optimisers import AdamW, Clipped
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule
from edgekit.autodiff.step import build_step
from edgekit.datasets.dataset import LabelledBox
from edgekit.gates.limits import Limits
from edgekit.learning.limits import JudgingLimits
from edgekit.messages.learning import TrainOrder
from edgekit.packages import Manifest, Package, ProofSample, Variant
from edgekit.training import (
    STEP_FOLDER,
    BoxedExamples,
    EarlyStopping,
    KeptInMemory,
    Pictures,
    Settings,
    StepEngine,
    Trainer,
    replace_weights,
    write_plan,
)
from edgekit.vision.detection.boxes import iou
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Counts, Truth, count
from edgekit.vision.images import encode_png

SIDE = 64
OLD = ("hole", "bar")
NEW = "spot"
DEFINITION = f'name = "{SERVICE}"\nmodel = "boards"\ntask = "detection"\n'
EASY = JudgingLimits(old=Limits(items=20, drop=0.15, class_drop=0.1), earlier=15, slower=9.0, larger=0.5)
"""For the few pictures that a test has time for."""
SPEC = Spec(architecture="centre_point", classes=len(OLD), input_width=SIDE, input_height=SIDE, channels=1, width=0.5)
LATER = range(5000, 5040)

Drawn = tuple[NDArray[np.uint8], tuple[LabelledBox, ...]]


def board(number: int, kinds: Sequence[str], contrast: float = 1.0, width: int = SIDE, height: int = SIDE) -> Drawn:
    """A noisy board with one defect of each of `kinds`, each in a column of its own."""
    rng = np.random.default_rng([number, width, *"".join(kinds).encode()])
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width), 110.0)
    boxes = []
    room = width / max(1, len(kinds))
    for place, kind in enumerate(kinds):
        across, down = (7, 3) if kind == "bar" else (5, 5)
        x = rng.uniform(place * room + across + 1, (place + 1) * room - across - 1)
        y = rng.uniform(down + 1, height - down - 1)
        if kind == "bar":
            inside = (abs(columns + 0.5 - x) < across) & (abs(rows + 0.5 - y) < down)
        else:
            inside = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < across**2
        image[inside] += -90 if kind == "hole" else 100
        boxes.append(LabelledBox(kind, *(round(side, 1) for side in (x - across, y - down, x + across, y + down))))
    image = (image + rng.normal(0, 6, image.shape) - 110) * contrast + 110
    return np.asarray(np.clip(np.rint(image), 0, 255), np.uint8), tuple(boxes)


def kinds_of(number: int, among: Sequence[str]) -> tuple[str, ...]:
    """Nothing, one or two defects, by turns."""
    turn = number % (len(among) + 2)
    return () if turn == 0 else tuple(among[:2]) if turn == 1 else (among[turn - 2],)


def png(number: int, kinds: Sequence[str], contrast: float = 1.0) -> bytes:
    return encode_png(board(number, kinds, contrast)[0])


def trained(numbers: Iterable[int], folder: Path, epochs: int = 12) -> dict[str, NDArray[np.float32]]:
    """The weights of SPEC after a training on boards of OLD, as `cloudd train` trains."""
    boards = [board(number, kinds_of(number, OLD)) for number in numbers]
    pictures = Pictures(lambda at: encode_png(boards[at][0]), input_spec(SPEC))
    truths = [truth_of(boxes, OLD) for _, boxes in boards]
    network = build(SPEC)
    step = build_step(
        network.model,
        CentrePointLoss(),
        Clipped(AdamW(weight_decay=0.02), 5.0),
        network.parameters(),
        batch_norm="train",
    )
    write_plan(step, folder)
    settings = Settings(
        epochs=epochs, batch=8, schedule=Schedule(peak=4e-3, warm_up=20), early_stopping=EarlyStopping(patience=0)
    )
    runner = StepRunner(folder / STEP_FOLDER, threads=1, spin=False)
    examples = BoxedExamples(pictures, truths, len(OLD), 4)
    trainer = Trainer(
        StepEngine(runner), examples, None, settings, job="base", checkpoints=KeptInMemory(), clock=time.monotonic
    )
    for _ in trainer.run():
        pass
    return {name: np.asarray(array, np.float32) for name, array in trainer.result().items()}


def base_package(root: Path) -> Package:
    """A detector of OLD that was trained for some seconds."""
    work = root.parent / "work"
    weights = trained(range(2000, 2120), work)
    root.mkdir(parents=True)
    for file in ("model.onnx", "weights.safetensors"):
        (root / file).write_bytes((work / file).read_bytes())
    replace_weights(root / "weights.safetensors", weights)
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in OLD))
    manifest = Manifest(
        name="boards",
        version="1",
        task="detection",
        labels="labels.txt",
        input=input_spec(SPEC),
        detection=detection_spec(),
        variants=[Variant(file="model.onnx")],
    )
    with closing(Detector.load(packages.seal_package(root, manifest))) as model:
        samples = _proofs(model, root)
    (root / packages.MANIFEST_NAME).unlink()
    package = packages.seal_package(root, msgspec.structs.replace(manifest, samples=samples))
    with closing(Detector.load(package)) as model:
        assert model.prove() == 2 * len(OLD)
    return package


def _proofs(model: Detector, root: Path) -> list[ProofSample]:
    """A board for each label that it surely finds, and one where it rightly finds nothing."""
    (root / "samples").mkdir()
    samples = []
    for label in OLD:
        for number in range(20_000, 20_100):
            image, (box,) = board(number, [label])
            found = model.detect(encode_png(image)).detections.above(0.7)
            sides = [box.left, box.top, box.right, box.bottom]
            if len(found) == 1 and float(iou(np.array([sides]), found.boxes)[0, 0]) > 0.7:
                (root / "samples" / f"{label}.png").write_bytes(encode_png(image))
                samples.append(ProofSample(file=f"samples/{label}.png", label=label, box=sides))
                break
    (root / "samples" / "good.png").write_bytes(png(20_000, ()))
    return [*samples, *(ProofSample(file="samples/good.png", label=label, count=0) for label in OLD)]


def truth_of(boxes: Sequence[LabelledBox], labels: Sequence[str]) -> Truth:
    sides = np.array([(one.left, one.top, one.right, one.bottom) for one in boxes], np.float32).reshape(-1, 4)
    return Truth(sides, np.array([labels.index(one.label) for one in boxes], np.int64))


def counted(package: Package, among: Sequence[str], numbers: range = LATER, contrast: float = 1.0) -> Counts:
    """What it finds on boards that nobody learned from, one of `among` on each."""
    model = Detector.load(package)
    boards = [board(number, [among[number % len(among)]], contrast) for number in numbers]
    found = [model.detect(encode_png(image)).detections for image, _ in boards]
    model.close()
    return count(found, [truth_of(boxes, package.labels) for _, boxes in boards], model.report, 0.5)


def recall(package: Package, among: Sequence[str], contrast: float = 1.0) -> float:
    """Of `counted`."""
    share = counted(package, among, contrast=contrast).recall
    assert share is not None
    return share


def fill(
    store: SampleStore,
    numbers: Iterable[int],
    among: Sequence[str],
    at: float = 1000.0,
    says: Mapping[str, str] | None = None,
    contrast: float = 1.0,
    labelled: bool = True,
    part: str = "",
) -> None:
    """Boards labelled at `at` with their own boxes; `says` gives other labels for some."""
    for number in numbers:
        image, boxes = board(number, kinds_of(number, among), contrast)
        told = tuple(msgspec.structs.replace(one, label=(says or {}).get(one.label, one.label)) for one in boxes)
        record = LabelRecord(label=Label(boxes=told), kind="operator", author="anna", at=at)
        new = NewSample(service=SERVICE, source="asked", captured_at=1.7e9 + number, part=part)
        store.add(new, encode_png(image), record if labelled else None)


def device(state: Path, teach: int, judge: int, among: Sequence[str], contrast: float = 1.0) -> None:
    """A state directory whose store has a dataset version of so many boards."""
    store = open_writing(state)
    fill(store, range(teach), among, contrast=contrast, part="train")
    fill(store, range(1000, 1000 + judge), among, contrast=contrast, part="test")
    store.versions.make("lessons", Filter(service=SERVICE), "boxes")
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
        name=f"boards.{SERVICE}",
        version="1-1",
        dataset="lessons",
        scratch=str(scratch),
        limits=EASY,
    )
    return msgspec.structs.replace(made, **changes)
