"""Every wait of the link."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of the monotonic clock."""

    attempt: float = 5.0  # for one address to answer
    ping: float = 10.0  # of silence, before a ping that must be answered within half of it
    retry_base: float = 1.0
    retry_cap: float = 60.0
    stable: float = 30.0  # a connection that lasted this long resets the backoff
    refused: float = 900.0  # after cloudd said no: a person has to act, and may undo it
    search: float = 8.0  # for cloudd to appear on the LAN during a join
    renew_retry_base: float = 60.0
    renew_retry_cap: float = 3_600.0
    renew_check: float = 3_600.0  # longest sleep before looking at the wall clock again
    fetch_retry_base: float = 1.0
    fetch_retry_cap: float = 15.0
    fetch_patience: float = 30.0  # in which nothing of a model comes, before the fetch is given up for now
