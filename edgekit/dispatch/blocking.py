"""Which services would make alarms late by their mere length: a run that has begun is not interrupted.

An alarm that comes just after a longer run began waits for all of it, so no lower class may run for longer than the
deadline of an alarm less its own run (research, `algorithms.md` section 5). From two threads on this cannot happen: the
engine keeps one from jobs that long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.dispatch.policy import PRIORITIES, Priority


@dataclass(frozen=True)
class Load:
    """A service as far as it can block others. Seconds; `run_s` as predicted, see `ServiceTimes`."""

    service: str
    priority: Priority
    deadline_s: float
    run_s: float


def blockings(services: Sequence[Load], threads: int = 1) -> list[str]:
    """One sentence for each alarm that cannot be met, and for each combination that breaks one; empty: all is well."""
    found = []
    for alarm in (one for one in services if one.priority == "alarm"):
        spare_s = alarm.deadline_s - alarm.run_s
        if spare_s < 0:
            found.append(
                f'the alarms of "{alarm.service}" take {_ms(alarm.run_s)} and have a deadline of '
                f"{_ms(alarm.deadline_s)}: none can be met on this device; use a faster model or a longer deadline"
            )
            continue
        if threads > 1:
            continue
        for other in services:
            if PRIORITIES.index(other.priority) > 0 and other.run_s > spare_s:
                found.append(
                    f'an alarm of "{alarm.service}" would be late behind one run of "{other.service}": that takes '
                    f"{_ms(other.run_s)}, and the alarm can wait for {_ms(spare_s)} (deadline {_ms(alarm.deadline_s)}, "
                    f'run {_ms(alarm.run_s)}); use a faster model for "{other.service}" or a longer deadline for '
                    f'"{alarm.service}", or let the engine have two threads, one of which is then kept for alarms'
                )
    return found


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
