"""Narrower variants: channels are taken out of every layer, and what is left is taught to answer as the whole did.

Half the width takes a quarter of the arithmetic, and 8 bits work on top of it: 10 times as fast together for a
ResNet-18 (research/algorithms.md 3.2). Both kinds here come from one student, which is taught once. The careful way
takes away a half of what the first one took.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloudd.compress import quantise
from cloudd.compress.errors import CompressError
from cloudd.compress.maker import Materials, Recipe
from edgekit.runtimes import open_session

KEEP = 0.5
"""Share of every width that is left."""
KEEP_CAREFUL = 0.75
_MEASURED = 64  # pictures; the order of the channels hardly changes after that


@dataclass(frozen=True)
class Cut:
    """A network (`onnx.ModelProto`) before and after channels were taken out, both with logits as their output.

    `ending`: the Softmax that stood behind `logits`, or None.
    """

    whole: Any
    small: Any
    logits: str
    ending: Any


def floats(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """The student itself, in float. See maker.Maker."""
    student, recipe = _student(materials, careful)
    target.write_bytes(student.read_bytes())
    return recipe


def u8s8(materials: Materials, target: Path, *, careful: bool) -> Recipe:
    """The student in 8 bits. See maker.Maker."""
    student, recipe = _student(materials, careful)
    own = quantise.u8s8(replace(materials, model=student), target, careful=careful)
    return msgspec.structs.replace(own, method=f"{recipe.method}; then {own.method}", network=recipe.network)


def cut(source: Path, output: str, materials: Materials, keep: float, folder: Path) -> Cut:
    """Leave about `keep` of every width of the model at `source`, whose output `output` answers.

    `folder` is for files in between. Raises CompressError for a graph that cannot be understood, with the node's name.
    """
    onnx, _ = quantise.libraries()
    from edgekit.autodiff.artefact import model_with_weights
    from edgekit.autodiff.errors import AutodiffError
    from edgekit.autodiff.forward import read_forward
    from edgekit.pruning import importance, reader, surgery
    from edgekit.pruning.errors import PruningError

    try:
        whole = surgery.tidied(_named(onnx, model_with_weights(read_forward(source)), source))
        logits, ending = _bare(onnx, whole, output)
        channels = reader.read_channels(whole)
        squares = _squares(onnx, whole, materials, channels.measured, folder / "measured.onnx")
        gone = importance.least(channels, importance.importance(whole, channels, squares), keep)
        return Cut(whole, surgery.without(whole, channels, gone), logits, ending)
    except (AutodiffError, PruningError) as error:
        raise CompressError(str(error)) from error


def finish(model: Any, ending: Any, source: Path, target: Path) -> None:
    """Write a student to `target` as makers want a model, with the inputs, outputs and Softmax of `source`."""
    onnx, _ = quantise.libraries()
    first = onnx.load(str(source), load_external_data=False).graph
    if ending is not None:
        model.graph.node.append(ending)
    taken = {one.name for one in model.graph.input}
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend(one for one in first.input if one.name in taken)
    model.graph.output.extend(first.output)
    raw = target.with_suffix(".raw.onnx")
    onnx.save(model, str(raw))
    quantise.prepare(raw, raw.stat().st_size, target)
    raw.unlink()


def _student(materials: Materials, careful: bool) -> tuple[Path, Recipe]:
    """The student as makers want a model, taught once for all kinds."""
    keep = KEEP_CAREFUL if careful else KEEP
    path = materials.model.parent / f"student-{keep}.onnx"
    record, refusal = path.with_suffix(".json"), path.with_suffix(".refused")
    if refusal.exists():
        raise CompressError(refusal.read_text("utf-8"))
    if not record.exists():
        try:
            recipe = _teach(materials, keep, path)
        except CompressError as error:
            refusal.write_text(str(error), "utf-8")
            raise
        record.write_bytes(msgspec.json.encode(recipe))
    return path, msgspec.json.decode(record.read_bytes(), type=Recipe)


def _teach(materials: Materials, keep: float, path: Path) -> Recipe:
    training = materials.training
    if training is None:
        raise CompressError("there are no pictures to teach a narrower network with")
    onnx, _ = quantise.libraries()
    from cloudd.compress.distil import distil

    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        made = cut(training.source, training.output, materials, keep, folder)
        before, after = (_parameters(one) for one in (made.whole, made.small))
        teacher = _Teacher(onnx, made.whole, made.logits, folder / "teacher.onnx")
        try:
            taught = distil(made.small, made.logits, training, teacher, folder / "step")
        finally:
            teacher.close()
    finish(taught.model, made.ending, training.source, path)
    told = "" if taught.complete else ", as often as the time allowed"
    return Recipe(
        method=f"{keep:g} of every width by received energy ({after:,} of {before:,} parameters), distilled from the "
        f"float model on {training.count} pictures, {taught.shown} times in all{told}",
        network=f"width {keep:g}",
    )


def _named(onnx: Any, model: Any, source: Path) -> Any:
    """`model` with its nodes called as in `source`, so that whoever exported it finds the one that an error names."""
    names = {}
    for node in onnx.load(str(source), load_external_data=False).graph.node:
        names.update(dict.fromkeys(node.output, node.name))
    for node in model.graph.node:
        node.name = names.get(node.output[0]) or node.name
    return model


def _bare(onnx: Any, model: Any, output: str) -> tuple[str, Any]:
    """Take the Softmax off the output, in `model` itself. Returns the name of the logits, and the node or None."""
    graph = model.graph
    node = next((one for one in graph.node if output in one.output), None)
    if node is not None and node.op_type == "Sigmoid":
        raise CompressError("the answers come out of a Sigmoid; a narrower network can only be taught by logits")
    if node is None or node.op_type != "Softmax":
        return output, None
    ending = onnx.NodeProto.FromString(node.SerializeToString())
    info = next(one for one in graph.output if one.name == output)
    info.name = ending.input[0]
    graph.node.remove(node)
    return str(ending.input[0]), ending


def _squares(
    onnx: Any, model: Any, materials: Materials, wanted: Sequence[str], scratch: Path
) -> dict[str, NDArray[np.float64]]:
    """Mean square of each channel of these activations over some calibration pictures."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    known = {one.name for one in copy.graph.output}
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in known
    )
    onnx.save(copy, str(scratch))
    session = open_session(scratch, "onnxruntime")
    names = [one.name for one in session.outputs]
    found: dict[str, NDArray[np.float64]] = {}
    count = 0
    try:
        for picture in islice(materials.pictures(), _MEASURED):
            count += 1
            for name, array in zip(names, session.run({materials.input: picture}), strict=True):
                if name in wanted:
                    others = tuple(axis for axis in range(array.ndim) if axis != 1)
                    found[name] = found.get(name, 0.0) + np.square(array, dtype=np.float64).mean(axis=others)
    finally:
        session.close()
    return {name: total / count for name, total in found.items()}


class _Teacher:
    """The whole network, for batches of any size."""

    def __init__(self, onnx: Any, model: Any, logits: str, path: Path) -> None:
        onnx.save(model, str(path))
        self._session = open_session(path, "onnxruntime")
        self._input = self._session.inputs[0].name
        self._at = [one.name for one in self._session.outputs].index(logits)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self._session.run({self._input: batch})[self._at], np.float32)

    def close(self) -> None:
        self._session.close()


def _parameters(model: Any) -> int:
    return sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type == one.FLOAT)
