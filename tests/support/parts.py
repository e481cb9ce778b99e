"""Made-up parts and things for the tasks anomaly and embedding, and tiny packages whose answers a test can predict.

A part is a grey plate with a dark ring and four holes, a little moved, lit a little differently, with noise. A scratch
or a missing hole makes it anomalous. A thing (an identity) is a pattern of blobs that its number decides.

The tiny anomaly model averages the darkness of 8x8 pixels: a dark place has a high score. The tiny embedder averages
the colours of four quarters of the picture, less a half: a picture's quarters decide whom it shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import (
    AnomalySpec,
    EmbeddingSpec,
    InputSpec,
    Manifest,
    OutputSpec,
    Package,
    ProofSample,
    Variant,
    seal_package,
)
from edgekit.vision.images import encode_png

SIDE = 64
"""Pixels of the tiny models' inputs."""
CELL = 8
WIDTH = 12
"""Values of the tiny embedder."""

Pixels = NDArray[np.uint8]


def part(seed: int, defect: str = "", side: int = 96, moved: float = 2.0, turned: float = 0.0) -> Pixels:
    """A part [side, side, 3]; `defect`: "", "scratch" or "hole"."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side), 70.0)
    middle = side / 2
    cv2.circle(image, (round(middle), round(middle)), round(side * 0.42), 180.0, -1)
    cv2.circle(image, (round(middle), round(middle)), round(side * 0.25), 120.0, max(2, side // 24))
    for number in range(4):
        if defect == "hole" and number == 2:
            continue
        angle = np.pi / 4 + number * np.pi / 2
        at = (round(middle + 0.33 * side * np.cos(angle)), round(middle + 0.33 * side * np.sin(angle)))
        cv2.circle(image, at, max(2, side // 20), 30.0, -1)
    cv2.rectangle(image, (round(side * 0.44), round(side * 0.12)), (round(side * 0.56), round(side * 0.2)), 60.0, -1)
    if defect == "scratch":
        first = (round(side * (0.55 + 0.1 * rng.random())), round(side * 0.35))
        cv2.line(image, first, (first[0] + side // 8, first[1] + side // 4), 235.0, max(1, side // 48))
    shift = rng.uniform(-moved, moved, 2)
    warp = cv2.getRotationMatrix2D((middle, middle), float(rng.uniform(-turned, turned)), 1.0)
    warp[:, 2] += shift
    image = cv2.warpAffine(image, warp, (side, side), borderMode=cv2.BORDER_REPLICATE)
    image = image * rng.uniform(0.95, 1.05) + rng.normal(0, 2.0, image.shape)
    grey = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def thing(identity: int, seed: int, side: int = 96) -> Pixels:
    """A picture [side, side, 3] of a thing; another `seed` is another look at it."""
    shape, look = np.random.default_rng(1000 + identity), np.random.default_rng([identity, seed])
    image = np.full((side, side, 3), 128.0)
    for _ in range(14):
        at = tuple(int(value) for value in shape.integers(side // 8, side - side // 8, 2))
        colour = tuple(float(value) for value in shape.integers(0, 256, 3))
        cv2.circle(image, at, int(shape.integers(side // 16, side // 6)), colour, -1)
    warp = np.array([[1.0, 0.0, look.uniform(-2, 2)], [0.0, 1.0, look.uniform(-2, 2)]])
    image = cv2.warpAffine(image, warp, (side, side), borderMode=cv2.BORDER_REPLICATE)
    image = image * look.uniform(0.8, 1.2) + look.normal(0, 4.0, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def write_parts(folder: Path, count: int, defect: str = "", first: int = 0) -> Path:
    """Pictures of parts as files; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, first + count):
        (folder / f"{seed:04}.png").write_bytes(encode_png(part(seed, defect)))
    return folder


def write_things(folder: Path, identities: range, looks: int, first: int = 0) -> Path:
    """A folder for each identity; the folder above."""
    for identity in identities:
        own = folder / f"thing-{identity:03}"
        own.mkdir(parents=True, exist_ok=True)
        for seed in range(first, first + looks):
            (own / f"{seed:03}.png").write_bytes(encode_png(thing(identity, seed)))
    return folder


def dark(*cells: tuple[int, int, float], side: int = SIDE) -> bytes:
    """A white picture with these cells (column, row) of that darkness, 0..1, as a PNG."""
    image = np.full((side, side, 3), 255, np.uint8)
    step = side // (SIDE // CELL)
    for column, row, level in cells:
        image[row * step : (row + 1) * step, column * step : (column + 1) * step] = round(255 * (1 - level))
    return encode_png(image)


