"""A package's centre-point detector as an ONNX graph that can be learned with, and given new classes.

Only this head can learn: its maps come straight from convolutions, and what they must say follows from boxes in closed
form (`edgekit.training.centre_targets`). The heads of other detectors match boxes to anchors in ways of their own.
Needs the package onnx.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from edged.train.graph import Graph, file_to_learn, load_model
from edgekit.graphs.editing import attributes, called, copied, drop_unused, free_name, keep_outputs, makers
from edgekit.graphs.errors import NetworkError
from edgekit.packages import Package, Variant
from edgekit.vision.detection.detector import Detector
from edgekit.vision.detection.heads.grid import CENTERNET_STRIDE

PRIOR = 0.01
"""What the heat map says of a new class before it has learned: else the many empty cells would swamp the first steps
(Lin et al. 2017, arXiv 1708.02002, 4.1)."""


@dataclass(frozen=True, eq=False)
class DetectorNetwork(Graph):
    """A centre-point detector's graph."""

    outputs: tuple[str, str, str]  # names of the heat map (logits), the sizes and the offsets, [N, C, H, W] each
    stride: int  # pixels of the input for each cell

    def with_classes(self, count: int) -> DetectorNetwork:
        """The same network with a heat map of `count` classes; what it says of those that it had stays as it was.

        A new class begins with the probability PRIOR everywhere. Raises NetworkError unless a Conv makes the heat map.
        """
        heat = self.outputs[0]
        model = copied(self.model)
        graph = model.graph
        node = makers(graph).get(heat)
        if node is None or node.op_type != "Conv":
            raise NetworkError(f"the heat map is made by {called(node, heat)}; new classes can be given to a Conv only")
        arrays = {one.name: one for one in graph.initializer}
        if attributes(node).get("group", 1) != 1 or any(name not in arrays for name in node.input[1:]):
            raise NetworkError(f"the weights of {(node.name or heat)[:100]} are grouped or computed, so it cannot grow")
        weight, *rest = (np.asarray(onnx.numpy_helper.to_array(arrays[name]), np.float32) for name in node.input[1:])
        had = len(weight)
        bias = rest[0] if rest else np.zeros(had, np.float32)
        more = count - had
        taken = {*arrays, *(name for one in graph.node for name in one.output)}
        grown = {
            "learned.weight": np.concatenate([weight, np.zeros((more, *weight.shape[1:]), np.float32)]),
            "learned.bias": np.concatenate([bias, np.full(more, -math.log((1 - PRIOR) / PRIOR), np.float32)]),
        }
        names = []
        for wanted, values in grown.items():
            name = free_name(wanted, taken)
            graph.initializer.append(onnx.numpy_helper.from_array(values, name))
            names.append(name)
        node.input[:] = [node.input[0], *names]
        for one in graph.output:
            if one.name == heat:
                one.type.tensor_type.shape.dim[1].dim_value = count
        kept = [one for one in graph.value_info if one.name != heat]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        drop_unused(model)
        return replace(self, model=model)


def read_detector(package: Package) -> DetectorNetwork:
    """The package's detector, after the checks that serving makes before a runtime sees the file.

    Raises NetworkError for one that cannot learn here, with the reason, and ModelError.
    """
    manifest = package.manifest
    spec = manifest.detection
    if manifest.task != "detection" or spec is None:
        raise NetworkError(f"{package.ref} is no detector whose head is known")
    if spec.head != "centernet":
        raise NetworkError(
            f'{package.ref} has the head "{spec.head}", and only centre-point detectors ("centernet"), as cloudd train '
            "makes them, learn on the device: export its labelled samples and train one with cloudd train"
        )
    if spec.scores == "probabilities":
        raise NetworkError(f"the heat map of {package.ref} comes as probabilities, and only logits can be learned")
    variant = Variant(file=file_to_learn(package))
    (stride,) = spec.strides or [CENTERNET_STRIDE]
    cells = manifest.input.height // stride, manifest.input.width // stride
    with closing(Detector.load(package, variant=variant)) as checked:
        if manifest.checkpoint is not None:
            checked.prove()
        assert checked.session is not None, "only a template has none"
        image, outputs = checked.session.inputs[0], {one.name: one for one in checked.session.outputs}
    model = load_model(package, variant.file, image)
    for name, channels in zip(spec.outputs, (len(package.labels), 2, 2), strict=True):
        if not outputs[name].accepts((1, channels, *cells)):
            raise NetworkError(f"the map {name[:100]} has its channels behind, and only maps [N, C, H, W] can learn")
    keep_outputs(model, spec.outputs)
    heat, size, offset = spec.outputs
    return DetectorNetwork(model, image.name, (heat, size, offset), stride)
