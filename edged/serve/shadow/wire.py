"""Between a worker and the process of a candidate: one frame with an order, one with what came of it (see envelope)."""

from __future__ import annotations

import msgspec

from edgekit.messages import SendReason, ShadowReport

MAX_PICTURE = 32 << 20
"""Bytes. A larger picture is not looked at."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame: which candidate looks at the pictures of which service."""

    definition: str  # of the service (TOML)
    candidate: str  # name@version
    directory: str  # of its package
    known: list[str] = []  # labels of the model that decides
    asks: bool = False  # the service asks the cloud about whole pictures, and they may leave


class Look(msgspec.Struct, frozen=True, kw_only=True, tag="look"):
    """A picture, as payload, and what was decided about it."""

    sample_id: str
    present: str  # label of the model that decides here
    sent: SendReason | None = None  # why the gate wanted the cloud
    cloud: str | None = None  # the cloud's label, if it is known already


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag="answered"):
    """The cloud's answer came after the decision."""

    sample_id: str
    cloud: str


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag="loaded"):
    """The reply to the order."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The other one: the candidate cannot be used, and the process ends."""

    reason: str


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag="looked"):
    """The reply to a Look and to an Answered."""

    report: ShadowReport
    busy_s: float = 0.0  # seconds of a CPU that this took


ToShadow = Look | Answered
FromShadow = Loaded | Refused | Looked
