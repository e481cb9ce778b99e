"""A package's float classifier as an ONNX graph that can be learned with: its features, its last layer, its outputs.

Whatever the package says, the network here has one output: logits. A Softmax behind them is cut off, and a candidate
says so in its own package. Needs the package onnx.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from edged.train.graph import Graph, file_to_learn, load_model
from edged.train.stages import Stage, more_features
from edgekit.graphs.editing import copied, drop_unused, free_name
from edgekit.graphs.errors import NetworkError
from edgekit.graphs.logits import Floats, LastLayer, keep_logits, last_layer
from edgekit.packages import Package, Variant
from edgekit.runtimes import Session, SessionOptions, open_session
from edgekit.training import MODEL_FILE, WEIGHTS_FILE, write_model
from edgekit.vision.classification import Classifier


@dataclass(frozen=True, eq=False)
class Network(Graph):
    """A classifier's graph."""

    logits: str  # name of its only output

    def last_layer(self) -> LastLayer:
        """Its Gemm, MatMul or 1x1 Conv before the output. Raises NetworkError if it has none."""
        return last_layer(self.model.graph, self.logits)

    def with_last_layer(self, weight: Floats, bias: Floats) -> Network:
        """The same network with another last layer, weight [classes, features] and bias [classes]; see `last_layer`.

        Raises NetworkError where the number of classes is written into the graph behind it.
        """
        return self._with_layer(weight, bias, self.last_layer().features, ())

    def widened(self, size: tuple[int, ...]) -> Network | None:
        """The same network, giving the same values, with a last layer that reads features of earlier maps, too.

        They stand before the old ones, with weights of 0; `size` is the shape of an image. None where the graph shows
        none that it does not read already; see `edged.train.stages`. Raises NetworkError as `last_layer`.
        """
        old = self.last_layer()
        more = more_features(self.model, self.image, size, old.features)
        if not more:
            return None
        weight = np.pad(old.weight, ((0, 0), (sum(one.features for one in more), 0)))
        features, nodes = self._joined(old, more)
        return self._with_layer(weight, old.bias, features, nodes)

    def _joined(self, old: LastLayer, more: Sequence[Stage]) -> tuple[str, list[onnx.NodeProto]]:
        """The name of `more` with the old features behind, and the nodes that make it.

        Earlier maps come first and are joined one after another. Where only the last blocks are trained, each join then
        passes on all of its gradient but perhaps its first part; onnxruntime crashes in a Split of which nobody reads
        another part.
        """
        taken = {name for node in self.model.graph.node for name in (*node.input, *node.output, node.name)}
        nodes: list[onnx.NodeProto] = []

        def add(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
            name = free_name(f"learned.{name}", taken)
            taken.add(name)
            nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
            return name

        joined: list[str] = []
        for at, one in enumerate(reversed(more), 1):
            places = one.map
            if one.window != (1, 1):
                places = add("AveragePool", [places], f"places{at}", kernel_shape=one.window, strides=one.window)
            pooled = [add(operator, [places], f"pool{at}") for operator in one.operators]
            joined = [add("Concat", [*joined, *pooled], f"joined{at}", axis=1)]
        if old.node.op_type != "Conv":
            joined = [add("Flatten", joined, "flat", axis=1)]
        return add("Concat", [*joined, old.features], "features", axis=1), nodes

    def _with_layer(self, weight: Floats, bias: Floats, features: str, before: Sequence[onnx.NodeProto]) -> Network:
        """Another last layer that reads `features`, which the nodes `before` it may make."""
        old = self.last_layer()
        classes = len(weight)
        model = copied(self.model)
        graph = model.graph
        wanted = {old.node.output[0]}
        index = next(at for at, one in enumerate(graph.node) if one.output and one.output[0] in wanted)
        taken = {one.name for one in graph.initializer}
        names = [free_name(name, taken) for name in ("learned.weight", "learned.bias")]
        layer, inputs = graph.node[index], [features, *names]
        values = np.asarray(weight, np.float32)
        if layer.op_type == "Conv":
            new = onnx.helper.make_node("Conv", inputs, [layer.output[0]], name=layer.name)
            values = values[:, :, np.newaxis, np.newaxis]
        else:
            output = layer.output[0] if old.bias_node is None else old.bias_node.output[0]
            new = onnx.helper.make_node("Gemm", inputs, [output], name=layer.name, transB=1)
        kept = [one for one in graph.node if old.bias_node is None or one.output[0] != old.bias_node.output[0]]
        nodes = []
        for one in kept:
            nodes += [*before, new] if one.output[0] in wanted else [one]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), names[0]))
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(bias, np.float32), names[1]))
        if classes != len(old.weight):
            _forget_shapes(model, new.output[0], self.logits, classes)
        drop_unused(model)
        return Network(model, self.image, self.logits)

    @contextmanager
    def feature_session(self, folder: Path, threads: int) -> Iterator[Session]:
        """A session that gives the last layer's input instead of logits; its files lie in `folder`, which is made.

        Raises ModelError, NetworkError, OSError.
        """
        model = copied(self.model)
        del model.graph.output[:]
        name = self.last_layer().features
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        drop_unused(model)
        folder.mkdir(parents=True, exist_ok=True)
        write_model(model, folder)
        with closing(
            open_session(folder / MODEL_FILE, "onnxruntime", SessionOptions(threads=threads), [WEIGHTS_FILE])
        ) as session:
            yield session


