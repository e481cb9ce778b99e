"""What is known about every model on this device: the inventory, the stored choices, and what is in use.

A subject is one model for one need. Looking reads hardware and disk in a thread; the rest answers from memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edged import inventory
from edged.config import Settings
from edged.hardware.adapt import Surroundings, Timing
from edged.hardware.host import Host, RealHost
from edged.hardware.probing import OpenBench, open_bench
from edged.hardware.settings import Choice, Failure, Setting
from edged.hardware.store import ChoiceStore, Need
from edged.inventory import Examined, Inventory
from edged.plan import Choice as Planned
from edged.polite import Pace
from edgekit.packages import PackageError
from edgekit.runtimes.libraries import installed, installed_roads
from edgekit.services import Service, ServiceError, parse_service

log = logging.getLogger("edged.hardware")

_PARSED = 256
_Name = tuple[str, Need]


@dataclass(frozen=True)
class Outside:
    """What tests replace: the machine, the runtimes that count as installed, the processes that measure, the pace."""

    host: Host = field(default_factory=RealHost)
    profiles: Sequence[Path] | None = None
    roads: Callable[[], set[tuple[str, str]]] = installed_roads
    open_bench: OpenBench = open_bench
    tick_s: float = 5.0
    facts_s: float = 60.0
    """How often the device is looked at for hardware that came or went."""
    retry_s: float = 60.0
    """Until a lost accelerator is tried again for the first time."""
    budget_s: float = 60.0
    """For measuring one model."""
    timing: Timing = field(default_factory=Timing)


@dataclass
class Subject:
    """One model for one need. `choice` is the newest for the present hardware, `used` the one in use."""

    ref: str
    path: Path
    need: Need
    found: Examined
    services: list[str]
    choice: Choice | None = None
    used: Choice | None = None
    tried_at: float | None = None
    """When it was last measured, or could not be (monotonic)."""
    stale: bool = False
    """It has become slow and should be measured again."""
    step: str = ""
    """What is being done about it right now."""

    @property
    def pending(self) -> bool:
        """Whether it should be measured."""
        return self.stale or (self.choice is None and self.tried_at is None)

    def asks(self, path: Path, fresh: bool) -> bool:
        """Whether to examine it (again): its package moved, or it uses what may be pulled out."""
        return self.path != path or (fresh and self.used is not None and self.used.setting.accelerated)

    @property
    def failed(self) -> set[str]:
        """Keys of the settings that failed on this hardware."""
        return {one.setting.key for one in self.found.failures}


class Subjects:
    """All of them, by model and need. Use it from the event loop."""

    def __init__(self, settings: Settings, packages: Callable[[], dict[str, Path]], outside: Outside) -> None:
        self.outside = outside
        self.inventory: Inventory | None = None
        self.celsius: float | None = None
        """The temperature that counts, as last read by the owner of this object."""
        self.looked_at = float("-inf")
        self._reread = False
        self._settings, self._packages = settings, packages
        self._store: ChoiceStore | None = None
        self._all: dict[_Name, Subject] = {}
        self._parsed: dict[str, Service] = {}
        self._looking = asyncio.Lock()

    def all(self) -> list[Subject]:
        """In the order in which they came."""
        return list(self._all.values())

    def of(self, planned: Planned) -> Subject | None:
        """The subject of a service as it is planned."""
        service = self._service(planned.text)
        return self._all.get((planned.ref, inventory.need_of(service))) if service is not None else None

    def using(self, service: str) -> Subject | None:
        """The subject of a service by its name."""
        return next((one for one in self._all.values() if service in one.services), None)

    def by_ref(self, ref: str) -> Subject | None:
        """A subject with this model."""
        return next((one for one in self._all.values() if one.ref == ref), None)

    def users(self, ref: str) -> list[str]:
        """Services with this model."""
        return sorted({name for one in self._all.values() if one.ref == ref for name in one.services})

    async def look(self, planned: Iterable[Planned], fresh: bool = False) -> bool:
        """Take the inventory if there is none (or anew), and examine every model that is new to it.

        True if the hardware is not what it was the last time, as far as a model in use needs it.
        """
        async with self._looking:
            packages = self._packages()
            wanted = self._wanted(planned, packages)
            before = self.inventory
            if before is None or fresh:
                self.inventory = await asyncio.to_thread(self._take, before)
                self.looked_at = time.monotonic()
            assert self.inventory is not None
            changed = before is not None and before.circumstances != self.inventory.circumstances
            new = {
                name: packages[name[0]]
                for name in wanted
                if changed or name not in self._all or self._all[name].asks(packages[name[0]], fresh)
            }
            for name, found in (await asyncio.to_thread(self._examine, self.inventory, new)).items():
                old = self._all.get(name)
                changed = changed or (old is not None and old.found.report.accepted != found.report.accepted)
                self._renew(name, new[name], found)
            self._all = {name: one for name, one in self._all.items() if name in wanted}
            for name, subject in self._all.items():
                subject.services = sorted(wanted[name])
            return changed

    def reread(self) -> None:
        """The next fresh look reads the profiles again, and comes soon."""
        self._reread, self.looked_at = True, float("-inf")

    def surroundings(self, pace: Pace | None = None) -> Surroundings:
        """What adaptation needs besides the model; after the first `look`."""
        assert self.inventory is not None
        return self._around(self.inventory, pace)

    def took(self, subject: Subject, choice: Choice | None) -> None:
        """It was measured, with this outcome. Failures that came with it are read back from the store."""
        subject.choice = choice
        self._read_failures(subject)

    def remember(self, subject: Subject, setting: Setting, kind: str, reason: str) -> None:
        """A setting does not work on this hardware: it is not used again until something of the key changes."""
        if subject.choice is not None and subject.choice.setting == setting:
            subject.choice = subject.tried_at = None  # what is left is worth measuring anew
        assert self._store is not None
        try:
            self._store.add_failure(
                subject.found.key, Failure(setting=setting, kind=kind, reason=reason, at=time.time())
            )
        except OSError as error:
            log.warning("A failed setting could not be stored: %s.", error)
        self._read_failures(subject)

    def _read_failures(self, subject: Subject) -> None:
        assert self._store is not None
        subject.found = subject.found._replace(failures=self._store.failures(subject.found.key))

    def _wanted(self, planned: Iterable[Planned], packages: Collection[str]) -> dict[_Name, list[str]]:
        wanted: dict[_Name, list[str]] = {}
        for one in planned:
            service = self._service(one.text)
            if service is not None and one.ref in packages:
                wanted.setdefault((one.ref, inventory.need_of(service)), []).append(one.name)
        return wanted

    def _take(self, before: Inventory | None) -> Inventory:
        host = self.outside.host
        if before is not None and not self._reread:
            return inventory.look_again(host, before)
        self._reread = False
        return inventory.take(host, self.outside.profiles)

    def _examine(self, taken: Inventory, wanted: Mapping[_Name, Path]) -> dict[_Name, Examined]:
        """In a thread."""
        if self._store is None:
            state = self._settings.state_dir
            for directory in (state / inventory.STORE.parent, state / inventory.CACHE):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._store = ChoiceStore(state / inventory.STORE)
        found: dict[_Name, Examined] = {}
        for (ref, need), path in wanted.items():
            try:
                found[ref, need] = inventory.examine(path, need, self._around(taken), taken.matched)
            except (PackageError, OSError) as error:  # the worker says so to everybody
                log.warning("The package of %s cannot be examined: %s.", ref, error)
        return found

    def _renew(self, name: _Name, path: Path, found: Examined) -> None:
        """What is in use stays in use over a change of the hardware; at a first look what is stored is used at once."""
        old = self._all.get(name)
        if old is None or old.path != path:
            self._all[name] = Subject(name[0], path, name[1], found, [], choice=found.choice, used=found.choice)
            return
        same = old.found.key == found.key
        old.found, old.choice = found, found.choice or (old.choice if same else None)
        old.used = old.used or found.choice
        old.tried_at = old.tried_at if same else None

    def _around(self, taken: Inventory, pace: Pace | None = None) -> Surroundings:
        assert self._store is not None
        opener = self.outside.open_bench
        return Surroundings(
            facts=taken.facts,
            profiles=taken.profiles,
            host=self.outside.host,
            store=self._store,
            open_bench=pace.opener(opener) if pace is not None else opener,
            interpreters=self._settings.interpreters,
            cache=str(self._settings.state_dir / inventory.CACHE),
            temperature=lambda: self.celsius,
            clock=pace.clock if pace is not None else time.monotonic,
            timing=self.outside.timing,
            roads=self.outside.roads,
        )

    def _service(self, text: str) -> Service | None:
        if text not in self._parsed:
            if len(self._parsed) >= _PARSED:
                self._parsed.clear()
            try:
                self._parsed[text] = parse_service(text, "stored definition")
            except ServiceError:
                return None
        return self._parsed[text]


def safe_file(subject: Subject) -> str:
    """The variant that the worker takes without a setting, "" of a package that has none."""
    variants = subject.found.package.manifest.variants
    ready = [one.file for one in variants if one.target is None and installed(one.runtime)]
    return next(iter((*ready, *(one.file for one in variants))), "")