def quarters(*colours: tuple[float, float, float], noise: int | None = None) -> bytes:
    """A picture of four quarters with these colours, 0..1, as a PNG; with `noise` another look at the same."""
    image = np.zeros((SIDE, SIDE, 3))
    half = SIDE // 2
    for number, colour in enumerate(colours):
        down, across = divmod(number, 2)
        image[down * half : (down + 1) * half, across * half : (across + 1) * half] = colour
    if noise is not None:
        image += np.random.default_rng(noise).normal(0, 0.02, 3)
    return encode_png(np.clip(np.rint(image * 255), 0, 255).astype(np.uint8))


def make_anomaly(
    directory: Path,
    name: str = "dark",
    version: str = "1",
    *,
    limit: float = 0.5,
    spread: float = 0.1,
    labels: tuple[str, str] = ("normal", "anomaly"),
    samples: bool = True,
    reference: bytes = b"",
    width: int = SIDE,
    height: int = SIDE,
    crop: list[float] | None = None,
    resize: Literal["stretch", "crop", "letterbox"] = "stretch",
) -> Package:
    """Write and seal a package that finds darkness."""
    directory.mkdir(parents=True, exist_ok=True)
    kernel = np.full((1, 3, CELL, CELL), -1 / (3 * CELL * CELL), np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "kernel", "one"], ["signed"], strides=[CELL, CELL]),
        helper.make_node("Relu", ["signed"], ["map"]),
    ]
    _write(
        directory,
        nodes,
        {"kernel": kernel, "one": np.ones(1, np.float32)},
        (1, 3, height, width),
        ("map", (1, 1, height // CELL, width // CELL)),
    )
    (directory / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    proofs = []
    if samples:
        (directory / "good.png").write_bytes(dark())
        (directory / "bad.png").write_bytes(dark((2, 3, 1.0)))
        proofs = [
            ProofSample(file="good.png", label=labels[0], score=0.993, tolerance=0.01),
            ProofSample(file="bad.png", label=labels[1]),
        ]
    if reference:
        (directory / "reference.png").write_bytes(reference)
    manifest = Manifest(
        name=name,
        version=version,
        task="anomaly",
        description="finds darkness",
        labels="labels.txt",
        input=InputSpec(
            width=width, height=height, colour="rgb", mean=[0.0], scale=[1 / 255], crop=crop, resize=resize
        ),
        output=OutputSpec(kind="none"),
        anomaly=AnomalySpec(limit=limit, spread=spread, reference="reference.png" if reference else ""),
        variants=[Variant(file="model.onnx")],
        samples=proofs,
    )
    return seal_package(directory, manifest)


def make_embedder(
    directory: Path, name: str = "quarters", version: str = "1", *, threshold: float | None = 0.9, samples: bool = True
) -> Package:
    """Write and seal a package that embeds by the colours of the quarters."""
    directory.mkdir(parents=True, exist_ok=True)
    half = SIDE // 2
    nodes = [
        helper.make_node("AveragePool", ["input"], ["means"], kernel_shape=[half, half], strides=[half, half]),
        helper.make_node("Flatten", ["means"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "half"], ["embedding"]),
    ]
    _write(directory, nodes, {"half": np.full(1, 0.5, np.float32)}, (1, 3, SIDE, SIDE), ("embedding", (1, WIDTH)))
    proofs = []
    if samples:
        red, blue = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
        for number, (label, colours) in enumerate((("red", (red,) * 4), ("blue", (blue,) * 4))):
            for look in range(2):
                file = f"{label}-{look}.png"
                (directory / file).write_bytes(quarters(*colours, noise=10 * number + look))
                proofs.append(ProofSample(file=file, label=label))
    manifest = Manifest(
        name=name,
        version=version,
        task="embedding",
        description="the colours of four quarters",
        input=InputSpec(width=SIDE, height=SIDE, colour="rgb", mean=[0.0], scale=[1 / 255]),
        output=OutputSpec(kind="none"),
        embedding=EmbeddingSpec(width=WIDTH, threshold=threshold),
        variants=[Variant(file="model.onnx")],
        samples=proofs,
    )
    return seal_package(directory, manifest)


def _write(
    directory: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, NDArray[np.float32]],
    given: tuple[int, ...],
    output: tuple[str, tuple[int, ...]],
) -> None:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(given))],
        [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, list(output[1]))],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
