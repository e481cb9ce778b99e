"""Retraining at cloudd: what a device asks for, sends and fetches so that a larger network teaches its own one.

All routes are on the device API (mTLS). A device is the one that its certificate names, and sees nothing but its own
jobs and files. Every request may be sent again with the same bytes: that is how a device resumes, and how it polls.

    PUT    /v1/retraining/JOB                              RetrainRequest -> RetrainState; begins it, or finds it again
    GET    /v1/retraining/JOB                              RetrainState
    GET    /v1/retraining/JOB/missing                      Missing: what cloudd does not have yet
    PUT    /v1/retraining/JOB/files/SHA256?offset=BYTES    a part of a file -> Stored
    GET    /v1/retraining/JOB/results/SHA256               a file of the candidate; Range as /v1/blobs
    DELETE /v1/retraining/JOB                              204: the device has what it wanted, or wants it no longer;
                                                           ?forget=1: and none of its pictures may stay

A job is named by the hash of its request (`job_of`), so another request is another job. A new job of a service ends the
older ones of the same device and service. Pictures are what the model sees of them: cut to the service's region of
interest or its tiles and scaled to the model's input, losslessly; nothing else of a picture is ever sent, and no
picture that is to judge. A classifier's have a label each, a detector's their boxes in pixels of that input.

Errors are Problem: 404 for a job that is not this device's, 409 for bytes that do not belong there, 413 and 507 for
what has no room, 422 for a request that cannot be done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.messages.base import Message
from edgekit.messages.models import FileEntry
from edgekit.packages import DetectionSpec, InputSpec

MAX_REQUEST = 8 << 20
"""Bytes of a request: a picture takes some 120."""
MAX_STATE = 256 << 10
"""Bytes of a state, and of a list of what is missing."""
MAX_CHUNK = 1 << 20
"""Bytes of one part of a file."""
MAX_PICTURES = 20_000
MAX_PICTURE = 16 << 20
"""Bytes: a PNG of 2048 x 2048 pixels in colour is smaller."""
MAX_NETWORK = 1 << 30
"""Bytes of the files of a network together."""
MAX_JOB = 4 << 30
"""Bytes of everything that a job sends."""
NETWORK_FILE = "model.onnx"
MAX_BOXES = 1000
"""Boxes in one picture."""
MAX_MISSING = 1000
"""Files in one list of what is missing."""
FEWEST = 10
"""Pictures of each class, or with a box of it, that teach. A larger network learns from labels alone: it forgets what
has none."""
CHOOSING_BOXES = 5
"""Boxes in the pictures that choose, of a detector: by fewer it could not be told which of two is the better one."""

Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Label = Annotated[str, Meta(min_length=1, max_length=1024)]
Stage = Literal["receiving", "waiting", "training", "done", "refused", "failed", "closed"]
"""`closed`: the device has deleted it, or a newer job of its service took its place."""
ENDED: frozenset[Stage] = frozenset(("done", "refused", "failed", "closed"))


class TaughtBox(msgspec.Struct, frozen=True, array_like=True):
    """One box in pixels of the model's input; a part of it may lie outside."""

    label: Annotated[int, Meta(ge=0, le=9_999)]  # index into the request's labels
    left: Annotated[float, Meta(ge=-1e5, le=1e5)]
    top: Annotated[float, Meta(ge=-1e5, le=1e5)]
    right: Annotated[float, Meta(ge=-1e5, le=1e5)]
    bottom: Annotated[float, Meta(ge=-1e5, le=1e5)]


class TaughtPicture(Message, frozen=True, kw_only=True):
    """A PNG with exactly the pixels of the model's input, and what it shows."""

    sha256: Hash
    size: Annotated[int, Meta(ge=1, le=MAX_PICTURE)]
    label: Annotated[int, Meta(ge=0, le=9_999)] = 0  # of a classifier: index into the request's labels
    boxes: Annotated[tuple[TaughtBox, ...], Meta(max_length=MAX_BOXES)] | None = None  # of a detector: all of them
    chooses: bool = False  # it does not teach; by it the best weights are chosen


