"""One job as an operator sees it: for the commands, the dashboard and the metrics. Names come from devices."""

from __future__ import annotations

import msgspec

from edgekit.messages.retraining import Stage


class RetrainingView(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since the epoch."""

    device_id: str
    short_id: str
    job: str
    service: str
    stage: Stage
    text: str  # a clause: what is done, or why it ended so
    done: int
    total: int  # 0: nobody knows
    pictures: int
    bytes: int  # of everything that the job names
    created_at: float
    ended_at: float | None
    removed: bool  # by an operator, with its pictures
