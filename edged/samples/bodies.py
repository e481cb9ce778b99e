"""What the local API says about samples and dataset versions. The command line imports it, so nothing heavy does."""

from __future__ import annotations

import msgspec

from edged.samples.records import Label, LabelRecord, NewSample
from edgekit.datasets.dataset import Picture

MAX_PAGE = 10_000
"""Pictures of a dataset version in one reply."""


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body."""


class AddHeader(_Body, frozen=True, kw_only=True):
    """`POST /samples`: the header of an envelope (edgekit.envelope) whose payload is the encoded picture."""

    new: NewSample
    label: LabelRecord | None = None


class AddReply(_Body, frozen=True, kw_only=True):
    id: str
    new: bool  # False: the same bytes were here already


class LabelBody(_Body, frozen=True, kw_only=True):
    """`POST /samples/ID/label`: what a person says."""

    label: Label
    author: str


class TagBody(_Body, frozen=True, kw_only=True):
    """`POST /samples/ID/tags`."""

    add: list[str] = []
    remove: list[str] = []


class RemoveBody(_Body, frozen=True, kw_only=True):
    """`POST /samples/remove`: these (ids or beginnings of ids), or what does not open, or all of a service."""

    ids: list[str] = []
    unreadable: bool = False
    service: str = ""


class PicturesPage(_Body, frozen=True, kw_only=True):
    """`GET /datasets/NAME/pictures`: in a fixed order, from `after` on."""

    pictures: list[Picture]  # `file` is the sample's id
    left_out: list[str]  # ids of samples that do not open


class MakeBody(_Body, frozen=True, kw_only=True):
    """`POST /datasets`."""

    name: str
    service: str
    since: float | None = None  # of capture, seconds since the epoch
    until: float | None = None
    tag: str = ""
    kind: str = ""  # labels | boxes, "" where only one of them occurs
