"""Makes a graph ready for pruning, and cuts channels out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
from numpy.typing import NDArray

from edgekit.graphs.editing import copied
from edgekit.pruning.channels import Channels
from edgekit.pruning.errors import PruningError


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with constants as initializers, a name of its own for every node, and weights of its own for each reader.

    Exporters keep equal tensors once, such as the zeros of two biases; after pruning they may differ in size. Raises
    PruningError for a graph with control flow or functions.
    """
    copy = copied(model)
    graph = copy.graph
    if copy.functions or any(one.type in (one.GRAPH, one.GRAPHS) for node in graph.node for one in node.attribute):
        raise PruningError("the model has control flow or functions of its own; export it without them")
    nodes = []
    for node in graph.node:
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    tensors = {one.name: one for one in graph.initializer}
    names = set(tensors) | {name for node in graph.node for name in (*node.input, *node.output)}
    readers = Counter(name for node in graph.node for name in node.input if name in tensors)
    called: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in called:
            node.name = f"{node.name or 'node'}-{number}"
        called.add(node.name)
        for place, name in enumerate(node.input):
            if readers.get(name, 0) < 2:
                continue
            readers[name] -= 1
            own = next(found for count in range(2, 1 << 30) if (found := f"{name}.{count}") not in names)
            names.add(own)
            tensor = graph.initializer.add()
            tensor.CopyFrom(tensors[name])
            tensor.name = node.input[place] = own
    return copy


def without(model: onnx.ModelProto, channels: Channels, gone: Collection[int]) -> onnx.ModelProto:
    """A copy of a tidied model without the units of `gone`; inputs and outputs are as before.

    Raises PruningError where a layer would be left without any channel.
    """
    copy = copied(model)
    graph = copy.graph
    del graph.value_info[:]  # shapes from before
    away = set(gone)

    def left(units: NDArray[np.int64]) -> NDArray[np.intp]:
        return np.array([place for place, unit in enumerate(units.tolist()) if unit not in away], np.intp)

    for tensor in graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        for (name, axis), units in channels.slots.items():
            if name == tensor.name:
                array = np.take(array, left(units), axis)
        if tensor.name in channels.flattened:
            array = array.copy()
            array[1] = len(left(channels.tensors[channels.flattened[tensor.name]]))
        if not array.size and tensor.dims and 0 not in tensor.dims:
            raise PruningError(f'nothing would be left of the weight "{tensor.name}"')
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    follow = set(channels.depthwise)
    for node in graph.node:
        if node.name in follow:
            for one in node.attribute:
                if one.name == "group":
                    one.i = len(left(channels.tensors[node.input[0]]))
    try:
        onnx.checker.check_model(copy, full_check=True)
    except Exception as error:  # onnx's own exceptions share no base class but Exception
        raise PruningError(f"the pruned graph does not fit together: {str(error).strip()[:300]}") from error
    return copy
