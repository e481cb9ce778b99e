"""What is said about one sample."""

# ruff: noqa: RUF012 - msgspec gives every message its own copy of a default list or dict
from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgekit.messages.base import DecidedAt, Message, SendReason
from edgekit.regions.header import MAX_REGIONS, FloatBox

NOTHING_FOUND = "nothing"
"""The label of a Verdict or a Decision when nothing is found. In regions and boxes it is regions.header.NOTHING."""

UNSEEN = "unseen"
"""The label of `edge` where the device had no time to look at a sample itself: the cloud was asked instead. Its score
and margin are 0 and say nothing, so such a sample is no disagreement, and no gate learns from it."""


class Verdict(Message, frozen=True, kw_only=True):
    """What one model says about one sample."""

    label: str
    score: float  # probability of the label, 0..1
    margin: float  # probability of the label minus that of the runner-up, 0..1
    model: str  # name@version


class DecidedRegion(Message, frozen=True, kw_only=True):
    """A part of the frame with its final answer."""

    box: FloatBox  # left, top, right, bottom in pixels of the full frame; right and bottom lie outside
    label: str  # regions.header.NOTHING: there is nothing
    score: float  # probability of the label, 0..1
    margin: float
    decided: DecidedAt
    certified: bool = False  # a certificate of the gate covers this local answer


class Decision(Message, frozen=True, kw_only=True):
    """The answer of `POST /v1/services/NAME/inspect`, and one line of a service's JSONL output.

    With regions, `edge` is the frame's answer without the cloud's, `cloud` the one with them, and `certified` is about
    all of them.
    """

    sample_id: str
    service: str
    label: str
    score: float
    decided: DecidedAt
    model: str  # name@version of the model whose label this is
    edge: Verdict
    cloud: Verdict | None = None
    sent: SendReason | None = None  # why the gate asked for the cloud, None when the local answer was trusted
    spooled: bool = False  # the sample waits on disk for the link
    certified: bool = False  # the gate's risk bound holds for this local answer
    reason: str = ""  # why a hard sample was decided at the edge all the same
    serial: str = ""  # the board's serial number, if the source gave one
    captured_at: float = 0.0
    timings_ms: dict[str, float] = {}  # queue, decode, infer, cloud, total
    verdict: Literal["", "pass", "fail", "review"] = ""  # by the service's rules, of the final label; "" without rules
    region: list[int] = []  # left, top, right, bottom in pixels of what decided at the edge, with a pipeline
    defects: int = 0  # regions with a label that is neither clean nor NOTHING, all of them
    route: str = ""  # how the answer model was reached: frame, regions, split@CUT, edge-whole; "" if it was not
    regions: Annotated[list[DecidedRegion], Meta(max_length=MAX_REGIONS)] = []  # defects, and what the cloud answered
