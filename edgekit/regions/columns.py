"""A classifier's answers to the regions of a mosaic in columns, in the order in which the header has the regions.

As JSON a region's answer takes 38 bytes by itself, which is a tenth of what its pixels take in a mosaic; in columns it
takes 13. Scores and margins travel in 1/10000. Imports neither numpy nor OpenCV.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from edgekit.regions.header import MAX_REGIONS, Label, MosaicAnswer, MosaicHeader, RegionAnswer, RegionError

_SHARE = 10_000

_Numbers = Annotated[list[Annotated[int, Meta(ge=0, le=_SHARE)]], Meta(max_length=MAX_REGIONS)]


class AnswerColumns(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The number at one position of each column belongs to the region at that position."""

    labels: Annotated[list[Label], Meta(max_length=MAX_REGIONS)]  # each once
    label: _Numbers  # position in `labels`
    scores: _Numbers  # in 1/10000
    margins: _Numbers


def columns(header: MosaicHeader, answer: MosaicAnswer) -> AnswerColumns | None:
    """The answer in columns; None if it is no classifier's, or not about exactly these regions."""
    said = {one.index: one for one in answer.regions}
    indices = [region.index for region in header.regions()]
    if answer.task != "classification" or sorted(said) != sorted(indices) or len(said) != len(answer.regions):
        return None
    rows = [said[index] for index in indices]
    position = {label: number for number, label in enumerate(dict.fromkeys(one.label for one in rows))}
    return AnswerColumns(
        labels=list(position),
        label=[position[one.label] for one in rows],
        scores=[round(one.score * _SHARE) for one in rows],
        margins=[round(one.margin * _SHARE) for one in rows],
    )


def rows(header: MosaicHeader, said: AnswerColumns) -> MosaicAnswer:
    """The answer of which `columns` made `said`, rounded. Raises RegionError unless it has one for each region."""
    indices = [region.index for region in header.regions()]
    lengths = [len(said.label), len(said.scores), len(said.margins)]
    if lengths != [len(indices)] * 3:
        raise RegionError(f"the columns of the answer have the lengths {lengths} for {len(indices)} regions")
    if not all(number < len(said.labels) for number in said.label):
        raise RegionError(f"the answer names a label that is none of its {len(said.labels)}")
    return MosaicAnswer(
        task="classification",
        regions=[
            RegionAnswer(index=index, label=said.labels[label], score=score / _SHARE, margin=margin / _SHARE)
            for index, label, score, margin in zip(indices, said.label, said.scores, said.margins, strict=True)
        ],
    )
