"""Hard samples and their answers: between edged and cloudd, and between cloudd and its answer worker.

A sample is a whole picture, or a mosaic: only the doubtful parts of a frame (see edgekit.regions). A cloudd that does
not know mosaics yet ignores `HardSample.mosaic` and answers the mosaic as if it were one picture. Such an answer means
nothing. It is told by `Answer.mosaic`, which is there in every answer to a mosaic and missing in that one: whoever sent
a mosaic must take an answer without it for no answer at all. It must not ask for that sample again either, because a
sample keeps its answer.
"""

from __future__ import annotations

from typing import Literal

from edgekit.messages.base import Message, SendReason
from edgekit.messages.decisions import Verdict
from edgekit.regions.header import MosaicAnswer, MosaicHeader
from edgekit.services import Pipeline


class HardSample(Message, frozen=True, kw_only=True):
    """Header of the envelope that `POST /v1/answers` carries; the payload is the picture as it came (JPEG or PNG).

    With `mosaic` the payload is the mosaic's JPEG, `pipeline` is None, and `edge` is the frame's local verdict, with
    NOTHING_FOUND for a frame in which nothing was found.
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


class Answer(Message, frozen=True, kw_only=True):
    """Reply of `POST /v1/answers`. The same sample id always gets the same answer.

    `verdict` is the answer to the whole picture, or to that region of a mosaic of which the edge was least sure;
    NOTHING is spelt NOTHING_FOUND in it. `mosaic` holds the answers to the regions. It is also there when a detector
    answered a whole picture: then its boxes are those of one cell, number 0, which is the full frame.
    """

    sample_id: str
    verdict: Verdict
    compute_ms: float
    repeated: bool = False  # this sample had been answered before
    mosaic: MosaicAnswer | None = None


class Problem(Message, frozen=True, kw_only=True):
    """Body of every error reply."""

    error: str
    retry_after_s: float | None = None


class AskModel(Message, frozen=True, kw_only=True, tag="ask"):
    """cloudd to its answer worker: answer the payload (a picture) with the package in `directory`.

    `pipeline`, `mosaic` and `clean` as in HardSample. Without payload the model is only loaded.
    """

    ticket: int
    model: str
    directory: str
    pipeline: Pipeline | None = None
    mosaic: MosaicHeader | None = None
    clean: str = ""


class ModelAnswer(Message, frozen=True, kw_only=True, tag="answer"):
    """Reply to AskModel; the payload is a JPEG thumbnail that the worker drew itself, empty on error."""

    ticket: int
    verdict: Verdict | None = None
    compute_ms: float = 0.0
    error: str = ""
    fault: Literal["", "picture", "model"] = ""  # whose fault the error is
    mosaic: MosaicAnswer | None = None  # as in Answer
    differing: list[int] = []  # noqa: RUF012 - indices of the regions to which the answer is not the edge's
