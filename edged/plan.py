"""What a worker should run now: pure decisions from wanted services, installed packages and what runs already.

A service whose newest definition (with the package it means) failed falls back to its last good one. A service whose
package is not here yet keeps its last good one too, or waits. What a service learned takes the place of exactly the
model that it was learned from. Nothing here touches a disk or a clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from edged.desired import Entry, combination_key, is_model, parse
from edgekit.messages import Ready, ServiceReport
from edgekit.packages import PackageError, find
from edgekit.services import Service, ServiceError


class Choice(NamedTuple):
    """One service as a worker shall run it, or one model without a service (whose text is the wanted reference)."""

    name: str
    text: str
    ref: str  # name@version of its package
    last_good: bool = False  # it stands in for a newer definition or model that cannot run
    head: str = ""  # name@version of the head package of its [split], "" without one, or while it is not here
    shadow: str = ""  # name@version of a candidate that looks on and decides nothing, "" for none

    @property
    def key(self) -> str:
        return combination_key(self.text, self.ref)


class Learned(NamedTuple):
    """What a service has learned, as name@version; `base` is what its definition means. "": nothing."""

    base: str
    runs: str = ""  # in the place of `base`
    shadow: str = ""  # beside what runs


class Plan(NamedTuple):
    """What to run, what is missing for it, and a report for each service that cannot run."""

    choices: tuple[Choice, ...]  # by name: services, and models without one
    missing: frozenset[str]  # model references to fetch
    held: dict[str, ServiceReport]  # services (and models without one) that no worker runs now

    @property
    def services(self) -> tuple[Choice, ...]:
        """The choices that are services."""
        return tuple(choice for choice in self.choices if not is_model(choice.name))

    @property
    def models(self) -> tuple[str, ...]:
        """name@version of every model to serve without a service."""
        return tuple(sorted({choice.ref for choice in self.choices if is_model(choice.name)}))

    @property
    def packages(self) -> frozenset[str]:
        """name@version of everything that is run: models, heads of services that split, and candidates."""
        return frozenset(ref for choice in self.choices for ref in (choice.ref, choice.head, choice.shadow) if ref)

    @property
    def key(self) -> frozenset[tuple[str, str, str, str]]:
        """Two plans with equal keys run the same."""
        return what_runs(self.choices)


def make_plan(
    entries: Iterable[Entry],
    packages: Mapping[str, Path],
    running: Mapping[str, Choice] | None = None,
    one_by_one: bool = False,
    learned: Mapping[str, Learned] | None = None,
) -> Plan:
    """Choose for every wanted service and every model that is served without one.

    With `one_by_one` only the first definition that never became ready is tried; the others stay as they are in
    `running` (or wait). That finds the one that takes the whole worker down with it.
    """
    choices: list[Choice] = []
    missing: set[str] = set()
    held: dict[str, ServiceReport] = {}
    running = running or {}
    trying = False
    for entry in sorted(entries, key=lambda entry: entry.name):
        choice, wanted, report = _choose(entry, packages, (learned or {}).get(entry.name))
        if wanted:
            missing.add(wanted)
        if choice is not None and one_by_one and not proven(choice, entry):
            present = running.get(entry.name)
            if present is None or present.key != choice.key:
                if trying:
                    report = ServiceReport(name=entry.name, model=choice.ref, state="loading", detail="its turn comes")
                    choice = present or _good(entry, packages)
                trying = True
        if choice is not None:
            choice, wanted = _with_head(choice, packages)
            if wanted:
                missing.add(wanted)
            choices.append(choice)
        else:
            held[entry.name] = report
    return Plan(tuple(choices), frozenset(missing), held)


def what_runs(choices: Iterable[Choice]) -> frozenset[tuple[str, str, str, str]]:
    """Equal for equal definitions, models, heads and candidates."""
    return frozenset((choice.name, choice.key, choice.head, choice.shadow) for choice in choices)


def proven(choice: Choice, entry: Entry) -> bool:
    """True if exactly this has been ready before."""
    return (choice.text, choice.ref) == (entry.good_text, entry.good_ref)


def unproven(plan: Plan, entries: Mapping[str, Entry], running: Mapping[str, Choice]) -> list[Choice]:
    """The choices that are new in this plan and never became ready: the suspects if its worker fails."""
    return [
        choice
        for choice in plan.choices
        if choice.name in entries
        and not proven(choice, entries[choice.name])
        and (choice.name not in running or running[choice.name].key != choice.key)
    ]


def newcomers(plan: Plan, entries: Mapping[str, Entry], running: Mapping[str, Choice]) -> list[Choice]:
    """Those of `unproven` that need a model which does not run now."""
    present = {choice.ref for choice in running.values()}
    return [choice for choice in unproven(plan, entries, running) if choice.ref not in present]


def has_better(choice: Choice, entry: Entry, packages: Mapping[str, Path], beside: bool) -> bool:
    """A failed choice is new, and there is a last good one that can run.

    A model without a service needs none where the worker that failed to load it was started `beside` one that serves:
    one more model that failed is not worth a swap.
    """
    usable = bool(entry.good_text) and entry.good_ref in packages
    spare = is_model(choice.name) and beside
    return (usable or spare) and not choice.last_good and not proven(choice, entry)


def failures(plan: Plan, ready: Ready) -> dict[str, str]:
    """What failed in a ready worker, by the choice's name, and why."""
    services = {report.name: report.detail for report in ready.services if report.state == "failed"}
    models = {report.model: report.detail for report in ready.models if report.state == "failed"}
    alone = {
        choice.name: models[choice.ref] for choice in plan.choices if is_model(choice.name) and choice.ref in models
    }
    return {**services, **alone}


