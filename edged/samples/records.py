"""What is said about a sample: facts, opinions of models, labels with their authors, and what people are shown."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from edgekit import toml
from edgekit.datasets.dataset import MAX_BOXES, DatasetError, LabelledBox, Picture, check_picture
from edgekit.datasets.summary import Summary

Source = Literal["asked", "audit", "disputed", "doubtful", "random", "import", "operator"]
"""Why a sample is here: the gate asked about it, audited it, edge and cloud differ, the service's rules leave it to a
person, by chance, brought by people."""
AuthorKind = Literal["operator", "import", "cloud"]
State = Literal["kept", "damaged", "other-key"]

MAX_TEXT = 256
"""Characters of a serial, a group, a tag, an author, a model."""
MAX_TAGS = 32
MAX_SIGHTINGS = 100
"""Kept of one sample; a camera that sends the same bytes for ever must not fill the disk."""

AUTHORITY: dict[AuthorKind, int] = {"cloud": 1, "import": 2, "operator": 3}
"""Who wins over whom; 0 is nobody."""

_STRONGER: tuple[Source, ...] = ("random", "import", "audit", "operator", "doubtful", "asked", "disputed")

Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class SampleError(ValueError):
    """What was said about a sample cannot be; the message says what, and what is allowed."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of what is stored."""


class ScoredBox(_Record, frozen=True, kw_only=True):
    """One object that a model found: pixels of the stored picture, `right` and `bottom` outside."""

    label: str
    score: float
    left: float
    top: float
    right: float
    bottom: float


class Opinion(_Record, frozen=True, kw_only=True):
    """What one model says about the picture."""

    label: str  # of the whole picture
    score: float  # 0..1
    margin: float  # 0..1
    model: str  # name@version
    boxes: tuple[ScoredBox, ...] | None = None  # None: a classifier


class Label(_Record, frozen=True, kw_only=True):
    """The truth about a picture, as somebody says: one of a label, boxes (none: nothing is there), or unusable."""

    label: str = ""
    boxes: tuple[LabelledBox, ...] | None = None
    unusable: bool = False

    @property
    def names(self) -> list[str]:
        """The classes that occur, sorted."""
        if self.boxes is not None:
            return sorted({box.label for box in self.boxes})
        return [self.label] if self.label else []

    def __str__(self) -> str:
        if self.unusable:
            return "unusable"
        if self.boxes is None:
            return self.label
        return ", ".join(f"{box.label} at {box.left:g},{box.top:g}" for box in self.boxes) or "nothing there"


class LabelRecord(_Record, frozen=True, kw_only=True):
    """A label with its author and time. Records are added, never changed."""

    label: Label
    kind: AuthorKind
    author: Text  # a person's name, a file, a model's name@version
    at: float  # seconds since the epoch
    margin: float = 0.0  # cloud: of its answer
    threshold: float | None = None  # cloud: the margin above which its answers are certified; None: it has none

    @property
    def authority(self) -> int:
        """0 where it does not count: the cloud's answers do above their certified threshold only."""
        if self.kind == "cloud" and not (self.threshold is not None and self.margin > self.threshold):
            return 0
        return AUTHORITY[self.kind]


class NewSample(_Record, frozen=True, kw_only=True):
    """What is known of a picture that is to be kept."""

    service: str
    source: Source
    captured_at: float  # seconds since the epoch
    sample_id: Text = ""  # of the decision; "" if there was none
    serial: Text = ""
    group: Text = ""  # board or lot: pictures of one group resemble each other; "": the serial
    part: Text = ""  # train, val or test where its source said so
    edge: Opinion | None = None
    cloud: Opinion | None = None
    tags: tuple[Text, ...] = ()
    difference_hash: int | None = None  # unsigned 64 bits, see edged.samples.thumbprint

    @property
    def disputed(self) -> bool:
        """Whether edge and cloud differ."""
        return self.edge is not None and self.cloud is not None and self.edge.label != self.cloud.label


class Sighting(_Record, frozen=True, kw_only=True):
    """One time that these bytes came."""

    at: float  # when they were captured
    source: Source
    sample_id: str = ""
    serial: str = ""
    model: str = ""  # name@version of what looked at them at the edge


class SealedHeader(_Record, frozen=True, kw_only=True):
    """What lies encrypted beside the picture: with it every row but those of dataset versions can be made anew."""

    facts: NewSample
    stored_at: float
    sightings: tuple[Sighting, ...]
    labels: tuple[LabelRecord, ...] = ()


class Sample(_Record, frozen=True, kw_only=True):
    """One sample as people and programs see it."""

    id: str
    service: str
    sha256: str  # of the encoded picture
    source: Source
    captured_at: float
    stored_at: float
    bytes: int  # on the disk
    width: int  # pixels
    height: int
    serial: str = ""
    group: str = ""
    part: str = ""
    edge: Opinion | None = None
    cloud: Opinion | None = None
    tags: tuple[str, ...] = ()
    near: str = ""  # the id of an earlier sample that this one resembles
    label: LabelRecord | None = None  # the one that counts
    state: State = "kept"


