"""Hard samples and their answers: between edged and cloudd, and between cloudd and its answer worker.

A sample is a whole picture, or a mosaic: only the doubtful parts of a frame (see edgekit.regions). A cloudd that does
not know mosaics yet ignores `HardSample.mosaic` and answers the mosaic as if it were one picture. Such an answer means
nothing. It is told by `Answer.mosaic`, which is there in every answer to a mosaic and missing in that one: whoever sent
a mosaic must take an answer without it for no answer at all. It must not ask for that sample again either, because a
sample keeps its answer.

A mosaic's header travels packed, before its JPEG (see `packed`); one in the JSON is understood as well. A cloudd that
does not know packed headers yet refuses the payload with 422, because it is no picture. With it the sample says that it
understands an answer in columns, which a cloudd that does not know them gives in rows.

A mosaic may be a WebP only where cloudd has said so in an answer before (`Answer.webp`); one that does not know it
refuses it with 422.

Or it is the features that a head made of a picture (see edgekit.splitting), when pixels may not leave or features are
quicker. A cloudd that does not know features yet refuses their payload with 422, because it is no picture.
"""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from edgekit.dispatch.policy import Priority
from edgekit.messages.base import Message, SendReason
from edgekit.messages.decisions import Verdict
from edgekit.regions.columns import AnswerColumns, columns, rows
from edgekit.regions.header import MosaicAnswer, MosaicHeader, RegionError
from edgekit.regions.packing import pack, unpack
from edgekit.services import Pipeline


class FeaturesHeader(Message, frozen=True, kw_only=True):
    """Says what features are for: the tail package, name@version, and its cut by which the head was made."""

    tail: str
    cut: str


class HardSample(Message, frozen=True, kw_only=True):
    """Header of the envelope that `POST /v1/answers` carries; the payload is the picture as it came (JPEG or PNG).

    With `mosaic` the payload is the mosaic's JPEG (or WebP, see Answer.webp), `pipeline` is None, and `edge` is the
    frame's local verdict, with NOTHING_FOUND for a frame in which nothing was found.

    With `features` the payload is what edgekit.splitting.features.encode made of the head's outputs, `pipeline` and
    `mosaic` are None, and the answer is the tail's; `answer_model` is the model of which head and tail were cut.
    """

    sample_id: str
    service: str
    answer_model: str  # name, or name@version
    edge: Verdict
    reason: SendReason
    captured_at: float
    serial: str = ""
    late: bool = False  # it comes from the spool: nobody waits for the answer
    pipeline: Pipeline | None = None  # what of the picture the edge looked at, and the cloud is to look at
    mosaic: MosaicHeader | None = None  # what is where in the payload, and what is asked
    clean: str = ""  # with `mosaic`: the label of a region that means the same as NOTHING there
    priority: Priority = "inline"  # the class of the service, by which cloudd orders what this device asks
    left_ms: float | None = None  # how long the asker still waits when this is sent; None: unknown; nothing when `late`
    features: FeaturesHeader | None = None
    packed: int = 0  # instead of `mosaic`, on the wire only: bytes at the payload's start that hold it
    brief: bool = False  # on the wire only: the answer to regions may come in columns


def packed(sample: HardSample, payload: bytes) -> tuple[HardSample, bytes]:
    """The sample as it is sent: the header of its mosaic, if it has one, is packed and stands before the picture."""
    if sample.mosaic is None:
        return sample, payload
    head = pack(sample.mosaic)
    return replace(sample, mosaic=None, packed=len(head), brief=True), head + payload


def unpacked(sample: HardSample, payload: bytes) -> tuple[HardSample, bytes]:
    """What `packed` was given. Raises RegionError unless a mosaic's header is where the sample says."""
    if sample.packed == 0:
        return sample, payload
    if sample.mosaic is not None:
        raise RegionError("it has a mosaic in its header and a packed one as well")
    if not 0 < sample.packed <= len(payload):
        raise RegionError(f"{sample.packed} bytes of it are said to be packed, the payload has {len(payload)}")
    head, picture = payload[: sample.packed], payload[sample.packed :]
    return replace(sample, mosaic=unpack(head), packed=0), picture


class Answer(Message, frozen=True, kw_only=True):
    """Reply of `POST /v1/answers`. The same sample id always gets the same answer.

    `verdict` is the answer to the whole picture, or to that region of a mosaic of which the edge was least sure;
    NOTHING is spelt NOTHING_FOUND in it. `mosaic` holds the answers to the regions. It is also there when a detector
    answered a whole picture: then its boxes are those of one cell, number 0, which is the full frame. Features are
    answered in the name of the whole model of which head and tail were cut.
    """

    sample_id: str
    verdict: Verdict
    compute_ms: float  # in the model
    waited_ms: float = 0.0  # in cloudd besides: for a worker, its model, and for the answer to be stored; 0 if repeated
    repeated: bool = False  # this sample had been answered before
    mosaic: MosaicAnswer | None = None
    columns: AnswerColumns | None = None  # instead of `mosaic`, on the wire only, to a `brief` sample
    webp: bool = False  # to a mosaic: the next one may be a lossy WebP


def briefly(sample: HardSample, answer: Answer) -> Answer:
    """The answer as it is sent: in columns if the sample understands that, and with what mosaics may be."""
    if sample.mosaic is None:
        return answer
    said = columns(sample.mosaic, answer.mosaic) if sample.brief and answer.mosaic is not None else None
    if said is None:
        return replace(answer, webp=True)
    compute_ms, waited_ms = round(answer.compute_ms, 1), round(answer.waited_ms, 1)
    return replace(answer, mosaic=None, columns=said, webp=True, compute_ms=compute_ms, waited_ms=waited_ms)


def in_full(sample: HardSample, answer: Answer) -> Answer:
    """What `briefly` was given, rounded. Raises RegionError unless the columns are about the sample's regions."""
    if answer.columns is None:
        return answer
    if sample.mosaic is None or answer.mosaic is not None:
        raise RegionError("it has columns, and no regions were asked about or it has them twice")
    return replace(answer, mosaic=rows(sample.mosaic, answer.columns), columns=None)


class Problem(Message, frozen=True, kw_only=True):
    """Body of every error reply."""

    error: str
    retry_after_s: float | None = None


class AskModel(Message, frozen=True, kw_only=True, tag="ask"):
    """cloudd to its answer worker: answer the payload (a picture, or features) with the package in `directory`.

    `pipeline`, `mosaic`, `clean` and `features` as in HardSample. Without payload the model is only loaded.
    """

    ticket: int
    model: str
    directory: str
    pipeline: Pipeline | None = None
    mosaic: MosaicHeader | None = None
    clean: str = ""
    features: FeaturesHeader | None = None


class ModelAnswer(Message, frozen=True, kw_only=True, tag="answer"):
    """Reply to AskModel; the payload is a JPEG thumbnail that the worker drew itself, none on error or for features."""

    ticket: int
    verdict: Verdict | None = None
    compute_ms: float = 0.0
    error: str = ""
    fault: Literal["", "picture", "model"] = ""  # whose fault the error is
    mosaic: MosaicAnswer | None = None  # as in Answer
    differing: list[int] = []  # noqa: RUF012 - indices of the regions to which the answer is not the edge's
