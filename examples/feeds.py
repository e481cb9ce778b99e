"""Where the demo's pictures come from: the line simulator, or a folder of real pictures with a CSV of labels."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.line_simulator.line import boards


@dataclass(frozen=True)
class Item:
    """One picture to inspect, and the truth about it."""

    serial: str
    data: bytes  # JPEG or PNG
    label: str


Batch = list[Item]
"""The joints of one board, or any handful of pictures that belong together."""


class FeedError(ValueError):
    """The pictures or labels cannot be used; the message says which and why."""


def simulated(plant: str, seed: int, drift_from: int | None = None) -> Iterator[Batch]:
    """Boards of one simulated plant, for ever; from board `drift_from` on its camera ages, 1 % of the light a board."""
    drift = 0.0 if drift_from is None else 0.01
    for board in boards(plant, seed, drift_per_board=drift, drift_from=drift_from or 0):
        yield [Item(f"{board.serial}-{joint.position:02d}", joint.jpeg(), joint.label) for joint in board.joints]


@dataclass(frozen=True)
class Folder:
    """Real pictures: a part to fit the models on, and one list of batches for each device."""

    learn: list[Item]
    feeds: list[list[Batch]]


def folder(images: Path, labels: Path, devices: int, batch: int = 12) -> Folder:
    """Read pictures named by the CSV `labels` (columns file and label; board and split if there are any).

    Every board (or, without that column, every picture) belongs wholly to one side. Where the CSV has a split column,
    its train rows are learned from; else a third of the boards, chosen by a hash of their name. Raises FeedError.
    """
    try:
        with labels.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FeedError(f"{labels} cannot be read: {error}") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise FeedError(f"{labels} needs a header line with the columns file and label")
    learn: list[Item] = []
    feeds: list[list[Item]] = [[] for _ in range(devices)]
    for row in rows:
        path = _find(images, labels, row["file"])
        group = row.get("board") or row["file"]
        item = Item(f"{group}-{path.stem}", path.read_bytes(), row["label"])
        number = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big")
        if row["split"] == "train" if row.get("split") else number % 3 == 0:
            learn.append(item)
        else:
            feeds[number // 3 % devices].append(item)
    if not learn or not all(feeds):
        raise FeedError(f"{labels} names too few boards or pictures to share among {devices} devices")
    return Folder(learn, [[feed[at : at + batch] for at in range(0, len(feed), batch)] for feed in feeds])


def _find(images: Path, labels: Path, name: str) -> Path:
    for root in (images, labels.parent):
        path = root / name
        if path.is_file() and path.resolve().is_relative_to(root.resolve()):
            return path
    raise FeedError(f"{name}, named in {labels}, is not in {images}")