def read_network(package: Package) -> Network:
    """The package's float classifier, after the checks that serving makes before a runtime sees the file.

    A checkpoint must be right about the package's samples, as the files that serve. Raises NetworkError, ModelError.
    """
    manifest, variant = package.manifest, Variant(file=file_to_learn(package))
    if manifest.task != "classification" or manifest.output.kind == "none":
        raise NetworkError(f"{package.ref} is no classifier, and only classifiers learn on the device so far")
    with closing(Classifier.load(package, variant=variant)) as checked:
        if manifest.checkpoint is not None:
            checked.prove()
        image, output = checked.session.inputs[0], manifest.output.name or checked.session.outputs[0].name
    model = load_model(package, variant.file, image)
    logits = keep_logits(model, output, probabilities=manifest.output.kind == "probabilities")
    return Network(model, image.name, logits)


def features(session: Session, image: str, tensors: Iterator[NDArray[Any]]) -> Iterator[Floats]:
    """The features of each batch of one, as a vector. Raises NetworkError unless they are one, ModelError."""
    for tensor in tensors:
        found = np.asarray(session.run({image: tensor})[0], np.float64)
        if found.ndim != 2 and any(size != 1 for size in found.shape[2:]):
            raise NetworkError(
                f"the last layer works on maps of {'x'.join(map(str, found.shape[2:]))} places before they are pooled, "
                "so it cannot be replaced"
            )
        if not np.isfinite(found).all():
            raise NetworkError("the features of a picture are not finite")
        yield found.reshape(-1)


def _forget_shapes(model: onnx.ModelProto, start: str, logits: str, classes: int) -> None:
    """Behind `start` the number of classes has changed. Raises NetworkError where the graph fixes it."""
    graph = model.graph
    known = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer if one.data_type == one.INT64}
    changed = {start}
    for node in graph.node:
        if not changed.intersection(node.input):
            continue
        if node.op_type == "Reshape":
            shape = known.get(node.input[1])
            if shape is None or any(size > 1 for size in shape.tolist()):
                raise NetworkError(
                    f"the node {(node.name or node.output[0])[:100]} (Reshape) fixes the number of classes; export the "
                    "model without it to let it learn new ones"
                )
        changed.update(node.output)
    kept = [one for one in graph.value_info if one.name not in changed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    dims = graph.output[0].type.tensor_type.shape.dim
    for dim in dims[1:]:
        if dim.HasField("dim_value") and dim.dim_value != 1:
            dim.dim_value = classes
    assert graph.output[0].name == logits
