"""A graph's channels: which exist, which stand and fall together, and which weights belong to each.

Every layer with weights makes one *atom* for each of its output channels. Operators carry atoms along axis 1 and join
those that they add, multiply or filter one by one: a residual addition joins channel i of both branches, a depthwise
convolution its input channel and its output channel. What is joined is a `Unit`, the smallest thing that can go; units
that come out of the same layers form a `Group`, the channels of one width. The model's inputs and outputs stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Atoms = NDArray[np.int64]
Slot = tuple[str, int]
"""A weight's name and one of its axes."""


@dataclass(frozen=True)
class Layer:
    """A layer that mixes channels: its node, what it reads, and its weight with the axis of its inputs."""

    node: str
    reads: str
    weight: str
    axis: int


@dataclass(frozen=True)
class Group:
    """The channels of one width: `units` are atoms' roots, `layers` the names of the nodes that make them."""

    layers: tuple[str, ...]
    units: tuple[int, ...]


@dataclass(frozen=True)
class Channels:
    """What `reader.read_channels` found."""

    slots: Mapping[Slot, NDArray[np.int64]]  # the unit of every place along that axis of that weight; -1: stays
    tensors: Mapping[str, NDArray[np.int64]]  # the unit of every place along axis 1 of an activation; -1: stays
    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    depthwise: tuple[str, ...]  # nodes whose attribute `group` follows their width
    flattened: Mapping[str, str]  # initializers that hold the shape of a flattening Reshape -> what it makes

    @property
    def measured(self) -> tuple[str, ...]:
        """The activations whose strength says what matters: all that some layer reads and that can be narrower."""
        some = (one.reads for one in self.layers if (self.slots[one.weight, one.axis] >= 0).any())
        return tuple(dict.fromkeys(some))


class Joined:
    """Disjoint sets of atoms, some of which must stay."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._stays: list[bool] = []
        self._layer: list[str] = []

    def make(self, count: int, layer: str, *, stays: bool = False) -> Atoms:
        """`count` new atoms, made by the node `layer`."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._stays.extend([stays] * count)
        self._layer.extend([layer] * count)
        return np.arange(first, first + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        """The atom that stands for its set."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def join(self, left: Sequence[int] | Atoms, right: Sequence[int] | Atoms) -> None:
        """Join the atoms of both pair by pair."""
        for one, other in zip(left, right, strict=True):
            low, high = sorted((self.root(int(one)), self.root(int(other))))
            self._parent[high] = low
            self._stays[low] = self._stays[low] or self._stays[high]

    def keep(self, atoms: Sequence[int] | Atoms) -> None:
        """These must stay, and all that is or will be joined with them."""
        for atom in atoms:
            self._stays[self.root(int(atom))] = True

    def kept(self, atoms: Sequence[int] | Atoms) -> bool:
        """Whether all of these stay as things are."""
        return all(self._stays[self.root(int(atom))] for atom in atoms)

    def units(self, atoms: Sequence[int] | Atoms) -> NDArray[np.int64]:
        """The unit of each, -1 for one that stays."""
        roots = [self.root(int(atom)) for atom in atoms]
        return np.array([-1 if self._stays[root] else root for root in roots], np.int64)

    def groups(self) -> tuple[Group, ...]:
        """Units by the layers that make them, in the order of the graph."""
        makers: dict[int, dict[str, None]] = {}
        for atom in range(len(self._parent)):
            root = self.root(atom)
            if not self._stays[root]:
                makers.setdefault(root, {})[self._layer[atom]] = None
        found: dict[tuple[str, ...], list[int]] = {}
        for root, layers in makers.items():
            found.setdefault(tuple(layers), []).append(root)
        return tuple(Group(layers, tuple(units)) for layers, units in found.items())
