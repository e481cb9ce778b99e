"""Tiny classification packages whose answers a test can predict: they sort pictures by mean brightness.

The model computes the mean brightness m in 0..1 and gives label i the logit -sharpness * (m - centre_i)^2 with
centre_i = (i + 0.5) / number of labels: dark pictures get the first label, bright ones the last, and a brightness
halfway between two centres is a hard sample. A sharp model and a blunt one differ in margin, never in label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import InputSpec, Manifest, OutputSpec, Package, ProofSample, Variant, seal_package

SIDE = 16
"""Width and height of the model's input in pixels."""

Kind = Literal["gemm", "conv"]


def picture(brightness: float, side: int = 32, kind: str = ".png", seed: int | None = None) -> bytes:
    """An encoded picture with one mean brightness (0..1); with `seed` it has noise, so that no two files are equal."""
    level = np.full((side, side, 3), brightness * 255.0)
    if seed is not None:
        noise = np.random.default_rng(seed).normal(0, 4, level.shape)
        level = level + noise - noise.mean()
    ok, data = cv2.imencode(kind, np.clip(np.rint(level), 0, 255).astype(np.uint8))
    assert ok
    return bytes(data)


def expected_label(brightness: float, labels: list[str]) -> str:
    """What every model of this module says about a picture of this brightness."""
    return labels[min(len(labels) - 1, int(brightness * len(labels)))]


def expected_margin(brightness: float, labels: int, sharpness: float = 60.0) -> float:
    """The softmax margin of the two likeliest labels."""
    centres = (np.arange(labels) + 0.5) / labels
    logits = -sharpness * (brightness - centres) ** 2
    powers = np.exp(logits - logits.max())
    ordered = np.sort(powers / powers.sum())
    return float(ordered[-1] - ordered[-2])


def make_package(
    directory: Path,
    name: str = "brightness",
    version: str = "1",
    labels: list[str] | None = None,
    kind: Kind = "gemm",
    *,
    sharpness: float = 60.0,
    samples: bool = True,
    flip: bool = False,
    batch: bool = False,
    work: int = 0,
) -> Package:
    """Write and seal a package in `directory` (made if missing).

    `kind`: "gemm" takes the mean with ReduceMean, "conv" with one convolution over the whole picture. `flip` gives the
    labels in the opposite order of brightness (another opinion). `batch` leaves the batch dimension free. `work` adds
    that many 256x256 matrix products (about 0.3 ms each on a desktop core), for tests that need a slow model.
    """
    names = labels or ["dark", "bright"]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(_model(len(names), kind, sharpness, flip, batch, work).SerializeToString())
    (directory / "labels.txt").write_text("".join(f"{label}\n" for label in names))
    proofs = []
    if samples:
        (directory / "samples").mkdir(exist_ok=True)
        for index in range(len(names)):
            brightness = (index + 0.5) / len(names)
            file = f"samples/{index}.png"
            (directory / file).write_bytes(picture(brightness))
            proofs.append(ProofSample(file=file, label=names[-1 - index] if flip else names[index]))
    manifest = Manifest(
        name=name,
        version=version,
        description="sorts pictures by brightness",
        labels="labels.txt",
        input=InputSpec(width=SIDE, height=SIDE, colour="rgb", mean=[0.0], scale=[1 / 255]),
        output=OutputSpec(kind="logits"),
        variants=[Variant(file="model.onnx")],
        samples=proofs,
    )
    return seal_package(directory, manifest)


def _model(labels: int, kind: Kind, sharpness: float, flip: bool, batch: bool, work: int) -> onnx.ModelProto:
    """-s (m - c)^2 = -s m^2 + 2 s c m - s c^2; the first term is the same for all labels, so a linear layer does it."""
    centres = (np.arange(labels, dtype=np.float32) + 0.5) / labels
    if flip:
        centres = centres[::-1].copy()
    weights: dict[str, NDArray[np.float32]] = {
        "gain": (2 * sharpness * centres).reshape(1, labels).astype(np.float32),
        "offset": (-sharpness * centres**2).astype(np.float32),
    }
    if kind == "conv":
        weights["kernel"] = np.full((1, 3, SIDE, SIDE), 1 / (3 * SIDE * SIDE), np.float32)
        nodes = [
            helper.make_node("Conv", ["input", "kernel"], ["mean4"]),
            helper.make_node("Flatten", ["mean4"], ["mean"], axis=1),
        ]
    else:
        nodes = [
            helper.make_node("Flatten", ["input"], ["flat"], axis=1),
            helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[1], keepdims=1),
        ]
    mean = "mean"
    if work:
        weights["square"] = np.zeros((256, 256), np.float32)
        weights["widen"] = np.ones((1, 256), np.float32)
        weights["narrow"] = np.ones((256, 1), np.float32)
        nodes.append(helper.make_node("MatMul", ["mean", "widen"], ["w0"]))
        nodes.append(helper.make_node("Expand", ["w0", "tall"], ["t0"]))
        for step in range(work):
            nodes.append(helper.make_node("MatMul", [f"t{step}", "square"], [f"t{step + 1}"]))
        nodes.append(helper.make_node("ReduceMean", [f"t{work}"], ["row"], axes=[0], keepdims=1))
        nodes.append(helper.make_node("MatMul", ["row", "narrow"], ["zero"]))
        nodes.append(helper.make_node("Add", ["mean", "zero"], ["mean_again"]))
        mean = "mean_again"
    nodes.append(helper.make_node("Gemm", [mean, "gain", "offset"], ["logits"]))
    initializers = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    if work:
        initializers.append(numpy_helper.from_array(np.array([256, 256], np.int64), "tall"))
    size: int | str = "n" if batch else 1
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [size, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, labels])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
