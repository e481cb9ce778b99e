"""The calibration set: a run of consecutive samples that were all sent, whatever their score.

What makes a certificate honest is that this set is an unbiased sample of the traffic. Answers arrive in any order, late
ones from the spool may come hours later, and which ones are late or lost depends on the score (the spool delivers and
evicts by value). So the set is fixed by what was *sent*, not by what was answered:

- the block is the next `size` samples that the gate sees; no later sample can replace one of them;
- it closes when each of them has been answered or is lost, however slow the spool is;
- a lost sample (evicted, purged, refused) counts as one that differs, which can only make the threshold stricter;
- if ten times the block's size of other answers came after the block was full and some of its own are still out,
  those are lost too: a forgotten sample delays a certificate but cannot block it for ever;
- if so many are lost that the certificate would be worthless, the block is dropped *without looking at the answers*, so
  that dropping costs no confidence, and the next block begins.

The one exception is a power cut: samples that were in flight and reached neither the spool nor the cloud vanish from
the block, because a power cut does not choose them by their answers.
"""

from __future__ import annotations

from collections.abc import Container

import msgspec

_PATIENCE = 10  # a long outage fills the spool with many samples from after the block


class Entry(msgspec.Struct, array_like=True):
    """One sample of the block."""

    sample_id: str
    score: float
    differs: bool | None = None  # None: no answer yet


class BlockState(msgspec.Struct):
    """What is stored of a block."""

    size: int
    most_lost: int  # with more lost samples than this the block is dropped
    entries: list[Entry] = []  # in the order in which the samples came
    lost: int = 0
    others: int = 0  # answers from outside the block since it was full


class Block:
    """See the module's docstring."""

    def __init__(self, state: BlockState) -> None:
        self._state = state
        self._waiting = {e.sample_id: e for e in state.entries if e.differs is None}

    def state(self) -> BlockState:
        """A copy, to be stored."""
        s = self._state
        entries = [Entry(e.sample_id, e.score, e.differs) for e in s.entries]
        return BlockState(s.size, s.most_lost, entries, s.lost, s.others)

    @property
    def scores(self) -> list[float]:
        """In the order in which the samples came."""
        return [e.score for e in self._state.entries]

    @property
    def differing(self) -> list[bool]:
        """Aligned with `scores`; meaningful once the block is closed."""
        return [bool(e.differs) for e in self._state.entries]

    @property
    def missing(self) -> int:
        """Answers still to come before the block can close."""
        return self._state.size - len(self._state.entries) + len(self._waiting)

    @property
    def awaited(self) -> int:
        """Samples sent and not answered yet."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self.missing <= 0

    @property
    def hopeless(self) -> bool:
        return self._state.lost > self._state.most_lost

    @property
    def _full(self) -> bool:
        return len(self._state.entries) >= self._state.size

    def take(self, sample_id: str, score: float) -> bool:
        """Take the sample that is about to be sent; False if the block is full."""
        if self._full:
            return False
        entry = Entry(sample_id, score)
        self._state.entries.append(entry)
        self._waiting[sample_id] = entry
        return True

    def answer(self, sample_id: str, differs: bool) -> None:
        """An answer came. A repeated answer, or one to a sample of an earlier block, is not counted."""
        entry = self._waiting.pop(sample_id, None)
        if entry is not None:
            entry.differs = differs
        elif self._full:
            self._state.others += 1
            if self._state.others > _PATIENCE * self._state.size:
                for late in list(self._waiting):
                    self.lose(late)

    def lose(self, sample_id: str) -> None:
        """No answer will ever come for this sample."""
        entry = self._waiting.pop(sample_id, None)
        if entry is not None:
            entry.differs = True
            self._state.lost += 1

    def forget_all_but(self, waiting: Container[str]) -> None:
        """After a restart: samples without an answer that do not wait in the spool are no longer part of the block."""
        self._state.entries = [e for e in self._state.entries if e.differs is not None or e.sample_id in waiting]
        self._waiting = {e.sample_id: e for e in self._state.entries if e.differs is None}
