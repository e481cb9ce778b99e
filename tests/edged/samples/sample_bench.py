"""A sample store with its clock and what it said, and pictures to put into it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from edged.collab.sealing import Kek
from edged.samples.records import Label, LabelRecord, NewSample, Opinion, ScoredBox, Source
from edged.samples.store import Limits, SampleStore
from edgekit.datasets.dataset import LabelledBox
from edgekit.messages import Event

KEK = Kek(b"k" * 32)
OTHER_KEK = Kek(b"o" * 32)
DEVICE = "DEVICE-A"
BLOCK = 4096
MIB = 1 << 20


def png(number: int, size: int = 0, width: int = 32, height: int = 24) -> bytes:
    """A whole PNG of its own content; about `size` bytes if that is more than it needs."""
    rows = b"".join(b"\0" + bytes((number * 7 + x * y) % 256 for x in range(width)) for y in range(height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"tEXt", b"number\0" + str(number).encode().ljust(size, b".")),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def opinion(label: str, margin: float = 0.5, model: str = "small@1", boxes: bool = False) -> Opinion:
    box = ScoredBox(label=label, score=0.9, left=1, top=1, right=5, bottom=5)
    return Opinion(label=label, score=0.8, margin=margin, model=model, boxes=(box,) if boxes else None)


def facts(
    number: int = 0,
    source: Source = "asked",
    says: str = "good",
    margin: float = 0.5,
    cloud: str = "",
    service: str = "solder",
    hash_: int | None = None,
    serial: str = "",
    group: str = "",
) -> NewSample:
    return NewSample(
        service=service,
        source=source,
        captured_at=1_700_000_000.0 + number,
        sample_id=f"D{number}",
        serial=serial,
        group=group,
        edge=opinion(says, margin),
        cloud=opinion(cloud, model="large@1") if cloud else None,
        difference_hash=hash_,
    )


def by_operator(label: str | Label, at: float = 1.0, name: str = "anna") -> LabelRecord:
    return LabelRecord(
        label=label if isinstance(label, Label) else Label(label=label), kind="operator", author=name, at=at
    )


def by_import(label: str, at: float = 1.0) -> LabelRecord:
    return LabelRecord(label=Label(label=label), kind="import", author="labels.csv", at=at)


def by_cloud(label: str, margin: float, threshold: float | None, at: float = 1.0) -> LabelRecord:
    return LabelRecord(
        label=Label(label=label), kind="cloud", author="large@1", at=at, margin=margin, threshold=threshold
    )


def boxed(*labels: str) -> Label:
    return Label(boxes=tuple(LabelledBox(label, 1, 1, 8, 8) for label in labels))


class Bench:
    """One opening of the store in `root`."""

    def __init__(
        self,
        root: Path,
        *,
        kek: Kek = KEK,
        device: str = DEVICE,
        quota: int = 64 * MIB,
        count: int = 10_000,
        days: float = 365.0,
        reserve: int = 0,
        ballast: int = 64 * 1024,
    ) -> None:
        self.root = root
        self.now = 1_800_000_000.0
        self.events: list[Event] = []
        self.limits = Limits(bytes=quota, count=count, days=days)
        self.store = SampleStore(
            root,
            kek,
            device,
            limits=lambda service: self.limits,
            reserve=reserve,
            wall=self.wall,
            on_event=self.events.append,
            ballast=ballast,
        )

    def wall(self) -> float:
        self.now += 1.0
        return self.now

    def add(self, number: int, size: int = 0, label: LabelRecord | None = None, **more: object) -> str:
        return self.store.add(facts(number, **more), png(number, size), label).id  # type: ignore[arg-type]

    def file(self, id: str) -> Path:
        return self.store._vault.files.path(id)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.root.glob("files/??/*")} | {
            path.name for path in self.root.glob("files/??/.*")
        }

    @property
    def ids(self) -> set[str]:
        from edged.samples.reading import Filter

        return {one.id for one in self.store.select(Filter(), 100_000)}

    @property
    def codes(self) -> list[str]:
        return [f"{event.level}:{event.code}" for event in self.events]
