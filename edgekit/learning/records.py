"""What was decided and by which numbers: for the page and for the lineage of a model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import msgspec

Rung = Literal["recalibrate", "batchnorm", "head", "last-blocks", "full", "cloud", "federated"]
Cause = Literal[
    "operator", "new-class", "unattainable", "audits", "drift", "offload", "labels", "schedule", "federation"
]
Event = Literal[
    "started", "exhausted", "failed", "accepted", "refused", "promoted", "kept", "rolled-back", "offered", "superseded"
]

RUNGS: tuple[Rung, ...] = ("recalibrate", "batchnorm", "head", "last-blocks", "full", "cloud")
"""The ladder, cheapest first (`research/algorithms.md` 4.5). What was learned together with others is not on it."""
NAMES: dict[Rung, str] = {
    "recalibrate": "recalibrating the threshold",
    "batchnorm": "re-estimating BatchNorm",
    "head": "a new LDA head",
    "last-blocks": "fine-tuning the last blocks",
    "full": "fine-tuning everything with replay",
    "cloud": "retraining and distilling in the cloud",
    "federated": "learning together with other devices",
}


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a decision. `text` is a clause for people. Raises ValueError for a number that is not finite."""

    name: str
    value: float
    limit: float | None = None
    passed: bool = True
    text: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or (self.limit is not None and not math.isfinite(self.limit)):
            raise ValueError(f"the {self.name} of a decision is {self.value} with the limit {self.limit}")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One decision. `sentence` says what and why."""

    at: float
    event: Event
    sentence: str
    rung: Rung | None = None
    cause: Cause | None = None
    candidate: str = ""  # digest of the package that it is about
    facts: list[Fact] = []


def failed(facts: Iterable[Fact]) -> str:
    """The clauses of what did not pass, "" if all did."""
    return "; ".join(one.text for one in facts if not one.passed)


def points(share: float) -> str:
    """Percentage points."""
    return f"{share * 100:.2f} points"


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3.0 h, 2.0 days."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def opening(clause: str) -> str:
    """The clause as the beginning of a sentence; names in it keep their letters."""
    return clause[:1].upper() + clause[1:]
