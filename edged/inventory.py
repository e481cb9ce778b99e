"""What this device is and what could run each model on it: facts, profiles, gate and stored choices. Blocking.

The supervisor calls it from threads; `edged doctor` calls it without a daemon. It loads no model and starts no process.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edged.governor import Limits
from edged.hardware.adapt import Report, Surroundings, store_key
from edged.hardware.candidates import propose
from edged.hardware.facts import Facts, fingerprint, gather
from edged.hardware.gate import gate_all
from edged.hardware.host import Host, RealHost
from edged.hardware.matching import Matched, match
from edged.hardware.profiles import Profile, read_profiles
from edged.hardware.settings import Choice, Failure
from edged.hardware.store import ChoiceStore, Need, StoreKey
from edged.hardware.thermal import Reading, read_temperatures, throttled
from edged.status.hardware import HardwareReport
from edged.status.hardware_views import device_state, model_state
from edgekit.packages import Package, PackageError, installed, open_package
from edgekit.services import Service, ServiceError, parse_service

STORE = Path("hardware", "choices.json")
CACHE = Path("cache", "runtimes")
"""Below the state directory: the stored choices, and what providers compile for this device."""
DEADLINE_SHARE = 0.5
"""Of a service's deadline, for the model alone; decoding, the queue and the reply have the rest."""
_NOT_OURS = re.compile(r"(?i)nvme|drivetemp|iwl|ath[0-9]|mt7|phy|bat|charger|wifi|sfp")
"""Sensors of parts whose heat no model causes."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """The device."""

    facts: Facts
    fingerprint: str
    matched: Matched
    profiles: list[Profile]
    problems: list[str]

    @property
    def limits(self) -> Limits:
        """The temperatures at which models run more gently."""
        thermal, usual = self.matched.thermal, Limits()
        return Limits(soft_c=thermal.soft_c or usual.soft_c, hard_c=thermal.hard_c or usual.hard_c)

    @property
    def circumstances(self) -> tuple[str, ...]:
        """Equal circumstances need no second look at the stored choices."""
        facts = self.facts
        return (self.fingerprint, facts.kernel, facts.governor, facts.power_mode, *sorted(self.matched.refs))


class Examined(NamedTuple):
    """One model for one need on this device: what could run it, and what is known from before."""

    package: Package
    key: StoreKey
    report: Report
    choice: Choice | None
    failures: list[Failure]


class Heat(NamedTuple):
    """How hot the device is now."""

    readings: list[Reading]
    celsius: float | None  # the hottest sensor that counts
    throttled: list[str]


def take(host: Host, directories: Sequence[Path] | None = None) -> Inventory:
    """Look at the device. Never raises; a profile that cannot be read is a problem in the list."""
    facts = gather(host)
    profiles, problems = read_profiles(directories)
    matched = match(facts, profiles)
    return Inventory(facts=facts, fingerprint=fingerprint(facts), matched=matched, profiles=profiles, problems=problems)


def look_again(host: Host, before: Inventory) -> Inventory:
    """`take` with the profiles of before."""
    facts = gather(host)
    return msgspec.structs.replace(
        before, facts=facts, fingerprint=fingerprint(facts), matched=match(facts, before.profiles)
    )


def need_of(service: Service) -> Need:
    """What a service wants of its hardware. Who wants the quickest answer anyway needs no deadline for it."""
    if service.objective == "latency":
        return Need(objective="latency")
    return Need(objective=service.objective, deadline_ms=service.deadline_ms * DEADLINE_SHARE)


def examine(path: Path, need: Need, around: Surroundings, matched: Matched) -> Examined:
    """Which candidates the gate lets through for a package, and what was chosen earlier. Raises PackageError."""
    package = open_package(path, verify=False)
    key = store_key(package, around, matched)
    roads = around.roads() | set(around.interpreters)
    accepted, rejected = gate_all(propose(matched), around.facts, around.host, package.manifest, roads)
    choice = around.store.find(key, need)
    report = Report(
        model=package.ref,
        profiles=matched.refs,
        explanations=matched.explanations,
        accepted=[one.candidate.id for one in accepted],
        rejected=rejected,
        choice=choice,
        stored=choice is not None,
    )
    return Examined(package, key, report, choice, around.store.failures(key))


def feel(host: Host, matched: Matched | None) -> Heat:
    """Read all sensors once."""
    readings = read_temperatures(host)
    return Heat(readings, hottest(readings, matched.thermal.zones if matched else {}), throttled(host))


def hottest(readings: Iterable[Reading], zones: Mapping[str, Sequence[str]]) -> float | None:
    """The hottest of the zones that profiles name (the first one found of each list), else of all that may count."""
    by_zone: dict[str, float] = {}
    for reading in readings:
        by_zone[reading.zone] = max(reading.celsius, by_zone.get(reading.zone, reading.celsius))
    named = [next((zone for zone in names if zone in by_zone), None) for names in zones.values()]
    counting = [by_zone[zone] for zone in named if zone is not None]
    if not counting:
        counting = [celsius for zone, celsius in by_zone.items() if not _NOT_OURS.search(zone)]
    return max(counting, default=None)


def without_daemon(state_dir: Path) -> HardwareReport:
    """The same report that the daemon gives, from what lies on the disk."""
    host = RealHost()
    inventory = take(host)
    heat = feel(host, inventory.matched)
    store = ChoiceStore(state_dir / STORE)
    around = Surroundings(facts=inventory.facts, profiles=inventory.profiles, host=host, store=store)
    users = _services_by_model(state_dir / "services")
    models = []
    for ref, path in installed(state_dir / "models").items():
        wanted = users.get(ref) or users.get(ref.partition("@")[0]) or {Need(objective="latency"): []}
        for need, services in wanted.items():
            with contextlib.suppress(PackageError):  # the check 'models' names it
                found = examine(path, need, around, inventory.matched)
                models.append(model_state(found.report, need, services, found.choice, found.failures))
    state = device_state(inventory.facts, inventory.matched, inventory.problems, inventory.limits, heat)
    return HardwareReport(
        facts=inventory.facts,
        fingerprint=inventory.fingerprint,
        state=msgspec.structs.replace(state, models=models),
    )


def _services_by_model(directory: Path) -> dict[str, dict[Need, list[str]]]:
    found: dict[str, dict[Need, list[str]]] = {}
    for path in sorted(directory.glob("*.toml"))[:256]:
        try:
            service = parse_service(path.read_text("utf-8"), path.name)
        except (OSError, UnicodeDecodeError, ServiceError):
            continue  # the check 'services' names it
        found.setdefault(service.model, {}).setdefault(need_of(service), []).append(service.name)
    return found
