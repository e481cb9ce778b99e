"""From facts to a choice for one model: gate, probe, first look, variations, final, choice, store.

The order of the candidates saves time, it decides nothing: what decides is measured (edged.hardware.search).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

from edged.hardware.candidates import propose
from edged.hardware.facts import fingerprint
from edged.hardware.gate import Rejection, gate_all
from edged.hardware.matching import Matched, match
from edged.hardware.search import Probed, Search, Surroundings, Timing
from edged.hardware.settings import Choice, Measurement, Objective
from edged.hardware.store import Need, StoreKey
from edgekit.packages import Package
from edgekit.runtimes.libraries import version

__all__ = ["BUDGET_S", "Report", "Surroundings", "Timing", "adapt", "store_key"]

BUDGET_S = 60.0
"""Seconds for one model. What is not measured by then is not in the choice."""
_LOOK_SHARE, _END_SHARE = 0.55, 0.9
"""Of the budget: until then new settings are looked at, until then the final runs; the rest is for the last windows."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a choice came about, in the order of the steps; for doctor and the status page."""

    model: str  # name@version
    profiles: list[str] = []  # id@version
    explanations: list[str] = []  # why they match
    accepted: list[str] = []  # ids of candidates that passed the gate
    untested: list[str] = []  # those of them that nobody has measured on such hardware
    rejected: list[Rejection] = []
    probes: list[Probed] = []
    measurements: list[Measurement] = []  # first looks and finals, in the order of measuring
    choice: Choice | None = None
    stored: bool = False  # the choice is an earlier one that still holds
    seconds: float = 0.0
    notes: list[str] = []


def store_key(package: Package, around: Surroundings, matched: Matched) -> StoreKey:
    """The circumstances that a choice for this package depends on."""
    roads = around.roads() | set(around.interpreters)
    return StoreKey(
        fingerprint=fingerprint(around.facts),
        kernel=around.facts.kernel,
        runtimes={f"{runtime}/{provider}": version(runtime, provider) for runtime, provider in sorted(roads)},
        profiles=sorted(matched.refs),
        model=package.digest,
        power_mode="/".join(filter(None, (around.facts.power_mode, around.facts.governor))),
        cpus=around.cpus.usable,
        interpreters={"/".join(road): path for road, path in sorted(around.interpreters.items())},
    )


async def adapt(
    package: Package,
    around: Surroundings,
    objective: Objective = "latency",
    *,
    rate: float | None = None,
    deadline_ms: float | None = None,
    budget_s: float = BUDGET_S,
    measure: bool = True,
    again: bool = False,
) -> Report:
    """Choose how `package` runs here. `report.choice` is None only if no setting at all could run it.

    A stored choice is returned at once unless `again`. With `measure` off the highest prior that passes its probe is
    taken, and nothing is stored. Raises OSError if the store cannot be written; what a library does raises nothing.
    """
    begun = around.clock()
    need = Need(objective=objective, rate=rate, deadline_ms=deadline_ms)
    matched = match(around.facts, around.profiles)
    key = store_key(package, around, matched)
    roads = around.roads() | set(around.interpreters)
    accepted, rejected = gate_all(propose(matched), around.facts, around.host, package.manifest, roads)
    base = Report(
        model=package.manifest.ref,
        profiles=matched.refs,
        explanations=matched.explanations,
        accepted=[one.candidate.id for one in accepted],
        untested=[c.id for c in (one.candidate for one in accepted) if c.profile_version and c.status != "measured"],
        rejected=rejected,
    )
    stored = None if again else around.store.find(key, need)
    if stored is not None:
        seconds = around.clock() - begun
        return msgspec.structs.replace(
            base, choice=stored, measurements=stored.measurements, stored=True, seconds=seconds
        )
    if again:
        around.store.forget_failures(key)
    with tempfile.TemporaryDirectory(prefix="edged-adapt-") as directory:
        run = Search(
            package,
            around,
            need,
            key,
            matched.thermal.soft_c,
            Path(directory),
            look_until=begun + budget_s * _LOOK_SHARE,
            end_by=begun + budget_s * _END_SHARE,
        )
        try:
            choice = await run.choose(accepted, measure=measure)
        finally:
            await run.end()
    if choice is not None and choice.measured:
        around.store.put(key, need, choice)
    return msgspec.structs.replace(
        base,
        probes=run.probes,
        measurements=run.measurements,
        choice=choice,
        seconds=around.clock() - begun,
        notes=run.notes,
    )
