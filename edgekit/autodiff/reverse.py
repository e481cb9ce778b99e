"""Reverse mode: from the gradients of some values to those of the values they were computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.autodiff import rules
from edgekit.autodiff.builder import GraphBuilder, Node, Value
from edgekit.autodiff.errors import AutodiffError
from edgekit.autodiff.rules.registry import Gradients, Needs


@dataclass(frozen=True)
class Composite:
    """Several nodes that have one gradient together, shorter than what their rules would give one by one."""

    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    backward: Callable[[GraphBuilder, Sequence[Value | None], Needs], Gradients]


Entry = Node | Composite


def only(grads: Sequence[Value | None]) -> Value:
    """The gradient of an entry's one output."""
    first = grads[0]
    if first is None:
        raise AutodiffError("only its first output has a gradient rule")
    return first


class Tape:
    """What was computed, in order, and which values depend on a parameter (are active)."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._seen = len(builder.nodes)
        self.entries: list[Entry] = []
        self.active: set[str] = set()

    def watch(self, value: Value) -> None:
        """Call a value active: gradients with respect to it are wanted."""
        self.active.add(value.name)

    def is_active(self, value: Value | None) -> bool:
        """Whether the value depends on a watched one."""
        return value is not None and value.name in self.active

    def record(self) -> None:
        """Take in the nodes that were emitted since the last call."""
        for node in self._builder.nodes[self._seen :]:
            if node.op not in rules.CONSTANT and any(self.is_active(one) for one in node.inputs):
                self._append(node)
        self._seen = len(self._builder.nodes)

    def skip(self) -> None:
        """Leave out the nodes that were emitted since the last call."""
        self._seen = len(self._builder.nodes)

    def compose(self, entry: Entry) -> None:
        """Take in one entry instead of the nodes that were emitted since the last call."""
        self.skip()
        if any(self.is_active(one) for one in entry.inputs):
            self._append(entry)

    def _append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.active.update(one.name for one in entry.outputs if one.dtype.kind == "f")

    def gradients(self, seeds: Mapping[str, Value]) -> dict[str, Value]:
        """The gradients of every active value on the way, by name, from those of the `seeds` (by name as well).

        Raises AutodiffError, naming the node, where an operator has no rule.
        """
        builder = self._builder
        parts: dict[str, list[Value]] = {name: [value] for name, value in seeds.items()}
        found: dict[str, Value] = {}

        def gather(value: Value) -> Value | None:
            if value.name in parts:
                found[value.name] = builder.total(parts.pop(value.name))
            return found.get(value.name)

        for entry in reversed(self.entries):
            grads = [gather(one) for one in entry.outputs]
            if all(one is None for one in grads):
                continue
            needs = tuple(self.is_active(one) for one in entry.inputs)
            for value, gradient in zip(entry.inputs, _backward(builder, entry, grads, needs), strict=False):
                if value is not None and gradient is not None and value.name in self.active:
                    parts.setdefault(value.name, []).append(gradient)
        for name in list(parts):
            found[name] = builder.total(parts.pop(name))
        return found


def _backward(builder: GraphBuilder, entry: Entry, grads: Sequence[Value | None], needs: Needs) -> Gradients:
    if isinstance(entry, Composite):
        return entry.backward(builder, grads, needs)
    try:
        if entry.op in rules.RULES_OF_MANY:
            return rules.RULES_OF_MANY[entry.op](builder, entry, grads, needs)
        if entry.op in rules.RULES:
            return rules.RULES[entry.op](builder, entry, only(grads), needs)
    except AutodiffError as error:
        raise AutodiffError(f"node {entry.name} ({entry.op}) cannot be trained through: {error}") from error
    raise AutodiffError(
        f"node {entry.name}: operator {entry.op} has no gradient rule. Freeze everything before it (choose `trainable` "
        f"among the weights behind it), or export the model with one of: {', '.join(rules.supported())}"
    )
