"""How a model is trained: what was wished for, and for the rest what suits the pictures.

The defaults were chosen for a first model on one host without a GPU: minutes for a few thousand patches.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cv2
import msgspec
import numpy as np
from msgspec import Meta

from cloudd.train.errors import TrainError
from edgekit.architectures import Spec, build
from edgekit.architectures.network import INPUT
from edgekit.autodiff.schedules import Schedule
from edgekit.datasets.dataset import Dataset, Picture
from edgekit.datasets.summary import Summary, summarise
from edgekit.splitting.graph import read_graph
from edgekit.training import Augmentation, Balance, Budget, EarlyStopping, Settings
from edgekit.vision.images import ImageError, decode

Architecture = Literal["tiny_cnn", "resnet18", "mobilenet_v2", "centre_point"]
Colour = Literal["grey", "rgb"]
Symmetry = Literal["none", "mirror", "any"]
"""What a picture may be turned into without another label: nothing, its mirror image, or any mirrored quarter turn."""

WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25)
"""Multipliers of the channels that are tried, the largest first, where the device has a budget."""

_SHOWN = 24_000
"""Pictures that a classifier is shown in all, the same one many times; `_EPOCHS` bounds what follows from it."""
_EPOCHS = (10, 40)
_DETECTOR_EPOCHS = 60
_SMALL_SIDE = 300  # pixels: what a camera cuts out around one joint or part
_MANY_PICTURES = 2_000
_TINY_SIDES = (32, 48, 64)
_SIDES = (96, 128, 160, 224)
_CELLS = 4  # of the centre-point detector, along the side of a small box
_DETECTOR_SIDES = (128, 512)
_GRID = 16  # what sides of a detector's input are multiples of
_LOOKS = 4
"""Evaluations of one training, of which the best counts. On the few pictures of val the best of many looks is luck, and
the learning rate has to come to its end: on solder joints, over three folds of boards, the best of 24 looks had an F1
of .935 and .835 (with --symmetry any), the last weights of the same trainings .938 and .893."""
_LOOKED_AT = 24  # pictures that tell whether the dataset is grey
_GREY_LEVELS = 6  # by which channels of a grey picture may differ, after JPEG


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asked for; None: what suits the pictures."""

    architecture: Architecture | None = None
    size: tuple[int, int] | None = None  # width and height of the input, pixels
    colour: Colour | None = None
    epochs: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    seconds: Annotated[float, Meta(gt=0.0)] | None = None  # of computing, after which training ends
    balance: Balance | None = None
    symmetry: Symmetry = "none"
    macs: Annotated[int, Meta(ge=1)] | None = None  # multiply-accumulates for one picture that the device may spend
    cpu_share: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0  # of one host's time that training may be computing
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """All that decides what comes out, but for the pictures."""

    network: Spec
    labels: tuple[str, ...]
    settings: Settings
    augmentation: Augmentation
    smoothing: float  # of the labels in the cross entropy
    weight_decay: float
    clip: float  # greatest norm of the gradients
    macs: int  # multiply-accumulates of one picture

    @property
    def detection(self) -> bool:
        """Whether it finds boxes."""
        return self.network.architecture == "centre_point"


def choose(dataset: Dataset, train: Sequence[Picture], wishes: Wishes) -> Recipe:
    """The recipe for these wishes and pictures; the same ones give the same recipe.

    Raises TrainError for wishes that do not go together, ArchitectureError for a size that a network cannot have,
    DatasetError for a picture that cannot be read.
    """
    detection = dataset.detection
    architecture = wishes.architecture or _architecture(detection, train)
    if (architecture == "centre_point") != detection:
        raise TrainError(
            f"{architecture} {'finds boxes' if not detection else 'answers with one label for the whole picture'}, but "
            f"the data has {'boxes' if detection else 'one label a picture'}; "
            f"{'centre_point is' if detection else 'tiny_cnn, mobilenet_v2 and resnet18 are'} for that"
        )
    summary = summarise(train)
    width, height = wishes.size or _size(architecture, summary)
    fixed = Spec(
        architecture=architecture,
        classes=len(dataset.labels),
        input_width=width,
        input_height=height,
        channels=1 if (wishes.colour or _colour(dataset, train)) == "grey" else 3,
        seed=wishes.seed,
    )
    try:
        msgspec.convert(msgspec.to_builtins(fixed), Spec)
    except msgspec.ValidationError as error:
        raise TrainError(f"a network of {width}x{height} pixels for {len(dataset.labels)} labels: {error}") from None
    network, macs = _fitting(fixed, wishes.macs)
    return Recipe(
        network=network,
        labels=dataset.labels,
        settings=_settings(architecture, len(train), wishes),
        augmentation=_augmentation(detection, wishes.symmetry),
        smoothing=0.0 if detection else 0.05,
        weight_decay=0.02,
        clip=5.0,
        macs=macs,
    )


