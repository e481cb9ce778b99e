"""Small classifiers of 8x8 pixels that tell dark from bright, each with a reason of its own to be hard to split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit.packages import InputSpec, Manifest, Package, ProofSample, Variant, seal_package
from tests.support.models import picture

SIDE = 8
_LOGITS = np.array([[-40.0, 40.0], [0, 0], [0, 0], [0, 0]], np.float32)  # of the mean brightness, minus a half


def weights(name: str, array: Sequence[object] | NDArray[np.float32]) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(array, np.float32), name)


def seal(
    folder: Path, nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto], *, external: bool = False
) -> Package:
    """A package of this network, from "x" to "logits", with a dark and a bright sample; weights in a second file if
    `external`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True)
    (folder / "net").mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0} if external else {}
    onnx.save(model, str(folder / "net" / "model.onnx"), **options)
    (folder / "labels.txt").write_text("dark\nbright\n")
    for name, brightness in (("dark", 0.2), ("bright", 0.8)):
        (folder / f"{name}.png").write_bytes(picture(brightness))
    manifest = Manifest(
        name="brightness",
        version="3",
        labels="labels.txt",
        input=InputSpec(width=SIDE, height=SIDE, scale=[1 / 255]),
        variants=[Variant(file="net/model.onnx")],
        samples=[ProofSample(file=f"{name}.png", label=name) for name in ("dark", "bright")],
    )
    return seal_package(folder, manifest)


def brightness(
    folder: Path, *, loud: float = 0.0, noise: float = 0.0, convolutions: int = 2, external: bool = False
) -> Package:
    """Some 1x1 convolutions that keep the brightness in channel 0, then the mean and the logits.

    The first writes `loud` into channel 1 and the second leaves that out again: a range in which eight bits lose the
    brightness. `noise` adds values of that size, on which no two runs agree, to the logits.
    """
    first = np.zeros((4, 3, 1, 1))
    first[0] = 1 / 3
    keep = np.zeros((4, 4, 1, 1))
    keep[0, 0] = 1
    tensors = [
        weights("w0", first),
        weights("b0", [0, loud, 0, 0]),
        weights("keep", keep),
        weights("dense", _LOGITS),
        weights("half", [20.0, -20.0]),
    ]
    nodes = [helper.make_node("Conv", ["x", "w0", "b0"], ["map0"])]
    for number in range(1, convolutions):
        nodes.append(helper.make_node("Conv", [f"map{number - 1}", "keep"], [f"map{number}"]))
    answer = "certain" if noise else "logits"
    nodes += [
        helper.make_node("GlobalAveragePool", [f"map{convolutions - 1}"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "dense", "half"], [answer]),
    ]
    if noise:
        nodes.append(helper.make_node("RandomNormalLike", [answer], ["drawn"], scale=noise))
        nodes.append(helper.make_node("Add", [answer, "drawn"], ["logits"]))
    return seal(folder, nodes, tensors, external=external)
