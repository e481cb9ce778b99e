"""Between a supervisor of edged and `python -m edged.train`: one order on its stdin, events as lines on its stdout.

The process reads one TrainOrder as a JSON document to the end of its stdin. It writes one `FromTraining` a line, none
longer than MAX_LINE bytes, and ends with exactly one TrainDone or TrainStopped, unless it was killed. SIGTERM makes it
save and say `paused`. Given the same order again it goes on where it stood.
"""

# ruff: noqa: RUF012 - msgspec gives every message its own copy of a default list or dict
from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgekit.learning.budget import Budget
from edgekit.learning.limits import JudgingLimits
from edgekit.learning.trial import Expected, Verdict
from edgekit.messages.base import Message

MAX_ORDER = 1 << 20
"""Bytes of an order."""
MAX_LINE = 1 << 20
"""Bytes of one event; a verdict names up to 4096 classes."""

TrainRung = Literal["batchnorm", "head", "last-blocks", "full", "cloud"]
"""The rungs of `edgekit.learning.records.Rung` that make a candidate, on the device or (`cloud`) at its cloudd."""


class TrainOrder(Message, frozen=True, kw_only=True, tag="train"):
    """One job. The candidate is `name@version`."""

    state_dir: str
    device_id: str  # bound into the encryption of samples
    service: str
    definition: str  # the service's definition (TOML), checked by the supervisor: its task and pipeline count
    job: Annotated[int, Meta(ge=1)]  # number of the ladder's job
    rung: TrainRung
    base: str  # directory of the package that learns
    base_ref: str  # its name@version
    name: str
    version: str
    dataset: str  # name of the dataset version; which pictures teach, choose and judge follows from it alone
    # Seconds since the epoch: labels before it do not belong to the batch that is learned. None: no label counts as
    # earlier, because the scene has changed for good, or there is no batch.
    earlier_before: float | None = None
    new_class: Annotated[int, Meta(ge=5)] = 20  # labels from which a label that the model lacks becomes a class
    scratch: str  # directory of this job: made if missing, removed by the supervisor when the job is over
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    budget: Budget = Budget()
    limits: JudgingLimits = JudgingLimits()
    max_seconds: Annotated[float, Meta(gt=0.0)] = 3600.0  # of computing train steps, over all runs of the job
    identity: str = ""  # cloud: directory with key.pem, certificate.pem, authority.pem; "": it has joined no cloudd
    url: str = ""  # cloud: https://host:port


class TrainProgress(Message, frozen=True, kw_only=True, tag="progress"):
    """Four a second at most. `total` 0: nobody knows."""

    step: Literal["reading", "features", "sending", "training", "judging", "sealing"]
    done: int
    total: int
    text: str = ""  # for people: the loss, why it rests


class TrainDone(Message, frozen=True, kw_only=True, tag="done"):
    """There is a candidate, accepted or refused on held-out items. Exit status 0."""

    directory: str  # of the sealed package, below the order's scratch, also of a refused one
    ref: str  # name@version
    digest: str  # of the package
    seconds: float  # of work
    verdict: Verdict
    expected: Expected
    notes: list[str] = []  # sentences about what was done and what was left out


class TrainStopped(Message, frozen=True, kw_only=True, tag="stopped"):
    """There is no candidate.

    `failed`, exit status 1: it broke (full disk, too little memory, damaged file). `refused`, status 1: this rung can
    do nothing for this model with this dataset, however often it is tried. `paused`, status 0: it was asked to stop.
    `waiting`, status 0: cloudd works, or cannot be reached; the same order again after `again_s`.
    """

    kind: Literal["failed", "paused", "refused", "waiting"]
    reason: str  # a clause without a full stop
    resumable: bool  # the same order with the same scratch goes on from what was saved
    seconds: float = 0.0  # of work
    again_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 0.0


FromTraining = TrainProgress | TrainDone | TrainStopped
