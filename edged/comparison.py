"""What the supervisor makes of a comparison between a service's new model and the one before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from edged.health import Health
from edged.plan import Choice, Plan
from edgekit.messages import Comparison, Configure
from edgekit.text import printable


def with_comparisons(
    configure: Configure, plan: Plan, running: Mapping[str, Choice], packages: Mapping[str, Path]
) -> Configure:
    """Let the successor answer the samples of each model that it is about to replace."""
    compare = {
        choice.name: running[choice.name].ref
        for choice in plan.services
        if choice.name in running and running[choice.name].ref != choice.ref and running[choice.name].ref in packages
    }
    directories = {ref: str(packages[ref]) for ref in compare.values()}
    return msgspec.structs.replace(configure, compare=compare, packages={**directories, **configure.packages})


def tell(comparisons: Iterable[Comparison], health: Health) -> None:
    """Into the log and the events. Another answer may be the better one: nothing lasts."""
    for one in comparisons:
        health.note("ok" if one.agreed == one.samples else "warning", "service.compared", sentence(one))


def sentence(comparison: Comparison) -> str:
    """For the log and for people."""
    text = (
        f"Service {comparison.service}: {comparison.model} agrees with {comparison.previous} on {comparison.agreed} of "
        f"{comparison.samples} of its pinned samples"
    )
    if comparison.agreed < comparison.samples:
        return printable(f"{text}: {'; '.join(comparison.differing)}.")
    return f"{text} (scores differ by {comparison.score_change:.3f} at most)."
