"""What a service that splits has in this worker: the heads of its answer model, timed where they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from edgekit.messages import Answer, HardSample, Verdict


class HeadError(RuntimeError):
    """The head (or whole model) gave nothing for this picture now; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One place where the answer model is cut, or the whole of it."""

    name: str
    whole: bool
    head_ms: float  # of the head and the coding of what leaves, timed on this device when it was loaded
    wire_bytes: int  # of one picture's features; 0 where `whole`
    tail_ms: float  # of the tail on the host that made the package; 0 where `whole`


@dataclass(frozen=True, kw_only=True)
class HeadsInfo:
    """What a head package is to the planner."""

    of: str  # name@version of the model that was cut
    tail: str  # name@version of the tail package
    whole_ms: float  # of the whole model on the host that made the package
    prepare_ms: float  # decoding and pre-processing a picture here, timed when it was loaded
    cuts: Sequence[Cut]

    @property
    def whole(self) -> str:
        """The name of the cut that is the whole model, "" without one."""
        return next((cut.name for cut in self.cuts if cut.whole), "")

    def answer_of(self, header: HardSample, answer: Answer) -> Answer | None:
        """The answer to features as one of the whole model, which head and tail are together.

        None for features of another head: nobody here knows of which model their tail is a part.
        """
        if header.features is None:
            return answer
        if header.features.tail != self.tail:
            return None
        return replace(answer, verdict=replace(answer.verdict, model=self.of))


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The features of a picture, ready to leave."""

    payload: bytes  # edgekit.splitting.features
    prepare_ms: float
    head_ms: float


@dataclass(frozen=True, kw_only=True)
class Whole:
    """The answer model's answer, computed here."""

    verdict: Verdict
    prepare_ms: float
    head_ms: float


class Heads(Protocol):
    """Runs heads in the threads of the models."""

    @property
    def info(self) -> HeadsInfo: ...

    async def encode(self, cut: str, picture: bytes, deadline: float, patient: bool = False) -> Encoded:
        """The features of a JPEG or PNG at a cut, by `deadline` (monotonic seconds).

        `patient`: nobody waits, so it may come later, after everything for which somebody does. Raises HeadError.
        """
        ...

    async def answer(self, picture: bytes, deadline: float) -> Whole:
        """What the whole model says, where there is a cut with `whole`. Raises HeadError."""
        ...
