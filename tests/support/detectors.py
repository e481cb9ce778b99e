"""Tiny detection packages whose boxes a test can predict: they find red and green cells.

The input is 64x64 pixels, of which every 8x8 are a cell with a box of its own. The score of the label `short` is the
mean red of the cell, that of `open` its mean green, times a gain; the outputs are those of a YOLOv8. So a cell that was
painted red with the level 0.9 is a `short` with the score 0.9, exactly in its place, and a black picture is silent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import (
    DetectionSpec,
    InputSpec,
    Manifest,
    Package,
    ProofSample,
    TemplateSpec,
    Variant,
    seal_package,
)
from edgekit.vision.images import encode_png

SIDE, CELL = 64, 8
CELLS = SIDE // CELL
LABELS = ["short", "open"]

Spot = tuple[int, int, str, float]
"""Column and row of the cell, label, level 0..1."""


def board(*spots: Spot, width: int = 128, height: int = 128) -> bytes:
    """A black picture with these cells painted, as a PNG."""
    image = np.zeros((height, width, 3), np.uint8)
    for column, row, label, level in spots:
        left, top, right, bottom = (round(edge) for edge in cell(column, row, width, height))
        image[top:bottom, left:right, LABELS.index(label)] = round(level * 255)
    return encode_png(image)


def cell(column: int, row: int, width: int = 128, height: int = 128) -> tuple[float, float, float, float]:
    """The box of a cell in a picture of this size."""
    across, down = width / CELLS, height / CELLS
    return column * across, row * down, (column + 1) * across, (row + 1) * down


def make_detector(
    directory: Path,
    name: str = "cells",
    version: str = "1",
    *,
    gain: float = 1.0,
    report: float = 0.5,
    samples: bool = True,
    spec: DetectionSpec | None = None,
) -> Package:
    """Write and seal a package in `directory` (made if missing). The samples hold for a gain of 1."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(_model(gain).SerializeToString())
    (directory / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    proofs = []
    if samples:
        (directory / "bad.png").write_bytes(board((1, 2, "short", 0.8), (6, 5, "open", 0.8)))
        (directory / "good.png").write_bytes(board((1, 2, "short", 0.42)))
        proofs = [
            ProofSample(file="bad.png", label="short", box=list(cell(1, 2)), score=0.8),
            ProofSample(file="bad.png", label="open", box=list(cell(6, 5))),
            ProofSample(file="good.png", label="short", count=0),
        ]
    manifest = Manifest(
        name=name,
        version=version,
        task="detection",
        description="finds red and green cells",
        labels="labels.txt",
        input=InputSpec(width=SIDE, height=SIDE, colour="rgb", scale=[1 / 255]),
        detection=spec or DetectionSpec(head="yolov8", report=report),
        variants=[Variant(file="model.onnx")],
        samples=proofs,
    )
    return seal_package(directory, manifest)


def make_template(directory: Path, name: str = "golden") -> Package:
    """A golden picture of 128x128: a frame of copper with a bar across; `bar_board` draws others."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "golden.png").write_bytes(bar_board())
    (directory / "labels.txt").write_text("open\nshort\n")
    manifest = Manifest(
        name=name,
        version="1",
        task="detection",
        labels="labels.txt",
        input=InputSpec(width=128, height=128, colour="grey"),
        detection=DetectionSpec(head="template"),
        template=TemplateSpec(),
        variants=[Variant(file="golden.png", runtime="template")],
    )
    return seal_package(directory, manifest)


def bar_board(gap: bool = False) -> bytes:
    """What `make_template` compares with; with `gap` the bar is open from x = 60 to 72, y = 58 to 68."""
    image = np.full((128, 128), 40, np.uint8)
    image[10:18, 10:118] = image[110:118, 10:90] = image[10:118, 10:18] = 200
    image[58:68, 18:118] = 200
    if gap:
        image[58:68, 60:72] = 40
    return encode_png(image)


def _model(gain: float) -> onnx.ModelProto:
    centres = (np.arange(CELLS, dtype=np.float32) + 0.5) * CELL
    across, down = np.meshgrid(centres, centres)
    sides = np.full(CELLS * CELLS, CELL, np.float32)
    boxes: NDArray[np.float32] = np.stack([across.reshape(-1), down.reshape(-1), sides, sides])[np.newaxis]
    initializers = {
        "boxes": boxes,
        "gain": np.array(gain, np.float32),
        "from": np.array([0], np.int64),
        "to": np.array([2], np.int64),
        "axis": np.array([1], np.int64),
        "rows": np.array([1, 2, CELLS * CELLS], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["input"], ["means"], kernel_shape=[CELL, CELL], strides=[CELL, CELL]),
        helper.make_node("Slice", ["means", "from", "to", "axis"], ["colours"]),
        helper.make_node("Mul", ["colours", "gain"], ["levels"]),
        helper.make_node("Reshape", ["levels", "rows"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["output0"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "cells",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, CELLS * CELLS])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model
