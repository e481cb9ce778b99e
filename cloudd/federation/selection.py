"""Who is invited, out of the devices that stand ready. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from cloudd.federation.needs import Needs, lack
from edgekit.federated import robust
from edgekit.federated.plan import Plan
from edgekit.messages.federation import RoundKind, Standing


@dataclass(frozen=True)
class Candidate:
    """A device that stands ready."""

    node: bytes
    standing: Standing
    since: float  # when it first said so
    rounds: int  # of this job that its update was in


def buckets(plan: Plan, kind: RoundKind) -> int:
    """Cohorts of one round."""
    return plan.robust.buckets if plan.robust is not None and kind == "learn" else 1


def eligible(
    candidates: Collection[Candidate],
    plan: Plan,
    kind: RoundKind,
    version: int,
    min_samples: int,
    needs: Needs | None = None,
) -> list[Candidate]:
    """Those who can be invited to a round of the state `version`, the best first.

    Best is who took part least, then who has most samples, then who waits longest. In asynchronous jobs only those who
    have an update ready that is not too old, in the order in which they said so: the buffer is the cohort.
    """
    asked = needs or Needs()
    fit = [one for one in candidates if one.standing.version == version and not lack(one.standing, asked, min_samples)]
    if not plan.max_age or kind == "evaluate":
        return sorted(fit, key=lambda one: (one.rounds, -one.standing.samples, one.since, one.node))
    ready = [one for one in fit if one.standing.trained is not None]
    return sorted(
        (one for one in ready if version - (one.standing.trained or 0) <= plan.max_age),
        key=lambda one: (one.since, one.node),
    )


def lacking(candidates: Collection[Candidate], min_samples: int, needs: Needs) -> str:
    """Why devices that stand ready cannot be invited: "2 on battery, 1 too hot"; "" if none is held back."""
    found = Counter(why for one in candidates if (why := lack(one.standing, needs, min_samples)))
    return ", ".join(f"{count} {why}" for why, count in sorted(found.items()))


def choose(fit: list[Candidate], plan: Plan, kind: RoundKind, most: int, seed: bytes) -> list[tuple[bytes, ...]]:
    """The cohorts of a round, each of at most `most` devices, dealt by `seed`."""
    number = buckets(plan, kind)
    nodes = [one.node for one in fit[: most * number]]
    if number == 1:
        return [tuple(sorted(nodes))]
    return robust.split(nodes, number, hashlib.sha256(seed).digest())
