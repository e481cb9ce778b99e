"""Which tensors of a forward model can be trained, and which of them a request means."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from edgekit.autodiff.builder import Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import Forward

Select = str | Sequence[str] | Callable[[str], bool]
"""A regular expression searched in names, the names, or a predicate of a name."""

_PLACES: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Gather": (0,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
    "Concat": (0, 1),
}
"""Where operators take weights."""
_MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast", "Expand")
"""Operators through which a weight may go first."""


def trainable_weights(forward: Forward) -> list[str]:
    """The names of all weights that can be trained, in the order of the nodes that read them.

    Not among them: running statistics, single numbers that are added or multiplied, and the bias of a convolution right
    before a BatchNormalization, whose gradient is zero but for rounding (which Adam would turn into full steps).
    """
    normalised = {node.input(0).name for node in forward.nodes if node.op == "BatchNormalization"}
    statistics = {node.input(i).name for node in forward.nodes if node.op == "BatchNormalization" for i in (3, 4)}
    source: dict[str, Value] = {value.name: value for value in forward.weights.values()}
    found: dict[str, None] = {}
    for node in forward.nodes:
        if node.op in _MOVES and node.inputs[0] is not None and node.inputs[0].name in source:
            source[node.outputs[0].name] = source[node.inputs[0].name]
            continue
        for place in _PLACES.get(node.op, ()):
            value = node.optional(place)
            weight = source.get(value.name) if value is not None else None
            if weight is None or weight.dtype.kind != "f" or weight.name in statistics:
                continue
            single = math.prod(weight.sizes()) == 1 and node.op not in ("Conv", "Gemm", "ConvTranspose", "PRelu")
            useless = node.op == "Conv" and place == 2 and node.outputs[0].name in normalised
            if not single and not useless and weight.rank:
                found[weight.name] = None
    return list(found)


def select(forward: Forward, wanted: Select) -> list[str]:
    """The weights to train. Raises AutodiffError when the request names none, or a name that cannot be trained."""
    known = trainable_weights(forward)
    if isinstance(wanted, str):
        try:
            pattern = re.compile(wanted)
        except re.error as error:
            raise AutodiffError(f"trainable: {wanted!r} is no regular expression: {error}") from error
        chosen = [name for name in known if pattern.search(name)]
    elif callable(wanted):
        chosen = [name for name in known if wanted(name)]
    else:
        missing = sorted(set(wanted) - set(known))
        if missing:
            reason = (
                "is no weight that can be trained" if missing[0] in forward.weights else "is no weight of the model"
            )
            raise AutodiffError(f"trainable: {missing[0]} {reason}; those that can be are {_some(known)}")
        chosen = [name for name in known if name in set(wanted)]
    if not chosen:
        raise AutodiffError(f"trainable selects no weight; those that can be trained are {_some(known)}")
    return chosen


def depends_on(nodes: Sequence[Node], names: set[str]) -> set[str]:
    """The names of all values that are computed from any of `names`, and these."""
    active = set(names)
    for node in nodes:
        if any(one is not None and one.name in active for one in node.inputs):
            active.update(one.name for one in node.outputs)
    return active


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none at all"
