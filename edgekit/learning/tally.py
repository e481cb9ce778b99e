"""What a candidate's shadow phase has counted so far."""

from __future__ import annotations

import msgspec


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The shadow phase in counts. An item counts for the audits only where the auditor knows the candidate's label."""

    items: int = 0
    agreeing: int = 0  # candidate and present model gave the same label
    unusable: int = 0  # the candidate gave no finite answer
    audits: int = 0
    lost: int = 0  # the present model was right and the candidate wrong
    gained: int = 0
    sent: int = 0  # items that the present model's threshold sends
    would_send: int = 0  # and the candidate's

    def item(
        self, present: str, candidate: str | None, audit: str | None = None, *, sent: bool, would_send: bool
    ) -> Tally:
        """With one more live item. `candidate` is None where it gave no usable answer, `audit` where there is none."""
        audited = audit is not None and candidate is not None
        return Tally(
            items=self.items + 1,
            agreeing=self.agreeing + (candidate == present),
            unusable=self.unusable + (candidate is None),
            audits=self.audits + audited,
            lost=self.lost + (audited and present == audit != candidate),
            gained=self.gained + (audited and candidate == audit != present),
            sent=self.sent + sent,
            would_send=self.would_send + would_send,
        )
