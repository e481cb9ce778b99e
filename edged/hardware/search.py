"""The measured way from candidates to a choice for one model: probe, first look, variations, final.

Everything that loads a model runs in bench children; this module only gives orders and keeps the books.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edged.hardware import grid
from edged.hardware.candidates import Candidate
from edged.hardware.choose import TIE, choose, score
from edged.hardware.facts import Facts
from edged.hardware.gate import Accepted
from edged.hardware.grid import Cpus, Interpreters
from edged.hardware.host import Host
from edged.hardware.probing import Bench, BenchFailed, OpenBench, open_bench
from edged.hardware.profiles import Profile
from edged.hardware.settings import Choice, Failure, Measurement, ProbeResult, Setting
from edged.hardware.store import ChoiceStore, Need, StoreKey
from edged.hardware.wire import Job, Probe, Run, Window
from edgekit.packages import Package
from edgekit.runtimes.libraries import installed_roads

FINALISTS = 4
_MOST = 3
"""Times the usual rounds that a final takes on a machine whose speed keeps changing."""
_CERTAIN = 0.01
QUIET = 0.15
"""Share of all CPUs that others may take while a window still counts as undisturbed."""
_LEAST_QUIET = 4
_MANY_EVERY = 3
_PAUSE_S = 0.005
_PACED_RUNS = 25
_HOPELESS = 3.0
"""Times as slow as the best: no variation of such a file or provider is looked at."""
_NEAR = 3
"""Times the tie: how far from the best a frugal setting may look and still come into the final."""
_LEAST_SLOPE_MIN = 0.1
_MEMORY_SHARE = 0.6
_LEAST_MEMORY = 1 << 30


@dataclass(frozen=True)
class Timing:
    """How long things are measured, in seconds. Many short windows in turn beat few long ones on a busy machine."""

    warm_s: float = 2.0  # at most, per setting
    look_s: float = 0.3
    window_s: float = 0.12
    rounds: int = 12


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """One setting that was started for the first time, and what came of it."""

    setting: Setting
    result: ProbeResult


@dataclass(frozen=True)
class Surroundings:
    """What adaptation needs besides the model; the same for all models of a device."""

    facts: Facts
    profiles: Sequence[Profile]
    host: Host
    store: ChoiceStore
    open_bench: OpenBench = open_bench
    interpreters: Interpreters = field(default_factory=dict)
    cache: str = ""
    timing: Timing = Timing()
    temperature: Callable[[], float | None] = lambda: None  # °C of the hottest zone that matters
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    roads: Callable[[], set[tuple[str, str]]] = installed_roads

    @property
    def cpus(self) -> Cpus:
        return grid.usable_cpus(self.facts)

    @property
    def memory_bytes(self) -> int:
        """What a bench child may have."""
        return max(_LEAST_MEMORY, int(self.facts.memory * _MEMORY_SHARE))


@dataclass
class Search:
    """One run of the steps for one package.

    Times are of `around.clock`: nothing new is looked at after `look_until`, and the final is cut short at `end_by`.
    """

    package: Package
    around: Surroundings
    need: Need
    key: StoreKey
    soft_c: float | None  # °C: a final that gets hotter is cut short
    directory: Path  # for the CPU's answers
    look_until: float
    end_by: float
    probes: list[Probed] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _benches: dict[tuple[str, str, str], Bench] = field(default_factory=dict)
    _references: dict[str, Path] = field(default_factory=dict)  # variant -> the CPU's answers
    _points: int = 0

    async def choose(self, accepted: Sequence[Accepted], *, measure: bool) -> Choice | None:
        cpus = self.around.cpus
        looks = grid.first_looks(accepted, cpus, self.around.interpreters)
        proved: set[str] = set()
        for one, setting in grid.in_turn(looks):
            if not (proved and self._late()) and await self._probe(one.candidate, setting):
                proved.add(setting.key)
        passed = [(one.candidate, setting) for one, setting in looks if setting.key in proved]
        if not passed:
            return None
        if not measure:
            return self._unmeasured(passed)
        default = grid.default_setting(next((s for _, s in passed if not s.accelerated), passed[0][1]), cpus)
        measured = [look for _, setting in passed if (look := await self._look(setting)) is not None]
        measured += await self._vary(passed, measured, default)
        finals = await self._final(self._finalists(measured, default))
        if not (finals or measured):
            return None
        return choose(
            finals or measured,
            self.need.objective,
            rate=self.need.rate,
            deadline_ms=self.need.deadline_ms,
            default=default,
            at=self.around.now(),
        )

    async def end(self) -> None:
        for bench in self._benches.values():
            await bench.end()

    # --- steps -------------------------------------------------------------------------------------------------------

    async def _probe(self, candidate: Candidate, setting: Setting) -> bool:
        """Start a setting for the first time. A failure is remembered; one that is remembered already is not tried."""
        known = next((one for one in self.around.store.failures(self.key) if one.setting == setting), None)
        if known is not None:
            self.notes.append(
                f"{setting.candidate} with {setting.variant} failed before and was not tried: {known.reason}"
            )
            return False
        floor = not setting.accelerated
        own = self._references.get(setting.variant)
        reference = own or self._of_the_same_network(setting)
        write = self.directory / f"{len(self._references)}.npz" if floor and own is None else None
        order = Probe(
            setting=setting,
            reference=str(reference or ""),
            write=str(write or ""),
            same_file=own is not None,
        )
        result = await (await self._bench(setting)).probe(order, candidate.probe_timeout_s + candidate.warmup_s)
        self.probes.append(Probed(setting=setting, result=result))
        if result.ok:
            if write is not None:
                self._references[setting.variant] = write
            return True
        self._failed(setting, result.kind, result.reason)
        return False

    def _of_the_same_network(self, setting: Setting) -> Path | None:
        """The CPU's answers by another file, unless that holds another network: a student answers alike only."""
        networks = {variant.file: variant.network for variant in self.package.manifest.variants}
        wanted = networks.get(setting.variant)
        return next((path for file, path in self._references.items() if networks.get(file) == wanted), None)

    async def _look(self, setting: Setting) -> Measurement | None:
        """A short measurement of one setting, alone in its process."""
        if self._points >= grid.MAX_POINTS or (self.measurements and self._late()):
            self.notes.append(f"not measured for lack of time: {setting.text()}")
            return None
        self._points += 1
        try:
            bench = await self._bench(setting)
            await bench.open(setting, self.around.timing.warm_s)
            seconds = self.around.timing.look_s
            single = await bench.run(Run(setting=setting, seconds=seconds))
            many = await bench.run(Run(setting=setting, seconds=seconds, callers=setting.workers))
            await bench.close(setting)
        except BenchFailed as error:
            self._failed(setting, error.kind, error.reason)
            return None
        found = _measurement(setting, [single], [many], None, None)
        self.measurements.append(found)
        return found

    async def _vary(
        self, passed: Sequence[tuple[Candidate, Setting]], looks: Sequence[Measurement], default: Setting
    ) -> list[Measurement]:
        """Variations of every way and file that is not hopelessly slow, the default first."""
        if not looks:
            return []
        ordered = sorted(looks, key=self._score)
        limit = self._score(ordered[0]) * _HOPELESS
        candidates = {setting.key: candidate for candidate, setting in passed}
        settings = [default] if default.key not in candidates else []
        for look in ordered:
            if self._score(look) <= limit:
                settings += grid.variations(candidates[look.setting.key], look.setting, self.around.cpus)
        seen = {look.setting.key for look in looks}
        found = []
        for setting in {setting.key: setting for setting in settings if setting.key not in seen}.values():
            measured = await self._look(setting)
            if measured is not None:
                found.append(measured)
        return found

    def _finalists(self, looks: Sequence[Measurement], default: Setting) -> list[Setting]:
        """The best, the default, the one that takes the least CPU among those about as good; then the next best."""
        ordered = sorted(looks, key=self._score)
        near = [
            m for m in ordered if self._score(m) <= self._score(ordered[0]) * (1 + _NEAR * TIE[self.need.objective])
        ]
        names = [look.setting for look in ordered[:1]]
        names += [look.setting for look in looks if look.setting == default]
        names += [min(near, key=lambda m: m.cpu_ms).setting] if near else []
        names += [look.setting for look in ordered[1:FINALISTS]]
        return list({setting.key: setting for setting in names}.values())

    async def _final(self, settings: Sequence[Setting]) -> list[Measurement]:
        """Longer windows of the best, in turn, so that a busy neighbour or a warm chip hits all of them alike."""
        opened: list[Setting] = []
        for setting in settings:
            if not (opened and self._over()) and await self._open(setting):
                opened.append(setting)
        single: dict[str, list[Window]] = {setting.key: [] for setting in opened}
        many: dict[str, list[Window]] = {setting.key: [] for setting in opened}
        paced: dict[str, Window] = {}
        slope = _Slope(self.around)
        rounds = self.around.timing.rounds
        for turn, setting in [(turn, setting) for turn in range(_MOST * rounds) for setting in opened]:
            if turn >= rounds and setting is opened[0] and all(_settled(single[one.key]) for one in opened):
                break
            if any(many.values()) and (self._over() or slope.too_hot(self.soft_c)):
                self.notes.append(f"the final was cut short in round {turn + 1}")
                break
            if setting not in opened:
                continue
            try:
                await self._turn(setting, turn, single[setting.key], many[setting.key], paced)
            except BenchFailed as error:
                opened.remove(setting)
                self._failed(setting, error.kind, error.reason)
        found = [
            _measurement(setting, single[setting.key], many[setting.key], paced.get(setting.key), slope.value())
            for setting in opened
            if single[setting.key] and many[setting.key]
        ]
        # The process holds all finalists now; the look had each alone.
        alone = {m.setting.key: m.rss_mb for m in self.measurements}
        found = [msgspec.structs.replace(m, rss_mb=alone.get(m.setting.key, m.rss_mb)) for m in found]
        self.measurements += found
        return found

    async def _turn(
        self, setting: Setting, turn: int, single: list[Window], many: list[Window], paced: dict[str, Window]
    ) -> None:
        """One round of the final for one setting; what is measured less often comes in the first rounds."""
        bench = await self._bench(setting)
        seconds = self.around.timing.window_s
        single.append(await bench.run(Run(setting=setting, seconds=seconds)))
        if turn % _MANY_EVERY == 0:
            many.append(await bench.run(Run(setting=setting, seconds=seconds, callers=setting.workers)))
        if turn == 1:
            pause = max(_PAUSE_S, 1 / self.need.rate if self.need.rate else 0.0)
            seconds = min(1.0, _PACED_RUNS * (pause + single[0].p50_ms / 1e3))
            paced[setting.key] = await bench.run(Run(setting=setting, seconds=seconds, pause_s=pause))

    async def _open(self, setting: Setting) -> bool:
        try:
            await (await self._bench(setting)).open(setting, self.around.timing.warm_s)
        except BenchFailed as error:
            self._failed(setting, error.kind, error.reason)
            return False
        return True

    def _unmeasured(self, passed: Sequence[tuple[Candidate, Setting]]) -> Choice:
        ordered = sorted(passed, key=lambda pair: -pair[0].prior)
        return Choice(
            setting=ordered[0][1],
            objective=self.need.objective,
            reasons=["it has the highest rank of those that passed their probe; nothing was measured"],
            alternatives=[setting for _, setting in ordered[1:]],
            measured=False,
            at=self.around.now(),
        )

    # --- books -------------------------------------------------------------------------------------------------------

    async def _bench(self, setting: Setting) -> Bench:
        """One child for each runtime and provider: what one vendor's library does to it, the others do not see."""
        family = (setting.runtime, setting.provider, setting.interpreter)
        if family not in self._benches:
            job = Job(package=str(self.package.root), memory_bytes=self.around.memory_bytes, cache=self.around.cache)
            self._benches[family] = await self.around.open_bench(job)
        return self._benches[family]

    def _failed(self, setting: Setting, kind: str, reason: str) -> None:
        self.notes.append(f"{setting.text()}: {reason}")
        self.around.store.add_failure(
            self.key, Failure(setting=setting, kind=kind, reason=reason, at=self.around.now())
        )

    def _late(self) -> bool:
        return self.around.clock() > self.look_until

    def _over(self) -> bool:
        return self.around.clock() > self.end_by

    def _score(self, measurement: Measurement) -> float:
        return score(measurement, self.need.objective)


