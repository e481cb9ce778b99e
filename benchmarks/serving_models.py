"""The two models that the serving benchmarks use, as sealed packages: random weights, real shapes.

`tiny64`: four convolutions on 64x64 pixels, 61 thousand parameters, about 0.25 ms on a desktop core: what a server
itself costs shows. `mnv2`: MobileNetV2 1.0 on 224x224, 3.5 million parameters, about 8 ms: what is usual. Input
"input", float32 NCHW with an open batch size, RGB in 0..1; output "logits".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.adapt_models import Net, mobilenet_v2
from edgekit.packages import InputSpec, Manifest, Package, ProofSample, Variant, seal_package
from edgekit.vision.classification import Classifier

SCALE = 1 / 255
"""A pixel 0..255 times this is the model's input."""


@dataclass(frozen=True)
class Model:
    """One shape of model; `make(path, seed)` writes its ONNX file."""

    name: str
    side: int  # pixels
    labels: int
    make: Callable[[Path, int], None]


def tiny64(path: Path, seed: int = 1) -> None:
    """Four convolutions of 3x3, each with ReLU and a pooling to the half, then the mean and one dense layer."""
    net, x, channels = Net(seed, labels=5), "input", 3
    for out in (16, 32, 64, 64):
        x, channels = net.node("MaxPool", net.conv(x, channels, out), kernel_shape=[2, 2], strides=[2, 2]), out
    net.classifier(x, channels)
    net.save(path, 64, "n")


def mnv2(path: Path, seed: int = 1) -> None:
    """MobileNetV2 with the 1000 classes that it was made for."""
    mobilenet_v2(path, 224, labels=1000, batch="n", seed=seed)


MODELS = {"tiny64": Model("tiny64", 64, 5, tiny64), "mnv2": Model("mnv2", 224, 1000, mnv2)}


@functools.cache
def picture(side: int, seed: int = 7) -> bytes:
    """A JPEG of side x side pixels, quality 90: smooth noise, about as many bytes as a photograph of that size."""
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return bytes(cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def tensor(side: int) -> NDArray[np.float32]:
    """That picture as the model's input: float32, shape (1, 3, side, side)."""
    pixels: Any = cv2.imdecode(np.frombuffer(picture(side), np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis], np.float32) * np.float32(SCALE)


def package(folder: Path, model: Model, version: str = "1.0.0", seed: int = 1) -> Package:
    """Write the package of `model` into the new directory `folder`, with a pinned sample; `seed` makes the weights."""
    folder.mkdir(parents=True)
    model.make(folder / "model.onnx", seed)
    (folder / "labels.txt").write_text("".join(f"class-{index}\n" for index in range(model.labels)))
    (folder / "sample.jpg").write_bytes(picture(model.side))
    manifest = Manifest(
        name=model.name,
        version=version,
        description="Random weights, for benchmarks",
        labels="labels.txt",
        input=InputSpec(width=model.side, height=model.side, scale=[SCALE]),
        variants=[Variant(file="model.onnx")],
    )
    said = Classifier.load(seal_package(folder, manifest)).classify(picture(model.side))
    pinned = ProofSample(file="sample.jpg", label=said.label, score=said.score)
    return seal_package(folder, msgspec.structs.replace(manifest, samples=[pinned]))
