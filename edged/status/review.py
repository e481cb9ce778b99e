"""What the review page asks and says: services with their classes, the queue, labels that overrule nobody unseen."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from edged.api import ApiError
from edged.gallery.records import UNKNOWN
from edged.samples.bodies import LabelBody
from edged.samples.desk import SampleDesk
from edged.samples.records import Label, LabelRecord, Sample, Text, says_the_same
from edgekit.packages import PackageError, open_package
from edgekit.services import Service

COUNTED = 1000
"""Waiting samples of one service beyond which nobody counts on."""
WAITING_S = 30.0


class _Review(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what the page and its script exchange."""


class Classes(_Review, frozen=True, kw_only=True):
    """What the pictures of a service may be called, as its definition and its model say."""

    task: Literal["classification", "detection"] = "classification"
    labels: list[str] = []  # in the model's order


class ReviewService(_Review, frozen=True, kw_only=True):
    """`GET /review/services.json`: one of a list."""

    name: str
    task: Literal["classification", "detection"]
    labels: list[str]  # the model's, then others that people use, the most frequent first
    waiting: int  # at most COUNTED


class ReviewSample(_Review, frozen=True, kw_only=True):
    """`GET /review/samples/ID.json`: a sample, and what people have said about it, oldest first."""

    sample: Sample
    said: list[LabelRecord]


class LabelSaid(_Review, frozen=True, kw_only=True):
    """`POST /api/samples/ID/label`: a label, by somebody who knew of `seen` labels that people had given before."""

    label: Label
    author: Text
    seen: int = 0


class LabelKept(_Review, frozen=True, kw_only=True):
    """The reply: all that people have said by now, and of that what the author had not seen and others said."""

    said: list[LabelRecord]
    others: list[LabelRecord]


def classes_of(service: Service | None, package: Path | None) -> Classes:
    """Blocks on the disk. A package that is not here or cannot be read has no labels.

    Good or anomalous is a class, and so is who somebody is: the model of the latter has no labels, so all that is known
    is that somebody may be unknown. Boxes are drawn for a detector, and where tiles are to be learned from boxes.
    """
    labels: list[str] = []
    if package is not None:
        try:
            labels = open_package(package, verify=False).labels
        except (PackageError, OSError):
            labels = []
    task = service.task if service is not None else "classification"
    if task == "embedding":
        labels = [UNKNOWN]
    if service is not None and service.learning is not None:
        from edged.learning.settings import label_kind  # not before a service learns: all of its rules come with it

        task = "detection" if label_kind(service) == "boxes" else task
    return Classes(task="detection" if task == "detection" else "classification", labels=labels)


class Review:
    """The review page's side of the sample store. Belongs to the event loop; methods raise ApiError."""

    def __init__(
        self,
        desk: SampleDesk,
        classes: Callable[[], Awaitable[Mapping[str, Classes]]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._desk, self._classes, self._clock = desk, classes, clock
        self._waiting: tuple[float, int] | None = None

    async def services(self) -> list[ReviewService]:
        """Every service of this device."""
        return [
            ReviewService(
                name=name,
                task=known.task,
                labels=list(dict.fromkeys([*known.labels, *(await self._desk.stats(name)).labels])),
                waiting=len(await self._desk.queue(name, COUNTED)),
            )
            for name, known in sorted((await self._classes()).items())
        ]

    async def waiting(self, services: Iterable[str]) -> int:
        """How many samples wait for a label, at most WAITING_S old; 0 if the store cannot say."""
        if self._waiting is None or self._clock() - self._waiting[0] > WAITING_S:
            try:
                number = sum([len(await self._desk.queue(name, COUNTED)) for name in services])
            except ApiError:  # the health list has it
                number = 0
            self._waiting = (self._clock(), number)
        return self._waiting[1]

    async def queue(self, service: str, limit: int) -> list[Sample]:
        """What to label, the most useful first."""
        return await self._desk.queue(service, limit)

    async def sample(self, id: str) -> ReviewSample:
        """One sample and what people said about it."""
        detail = await self._desk.sample(id)
        return ReviewSample(sample=detail.sample, said=_people(detail.labels))

    async def picture(self, id: str) -> tuple[bytes, str]:
        """The picture as it was stored, and its content type."""
        data = await self._desk.picture(id)
        return data, "image/png" if data[:1] == b"\x89" else "image/jpeg"

    async def label(self, id: str, said: LabelSaid) -> LabelKept:
        """Add a label. One that came before (its reply was lost, and it was sent again) is not added twice.

        The newest label counts, so somebody who labels what another labelled in the meantime overrules them: `others`
        of the reply tells.
        """
        ours = LabelRecord(label=said.label, kind="operator", author=said.author, at=0.0)
        before = (await self.sample(id)).said
        if not any(says_the_same(one, ours) for one in before[max(0, said.seen) :]):
            await self._desk.label(id, LabelBody(label=said.label, author=said.author))
            self._waiting = None
        after = (await self.sample(id)).said
        others = [one for one in after[max(0, said.seen) :] if one.author != said.author]
        return LabelKept(said=after, others=others)


def _people(records: Sequence[LabelRecord]) -> list[LabelRecord]:
    return [one for one in records if one.kind == "operator"]