def _choose(
    entry: Entry, packages: Mapping[str, Path], learned: Learned | None
) -> tuple[Choice | None, str, ServiceReport]:
    """(what to run or None, model reference to fetch or "", report for the case of None)."""
    good = _good(entry, packages)
    try:
        model = entry.text if is_model(entry.name) else parse(entry.text).model
        ref = find(model, packages)
    except (ServiceError, PackageError) as error:
        return good, "", ServiceReport(name=entry.name, model="", state="failed", detail=str(error))
    if ref is None:
        detail = f"the model {model} is not installed"
        return good, model, ServiceReport(name=entry.name, model=model, state="loading", detail=detail)
    choice = _learned(Choice(entry.name, entry.text, ref), entry, packages, learned)
    if entry.refused_key and entry.refused_key == choice.key:
        return good, "", ServiceReport(name=entry.name, model=ref, state="failed", detail=entry.refused_why)
    return choice, "", ServiceReport(name=entry.name, model=ref, state="loading")


def _learned(choice: Choice, entry: Entry, packages: Mapping[str, Path], learned: Learned | None) -> Choice:
    """The choice with what the service has learned from exactly this model, as far as that is here and starts."""
    if learned is None or learned.base != choice.ref:
        return choice
    if learned.runs in packages:
        instead = choice._replace(ref=learned.runs)
        choice = choice if entry.refused_key == instead.key else instead
    looks_on = learned.shadow in packages and learned.shadow != choice.ref
    return choice._replace(shadow=learned.shadow) if looks_on else choice


def _with_head(choice: Choice, packages: Mapping[str, Path]) -> tuple[Choice, str]:
    """The choice with its head package, and the reference of one to fetch or "". A service runs without one, too."""
    if is_model(choice.name):
        return choice, ""
    try:
        split = parse(choice.text).split
        head = find(split.heads, packages) if split is not None else ""
    except (ServiceError, PackageError):
        return choice, ""
    if head is None:
        assert split is not None
        return choice, split.heads
    return choice._replace(head=head), ""


def _good(entry: Entry, packages: Mapping[str, Path]) -> Choice | None:
    if not entry.good_text or entry.good_ref not in packages:
        return None
    choice = Choice(entry.name, entry.good_text, entry.good_ref, last_good=True)
    return None if entry.refused_key == choice.key else choice


def service_of(entry: Entry) -> Service | None:
    """The newest definition, None if this version of edged cannot read it."""
    try:
        return parse(entry.text)
    except ServiceError:
        return None
