"""Which pictures teach, which choose and which judge, and whether each label has enough of them.

The three parts are called train, val and test. Training never sees val and test; val decides when to stop and what the
proof samples are; test is looked at once, after everything has been decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgekit import toml
from edgekit.datasets.dataset import Dataset, DatasetError, LabelledBox, Picture
from edgekit.datasets.parts import SHARES, split

FEWEST: Mapping[str, int] = {"train": 10, "val": 1, "test": 3}
"""Pictures (or boxes) of each label in each part. Fewer teach nothing that lasts, and judge nothing."""
_ROLES = {"train": "to learn from", "val": "to choose by", "test": "to judge by"}


@dataclass(frozen=True)
class Parts:
    """The pictures of each part; in the order of their hashes, so that equal datasets are shown in equal order."""

    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    test: tuple[Picture, ...]

    def items(self) -> list[tuple[str, tuple[Picture, ...]]]:
        """(name, pictures) of each part."""
        return [("train", self.train), ("val", self.val), ("test", self.test)]


def merged(dataset: Dataset, joined: Mapping[str, str]) -> Dataset:
    """The same pictures with some labels replaced: `joined` has the new label of each old one.

    Raises DatasetError for an old label that does not occur.
    """
    if not joined:
        return dataset
    for label in joined:
        if label not in dataset.labels:
            raise DatasetError(
                f"no picture has the label {toml.show(label)}, which is to be merged; "
                f"there are {', '.join(map(toml.show, dataset.labels[:20]))}"
            )

    def box(one: LabelledBox) -> LabelledBox:
        return msgspec.structs.replace(one, label=joined.get(one.label, one.label))

    # `fetch` goes by file and content, which stay.
    pictures = (
        msgspec.structs.replace(
            one,
            label=joined.get(one.label, one.label),
            boxes=None if one.boxes is None else tuple(map(box, one.boxes)),
        )
        for one in dataset.pictures
    )
    return Dataset(tuple(pictures), dataset.fetch)


def divide(dataset: Dataset) -> Parts:
    """Follow the parts that the pictures say they belong to; what is missing is taken from train, by group and hash.

    Raises DatasetError if only some of them say so, a part has another name, a group stands on both sides, nothing is
    there to train on, or a label has fewer pictures than FEWEST.
    """
    pictures = dataset.pictures
    said = {one.part for one in pictures}
    unknown = sorted(said - SHARES.keys() - {""})
    if unknown:
        raise DatasetError(f"the part {toml.show(unknown[0])} is unknown; parts are called train, val and test")
    if "" in said and len(said) > 1:
        raise DatasetError("some pictures say that they belong to train, val or test and others do not; say it of all")
    if said and said != {""} and "train" not in said:
        raise DatasetError("no picture belongs to the part train, so there is nothing to learn from")
    found = split(pictures)
    missing = [] if said == {""} else [part for part in SHARES if part not in said]
    if missing:
        whole = SHARES["train"] + sum(SHARES[part] for part in missing)
        shares = {part: SHARES[part] / whole for part in ("train", *missing)}
        shares["train"] = 1.0 - sum(shares[part] for part in missing)
        found |= split([msgspec.structs.replace(one, part="") for one in found["train"]], shares)
    parts = Parts(found["train"], found["val"], found["test"])
    _check_counts(dataset, parts)
    return parts


def counts(pictures: Sequence[Picture]) -> Counter[str]:
    """How many pictures, or boxes in a dataset of boxes, each label has."""
    found: Counter[str] = Counter()
    for one in pictures:
        found.update([one.label] if one.boxes is None else (box.label for box in one.boxes))
    return found


def _check_counts(dataset: Dataset, parts: Parts) -> None:
    labels, detection = dataset.labels, dataset.detection
    for label in labels:
        if not label.strip():
            raise DatasetError("a label consists of spaces only; give it a name")
    if not labels or (len(labels) < 2 and not detection):
        what = f"only the label {toml.show(labels[0])}" if labels else "no labels"
        raise DatasetError(f"there is {what}; a classifier tells at least two apart")
    things = "boxes" if detection else "pictures"
    has = {name: counts(pictures) for name, pictures in parts.items()}
    for label in labels:
        if any(has[part][label] < fewest for part, fewest in FEWEST.items()):
            found = ", ".join(f"{has[part][label]} {role}" for part, role in _ROLES.items())
            raise DatasetError(
                f"the label {toml.show(label)} has too few {things}: {found}; at least "
                f"{', '.join(map(str, FEWEST.values()))} are needed, which takes 40 or so from several boards or lots. "
                "Label more, leave the label out, or merge it with another one"
            )
