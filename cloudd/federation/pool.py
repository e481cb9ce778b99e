"""The devices that stand ready for a job's next round, and whether they are enough to begin it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cloudd.federation import selection
from cloudd.federation.definition import Definition
from cloudd.federation.selection import Candidate
from edgekit.federated.plan import Plan
from edgekit.messages.federation import WAIT_S, FederatedJob, RoundKind, Standing

_STANDS_S = WAIT_S + 10
"""A device stands ready for so long after it last asked."""


@dataclass
class _Stand:
    standing: Standing
    since: float
    seen: float


@dataclass(frozen=True)
class Look:
    """What was found at one moment. `text` says what is waited for."""

    fit: Sequence[Candidate]
    opened: bool
    """Whether the job's window is."""
    enough: bool
    full: bool
    """Whether waiting brings nobody else into the round."""
    text: str


@dataclass
class Pool:
    """Of one job, whose rosters have `members` (None: anybody may take part). Times are the caller's, in seconds."""

    job: FederatedJob
    definition: Definition
    plan: Plan
    members: int | None
    _stands: dict[bytes, _Stand] = field(default_factory=dict)
    _rounds: Counter[bytes] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self._stands)

    def stand(self, node: bytes, standing: Standing, now: float) -> bool:
        """A device says that it is ready; whether that is news."""
        known = self._stands.get(node)
        self._stands[node] = _Stand(standing, known.since if known else now, now)
        return known is None or known.standing != standing

    def leave(self, nodes: Collection[bytes]) -> None:
        """These stand ready again when they ask again."""
        for node in nodes:
            self._stands.pop(node, None)

    def count(self, survivors: Collection[bytes]) -> None:
        """The updates of these were in a sum: others are invited before them."""
        self._rounds.update(survivors)

    def aes(self, nodes: Collection[bytes]) -> bool:
        """Whether the processors of all of these have AES instructions, as far as they tell."""
        return all(self._stands[node].standing.aes for node in nodes if node in self._stands)

    @property
    def samples(self) -> int:
        """Labelled ones of all that stand ready, as far as they tell."""
        return sum(one.standing.samples for one in self._stands.values())

    def look(self, kind: RoundKind, version: int, *, now: float, wall: float) -> Look:
        """Who could take part in a round of the state `version`. `wall`: seconds since the epoch, for the window."""
        asked, standing = self.definition, self._candidates(now)
        fit = selection.eligible(standing, self.plan, kind, version, asked.min_samples, asked.needs)
        number = selection.buckets(self.plan, kind)
        least, most = self.job.least * number, self.job.most * number
        opened = asked.window is None or asked.window.open(wall)
        text = "the job's window is closed"
        if opened:
            held = selection.lacking(standing, asked.min_samples, asked.needs)
            text = f"{len(fit)} devices stand ready; {least} are needed{f' ({held})' if held else ''}"
        return Look(
            fit=fit,
            opened=opened,
            enough=opened and len(fit) >= least,
            full=len(fit) >= most or (self.members is not None and len(fit) >= self.members),
            text=text,
        )

    def _candidates(self, now: float) -> list[Candidate]:
        self.leave([node for node, one in self._stands.items() if now - one.seen > _STANDS_S])
        return [Candidate(node, one.standing, one.since, self._rounds[node]) for node, one in self._stands.items()]
