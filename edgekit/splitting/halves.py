"""Writes the head and the tail of a cut as ONNX files, and proves that together they are the whole model.

`onnx.utils.extract_model` is not used: it does not follow what subgraphs (If, Loop) take from outside, refuses sparse
weights, and reads weights from other files before anything has checked where these lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekit import atomic
from edgekit.runtimes import ModelError, Session, SessionOptions, open_session
from edgekit.splitting.cuts import Cut
from edgekit.splitting.features import DTYPES
from edgekit.splitting.graph import MAX_PROTOBUF, CutTensor, Graph, uses

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-3
"""Largest accepted difference between both halves and the whole, as a share of the output's largest value."""

_MODE = 0o644
_OPTIONS = SessionOptions()


class SplitError(ModelError):
    """The model cannot be cut there; the text says why."""


def make_halves(
    model: Path,
    graph: Graph,
    cut: Cut,
    head: Path,
    tail: Path,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    files: Collection[str] = (),
) -> float:
    """Write `head` and `tail` for one cut of the file `model`, whose graph `read_graph` gave, and prove them.

    Both are self-contained, take and give tensors of fixed shape under the names of the whole model, and answer
    together what the whole answers for each of `feeds` (input name -> array), as `prove` defines it; the largest
    difference is returned. `files` are those beside the model that it may read weights from. Runs on onnxruntime's
    CPU. Raises SplitError, and leaves no file behind, where this cut cannot be made; ModelError for a bad model.
    """
    whole = open_session(model, "onnxruntime", _OPTIONS, files)  # checks every reference before one is followed
    try:
        atomic.write_file(head, _head(graph, cut), _MODE)
        atomic.write_file(tail, _tail(graph, cut), _MODE)
        return prove(whole, _open(head), _open(tail), feeds)
    except Exception:
        head.unlink(missing_ok=True)
        tail.unlink(missing_ok=True)
        raise


def run_halves(head: Session, tail: Session, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The tail's outputs for the whole model's inputs; those that the head does not take are left out."""
    wanted = {tensor.name for tensor in head.inputs}
    given = head.run({name: array for name, array in feeds.items() if name in wanted})
    return tail.run({tensor.name: array for tensor, array in zip(head.outputs, given, strict=True)})


def prove(
    whole: Session,
    head: Session,
    tail: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    tolerance: float = TOLERANCE,
) -> float:
    """The largest difference between the whole model and its halves over `feeds` (at least one), 0..tolerance.

    For each output that is max|halves - whole| / max|whole|. Raises SplitError for a larger one, for an output of
    another type or shape, for integers that differ at all, and for a whole model that answers NaN or infinity.
    """
    if not feeds:
        raise SplitError("halves are proved on at least one input")
    worst = 0.0
    for number, feed in enumerate(feeds):
        answers = zip(whole.outputs, whole.run(feed), run_halves(head, tail, feed), strict=True)
        for tensor, expected, found in answers:
            difference = _difference(tensor.name, expected, found)
            if not difference <= tolerance:
                raise SplitError(
                    f'the halves answer "{tensor.name[:60]}" with a difference of {difference:.2g} of its largest '
                    f"value (input {number}); {tolerance:g} is allowed"
                )
            worst = max(worst, difference)
    return worst


def _open(path: Path) -> Session:
    try:
        return open_session(path, "onnxruntime", _OPTIONS)
    except ModelError as error:
        raise SplitError(f"the half {path.name} cannot be loaded: {error}") from error


def _difference(name: str, expected: NDArray[Any], found: NDArray[Any]) -> float:
    if expected.dtype != found.dtype or expected.shape != found.shape:
        raise SplitError(f'the halves answer "{name[:60]}" with another type or shape than the whole model')
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    if not np.isfinite(expected).all():
        raise SplitError(f'the whole model answers "{name[:60]}" with NaN or infinity; nothing can be proved')
    if not expected.size:
        return 0.0
    gap = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
    scale = float(np.abs(expected).max())
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def _head(graph: Graph, cut: Cut) -> bytes:
    return _half(graph, "head", [graph.tensors[name] for name in graph.inputs], [_value(one) for one in cut.tensors])


def _tail(graph: Graph, cut: Cut) -> bytes:
    outputs = []
    for declared in graph.model.graph.output:
        known = graph.tensors.get(declared.name)
        outputs.append(_value(known) if known and known.dtype in DTYPES else declared)
    return _half(graph, "tail", list(cut.tensors), outputs)


def _half(graph: Graph, name: str, inputs: Iterable[CutTensor], outputs: Sequence[onnx.ValueInfoProto]) -> bytes:
    """The part of the graph between these tensors, with every weight inside, as the bytes of an ONNX file."""
    import onnx
    from onnx import helper, numpy_helper
    from onnx.external_data_helper import load_external_data_for_model

    source = graph.model.graph
    starts = {one.name: one for one in inputs}
    nodes, reached = _needed(graph, [one.name for one in outputs], starts)
    part = helper.make_graph(
        nodes,
        f"{source.name} ({name})",
        [_value(one) for one in starts.values() if one.name in reached],
        outputs,
        initializer=[one for one in source.initializer if one.name in reached],
        sparse_initializer=[one for one in source.sparse_initializer if one.values.name in reached],
    )
    for shape in reached & graph.shapes.keys():
        part.initializer.append(numpy_helper.from_array(np.array(graph.shapes[shape], np.int64), shape))
    # Before version 4 every weight had to be listed as an input too, which these are not.
    half = onnx.ModelProto(ir_version=max(4, graph.model.ir_version), producer_name="edgekit.splitting", graph=part)
    half.opset_import.extend(graph.model.opset_import)
    half.functions.extend(graph.model.functions)
    try:
        load_external_data_for_model(half, str(graph.folder))
    except Exception as error:  # onnx raises several types of its own
        raise SplitError(f"the weights of the {name} cannot be read: {str(error)[:200]}") from error
    if half.ByteSize() > MAX_PROTOBUF:
        raise SplitError(f"the {name} has {half.ByteSize()} bytes; one ONNX file holds {MAX_PROTOBUF}")
    return bytes(half.SerializeToString(deterministic=True))


def _needed(
    graph: Graph, ends: Sequence[str], starts: Mapping[str, CutTensor]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes between `starts` and `ends` in topological order, and every tensor that they touch."""
    producers = graph.producers
    nodes: set[int] = set()
    reached = set(ends)
    waiting = list(ends)
    while waiting:
        name = waiting.pop()
        if name in starts or name in graph.shapes or name in graph.weights:
            continue
        if name not in producers:
            raise SplitError(f'"{name[:60]}" does not follow from the tensors of the cut')
        nodes.add(producers[name])
        for use in uses(graph.model.graph.node[producers[name]]):
            if use not in reached:
                reached.add(use)
                waiting.append(use)
    return [graph.model.graph.node[position] for position in graph.order if position in nodes], reached


def _value(tensor: CutTensor) -> onnx.ValueInfoProto:
    from onnx import helper

    return helper.make_tensor_value_info(
        tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), list(tensor.shape)
    )
