"""The un-folded checkpoint of an imported model: the same network as its author trained it, for devices to learn on.

Who exports a model for serving mostly has BatchNormalization folded into the convolutions, and can export it a second
time without. Both must give the same; then the second one goes into the package, under the names of the first one's
input and outputs, so that it can stand in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from cloudd.importing.bring import OPTIONS, Wanted, bring
from cloudd.importing.brought import Brought
from cloudd.importing.errors import ImportRefused
from cloudd.importing.kinds import Kind
from cloudd.importing.lineage import Checkpoint, Foreign
from edgekit.packages import CHECKPOINT_FOLDER
from edgekit.runtimes import Session, TensorInfo, open_session
from edgekit.runtimes.base import shape_text
from edgekit.training.folded import LIMIT, difference, normalisations

Tensors = Sequence[NDArray[Any]]


def add_checkpoint(
    source: Path,
    kind: Kind,
    foreign: Foreign,
    wanted: Wanted,
    served: tuple[Brought, Session],
    tensors: Tensors,
    root: Path,
    scratch: Path,
) -> tuple[str, Checkpoint]:
    """Put the checkpoint at `source` into the package in `root`; its path there, and the record.

    `foreign` is its record; `served` what it is a checkpoint of, in `root` itself. They are compared on the inputs
    `tensors`. Raises ImportRefused, ModelError, OSError.
    """
    model, session = served
    if model.precision != "fp32":
        raise ImportRefused(
            f"--checkpoint belongs to a float32 model, and {model.file} is {model.precision}: nobody could show that "
            "both are one network. Import the float model and let cloudd compress make the small one"
        )
    if kind not in ("onnx", "exported", "torchscript"):
        raise ImportRefused(f"--checkpoint {source.name}: gradients are derived of ONNX; export it as ONNX or .pt2")
    folder = root / CHECKPOINT_FOLDER
    folder.mkdir()
    brought = bring(source, kind, wanted, folder, scratch)
    if brought.precision != "fp32":
        raise ImportRefused(f"--checkpoint {source.name} is {brought.precision}; only float32 can learn")
    path = folder / brought.file
    kept, had = normalisations(_load(path)), 0
    if model.runtime == "onnxruntime":
        had = normalisations(_load(root / model.file))
    if kept <= had:
        raise ImportRefused(
            f"--checkpoint {source.name} has {kept} BatchNormalization and the model has {had}, so nothing is folded "
            "that it could bring back; leave it out"
        )
    with closing(open_session(path, "onnxruntime", OPTIONS, brought.files)) as other:
        names = _names(session, other)
    if any(old != new for old, new in names.items()):
        _rename(path, names)
    with closing(open_session(path, "onnxruntime", OPTIONS, brought.files)) as other:
        largest = _compare(session, other, tensors)
    road = brought.road
    changes = list(brought.onnx.changes) if brought.onnx is not None else []
    record = Checkpoint(source=foreign, road=road, changes=changes, normalisations=kept, largest=largest)
    return f"{CHECKPOINT_FOLDER}/{brought.file}", record


def _load(path: Path) -> onnx.ModelProto:
    return onnx.load(str(path), load_external_data=False)


def _names(served: Session, other: Session) -> dict[str, str]:
    """Name in the checkpoint -> name in the served model. Raises ImportRefused where they do not fit."""
    if len(other.inputs) != 1 or not _alike(served.inputs[0], other.inputs[0]):
        takes = ", ".join(f"{one.dtype} {shape_text(one.shape)}" for one in other.inputs[:8])
        wanted = served.inputs[0]
        raise ImportRefused(f"--checkpoint takes {takes}, and the model {wanted.dtype} {shape_text(wanted.shape)}")
    mine, theirs = ([one.name for one in session.outputs] for session in (served, other))
    if len(mine) != len(theirs):
        raise ImportRefused(f"--checkpoint gives {len(theirs)} outputs, and the model {len(mine)}")
    outputs = zip(mine, mine, strict=True) if set(mine) == set(theirs) else zip(theirs, mine, strict=True)
    return {other.inputs[0].name: served.inputs[0].name, **dict(outputs)}


def _alike(one: TensorInfo, other: TensorInfo) -> bool:
    return one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _rename(path: Path, names: Mapping[str, str]) -> None:
    """Call values of a model otherwise; whatever has one of the new names already gets out of the way."""
    model = _load(path)
    graph = model.graph
    if any(one.HasField("g") or one.graphs for node in graph.node for one in node.attribute):
        raise ImportRefused("--checkpoint has control flow inside, which cannot be trained; export it without")
    known = {name for node in graph.node for name in (*node.input, *node.output)}
    known |= {one.name for one in (*graph.input, *graph.initializer)}
    table = dict(names)
    for new in names.values():
        if new in known and new not in names:
            free = f"{new}.1"
            while free in known or free in table.values():
                free += "1"
            table[new] = free
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [table.get(name, name) for name in field]
    for one in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        one.name = table.get(one.name, one.name)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _compare(served: Session, other: Session, tensors: Tensors) -> float:
    """The largest difference, as a share of an output's largest value. Raises ImportRefused for one above LIMIT."""
    worst = 0.0
    for tensor in tensors:
        mine, theirs = (
            dict(zip([one.name for one in session.outputs], session.run({session.inputs[0].name: tensor}), strict=True))
            for session in (served, other)
        )
        for name, array in theirs.items():
            found = difference(array, mine[name])
            worst = max(worst, found)
            if not found <= LIMIT:
                raise ImportRefused(
                    f'--checkpoint does not answer as the model does: "{name}" differs by {found:.2g} of its largest '
                    f"value, {LIMIT:g} is allowed. It is another network, has other weights, or was exported in "
                    "training mode"
                )
    return float(f"{worst:.2g}")
