"""A dataset version: labelled pictures, named by their content. It never changes; a changed one has another digest.

What trains, calibrates or judges a model wants a `Dataset`: a list of `Picture` and a way to read one of them. It may
lie in a directory (`edgekit.datasets.formats`) or in a sample store; nobody needs to copy it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from edgekit import toml

MAX_PICTURES = 200_000
MAX_PICTURE_BYTES = 64 << 20
MAX_BOXES = 10_000
"""Boxes of one picture."""
MAX_LABEL = 128
"""Characters."""


class DatasetError(ValueError):
    """Pictures, labels or files that no dataset can be made of; the message says which, and what to do."""


class LabelledBox(msgspec.Struct, frozen=True, order=True):
    """One object in a picture: pixels of the stored picture, `right` and `bottom` outside."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


class Picture(msgspec.Struct, frozen=True):
    """One labelled picture. `file` is what `Dataset.read` finds it by, and what people see."""

    file: str
    sha256: str
    label: str = ""  # of the whole picture; "" in a dataset of boxes
    boxes: tuple[LabelledBox, ...] | None = None  # None: a dataset of whole pictures; (): looked at, nothing there
    group: str = ""  # pictures of one board or lot resemble each other
    part: str = ""  # train, val or test where the source says so
    width: int = 0  # pixels
    height: int = 0


@dataclass(frozen=True)
class Dataset:
    """`pictures` have distinct contents. `digest` fixes contents, labels, boxes and groups, but not file names."""

    pictures: tuple[Picture, ...]
    fetch: Callable[[Picture], bytes]

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted (content, label, boxes, group) of every picture."""
        return digest(self.pictures)

    @property
    def detection(self) -> bool:
        """Whether the labels are boxes."""
        return any(one.boxes is not None for one in self.pictures)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that occurs, sorted."""
        return tuple(sorted({label for one in self.pictures for label in labels_of(one)}))

    def read(self, picture: Picture) -> bytes:
        """The encoded picture. Raises DatasetError if it is gone, or no longer the one that was listed."""
        try:
            data = self.fetch(picture)
        except OSError as error:
            raise DatasetError(f"{toml.show(picture.file)} cannot be read: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            raise DatasetError(f"{toml.show(picture.file)} changed while it was used; start again")
        return data

    def check_labels(self, known: Sequence[str]) -> None:
        """Raises DatasetError for a label that is not `known`, with the picture and the nearest known one."""
        allowed = frozenset(known)
        for one in self.pictures:
            for label in labels_of(one):
                if label not in allowed:
                    raise DatasetError(f"{toml.show(one.file)} {_unknown(label, known)}")


def labels_of(picture: Picture) -> Collection[str]:
    """The label of a whole picture, or those of its boxes, each once."""
    return [picture.label] if picture.boxes is None else {box.label for box in picture.boxes}


def digest(pictures: Iterable[Picture]) -> str:
    """See Dataset.digest."""
    lines = sorted(_line(one) for one in pictures)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_picture(picture: Picture) -> None:
    """Raises DatasetError for a label or box that cannot be; the picture's size must be known."""
    name = toml.show(picture.file)
    if picture.boxes is None:
        _check_label(picture.label, name)
        return
    if len(picture.boxes) > MAX_BOXES:
        raise DatasetError(f"{name} has more than {MAX_BOXES} boxes")
    for box in picture.boxes:
        _check_label(box.label, name)
        sides = (box.left, box.top, box.right, box.bottom)
        if not all(math.isfinite(side) for side in sides):
            raise DatasetError(f"a box of {name} has a side that is not a number")
        # Half a pixel of rounding is usual at the edges.
        inside = -1 <= box.left < box.right <= picture.width + 1 and -1 <= box.top < box.bottom <= picture.height + 1
        if not inside:
            raise DatasetError(
                f"the box {', '.join(f'{side:g}' for side in sides)} of {name} (label {toml.show(box.label)}) is empty "
                f"or outside of the picture, which has {picture.width}x{picture.height} pixels"
            )


def _check_label(label: str, name: str) -> None:
    if not label or len(label) > MAX_LABEL or not label.isprintable():
        raise DatasetError(
            f"{name} has the label {toml.show(label)}; 1 to {MAX_LABEL} printable characters are a label"
        )


def _line(picture: Picture) -> str:
    parts = [picture.sha256, picture.label, picture.group]
    if picture.boxes is not None:
        parts += [f"{b.label}\t{b.left:.3f}\t{b.top:.3f}\t{b.right:.3f}\t{b.bottom:.3f}" for b in sorted(picture.boxes)]
        parts.append("boxes")
    return "\0".join(parts) + "\n"


def _unknown(label: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(label, known, 1)
    hint = f"did you mean {toml.show(near[0])}?" if near else f"it knows {', '.join(map(toml.show, known[:20]))}"
    return f"has the label {toml.show(label)}, which the model does not know; {hint}"
