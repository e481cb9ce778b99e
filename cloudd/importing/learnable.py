"""Whether a device can learn with a model: derives its train step, runs it once, and names the node that forbids it.

Runs as a program of its own (`cloudd.importing.child`), since it parses and executes what a stranger wrote. The rungs
are those of a device's learning ladder.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.forward import Forward, read_forward
from edgekit.autodiff.interfaces import LossTerms
from edgekit.autodiff.losses import CrossEntropy
from edgekit.autodiff.optimisers import Sgd
from edgekit.autodiff.run import StepRunner
from edgekit.autodiff.selection import trainable_weights
from edgekit.autodiff.step import TrainStep, build_reestimation, build_step

_NODE = re.compile(r"node (.+?)((?: \(\w+\) cannot|: operator ).*)", re.DOTALL)
"""How autodiff begins a refusal that is about one node; it calls nodes by what they make."""
_NO_DETECTORS = (
    "its gradients can be derived, but of detectors devices train only centre-point ones so far (head centernet, with "
    "a heat map of logits)"
)
_NO_HEAD = "a detector's maps have no closed form; its last blocks are trained instead"
RUNGS = ("batchnorm", "head", "last-blocks", "full")


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """What a device can do with the model. Of each rung: "" if it can be climbed, else why not, with the node."""

    rungs: dict[str, str]
    weights: int = 0  # tensors that can be trained
    reached: int = 0  # of them, counted from the output, those that a gradient reaches
    normalisations: int = 0  # BatchNormalization nodes that are not folded
    loss: float | None = None  # of one step on noise; None where no step was run

    @property
    def possible(self) -> list[str]:
        """The rungs that can be climbed."""
        return [rung for rung, why in self.rungs.items() if not why]

    @property
    def reason(self) -> str:
        """Why the whole model cannot be trained; "" if it can."""
        return self.rungs.get("full", "")


def never(why: str) -> Learning:
    """No rung at all, for this reason."""
    return Learning(rungs=dict.fromkeys(RUNGS, why))


def examine(model: Path, output: str, classifier: bool, centre_point: bool = False) -> Learning:
    """Derive train steps of the model in a file. `output`: what gives the logits, or any output of another model.

    A model that is no classifier is examined with the mean square of the output in place of a loss. That shows whether
    gradients can be derived; `centre_point`: it is a detector of the only kind that devices train so far.
    """
    try:
        forward = read_forward(model)
    except AutodiffError as error:
        return never(str(error))
    names = trainable_weights(forward)
    norms = sum(node.op == "BatchNormalization" for node in forward.nodes)
    if not names:
        return never("it has no weights that can be trained")
    last = _last_layer(forward.nodes, names)
    named = _names(model)
    loss: Any = CrossEntropy(output=output) if classifier else _MeanSquare(output)

    def step(chosen: Sequence[str]) -> TrainStep:
        mode: Any = "train" if norms and len(chosen) == len(names) else "frozen"
        return build_step(model, loss, Sgd(), chosen, batch_norm=mode)

    whole, full = _attempt(lambda: step(names))
    head = _attempt(lambda: step(last))[1] if full else ""
    reached = (
        len(names) if not full else 0 if head else _furthest(lambda n: _attempt(lambda: step(names[-n:]))[1], names)
    )
    last_blocks = "" if not full or reached > len(last) else full
    norm = _attempt(lambda: build_reestimation(model))[1] if norms else (
        "it has no BatchNormalization left; exporters fold it into the convolutions unless told not to"
    )  # fmt: skip
    number: float | None = None
    if whole is not None:
        number, full = _run(whole, classifier, output, forward)
    rungs = {"batchnorm": norm, "head": head, "last-blocks": last_blocks, "full": full}
    if centre_point:
        rungs["head"] = _NO_HEAD
    elif not classifier:
        rungs = {rung: why or _NO_DETECTORS for rung, why in rungs.items()}
    return Learning(
        rungs={rung: _readable(why, named) for rung, why in rungs.items()},
        weights=len(names),
        reached=reached,
        normalisations=norms,
        loss=number,
    )


def _names(model: Path) -> dict[str, str]:
    """The name of the node that makes each value of the file, where it has one."""
    graph = onnx.load(model, load_external_data=False).graph
    return {output: node.name for node in graph.node for output in node.output if node.name}


def _readable(why: str, named: Mapping[str, str]) -> str:
    """A reason that names the file's own node, and does not list every operator that would be fine."""
    found = _NODE.match(why)
    if found is None:
        return why
    name, rest = named.get(found[1], found[1]), found[2].partition(". Freeze everything")[0]
    return f'node "{name[:200]}"{rest}'


def _attempt(make: Callable[[], Any]) -> tuple[Any, str]:
    try:
        return make(), ""
    except AutodiffError as error:
        return None, str(error)[:600]


def _last_layer(nodes: Sequence[Node], names: Sequence[str]) -> list[str]:
    """The weights that the last node with weights reads."""
    wanted = set(names)
    for node in reversed(nodes):
        mine = [one.name for one in node.inputs if one is not None and one.name in wanted]
        if mine:
            return mine
    return list(names[-1:])


def _furthest(why: Callable[[int], str], names: Sequence[str]) -> int:
    """How many of the last weights a gradient reaches: the more, the less likely; found by halving."""
    good, bad = 1, len(names)
    while bad - good > 1:
        middle = (good + bad) // 2
        if why(middle):
            bad = middle
        else:
            good = middle
    return good


def _run(step: TrainStep, classifier: bool, output: str, forward: Forward) -> tuple[float | None, str]:
    """One step on two pictures of noise: its loss, and why it cannot be run."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        name: rng.random((2, *value.sizes(1)), np.float32).astype(value.dtype)
        for name, value in forward.graph.inputs.items()
    }
    if classifier:
        feeds["labels"] = np.array([0, 1 % forward.outputs[output].size(1)], np.int64)
    with tempfile.TemporaryDirectory(prefix="step-", dir=Path()) as folder:
        try:
            step.save(Path(folder) / "step")
            loss = StepRunner(Path(folder) / "step", threads=1).step({**feeds, "learning_rate": 1e-4})["loss"]
        except AutodiffError as error:
            hint = "; an open batch in the file may help" if "labels has the shape" in str(error) else ""
            return None, f"its train step cannot be run on two pictures: {str(error)[:500]}{hint}"
    return float(np.asarray(loss).reshape(-1)[0]), ""


class _MeanSquare:
    """The mean square of an output: a loss that every output has."""

    def __init__(self, output: str) -> None:
        self._output = output

    def emit(self, builder: GraphBuilder, outputs: Mapping[str, Value]) -> LossTerms:
        """See edgekit.autodiff.interfaces.Loss.emit."""
        value = outputs[self._output]
        return LossTerms(builder.reduce_mean(builder.mul(value, value), range(value.rank)))


def main() -> int:
    """Carry out the order in the working directory."""
    order = json.loads(Path("order.json").read_text("utf-8"))
    found = examine(Path(order["model"]), order["output"], order["classifier"], order["centre_point"])
    Path("answer.json").write_bytes(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
