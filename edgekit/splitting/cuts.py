"""Every place where an ONNX model can be cut in two, with its price: work before it, bytes across it.

A cut follows the topological order of the nodes: the head is all nodes up to one of them, and what crosses are the
tensors that the head has and the tail or the user still needs (the live set). A cut of one tensor does not depend on
the order chosen among parallel branches; of cuts of several tensors only those of one order are looked at, which
`research/algorithms.md` 2 found enough in practice. A cut is not anonymity: pictures can be rebuilt from features.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

import msgspec
import numpy as np

from edgekit.splitting.features import DTYPES, MAX_BYTES, MAX_NAME, MAX_TENSORS
from edgekit.splitting.graph import CutTensor, Graph

_ALIKE = 0.005
"""Share of work. Two cuts of equal bytes that lie nearer than this are one place: before and after an activation."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """One cut: the head computes `tensors`, the tail needs these and no other."""

    index: int  # how many nodes lie in the head; larger is later
    tensors: tuple[CutTensor, ...]  # in the order in which the model makes them
    work: float  # share of the model's work that the head does, 0..1
    bytes: int  # as the halves exchange them: 4 a value of float32
    wire_bytes: int  # with one byte a float, before lossless packing; `features.encode` adds a small header at most


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Places in a row where the model cannot be cut."""

    after: str  # the first tensor that the first of these nodes writes
    places: int
    reason: str


class CutTable(msgspec.Struct, frozen=True, kw_only=True):
    """What `find_cuts` found, ordered from the input to the output."""

    cuts: tuple[Cut, ...]
    refused: tuple[Refusal, ...]
    macs: int  # multiply-accumulates of the whole model's convolutions and matrix products


def find_cuts(graph: Graph, max_tensors: int = 4) -> CutTable:
    """All cuts of one tensor, and those of up to `max_tensors` that cross with fewer bytes than any earlier cut.

    No cut has more tensors than one frame of features can hold.

    Work is counted in multiply-accumulates, with one for every value that another operator writes. No cut lies before
    the first convolution or matrix product, where what crosses is still the picture itself.
    """
    last = {name: place for place, node in enumerate(graph.nodes) for name in node.inputs}
    last.update((name, len(graph.nodes)) for name in graph.outputs)
    # The largest input is the picture and never crosses; a small one beside it (a size, a threshold) may.
    picture = max(graph.inputs, key=lambda name: graph.tensors[name].values if name in graph.tensors else 0)
    work = [float(node.macs or node.values) for node in graph.nodes]
    total = sum(work) or 1.0
    ends: dict[int, list[str]] = {}  # place -> what is needed no more after it
    for name, place in last.items():
        ends.setdefault(place, []).append(name)
    live = dict.fromkeys(name for name in graph.inputs if name in last)
    max_tensors = min(max_tensors, MAX_TENSORS)
    cuts: list[Cut] = []
    refused: list[Refusal] = []
    before = ""  # the reason at the place before, "" for a cut
    done, seen = 0.0, False
    for place, node in enumerate(graph.nodes[:-1]):
        live.update((name, None) for name in node.outputs if name in last)
        for name in ends.get(place, ()):
            live.pop(name, None)
        done += work[place]
        seen |= node.macs > 0 or node.opaque
        reason = _reason(graph, live, picture, seen, max_tensors)
        if reason and reason == before:
            refused[-1] = msgspec.structs.replace(refused[-1], places=refused[-1].places + 1)
        elif reason:
            refused.append(Refusal(after=node.outputs[0][:MAX_NAME], places=1, reason=reason))
        before = reason
        if reason:
            continue
        tensors = tuple(graph.tensors[name] for name in live)
        cuts.append(
            Cut(
                index=place + 1,
                tensors=tensors,
                work=done / total,
                bytes=sum(_bytes(one) for one in tensors),
                wire_bytes=sum(wire_bytes(one) for one in tensors),
            )
        )
    macs = sum(node.macs for node in graph.nodes)
    return CutTable(cuts=tuple(_worthwhile(cuts, set(graph.inputs))), refused=tuple(refused), macs=macs)


def candidates(cuts: Iterable[Cut]) -> list[Cut]:
    """The cuts that can be best for some link and host: no cut with less work in the head crosses with fewer bytes.

    Of neighbours with equal bytes and nearly equal work the last is taken, because behind an activation many values are
    zero and pack better; but integers are kept before the floats made from them, because they cross unchanged. Where
    a cut is refused by its proof, ask again without it.
    """
    front: list[Cut] = []
    for cut in sorted(cuts, key=lambda one: one.index):
        best = front[-1] if front else None
        if best is None or cut.wire_bytes < best.wire_bytes:
            front.append(cut)
        elif cut.wire_bytes == best.wire_bytes and cut.bytes <= best.bytes and cut.work - best.work < _ALIKE:
            front[-1] = cut
    return front


def wire_bytes(tensor: CutTensor) -> int:
    """Bytes of one tensor as `features.encode` sends it, before lossless packing."""
    return tensor.values if tensor.dtype.startswith("float") else _bytes(tensor)


def _bytes(tensor: CutTensor) -> int:
    return tensor.values * np.dtype(tensor.dtype).itemsize


def _reason(graph: Graph, live: Collection[str], picture: str, seen: bool, max_tensors: int) -> str:
    """Why the model cannot be cut where these tensors are live; "" if it can."""
    if picture in live:
        return "the tail needs the picture itself"
    if not seen:
        return "no convolution or matrix product lies before it, so what crosses is the picture itself"
    if len(live) > max_tensors:
        return f"more than {max_tensors} tensors cross"
    for name in live:
        tensor = graph.tensors.get(name)
        if tensor is None or not tensor.values:
            return "the shape of a tensor that crosses is not known before the model runs"
        if tensor.dtype not in DTYPES:
            return f"a tensor that crosses is {tensor.dtype}, which cannot be sent"
        if _bytes(tensor) > MAX_BYTES or len(name) > MAX_NAME:
            return f"a tensor that crosses has more than {MAX_BYTES} bytes, or a name of more than {MAX_NAME} letters"
    return ""


def _worthwhile(cuts: Sequence[Cut], inputs: Set[str]) -> list[Cut]:
    """Without the cuts of several tensors that an earlier cut undercuts; small inputs beside them do not count.

    Of several in a row with equal bytes the last stays, as in `candidates`.
    """
    least = float("inf")
    kept: list[Cut] = []
    replaceable = 0  # index of the last kept cut if it has several tensors
    for cut in cuts:
        several = sum(tensor.name not in inputs for tensor in cut.tensors) > 1
        if several and cut.wire_bytes == least and cut.index == replaceable + 1:
            kept.pop()
        elif several and cut.wire_bytes >= least:
            continue
        kept.append(cut)
        replaceable = cut.index if several else 0
        least = min(least, cut.wire_bytes)
    return kept
