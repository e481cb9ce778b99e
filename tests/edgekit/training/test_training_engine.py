"""The trainer on real train steps of the built-in networks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import copyfile
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit.architectures import Network, Spec, build, detection_spec, input_spec
from edgekit.autodiff.losses import CentrePointLoss, CrossEntropy, Distillation, Proximal
from edgekit.autodiff.optimisers import AdamW, Clipped, Sgd
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.schedules import Schedule
from edgekit.autodiff.step import build_step
from edgekit.packages import Manifest, ProofSample, Variant, seal_package
from edgekit.training import (
    FORWARD_FILE,
    MODEL_FILE,
    STEP_FOLDER,
    WEIGHTS_FILE,
    Augmentation,
    BoxedExamples,
    CentrePointEvaluator,
    CheckpointFile,
    ClassifierEvaluator,
    EpochDone,
    ForwardModel,
    KeptInMemory,
    LabelledExamples,
    Pictures,
    Settings,
    StepDone,
    StepEngine,
    Trainer,
    TrainingError,
    read_weights,
    replace_weights,
    write_plan,
)
from edgekit.vision.classification import Classifier
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.metrics import Truth
from edgekit.vision.images import encode_png

SIDE = 32
CLASSES = 2


def network(architecture: str = "tiny_cnn", **other: Any) -> Network:
    given = {"architecture": architecture, "classes": CLASSES, "input_width": SIDE, "input_height": SIDE, "width": 0.5}
    return build(msgspec.convert({**given, **other}, Spec))


def patch(label: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A disc on noise, with a hole in it for label 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    away = np.hypot(rows - rng.uniform(12, 20), columns - rng.uniform(12, 20))
    image = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
    image[away < 9] += 120
    if label:
        image[away < 4] //= 3
    return image


def labelled(seed: int, count: int, **other: Any) -> LabelledExamples:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    files = [encode_png(patch(int(label), rng)) for label in labels]
    pictures = Pictures(files.__getitem__, input_spec(network().spec))
    return LabelledExamples(pictures, labels, CLASSES, seed=5, **other)


def derived(net: Network, folder: Path, loss: Any, optimiser: Any, last: int | None = None, **other: Any) -> StepRunner:
    write_plan(build_step(net.model, loss, optimiser, net.parameters(last), **other), folder)
    return StepRunner(folder / STEP_FOLDER)


def package_of(plan: Path, weights: Any) -> Path:
    """A folder with the trained model, made without the package onnx."""
    target = plan / "package"
    target.mkdir()
    for name in (MODEL_FILE, WEIGHTS_FILE):
        copyfile(plan / name, target / name)
    replace_weights(target / WEIGHTS_FILE, weights)
    return target


def training(engine: StepEngine, examples: Any, evaluator: Any, settings: Settings, checkpoints: Any = None) -> Trainer:
    return Trainer(
        engine, examples, evaluator, settings, job="j", checkpoints=checkpoints or KeptInMemory(), clock=lambda: 0.0
    )


def test_a_first_model_goes_from_pictures_to_a_package_that_serves(tmp_path: Path) -> None:
    net = network()
    runner = derived(net, tmp_path / "plan", CrossEntropy(weighted=True, smoothing=0.05), Sgd(), batch_norm="train")
    engine = StepEngine(runner, loss_inputs={"class_weights": np.ones(CLASSES, np.float32)})
    judge = ClassifierEvaluator(ForwardModel(tmp_path / "plan" / FORWARD_FILE), labelled(1, 40))
    spec = Augmentation(flip_horizontal=True, rotation=20, brightness=0.1)
    rules = Settings(epochs=8, batch=16, schedule=Schedule(peak=0.05))
    made = training(engine, labelled(0, 96, augmentation=spec), judge, rules)
    events = list(made.run())
    losses = [event.loss for event in events if isinstance(event, EpochDone)]
    assert losses[-1] < 0.6 * losses[0]
    assert events[-1].score is not None and events[-1].score > 0.9  # type: ignore[union-attr]

    target = package_of(tmp_path / "plan", made.result())
    (target / "labels.txt").write_text("whole\nhollow\n")
    rng = np.random.default_rng(7)
    samples = []
    for label, name in enumerate(("whole", "hollow")):
        (target / f"{name}.png").write_bytes(encode_png(patch(label, rng)))
        samples.append(ProofSample(file=f"{name}.png", label=name))
    manifest = Manifest(
        name="discs", version="1", labels="labels.txt", input=input_spec(net.spec),
        variants=[Variant(file="model.onnx")], samples=samples,
    )  # fmt: skip
    assert Classifier.load(seal_package(target, manifest)).prove() == 2


@pytest.mark.parametrize("optimiser", [Sgd(), Clipped(AdamW(), 1.0)])
def test_a_killed_training_goes_on_bit_for_bit(tmp_path: Path, optimiser: Any) -> None:
    net = network()
    examples = labelled(0, 24, augmentation=Augmentation(noise=10, flip_vertical=True))
    rules = Settings(epochs=2, batch=8, schedule=Schedule(peak=0.01), checkpoint_seconds=0.0)

    derived(net, tmp_path / "s", CrossEntropy(), optimiser, batch_norm="train")

    def fresh(checkpoints: Any) -> Trainer:
        return training(StepEngine(StepRunner(tmp_path / "s" / STEP_FOLDER)), examples, None, rules, checkpoints)

    whole = fresh(KeptInMemory())
    list(whole.run())
    store = CheckpointFile(tmp_path / "checkpoint")
    for event in fresh(store).run():
        if isinstance(event, StepDone) and event.step == 4:
            break
    last = fresh(store)
    list(last.run())
    for name, array in whole.result().items():
        np.testing.assert_array_equal(last.result()[name], array)


@pytest.mark.parametrize("optimiser", [Sgd(), Clipped(Sgd(), 0.5)])
def test_micro_batches_learn_what_the_whole_batch_learns(tmp_path: Path, optimiser: Any) -> None:
    net = network()
    feeds = labelled(0, 12).plain(np.arange(12))
    whole = StepEngine(derived(net, tmp_path / "whole", CrossEntropy(), optimiser))
    parts = StepEngine(derived(net, tmp_path / "parts", CrossEntropy(), optimiser, accumulate=True), micro_batch=5)
    for _ in range(2):
        assert parts.step(feeds, 0.05) == pytest.approx(whole.step(feeds, 0.05), rel=1e-4)
    for name, array in whole.state().items():
        np.testing.assert_allclose(parts.state()[name], array, rtol=1e-3, atol=1e-5)


def test_only_the_head_moves_where_only_the_head_is_trained(tmp_path: Path) -> None:
    net = network("mobilenet_v2", width=0.25)
    engine = StepEngine(derived(net, tmp_path / "s", CrossEntropy(), Sgd(), last=1))
    assert set(engine.weights()) == set(net.parameters(1))
    feeds = labelled(0, 8).plain(np.arange(8))
    losses = [engine.step(feeds, 0.002) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_a_student_follows_its_teacher(tmp_path: Path) -> None:
    net = network()
    rng = np.random.default_rng(0)
    teacher = rng.normal(0, 3, (12, CLASSES)).astype(np.float32)
    examples = labelled(0, 12, each={"teacher": teacher})
    engine = StepEngine(derived(net, tmp_path / "s", Distillation(temperature=2.0, share=0.5), Sgd()))
    feeds = examples.plain(np.arange(12))
    losses = [engine.step(feeds, 0.05) for _ in range(15)]
    assert losses[-1] < losses[0]


def test_a_proximal_term_keeps_weights_nearer(tmp_path: Path) -> None:
    net = network()
    feeds = labelled(0, 8).plain(np.arange(8))
    free = StepEngine(derived(net, tmp_path / "free", CrossEntropy(), Sgd()))
    runner = derived(net, tmp_path / "held", CrossEntropy(), Proximal(Sgd(), 1.0))
    start = runner.parameters()
    anchors = {f"{name}.anchor": start[name] for name in net.parameters()}
    held = StepEngine(runner, optimiser_inputs=anchors)

    def away(engine: StepEngine) -> float:
        return sum(float(((array - start[name]) ** 2).sum()) for name, array in engine.weights().items())

    for _ in range(5):
        free.step(feeds, 0.05)
        held.step(feeds, 0.05)
    assert 0 < away(held) < away(free)


def boxed(seed: int, count: int, **other: Any) -> BoxedExamples:
    """Bright squares on noise, one or two a picture."""
    rng = np.random.default_rng(seed)
    files, truths = [], []
    for _ in range(count):
        image = rng.integers(0, 80, (48, 48, 3), np.uint8)
        boxes = []
        for left in rng.permutation([2, 26])[: rng.integers(1, 3)]:
            side, top = rng.integers(10, 18), rng.integers(2, 28)
            image[top : top + side, left : left + side] += 150
            boxes.append([left, top, left + side, top + side])
        files.append(encode_png(image))
        truths.append(Truth(np.array(boxes, np.float32), np.zeros(len(boxes), np.int64)))
    spec = network("centre_point", classes=1, input_width=48, input_height=48, width=0.25).spec
    return BoxedExamples(Pictures(files.__getitem__, input_spec(spec)), truths, 1, 4, **other)


@pytest.mark.parametrize("box", ["l1", "giou"])
def test_a_centre_point_detector_learns_to_find_squares(tmp_path: Path, box: Any) -> None:
    net = network("centre_point", classes=1, input_width=48, input_height=48, width=0.25)
    loss = CentrePointLoss(box=box, box_weight=0.1 if box == "l1" else 1.0)
    runner = derived(net, tmp_path / "plan", loss, Clipped(AdamW(), 5.0), batch_norm="train")
    engine = StepEngine(runner)
    judge = CentrePointEvaluator(ForwardModel(tmp_path / "plan" / FORWARD_FILE), boxed(1, 16), 48, 48)
    rules = Settings(epochs=14, batch=8, schedule=Schedule(peak=0.01, warm_up=5), evaluate_every=2)
    made = training(engine, boxed(0, 48, augmentation=Augmentation(flip_horizontal=True)), judge, rules)
    events = list(made.run())
    assert events[-1].score is not None and events[-1].score > 0.8  # type: ignore[union-attr]

    target = package_of(tmp_path / "plan", made.result())
    (target / "labels.txt").write_text("square\n")
    image = np.full((48, 48, 3), 40, np.uint8)
    image[10:26, 20:36] = 200
    (target / "a.png").write_bytes(encode_png(image))
    manifest = Manifest(
        name="squares", version="1", task="detection", labels="labels.txt", input=input_spec(net.spec),
        detection=msgspec.structs.replace(detection_spec(), report=0.3), variants=[Variant(file="model.onnx")],
        samples=[ProofSample(file="a.png", label="square", box=[20, 10, 36, 26])],
    )  # fmt: skip
    assert Detector.load(seal_package(target, manifest)).prove() == 1


def test_a_step_that_cannot_train_is_refused(tmp_path: Path) -> None:
    net = network()
    runner = derived(net, tmp_path / "g", CrossEntropy(), None)
    with pytest.raises(TrainingError, match='of the kind "gradients"'):
        StepEngine(runner)
    runner = derived(net, tmp_path / "u", CrossEntropy(), Sgd())
    with pytest.raises(TrainingError, match="micro-batches need"):
        StepEngine(runner, micro_batch=4)
    engine = StepEngine(runner)
    with pytest.raises(TrainingError, match="labels"):
        engine.step({"image": np.zeros((2, 3, SIDE, SIDE), np.float32)}, 0.1)
    state = engine.state()
    state.pop("head.linear.bias")
    with pytest.raises(TrainingError, match=r'do not have the same states: "head\.linear\.bias"'):
        engine.restore(state)


def test_a_device_without_the_package_onnx_trains_and_replaces_the_weights(tmp_path: Path) -> None:
    net = network()
    derived(net, tmp_path, CrossEntropy(), Clipped(AdamW(), 1.0), batch_norm="train")
    before = read_weights(tmp_path / WEIGHTS_FILE)
    code = f"""
import sys
sys.modules["onnx"] = None
import os
import subprocess
import sys
from pathlib import Path
import numpy as np
from edgekit.autodiff.run import StepRunner
from edgekit.training import *
import edgekit.architectures
plan = Path({str(tmp_path)!r})
engine = StepEngine(StepRunner(plan / STEP_FOLDER))
feeds = {{"image": np.ones((4, 3, {SIDE}, {SIDE}), np.float32), "labels": np.array([0, 1, 0, 1])}}
for _ in range(3):
    engine.step(feeds, 0.01)
ForwardModel(plan / FORWARD_FILE)({{"image": feeds["image"]}}, engine.weights())
replace_weights(plan / WEIGHTS_FILE, engine.weights())
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONWARNINGS": "error"})
    after = read_weights(tmp_path / WEIGHTS_FILE)
    assert after.keys() == before.keys()
    moved = {name for name, array in after.items() if not np.array_equal(array, before[name])}
    assert moved >= {"stage1.conv.weight", "stage1.norm.mean", "head.linear.weight"}
