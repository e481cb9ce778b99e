"""From revealed shares to the masks that are still in the sum."""

from __future__ import annotations

import hmac
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence

from edgekit.secagg import agreement, shamir
from edgekit.secagg.agreement import KeyPair
from edgekit.secagg.cohort import Cohort
from edgekit.secagg.errors import Refusal
from edgekit.secagg.masks import Mask
from edgekit.secagg.messages import Reveal


def masks_to_remove(
    cohort: Cohort, lists: Mapping[int, Sequence[int]], reveals: Mapping[int, Reveal]
) -> list[Mask] | None:
    """What to apply to the sum of the survivors' vectors: their own masks, and those they share with vanished devices.

    `lists`: survivor -> the neighbours it masked with. Every secret is checked against its public key or commitment.
    None if there are too few shares of one, or no `threshold` of them agree with it.
    """
    shares = _Shares(cohort, lists, reveals)
    found: list[Mask] = []
    for u in sorted(lists):
        seed = shares.secret(u, cohort.keys[u].commitment, agreement.commit)
        if seed is None:
            return None
        found.append(Mask(cohort.self_mask_key(seed), add=False))
    left_alone: dict[int, list[int]] = {}
    for u in sorted(lists):
        for v in lists[u]:
            if v not in lists:
                left_alone.setdefault(v, []).append(u)
    for v, masked in left_alone.items():
        seed = shares.secret(v, cohort.keys[v].mask, _public)
        if seed is None:
            return None
        pair = KeyPair.from_seed(seed, cohort.salt(v))
        try:
            found += [Mask(cohort.pair_mask_key(pair, v, u), add=u > v) for u in masked]
        except Refusal:
            return None
    return found


def _public(seed: bytes, salt: bytes) -> bytes:
    return KeyPair.from_seed(seed, salt).public


class _Shares:
    """Finds secrets; remembers who gave wrong shares and the weights of each set of holders."""

    def __init__(self, cohort: Cohort, lists: Mapping[int, Sequence[int]], reveals: Mapping[int, Reveal]) -> None:
        self._cohort, self._lists, self._reveals = cohort, lists, reveals
        self._doubted: set[int] = set()
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def secret(self, of: int, public: bytes, published: Callable[[bytes, bytes], bytes]) -> bytes | None:
        """The seed that `published` turns, with the device's salt, into `public`; tried in windows over the holders."""
        holders = [h for h in self._cohort.holders(of) if h in self._reveals and (h == of or self._index(h, of) >= 0)]
        holders.sort(key=lambda h: (h in self._doubted, h))
        failed: set[int] = set()
        salt = self._cohort.salt(of)
        for window in self._windows(holders):
            if window not in self._weights:
                self._weights[window] = shamir.weights([h + 1 for h in window])
            found = shamir.combine(self._weights[window], [self._share(h, of) for h in window])
            if hmac.compare_digest(published(found, salt), public):
                self._doubted |= failed - set(window)
                return found
            failed.update(window)
        return None

    def _windows(self, holders: list[int]) -> Iterator[tuple[int, ...]]:
        """As many consecutive holders as are needed, beginning at each, around the end."""
        needed = self._cohort.threshold
        if len(holders) < needed:
            return
        starts = range(len(holders) if len(holders) > needed else 1)
        for start in starts:
            yield tuple(sorted((holders + holders)[start : start + needed]))

    def _share(self, holder: int, of: int) -> bytes:
        reveal = self._reveals[holder]
        if holder == of:
            return reveal.own
        start = shamir.SHARE * self._index(holder, of)
        return reveal.shares[start : start + shamir.SHARE]

    def _index(self, holder: int, of: int) -> int:
        """Which of the shares of a holder is that of a device; -1 if none."""
        around = self._lists[holder]
        index = bisect_left(around, of)
        return index if index < len(around) and around[index] == of else -1
