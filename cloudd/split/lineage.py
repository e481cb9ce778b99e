"""Where the halves of a model come from and how they were proved; the same record lies in both packages."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloudd.derived import Source

FOLDER = "split"
"""Of a head or tail package: everything that splitting made lies in it."""
LINEAGE = f"{FOLDER}/lineage.json"


class CutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One cut that is in the packages."""

    name: str
    index: int  # nodes in the head
    tensors: list[str]
    shapes: list[str]  # of these, such as "1x64x14x14"
    work: float  # share of the model's work that the head does
    wire_bytes: int  # of one frame of features
    difference: float  # of the halves from the whole, as `edgekit.splitting.halves.prove` counts it
    sent_difference: float  # the same with the features rounded as they are sent
    head_sha256: str
    tail_sha256: str

    @property
    def file(self) -> str:
        """Where the half lies in its package."""
        return f"{FOLDER}/{self.name}.onnx"


class RefusedCut(msgspec.Struct, frozen=True, kw_only=True):
    """One cut that was tried in vain."""

    name: str
    reason: str


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """The content of LINEAGE. No time is in it, so that the same model and tools give the same tail package."""

    schema: Literal[1] = 1
    source: Source
    tools: dict[str, str]  # what made and proved the halves, with versions
    samples: int  # of the package: proved with the features as they are sent
    pictures: int  # on which the halves were compared with the whole
    least_work: float  # no head does a smaller share
    places: int  # where the model can be cut
    cuts: list[CutRecord]
    refused: list[RefusedCut]