def macs_of(spec: Spec) -> int:
    """Multiply-accumulates of convolutions and matrix products for one picture. Raises ArchitectureError."""
    model = build(spec).model
    with tempfile.TemporaryDirectory(prefix="cloudd-train-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        graph = read_graph(path, {INPUT: (1, spec.channels, spec.input_height, spec.input_width)})
    return sum(node.macs for node in graph.nodes)


def _fitting(spec: Spec, most: int | None) -> tuple[Spec, int]:
    """The widest network that the device can afford, and what it costs. Raises TrainError if none is cheap enough."""
    for width in WIDTHS:
        tried = msgspec.structs.replace(spec, width=width)
        macs = macs_of(tried)
        if most is None or macs <= most:
            return tried, macs
    raise TrainError(
        f"the narrowest {spec.architecture} for {spec.input_width}x{spec.input_height} pixels needs {macs:,} "
        f"multiply-adds for one picture; the device's budget is {most:,}. Choose a smaller --size, or another "
        "--architecture"
    )


def _architecture(detection: bool, train: Sequence[Picture]) -> Architecture:
    if detection:
        return "centre_point"
    # Without weights of another training a large network needs many pictures before it beats a tiny one.
    small = _middle([max(one.width, one.height) for one in train]) <= _SMALL_SIDE
    return "tiny_cnn" if small or len(train) < _MANY_PICTURES else "mobilenet_v2"


def _size(architecture: Architecture, summary: Summary) -> tuple[int, int]:
    side = max(summary.width[1], summary.height[1])
    if architecture != "centre_point":
        sides = _TINY_SIDES if architecture == "tiny_cnn" else _SIDES
        fitting = max((one for one in sides if one <= side), default=sides[0])
        return fitting, fitting
    # Large enough that a small object covers some cells, with the shape of the pictures.
    wanted = side * _CELLS * 4 / max(1.0, summary.box_side[1] / 2)
    longest = min(max(wanted, _DETECTOR_SIDES[0]), _DETECTOR_SIDES[1])
    factor = longest / side
    width, height = (
        max(_GRID, math.ceil(one * factor / _GRID) * _GRID) for one in (summary.width[1], summary.height[1])
    )
    return width, height


def _colour(dataset: Dataset, train: Sequence[Picture]) -> Colour:
    """Whether the pictures have colours, by a few of them."""
    for picture in train[:: max(1, len(train) // _LOOKED_AT)]:
        try:
            image = decode(dataset.read(picture), "rgb", reduce_to=(64, 64))
        except ImageError:
            continue  # training tells which one it is
        if int(np.ptp(cv2.blur(image, (3, 3)).astype(np.int16), axis=2).max()) > _GREY_LEVELS:
            return "rgb"
    return "grey"


def _settings(architecture: Architecture, pictures: int, wishes: Wishes) -> Settings:
    if architecture == "centre_point":
        batch, peak, epochs = 8, 4e-3, _DETECTOR_EPOCHS
    else:
        batch, peak = 16, 3e-3
        epochs = min(max(_EPOCHS[0], math.ceil(_SHOWN / max(1, pictures))), _EPOCHS[1])
    epochs = wishes.epochs or epochs
    steps = epochs * max(1, pictures // batch)
    return Settings(
        epochs=epochs,
        batch=batch,
        schedule=Schedule(peak=peak, warm_up=min(50, steps // 10)),
        balance=wishes.balance or ("none" if architecture == "centre_point" else "root"),
        early_stopping=EarlyStopping(patience=0),
        evaluate_every=max(1, epochs // _LOOKS),
        max_seconds=wishes.seconds,
        budget=Budget(cpu_share=wishes.cpu_share),
        seed=wishes.seed,
    )


def _augmentation(detection: bool, symmetry: Symmetry) -> Augmentation:
    """Small changes that every camera makes by itself; flips and turns only where the part allows them."""
    return Augmentation(
        flip_horizontal=symmetry != "none",
        flip_vertical=symmetry == "any",
        quarter_turns=symmetry == "any",
        rotation=2.0 if detection else 8.0,  # the upright box around a turned one is larger than the object
        scale=0.1,
        shift=0.05,
        brightness=0.1,
        contrast=0.15,
        noise=5.0,
    )


def _middle(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
