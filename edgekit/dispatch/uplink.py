"""The account of the uplink: how many bytes of which class wait to be sent, and how long that will take.

One message is sent at a time, the next one of the most important class first. So an alarm waits for the rest of one
message and not for a queue; several at a time would share the bandwidth, and each would end later.

The bandwidth is learned from what was sent, as seconds a byte: those add up, bytes a second do not. `sent` has to mean
that the bytes have left the device (acknowledged, or SIOCOUTQ of the socket is 0); handed to a socket they may only lie
in its buffer. Pure: the clock is an argument, seconds of any monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgekit.dispatch.policy import PRIORITIES, Priority

K = TypeVar("K", bound=Hashable)

_WEIGHT = 0.2
_LEAST_BYTES = 4096  # a smaller message says more about the latency than about the bandwidth
_FASTEST, _SLOWEST = 1e-11, 1e-2  # seconds a byte: 800 Gbit/s, 800 bit/s


@dataclass(slots=True)
class ClassBytes:
    """Bytes of one class: waiting or being sent now, and sent since the start."""

    queued: int = 0
    sent: int = 0


@dataclass(slots=True)
class _Message(Generic[K]):
    key: K
    priority: Priority
    size: int
    place: tuple[int, int]


class UplinkAccount(Generic[K]):
    """See the module's docstring. Keys are the caller's and unique."""

    def __init__(self, bytes_per_s: float, by_class: bool = True) -> None:
        """`bytes_per_s` is believed until something was sent. Without `by_class` messages go in the order of coming.

        Raises ValueError for a bandwidth that is none.
        """
        if not 1 / _SLOWEST <= bytes_per_s <= 1 / _FASTEST:
            raise ValueError(f"a bandwidth of {bytes_per_s} bytes a second cannot be used")
        self._s_per_byte = 1 / bytes_per_s
        self._by_class = by_class
        self._waiting: dict[K, _Message[K]] = {}
        self._sending: _Message[K] | None = None
        self._began = 0.0
        self._count = 0
        self.classes: dict[Priority, ClassBytes] = {priority: ClassBytes() for priority in PRIORITIES}

    @property
    def bytes_per_s(self) -> float:
        """The bandwidth as learned."""
        return 1 / self._s_per_byte

    def queue(self, key: K, priority: Priority, size: int) -> None:
        """A message of `size` bytes waits to be sent. Raises ValueError for a key that is here or a negative size."""
        if key in self._waiting or (self._sending is not None and self._sending.key == key):
            raise ValueError(f"the message {key!r} waits for the uplink already")
        if size < 0:
            raise ValueError(f"a message cannot have {size} bytes")
        self._count += 1
        rank = PRIORITIES.index(priority) if self._by_class else 0
        self._waiting[key] = _Message(key, priority, size, (rank, self._count))
        self.classes[priority].queued += size

    def begin(self, now: float) -> K | None:
        """The message to send now; None while one is being sent, or if none waits."""
        if self._sending is not None or not self._waiting:
            return None
        message = min(self._waiting.values(), key=lambda one: one.place)
        del self._waiting[message.key]
        self._sending, self._began = message, now
        return message.key

    def sent(self, key: K, now: float, measured: bool = True) -> None:
        """The message that `begin` gave has left the device. Another key is of a message forgotten meanwhile.

        Not `measured`: its time holds more than its bytes (a handshake), and says nothing about the bandwidth.
        """
        message = self._sending
        if message is None or message.key != key:
            return
        if measured and message.size >= _LEAST_BYTES:
            sample = min(max((now - self._began) / message.size, _FASTEST), _SLOWEST)
            self._s_per_byte += _WEIGHT * (sample - self._s_per_byte)
        self.classes[message.priority].sent += message.size
        self._drop(message)

    def forget(self, key: K) -> None:
        """The message is not sent after all, or not to its end. A key that is not here is ignored."""
        message = self._waiting.get(key)
        if message is None and self._sending is not None and self._sending.key == key:
            message = self._sending
        if message is not None:
            self._drop(message)

    def unsent(self) -> list[K]:
        """Keys of what waits, in the order in which it would be sent."""
        return [one.key for one in sorted(self._waiting.values(), key=lambda one: one.place)]

    def sending_s(self, size: int) -> float:
        """Seconds that so many bytes take."""
        return size * self._s_per_byte

    def backlog_s(self, now: float, priority: Priority | None = None) -> float:
        """Seconds until what is here has been sent, or, with a class, what goes before a further message of it."""
        rank = math.inf if priority is None or not self._by_class else PRIORITIES.index(priority)
        waiting = sum(one.size for one in self._waiting.values() if one.place[0] <= rank)
        if self._sending is None:
            return waiting * self._s_per_byte
        return waiting * self._s_per_byte + max(0.0, self._sending.size * self._s_per_byte - (now - self._began))

    def _drop(self, message: _Message[K]) -> None:
        self.classes[message.priority].queued -= message.size
        self._waiting.pop(message.key, None)
        if self._sending is message:
            self._sending = None
