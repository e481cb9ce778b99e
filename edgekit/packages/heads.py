"""The tables of package.toml that belong to a split model: head packages for devices, tail packages for cloudd.

A model cut in two becomes two packages. The head's holds one file a cut, which turns the input of the whole model into
the features of that cut; the tail's holds, under the same names, the files that turn those features into the whole
model's outputs. Neither has `[[variants]]`: no half is a model that could serve by itself. Both keep the `[input]`,
`[output]` and `labels` of the whole, which stand at the two ends of every pair. `cloudd split` makes and proves them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.packages.detection import Fraction

MAX_CUTS = 8
MAX_TENSORS = 16
"""Tensors that cross at one cut, as in a frame of `edgekit.splitting.features`."""
MAX_TENSOR_NAME = 512

_CUT = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

Milliseconds = Annotated[float, Meta(ge=0.0, le=1e9)]


class HeadCut(msgspec.Struct, frozen=True, kw_only=True):
    """`[[head.cuts]]`: one way to begin the model at the edge; ONNX, fp32, for onnxruntime.

    With `whole` the file is the whole model, so nothing crosses and the answer is exact; at most one cut is so.
    """

    name: str  # unique in the package, such as "c37"; the tail package has the same
    file: str
    whole: bool = False
    tensors: list[str] = []  # the head's outputs in order, which are the tail's inputs; empty where `whole`
    work: Fraction = 1.0  # share of the whole model's work that the head does
    wire_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] = 0  # of one frame of features: an estimate; 0 where `whole`
    tail_ms: Milliseconds = 0.0  # of the tail, measured on the host that made the package; 0 where `whole`


class HeadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[head]`: what a head package belongs to, and its cuts from the earliest to the latest.

    `whole_ms` and the cuts' `tail_ms` were measured on one host, so their ratios hold on others too.
    """

    of: str  # name@version of the whole model
    digest: str  # SHA-256 of the whole model's package.toml, as `Package.digest`
    tail: str  # name@version of the tail package, which only cloudd has
    whole_ms: Milliseconds  # of the whole model
    cuts: list[HeadCut]

    def cut(self, name: str) -> HeadCut | None:
        """The cut of this name."""
        return next((one for one in self.cuts if one.name == name), None)


class TailCut(msgspec.Struct, frozen=True, kw_only=True):
    """`[[tail.cuts]]`: what ends the model behind the head of the same name; ONNX, fp32, for onnxruntime."""

    name: str
    file: str


class TailSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`[tail]`: what a tail package belongs to, and its cuts from the earliest to the latest."""

    of: str  # name@version of the whole model
    digest: str  # SHA-256 of the whole model's package.toml, as `Package.digest`
    cuts: list[TailCut]

    def cut(self, name: str) -> TailCut | None:
        """The cut of this name."""
        return next((one for one in self.cuts if one.name == name), None)


def head_fault(spec: HeadSpec) -> str:
    """What is wrong with a head package beyond single values and references, as a sentence; "" if nothing is."""
    found = _fault("head", spec.digest, [cut.name for cut in spec.cuts])
    if found:
        return found
    for index, cut in enumerate(spec.cuts):
        key = f"head.cuts[{index}]"
        if cut.whole:
            if given := next((name for name in ("tensors", "wire_bytes", "tail_ms") if getattr(cut, name)), ""):
                return f'"{key}.{given}" is set, but nothing crosses where the whole model runs'
        elif not cut.wire_bytes:
            return f'"{key}.wire_bytes" is missing; features have bytes'
        elif not 1 <= len(cut.tensors) <= MAX_TENSORS or len(set(cut.tensors)) < len(cut.tensors):
            return f'"{key}.tensors" has {len(cut.tensors)} names; 1 to {MAX_TENSORS} different ones belong there'
        elif not all(1 <= len(name) <= MAX_TENSOR_NAME for name in cut.tensors):
            return f'"{key}.tensors" has an empty name, or one of more than {MAX_TENSOR_NAME} characters'
    if sum(cut.whole for cut in spec.cuts) > 1:
        return '"head.cuts" has several with whole = true; there is one whole model'
    if all(cut.whole for cut in spec.cuts):
        return '"head.cuts" has no cut but the whole model; that is an ordinary package'
    return ""


def tail_fault(spec: TailSpec) -> str:
    """As `head_fault`, of a tail package."""
    return _fault("tail", spec.digest, [cut.name for cut in spec.cuts])


def _fault(table: str, digest: str, names: Sequence[str]) -> str:
    if not _SHA256.fullmatch(digest):
        return f'"{table}.digest" is no SHA-256 in 64 lower-case hex digits'
    if not 1 <= len(names) <= MAX_CUTS:
        return f'"{table}.cuts" has {len(names)} tables; 1 to {MAX_CUTS} belong there'
    for index, name in enumerate(names):
        if not _CUT.fullmatch(name):
            return f'"{table}.cuts[{index}].name" must have 1 to 32 of a-z 0-9 . _ - and begin with a letter or digit'
        if name in names[:index]:
            return f'"{table}.cuts[{index}].name" is the name of another cut, too'
    return ""
