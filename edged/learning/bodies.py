"""What the local API says about learning."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgekit.learning.records import Record
from edgekit.learning.tally import Tally
from edgekit.services.learning import LearningRung

LearningStage = Literal["waiting", "working", "shadow", "probation"]
JobOutcome = Literal["kept", "refused", "rolled-back", "failed", "superseded"]
"""How a job can end. Superseded: another model decided first."""
By = Annotated[str, Meta(min_length=1, max_length=64)]


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every body."""


class StartBody(_Body, frozen=True, kw_only=True):
    """`POST /learning/NAME/start`. `rung`: None leaves the choice to the ladder."""

    by: By
    rung: LearningRung | None = None


class OrderBody(_Body, frozen=True, kw_only=True):
    """`POST /learning/NAME/go`, `/stop` and `/revert`: who says so."""

    by: By


class Stock(_Body, frozen=True, kw_only=True):
    """The pictures of a service that could be learned from, as last counted."""

    kept: int = 0
    labelled: int = 0  # with a label that counts, by classes: a picture with boxes of two is counted twice
    known: int = 0  # of these, with a label of the model that decides: only they show whether it gets worse


class LearningState(_Body, frozen=True, kw_only=True):
    """Where the learning of one service stands."""

    service: str
    start: Literal["automatic", "operator", "off"]  # off: the definition has no [learning], but something was learned
    stage: LearningStage
    sentence: str  # where it stands
    base: str = ""  # name@version of what the definition means
    learned: str = ""  # name@version of what was learned, kept, and decides in its place
    job: int = 0  # number of the job that is done or whose candidate is on trial, else of the last one
    rung: str = ""  # of that job
    step: str = ""  # of the training, in words
    done: int = 0
    total: int = 0
    candidate: str = ""  # name@version on trial
    shadow: Tally | None = None  # while it looks on
    shadow_items: int = 0  # that are wanted
    shadow_audits: int = 0
    probation_items: int = 0  # that it decided
    probation_wanted: int = 0
    keep: Literal["asked", "none", "all"] = "none"  # which pictures of live work stay here
    stock: Stock | None = None  # None: not counted yet
    wanted: int = 0  # labelled pictures with known labels that a judgement needs, about; 0: nothing is ever judged
    never: str = ""  # a clause: why no job can ever train this service's model here
    jobs: dict[JobOutcome, int] = {}  # that ended since the daemon started
    last: Record | None = None  # the newest decision, with its first few facts: those that did not pass before others
