"""Labelled pictures that others made, brought into the sample store; see edgekit.datasets.formats for what is read."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edged.samples.records import MAX_TEXT, Label, LabelRecord, NewSample
from edgekit.datasets.dataset import Dataset, Picture

Add = Callable[[NewSample, bytes, LabelRecord], bool]
"""Keeps one picture; whether it was new. May raise, which ends the import; what came before it stays."""


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did."""

    added: int
    known: int  # the same bytes were in the store; they have this label now, too


def import_dataset(
    dataset: Dataset,
    service: str,
    origin: str,
    at: float,
    add: Add,
    hash_of: Callable[[bytes], int | None],
    progress: Callable[[int], None] = lambda done: None,
) -> ImportReport:
    """Keep every picture of `dataset` in `service`, labelled by `import ORIGIN`.

    Doing it again adds nothing, so an import that was interrupted is repeated. `at`: seconds since the epoch, when it
    began. `hash_of` is the difference hash, or None where it cannot be computed. Raises DatasetError if a picture
    cannot be read, and what `add` raises.
    """
    added = 0
    for done, picture in enumerate(dataset.pictures, 1):
        data = dataset.read(picture)
        added += add(_facts(picture, service, at, hash_of(data)), data, _label(picture, origin, at))
        progress(done)
    return ImportReport(added=added, known=len(dataset.pictures) - added)


def _facts(picture: Picture, service: str, at: float, difference_hash: int | None) -> NewSample:
    return NewSample(
        service=service,
        source="import",
        captured_at=at,
        group=picture.group[:MAX_TEXT],
        part=picture.part[:MAX_TEXT],
        difference_hash=difference_hash,
    )


def _label(picture: Picture, origin: str, at: float) -> LabelRecord:
    label = Label(label=picture.label) if picture.boxes is None else Label(boxes=picture.boxes)
    return LabelRecord(label=label, kind="import", author=origin[-MAX_TEXT:], at=at)
