"""What happened since a threshold was certified: how much was decided here, and what the audits of it said."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from edgekit.gates.binomial import clopper_pearson_upper


class Since(msgspec.Struct):
    """Counts since the threshold was certified."""

    seen: int = 0  # samples
    kept: int = 0  # of these at or under the threshold: answered here, audited or not
    audits: int = 0  # of these: audited, and the answer is known
    differing: int = 0  # of these: the cloud's answer is another one

    def bound(self, confidence: float) -> float | None:
        """Upper bound of the share of these samples that were answered here and differ; None before any audit.

        Which of them were answered here is known of every single one, and the audits are a random part of these: the
        share answered here, times the Clopper-Pearson upper bound of the share of those that differ.
        """
        if not self.audits or not self.seen:
            return None
        return self.kept / self.seen * _upper(self.differing, self.audits, 1 - confidence)


@lru_cache(maxsize=64)
def _upper(differing: int, audits: int, delta: float) -> float:
    """It is asked for every second and changes with an audit only."""
    return clopper_pearson_upper(differing, audits, delta)