class RetrainRequest(Message, frozen=True, kw_only=True):
    """What is to be made of which network and pictures. The same request with the same files gives the same weights."""

    service: Name
    base: Name  # name@version of the model that learns
    base_digest: Hash
    name: Name  # of the candidate
    version: Name
    dataset: Hash  # digest of the immutable dataset version that the pictures are of
    labels: Annotated[tuple[Label, ...], Meta(min_length=1, max_length=10_000)]  # of a classifier two at least
    input: InputSpec  # of the network; the pictures have its size and colour already
    image: Name  # name of the network's input
    logits: Annotated[str, Meta(max_length=200)] = ""  # of a classifier: name of the network's only output
    detection: DetectionSpec | None = None  # of a detector: its package's `[detection]`, which names the three outputs
    network: Annotated[tuple[FileEntry, ...], Meta(min_length=1, max_length=2)]  # model.onnx with its weights beside it
    pictures: Annotated[tuple[TaughtPicture, ...], Meta(min_length=1, max_length=MAX_PICTURES)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0

    @property
    def files(self) -> dict[str, int]:
        """Everything that the job needs: SHA-256 -> bytes."""
        found = {one.sha256: one.size for one in self.network}
        found.update((one.sha256, one.size) for one in self.pictures)
        return found


class RetrainState(Message, frozen=True, kw_only=True):
    """Where a job stands. `text` is a clause for people."""

    stage: Stage
    text: str = ""
    done: int = 0
    total: int = 0  # 0: nobody knows
    digest: str = ""  # done: of the candidate's package
    files: tuple[FileEntry, ...] = ()  # done: of that package, package.toml included


class Lacking(Message, frozen=True):
    """A file of which `have` bytes are there."""

    sha256: Hash
    have: Annotated[int, Meta(ge=0)] = 0


class Missing(Message, frozen=True, kw_only=True):
    """The first MAX_MISSING files that are not there whole, and how many there are in all."""

    files: tuple[Lacking, ...] = ()
    total: int = 0


class Stored(Message, frozen=True, kw_only=True):
    """Bytes of a file that are there now; `whole`: all of them, and the hash is right."""

    have: int
    whole: bool


def job_of(request: bytes) -> str:
    """The name of the job that these bytes ask for: 32 hex digits."""
    return hashlib.sha256(request).hexdigest()[:32]


def fault(request: RetrainRequest) -> str:
    """What is wrong with a request beyond the types of its fields, as a clause; "" if nothing is."""
    places = {one.path for one in request.network}
    if len(places) != len(request.network) or any("/" in path or not path or path[0] == "." for path in places):
        return "the network's files need plain names, each its own"
    if NETWORK_FILE not in places:
        return f"the network has no file {NETWORK_FILE}"
    if any(not 0 < one.size <= MAX_NETWORK for one in request.network):
        return f"a file of the network has no bytes or more than {MAX_NETWORK}"
    if sum(request.files.values()) > MAX_JOB:
        return f"the files have {sum(request.files.values())} bytes; {MAX_JOB} are allowed"
    if len(set(request.labels)) != len(request.labels):
        return "two labels are the same"
    if reason := _labels_fault(request) if request.detection is None else _boxes_fault(request, request.detection):
        return reason
    counts = [0] * len(request.labels)
    for one in request.pictures:
        for label in labels_in(one):
            if label >= len(counts):
                return f"a picture has the label {label}, and there are {len(counts)}"
            counts[label] += not one.chooses
    if not any(one.chooses for one in request.pictures):
        return "no picture is there to choose by"
    return too_few(request.labels, counts)


def labels_in(picture: TaughtPicture) -> set[int]:
    """What it shows: its label, or those of its boxes."""
    return {picture.label} if picture.boxes is None else {one.label for one in picture.boxes}


def _labels_fault(request: RetrainRequest) -> str:
    if len(request.labels) < 2 or not request.logits:
        return "a classifier needs two labels, and the name of its output"
    return "a picture of a classifier has boxes" if any(one.boxes is not None for one in request.pictures) else ""


def _boxes_fault(request: RetrainRequest, spec: DetectionSpec) -> str:
    if spec.head != "centernet" or spec.scores == "probabilities" or len(spec.outputs) != 3:
        return "only centre-point detectors are retrained, whose three outputs are named and whose scores are logits"
    chosen = 0
    for one in request.pictures:
        if one.boxes is None:
            return "a picture of a detector has no list of boxes"
        if any(box.right <= box.left or box.bottom <= box.top for box in one.boxes):
            return "a box has no size"
        chosen += len(one.boxes) * one.chooses
    return "" if chosen >= CHOOSING_BOXES else f"{chosen} boxes are there to choose by; {CHOOSING_BOXES} are needed"


def too_few(labels: Sequence[str], counts: Sequence[int]) -> str:
    """A clause if a class has fewer than FEWEST pictures that teach, "" if none has."""
    short = [f'"{label[:64]}" has {count}' for label, count in zip(labels, counts, strict=True) if count < FEWEST]
    if not short:
        return ""
    more = f" and {len(short) - 5} more have too few" if len(short) > 5 else ""
    return (
        f"a larger network needs {FEWEST} pictures that teach of every class of the model: {', '.join(short[:5])}{more}"
    )
