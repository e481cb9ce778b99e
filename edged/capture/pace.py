"""How many frames of a stream are let through, and which ones: pure rules, time comes from outside."""

from __future__ import annotations

from typing import Generic, TypeVar

FASTEST = 240.0
"""Frames a second that no source exceeds, whatever it sends."""

T = TypeVar("T")


class FrameClock:
    """Lets at most `fps` frames a second through, evenly.

    A grid of due times, `1/fps` apart. A frame may come a quarter of an interval before its time, because cameras
    jitter; a frame that comes late does not move the grid unless it is late by more than an interval. So a camera a
    little faster than `fps` keeps the exact rate, two frames are at least half an interval apart, and in any W seconds
    there are at most `W * fps + 2.25` frames.
    """

    def __init__(self, fps: float) -> None:
        """`fps` in frames a second; 0 stands for FASTEST."""
        self._interval = 1.0 / (fps or FASTEST)
        self._next = float("-inf")
        self._last = float("-inf")

    def due(self, now: float) -> bool:
        """Whether the frame that came at `now` (seconds, never going back) is let through."""
        interval = self._interval
        if now < self._next - interval / 4 or now < self._last + interval / 2:
            return False
        self._next = (self._next if now <= self._next + interval else now) + interval
        self._last = now
        return True


class NewestWins(Generic[T]):
    """Of the frames of one stream at most `limit` are under way and at most one waits; a newer one takes its place."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("at least one frame must be allowed to be under way")
        self._limit = limit
        self._waiting: T | None = None
        self.under_way = 0
        self.dropped = 0

    @property
    def waiting(self) -> bool:
        return self._waiting is not None

    def offer(self, frame: T) -> T | None:
        """Take a new frame. Returns the frame that may start now, None if this one has to wait."""
        if self.under_way < self._limit:
            self.under_way += 1
            return frame
        self.dropped += self._waiting is not None
        self._waiting = frame
        return None

    def ended(self) -> T | None:
        """One that was under way has ended. Returns the frame that may start now."""
        frame, self._waiting = self._waiting, None
        self.under_way -= frame is None
        return frame

    def forget(self) -> None:
        """Give up the frame that waits."""
        self.dropped += self._waiting is not None
        self._waiting = None
