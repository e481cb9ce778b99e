"""Where cloudd may be, and in which order to ask: pure bookkeeping over hints that anybody on the network can forge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MAX_SERVICES = 32
"""Advertisements remembered. A plant has one or two; more means that somebody floods the network."""
MAX_ADDRESSES = 4
"""Addresses used of one advertisement."""


@dataclass(frozen=True)
class Candidate:
    """One address worth asking. Only a handshake with the pinned authority proves anything about it."""

    url: str
    source: Literal["manual", "last-known", "lan"]
    name: str = ""


@dataclass(frozen=True)
class Advertisement:
    """What one DNS-SD record claims."""

    instance: str
    urls: tuple[str, ...]
    pin: str  # as edgekit.dnssd.pin_of writes it, "" if the record has none
    name: str


class Advertisements:
    """The advertisements seen on the LAN, bounded; one that claims another authority is the first to go."""

    def __init__(self, limit: int = MAX_SERVICES) -> None:
        self._limit = limit
        self._seen: dict[str, Advertisement] = {}

    def seen(self, advertisement: Advertisement, wanted_pin: str) -> bool:
        """Remember it. True if it is new or changed and could be the wanted cloudd ("" wants any)."""
        known = self._seen.get(advertisement.instance)
        if known is None and len(self._seen) >= self._limit:
            victim = next((a.instance for a in self._seen.values() if not _fits(a, wanted_pin)), None)
            if victim is None or not _fits(advertisement, wanted_pin):
                return False
            del self._seen[victim]
        self._seen[advertisement.instance] = advertisement
        return known != advertisement and _fits(advertisement, wanted_pin)

    def lost(self, instance: str) -> None:
        """It said goodbye or expired."""
        self._seen.pop(instance, None)

    def fitting(self, wanted_pin: str) -> list[Advertisement]:
        """Those that claim the wanted authority, then those that claim none. Another authority's are left out."""
        fitting = [a for a in self._seen.values() if _fits(a, wanted_pin)]
        return sorted(fitting, key=lambda a: not a.pin)


def order(manual: Iterable[str], last_known: str, lan: Iterable[Advertisement]) -> list[Candidate]:
    """What to ask, best first and each address once: the person's word, what worked before, then hints of the LAN."""
    ordered: dict[str, Candidate] = {}
    for url in manual:
        if url:
            ordered.setdefault(url, Candidate(url, "manual"))
    if last_known:
        ordered.setdefault(last_known, Candidate(last_known, "last-known"))
    for advertisement in lan:
        for url in advertisement.urls[:MAX_ADDRESSES]:
            ordered.setdefault(url, Candidate(url, "lan", advertisement.name))
    return list(ordered.values())


def _fits(advertisement: Advertisement, wanted_pin: str) -> bool:
    return not wanted_pin or not advertisement.pin or advertisement.pin == wanted_pin
