"""Small detection models for the tests: one that emits known tensors, and one that really finds a bright rectangle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
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


def emitting(outputs: dict[str, NDArray[Any]], size: tuple[int, int] = (64, 64), free: str = "") -> onnx.ModelProto:
    """A model of a picture of size (width, height) whose outputs are always these; `free` has a free second size."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    tensors = [numpy_helper.from_array(np.float32(0), "zero")]
    infos = []
    for name, values in outputs.items():
        tensors.append(numpy_helper.from_array(values.astype(np.float32), f"{name}_values"))
        nodes.append(helper.make_node("Add", [f"{name}_values", "nothing"], [name]))
        shape: list[int | str] = list(values.shape)
        if name == free:
            shape[1] = "n"
        infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size[1], size[0]])
    return _model(helper.make_graph(nodes, "emitting", [picture], infos, tensors))


def rectangle_finder(width: int, height: int, score: float = 0.9) -> onnx.ModelProto:
    """Finds the rectangle around all pixels above 128 of a grey picture (scaled to 0..1): one row of [1, 1, 6]."""

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], **attributes)

    constants = {
        "half": np.float32(0.5),
        "score_value": np.float32(score),
        "width": np.float32(width),
        "height": np.float32(height),
        "zero": np.zeros((1, 1, 1, 1), np.float32),
        "across": np.arange(1, width + 1, dtype=np.float32).reshape(1, 1, 1, width),
        "back": np.arange(width, 0, -1, dtype=np.float32).reshape(1, 1, 1, width),
        "down": np.arange(1, height + 1, dtype=np.float32).reshape(1, 1, height, 1),
        "up": np.arange(height, 0, -1, dtype=np.float32).reshape(1, 1, height, 1),
        "shape": np.array([1, 1, 6], np.int64),
    }
    nodes = [node("Greater", ["x", "half"], "bright"), node("Cast", ["bright"], "mask", to=TensorProto.FLOAT)]
    for steps, result in (("across", "right"), ("back", "from_left"), ("down", "bottom"), ("up", "from_top")):
        nodes.append(node("Mul", ["mask", steps], f"{result}_all"))
        nodes.append(node("ReduceMax", [f"{result}_all"], result, keepdims=1))
    nodes += [
        node("Sub", ["width", "from_left"], "left"),
        node("Sub", ["height", "from_top"], "top"),
        node("ReduceMax", ["mask"], "any", keepdims=1),
        node("Mul", ["any", "score_value"], "score"),
        node("Concat", ["left", "top", "right", "bottom", "score", "zero"], "row", axis=3),
        node("Reshape", ["row", "shape"], "found"),
    ]
    picture = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, height, width])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, [1, 1, 6])
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return _model(helper.make_graph(nodes, "rectangle", [picture], [found], tensors))


def _model(graph: onnx.GraphProto) -> onnx.ModelProto:
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.checker.check_model(made)
    return made


def detection_package(
    root: Path,
    model: onnx.ModelProto,
    detection: DetectionSpec,
    *,
    labels: tuple[str, ...] = ("face",),
    size: tuple[int, int] = (64, 64),
    samples: tuple[ProofSample, ...] = (),
    files: dict[str, bytes] | None = None,
    **input_changes: Any,
) -> Package:
    """A sealed package of this model for pictures of size (width, height)."""
    root.mkdir(parents=True)
    (root / "model.onnx").write_bytes(model.SerializeToString())
    (root / "labels.txt").write_text("\n".join(labels) + "\n")
    for name, data in (files or {}).items():
        (root / name).write_bytes(data)
    manifest = Manifest(
        name="finder",
        version="1",
        task="detection",
        labels="labels.txt",
        input=InputSpec(**{"width": size[0], "height": size[1], "scale": [1 / 255], **input_changes}),
        detection=detection,
        variants=[Variant(file="model.onnx")],
        samples=list(samples),
    )
    return seal_package(root, manifest)


def rectangle_package(
    root: Path, size: tuple[int, int] = (64, 64), *, samples: tuple[ProofSample, ...] = (), **input_changes: Any
) -> Package:
    """A package of `rectangle_finder`, with a sample picture that has a rectangle and one that has none."""
    return detection_package(
        root,
        rectangle_finder(*size),
        DetectionSpec(head="yolov10"),
        labels=("rectangle", "other"),
        size=size,
        samples=samples,
        files={"some.png": encode_png(picture(64, 64, (8, 16, 40, 32))), "none.png": encode_png(picture(64, 64))},
        colour="grey",
        **input_changes,
    )


def picture(width: int, height: int, *rectangles: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A black grey picture with white rectangles (left, top, right, bottom)."""
    image = np.zeros((height, width), np.uint8)
    for left, top, right, bottom in rectangles:
        image[top:bottom, left:right] = 255
    return image


WIDTH, HEIGHT = 240, 200
GREYS = {"material": 200, "ground": 50}


def board(fine: bool = True) -> NDArray[np.uint8]:
    """Bright traces and pads on dark ground, without any regularity; `fine`: with a 3 pixel trace and a 4 pixel gap."""
    image = np.full((HEIGHT, WIDTH), GREYS["ground"], np.uint8)
    for start, end, thick in (((20, 30), (200, 30), 8), ((60, 30), (60, 150), 6), ((60, 150), (180, 110), 5)):
        cv2.line(image, start, end, GREYS["material"], thick)
    for middle, radius in (((200, 30), 14), ((180, 110), 12), ((60, 150), 10), ((120, 70), 9), ((30, 180), 11)):
        cv2.circle(image, middle, radius, GREYS["material"], -1)
    cv2.rectangle(image, (140, 150), (220, 185), GREYS["material"], -1)
    if fine:
        image[150:186, 190:194] = GREYS["ground"]
        image[50:53, 140:230] = GREYS["material"]
    return image


def template_package(
    root: Path,
    golden: NDArray[np.uint8],
    how: TemplateSpec | None = None,
    *,
    samples: dict[str, tuple[NDArray[np.uint8], ProofSample]] | None = None,
    labels: str = "missing\nexcess\n",
    **input_changes: Any,
) -> Package:
    root.mkdir()
    (root / "golden.png").write_bytes(encode_png(golden))
    (root / "labels.txt").write_text(labels)
    for name, (image, _) in (samples or {}).items():
        (root / name).write_bytes(encode_png(image))
    manifest = Manifest(
        name="bare-board",
        version="1",
        task="detection",
        labels="labels.txt",
        input=InputSpec(**{"width": WIDTH, "height": HEIGHT, "colour": "grey", **input_changes}),
        detection=DetectionSpec(head="template"),
        template=how,
        variants=[Variant(file="golden.png", runtime="template")],
        samples=[sample for _, sample in (samples or {}).values()],
    )
    return seal_package(root, manifest)
