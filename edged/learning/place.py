"""Everything durable about one service's learning."""

from __future__ import annotations

import msgspec

from edgekit.learning import learner
from edgekit.learning.records import Rung
from edgekit.learning.tally import Tally
from edgekit.learning.triggers import Request
from edgekit.messages.learning import TrainDone


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what is stored."""


class Work(_Kept, frozen=True, kw_only=True):
    """A job of the ladder that is being done."""

    number: int
    rung: Rung
    begun: float
    base: str  # name@version of what decided when it began, and learns
    name: str = ""  # of the candidate; "" where none is made
    version: str = ""
    dataset: str = ""  # name of its dataset version
    earlier_before: float | None = None  # labels before this are older than the batch
    breaks: int = 0  # of its process: it died, or stopped with something that goes on later
    retry_at: float = 0.0  # then it goes on
    why: str = ""  # it waits
    sent: float | None = None  # recalibrate: when the worker was told
    done: TrainDone | None = None  # what its process said last; the candidate may not be installed yet

    @property
    def ref(self) -> str:
        """The candidate's name@version."""
        return f"{self.name}@{self.version}"


class Counted(_Kept, frozen=True, kw_only=True):
    """Counters of a service's report, as of the last look of one run of the supervisor."""

    run: str
    inspected: int = 0
    audited: int = 0
    differing: int = 0
    errors: int = 0


class Candidate(_Kept, frozen=True, kw_only=True):
    """The package on trial. Its trial itself is in the learner's state."""

    ref: str
    before: str  # name@version of what it replaces
    begun: float  # when the job began that made it
    dataset: str = ""  # name of the dataset version that it learned from
    past: Tally = Tally()  # of its shadow, in earlier runs of the supervisor
    seen: Tally = Tally()  # in this run, as last reported
    run: str = ""  # which run that is
    failures: int = 0  # times that its shadow ended by itself
    retry_at: float = 0.0  # then the next try
    failure: str = ""  # why it does not look on
    counted: Counted | None = None  # on probation

    @property
    def tally(self) -> Tally:
        """Its whole shadow so far."""
        return added(self.past, self.seen)


class Place(_Kept, frozen=True, kw_only=True):
    """Where a service's learning stands. A new one knows nothing."""

    service: str
    state: learner.State = learner.State()
    root: str = ""  # name@version of what the definition means; what was learned takes its place only
    kept: str = ""  # name@version of what was learned from it and decides; "": nothing
    made: int = 0  # number of the newest candidate's name
    work: Work | None = None
    candidate: Candidate | None = None
    request: Request | None = None  # the newest of an operator
    learned_at: float | None = None  # when the last job began whose model was kept
    dataset: str = ""  # dataset version of that job
    leavings: list[str] = []  # packages to be removed once nothing runs them
    old_datasets: list[str] = []  # dataset versions to be deleted

    @property
    def weight(self) -> tuple[object, ...]:
        """What must be on the disk before it counts; the rest only counts up, and is stored now and then."""
        candidate = self.candidate
        on_trial = (candidate.ref, candidate.failures) if candidate is not None else None
        lists = (tuple(self.leavings), tuple(self.old_datasets))
        return (self.root, self.kept, self.made, self.work, on_trial, self.request, *lists)

    @property
    def busy(self) -> bool:
        """A job or a trial is under way."""
        return self.work is not None or self.candidate is not None

    @property
    def decides(self) -> str:
        """What is to run in the place of `root`, "" for nothing."""
        trial = self.state.trial
        return self.candidate.ref if self.candidate and trial and trial.stage == "probation" else self.kept

    @property
    def looks_on(self) -> str:
        """What is to look on in the shadow, "" for nothing."""
        trial = self.state.trial
        return self.candidate.ref if self.candidate and trial and trial.stage == "shadow" else ""


def added(one: Tally, other: Tally) -> Tally:
    """Counters together."""
    return Tally(**{name: getattr(one, name) + getattr(other, name) for name in Tally.__struct_fields__})