class SampleDetail(_Record, frozen=True, kw_only=True):
    """One sample with all its history."""

    sample: Sample
    labels: list[LabelRecord]  # oldest first
    sightings: list[Sighting]
    versions: list[str]  # names of the dataset versions that it is in


class SampleStats(_Record, frozen=True, kw_only=True):
    """The samples of one service in numbers, or of all."""

    service: str  # "" of all
    items: int
    bytes: int
    sources: dict[str, int]
    labelled: dict[str, int]  # by who says so: operator, import, cloud
    labels: dict[str, int]  # samples with a label that counts, by class, the most frequent first
    unusable: int
    near: int  # that resemble an earlier one
    damaged: int
    other_key: int
    oldest_at: float | None = None  # of capture
    counters: dict[str, int] = {}  # since the store was made: kept, repeated, evicted, refused, ...


class VersionInfo(_Record, frozen=True, kw_only=True):
    """One dataset version, without its pictures."""

    name: str
    service: str
    digest: str  # see edgekit.datasets.Dataset.digest
    made_at: float
    pictures: int
    summary: Summary


def sample_id_of(service: str, sha256: str) -> str:
    """The id of a picture in a service: 64 hex digits.

    The same picture in two services is two samples: what it shows and how long it stays is each service's own.
    """
    return hashlib.sha256(f"{service}\0{sha256}".encode()).hexdigest()


def counting(records: Sequence[LabelRecord]) -> LabelRecord | None:
    """The label that counts: the newest of the highest authority. `records` are in the order they were given."""
    best: LabelRecord | None = None
    for record in records:
        if record.authority and (best is None or record.authority >= best.authority):
            best = record
    return best


def says_the_same(one: LabelRecord, other: LabelRecord) -> bool:
    """Whether they are the same label by the same author, whenever that was said."""
    return (one.label, one.kind, one.author) == (other.label, other.kind, other.author)


def merged(old: NewSample, new: NewSample) -> NewSample:
    """What is known after the same bytes came again: the first capture, newer answers, all tags, the best reason."""
    return replace(
        old,
        source=max(old.source, new.source, key=_STRONGER.index),
        sample_id=new.sample_id or old.sample_id,
        serial=old.serial or new.serial,
        group=old.group or new.group,
        part=old.part or new.part,
        edge=new.edge or old.edge,
        cloud=new.cloud or old.cloud,
        tags=tuple(sorted({*old.tags, *new.tags})[:MAX_TAGS]),
        difference_hash=old.difference_hash if old.difference_hash is not None else new.difference_hash,
    )


def check_new(new: NewSample) -> None:
    """Raises SampleError for what no sample can be."""
    texts = {"service": new.service, "serial": new.serial, "group": new.group, "part": new.part}
    for what, text in [*texts.items(), ("sample id", new.sample_id), *(("tag", tag) for tag in new.tags)]:
        _check_text(what, text)
    if not new.service:
        raise SampleError("a sample belongs to a service; name it")
    if len(new.tags) > MAX_TAGS or "" in new.tags:
        raise SampleError(f"a sample has at most {MAX_TAGS} tags, and none is empty")
    if not math.isfinite(new.captured_at):
        raise SampleError("the time of capture is no number")
    if new.difference_hash is not None and not 0 <= new.difference_hash < 1 << 64:
        raise SampleError("the difference hash has more than 64 bits")
    for opinion in (new.edge, new.cloud):
        if opinion is not None:
            check_opinion(opinion)


def check_opinion(opinion: Opinion) -> None:
    """Raises SampleError for an answer that no model can have given."""
    _check_text("label", opinion.label)
    _check_text("model", opinion.model)
    boxes = opinion.boxes or ()
    if len(boxes) > MAX_BOXES:
        raise SampleError(f"an answer has more than {MAX_BOXES} boxes")
    numbers = [opinion.score, opinion.margin]
    for box in boxes:
        _check_text("label", box.label)
        numbers += [box.score, box.left, box.top, box.right, box.bottom]
    if not all(math.isfinite(number) for number in numbers):
        raise SampleError(f"the answer of {toml.show(opinion.model)} has a number that is none")


def check_label(record: LabelRecord, sha256: str, width: int, height: int) -> None:
    """Raises SampleError for a label that a picture of this size cannot have, or that has no author."""
    label = record.label
    if (bool(label.label), label.boxes is not None, label.unusable).count(True) != 1:
        raise SampleError("a label is one of three: a name, boxes, or unusable")
    if not record.author:
        raise SampleError("a label has an author; say who")
    _check_text("author", record.author)
    if not math.isfinite(record.at) or not math.isfinite(record.margin) or not math.isfinite(record.threshold or 0.0):
        raise SampleError("a label's time, margin and threshold are numbers")
    if label.unusable:
        return
    try:
        check_picture(Picture(f"sample {sha256[:12]}", sha256, label.label, label.boxes, width=width, height=height))
    except DatasetError as error:
        raise SampleError(str(error)) from None


def _check_text(what: str, text: str) -> None:
    if len(text) > MAX_TEXT or not text.isprintable():
        raise SampleError(f"the {what} {toml.show(text[:MAX_TEXT])} is not at most {MAX_TEXT} printable characters")
