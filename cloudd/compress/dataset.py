"""The labelled pictures of a compression: which of them calibrate and teach, and which judge.

Which side a picture falls on depends on nothing but its own content, or on its group where it has one (see
`edgekit.datasets.parts`). A picture therefore never changes sides when the dataset grows, and no picture that
calibrated a variant ever judges one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.datasets import formats
from edgekit.datasets.dataset import Dataset, DatasetError, Picture
from edgekit.datasets.parts import place

_CALIBRATION_SHARE = 0.2
_SALT = "cloudd compress 1"


@dataclass(frozen=True)
class Split:
    """The two sides, each in the order of their hashes. `training`: the whole side that calibration is taken from."""

    calibration: tuple[Picture, ...]
    held_out: tuple[Picture, ...]
    training: tuple[Picture, ...] = ()


def split(pictures: Sequence[Picture], calibration: int, held_out: int) -> Split:
    """A fifth of the pictures calibrates, the others judge; at most as many as said of each, those of lowest hash."""
    placed = sorted((place(one, _SALT), one.sha256, one) for one in pictures)
    own = tuple(one for place, _, one in placed if place < _CALIBRATION_SHARE)
    return Split(
        own[:calibration],
        tuple(one for place, _, one in placed if place >= _CALIBRATION_SHARE)[:held_out],
        own,
    )


def lessons(dataset: Dataset, sides: Split, more: Dataset | None) -> Dataset:
    """What a variant may learn from: the side of the calibration, and of `more` what resembles no picture that judges.

    Left out of `more` is what has the content or the group of a held-out picture. Nobody looks at the labels.
    """
    if more is None:
        return Dataset(sides.training, dataset.fetch)
    judges = {one.sha256 for one in sides.held_out}
    together = {one.group for one in sides.held_out if one.group}
    own = {one.sha256: one for one in sides.training}
    others = {
        one.sha256: one for one in more.pictures if one.sha256 not in judges | own.keys() and one.group not in together
    }
    return Dataset(
        (*own.values(), *others.values()),
        lambda picture: (more if picture.sha256 in others else dataset).fetch(picture),
    )


def read_dataset(source: Path, labels: Sequence[str], group: str = "") -> Dataset:
    """Labelled pictures in one of the formats of `edgekit.datasets.formats`.

    `labels`: what the model can say. Raises DatasetError for a label that the model does not know, for boxes, and for
    whatever cannot be read.
    """
    dataset = formats.read_dataset(source, group)
    if dataset.detection:
        raise DatasetError(f"{source} has boxes; only models that classify whole pictures can be compressed")
    dataset.check_labels(labels)
    return dataset