def _undisturbed(windows: Sequence[Window]) -> Sequence[Window]:
    """Those in which others took little, if there are enough. A neighbour that is always busy disturbs all of them, and
    then he belongs to what is measured."""
    quiet = [one for one in windows if one.others <= QUIET]
    return quiet if len(quiet) >= _LEAST_QUIET else windows


def _settled(windows: Sequence[Window]) -> bool:
    """Whether the median stands on enough windows: half their spread over the root of their number is small."""
    from statistics import quantiles  # most of a MiB with what it needs, which an idle supervisor does not

    used = _undisturbed(windows)
    if len(used) < 4 or (used is windows and any(one.others > QUIET for one in windows)):
        return False
    low, middle, high = quantiles([one.p50_ms for one in used], n=4)
    return bool((high - low) / 2 <= _CERTAIN * middle * math.sqrt(len(used)))


class _Slope:
    """Temperature while the final runs. The finalists take turns, so the slope belongs to all of them."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._begun = around.clock()
        self._first = self._last = around.temperature()

    def too_hot(self, soft_c: float | None) -> bool:
        self._last = self._around.temperature()
        return soft_c is not None and self._last is not None and self._last >= soft_c

    def value(self) -> float | None:
        """°C a minute; None without a sensor or after too short a time."""
        minutes = (self._around.clock() - self._begun) / 60
        if self._first is None or self._last is None or minutes < _LEAST_SLOPE_MIN:
            return None
        return (self._last - self._first) / minutes


def _measurement(
    setting: Setting, single: Sequence[Window], many: Sequence[Window], paced: Window | None, slope: float | None
) -> Measurement:
    """Medians over the windows, so that one disturbed window changes nothing."""
    from statistics import median  # see _settled

    single, many = _undisturbed(single), _undisturbed(many)
    cpu = paced if paced is not None else single[0]
    return Measurement(
        setting=setting,
        p50_ms=median([one.p50_ms for one in single]),
        p95_ms=median([one.p95_ms for one in single]),
        throughput=median([one.n / one.wall_s for one in many]),
        cpu_ms=cpu.cpu_s / cpu.n * 1e3,
        cpu_share=median([one.cpu_s / one.wall_s for one in single]),
        rss_mb=many[-1].rss_mb,
        temperature_slope=slope,
        n=sum(one.n for one in single),
    )
