"""What came back from cloudd: whether it can be used, what a refusal means, and how long cloudd says it took."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from edgekit.messages import Answer, HardSample, Problem
from edgekit.regions.header import Cell, MosaicHeader, RegionError, check_answer
from edgekit.vision.sniff import sniff

MAX_TEXT = 256
"""Characters of what cloudd may say in a label or an error."""
_LONGEST_REST_S = 300.0  # a `Retry-After` of a day would be an error, not a wish

Kind = Literal["down", "timeout", "refused", "busy", "rejected"]


class UplinkError(RuntimeError):
    """No answer. `kind` says what it means for others:

    down      no connection, broken off, or a reply that is none: the link's fault
    timeout   nothing in time: the link's fault
    refused   cloudd does not accept this device (revoked, or not joined): a person must act
    busy      cloudd asks for a rest of `retry_after_s`
    rejected  cloudd works, but not for this sample; `status` is 404 for an unknown model, else it never will
    """

    def __init__(
        self, kind: Kind, text: str, *, status: int = 0, retry_after_s: float = 0.0, sent: bool = False
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.status = status
        self.retry_after_s = retry_after_s
        self.sent = sent  # some of the picture may have left


class _Times(msgspec.Struct):
    """Of an answer only what the cloud says about time."""

    compute_ms: float = 0.0
    waited_ms: float = 0.0


def cloud_ms(reply: bytes) -> float:
    """Milliseconds that cloudd says it waited and computed for this answer; 0 if it says nothing."""
    try:
        times = msgspec.json.decode(reply, type=_Times)
    except msgspec.MsgspecError:
        return 0.0
    return times.compute_ms + times.waited_ms


def refusal(status: int, retry_after: str, reply: bytes) -> UplinkError:
    """What a reply other than 200 means."""
    try:
        problem = msgspec.json.decode(reply, type=Problem)
    except msgspec.MsgspecError:
        problem = Problem(error="")
    said = f"cloudd says: {problem.error[:MAX_TEXT]}" if problem.error else f"cloudd answers with status {status}"
    if status in (429, 503):
        return UplinkError("busy", said, status=status, retry_after_s=_rest(retry_after, problem.retry_after_s))
    if status in (401, 403):
        return UplinkError("refused", said, status=status)
    if status in (400, 404, 409, 413, 415, 422):
        return UplinkError("rejected", said, status=status)
    return UplinkError("down", said, status=status)


def _rest(header: str, said: float | None) -> float:
    """Seconds of rest that cloudd asks for: the header if it is a number, else the body's, else one second."""
    wanted = float(header) if header.isascii() and header.isdigit() and len(header) < 10 else said
    if wanted is None or not math.isfinite(wanted):
        return 1.0
    return min(max(wanted, 0.0), _LONGEST_REST_S)


def check_regions(header: HardSample, answer: Answer, picture: bytes) -> None:
    """Raise RegionError (or ImageError) unless the regions in the answer are those of the sample."""
    if answer.mosaic is None:
        return
    if header.mosaic is not None:
        check_answer(header.mosaic, answer.mosaic)
        return
    if answer.mosaic.task != "detection":
        raise RegionError("it is about regions, and a whole picture was asked about")
    info = sniff(picture)
    frame = (info.width, info.height)
    whole = Cell(place=(0, 0, *frame), box=(0, 0, *frame), regions=[])
    check_answer(MosaicHeader(frame=frame, size=frame, cells=[whole]), answer.mosaic)


def is_sane(answer: Answer) -> bool:
    """Whether labels and numbers of an answer are what they can be; neither NaN nor infinity is."""
    verdict = answer.verdict
    return (
        0 < len(verdict.label) <= MAX_TEXT
        and 0 < len(verdict.model) <= MAX_TEXT
        and 0.0 <= verdict.score <= 1.0
        and 0.0 <= verdict.margin <= 1.0
        and 0.0 <= answer.compute_ms < math.inf
        and 0.0 <= answer.waited_ms < math.inf
    )
