"""Keeps every service's model running the best way this device can: looks up, measures, changes over, falls back.

Three things are kept apart. What was *chosen* for a model is in the store. What is *in use* changes rarely: at the
start, when something broke, when it gets hot, and otherwise only for a clear gain and at most once an hour. What the
worker *runs* follows it by one swap. Nobody ever waits for a measurement: without a choice a model runs on the CPU.

All methods belong to the supervisor's event loop; what reads hardware or disk runs in threads, what loads models runs
in bench children.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from edged import inventory, ladder
from edged.api import AdaptProgress, ApiError
from edged.config import Settings
from edged.governor import Governor, Reading, Retry
from edged.hardware.settings import Choice, Setting
from edged.hardware_health import HardwareHealth
from edged.health import Health
from edged.inventory import Heat
from edged.load import Load, slow_services
from edged.lost import GIVE_UP, Lost, LostBook
from edged.measuring import Measurer
from edged.plan import Choice as Planned
from edged.standing import Standing
from edged.status.hardware import HardwareReport, HardwareState
from edged.status.hardware_views import device_state
from edged.subject_view import choice_sentence, subject_state
from edged.subjects import Outside, Subject, Subjects, safe_file
from edged.worker import Worker
from edgekit.messages import RunSetting, SettingFailed

log = logging.getLogger("edged.hardware")

PREPARE_S = 3.0
"""Longest that a worker's start waits for the stored choices. A board with a dead sensor bus starts all the same."""
CHANGE_S = 3600.0
"""A change for the sake of speed at most this often."""
DEATHS, DEATHS_S = 2, 600.0
"""A ready worker that died this often in this time while it used an accelerator: the accelerator is the suspect."""
AGAIN_S = 6 * 3600.0
"""A model that became slow is measured again at most this often."""


class Runs(Protocol):
    """What is needed of the runner."""

    worker: Worker | None
    swapping: bool
    standing: Standing

    @property
    def at_rest(self) -> bool: ...
    def swap(self) -> None: ...


class Adaptation:
    """See the module. `run` is its task; `prepare` and `settings` are asked by the runner that `attach` names."""

    def __init__(
        self, settings: Settings, health: Health, packages: Callable[[], dict[str, Path]], outside: Outside
    ) -> None:
        self._settings, self._outside = settings, outside
        self._tell = HardwareHealth(health)
        self._runs: Runs | None = None
        self._subjects = Subjects(settings, packages, outside)
        self._measurer = Measurer(self._subjects, lambda: self._busy)
        self._work: asyncio.Task[None] | None = None
        self._heat: Heat | None = None
        self._governor = Governor()
        self._load = Load()
        self._busy = "the worker is starting"
        self._book = LostBook(outside.retry_s)
        self._proven: set[str] = set()
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._swaps = Retry(10.0)
        self._changed_at: float | None = None

    def attach(self, runs: Runs) -> None:
        """The runner, which is made after this."""
        self._runs = runs

    # --- what the runner asks and tells -----------------------------------------------------------------------------

    async def prepare(self, planned: Iterable[Planned]) -> None:
        """Look up what was chosen for these services, within bounds: a worker is about to start. Raises nothing."""
        try:
            async with asyncio.timeout(PREPARE_S):
                await self._subjects.look(planned)
            self._tell_problems()
        except TimeoutError:
            log.warning("Looking at the hardware takes longer than %.0f s; models start in the safe way.", PREPARE_S)
        except Exception:
            log.exception("The hardware could not be looked at; models start in the safe way.")

    def settings(self, planned: Iterable[Planned]) -> dict[str, RunSetting]:
        """How each service's model is to run now. A service that is not in it runs in the safe way."""
        services = list(planned)
        found: dict[str, RunSetting] = {}
        for one in services:
            subject = self._subjects.of(one)
            setting = self._in_use(subject, alone=len(services) == 1) if subject is not None else None
            if setting is not None:
                found[one.name] = msgspec.convert(setting, RunSetting, from_attributes=True)
        return found

    def setting_failed(self, message: SettingFailed) -> None:
        """The worker could not use a setting, or it stopped working."""
        subject = self._subjects.using(message.service)
        if subject is not None:
            self._break(subject, _setting(message.setting), message.kind, message.reason)

    def worker_died(self, settings: Mapping[str, RunSetting], ready: bool, how: str) -> None:
        """A worker with these settings failed. The suspects are those that never worked before, accelerators first."""
        now = time.monotonic()
        used = {name: _setting(one) for name, one in settings.items()}
        accelerated = {name: one for name, one in used.items() if one.accelerated}
        if ready:
            self._deaths.append(now)
            often = len(self._deaths) == DEATHS and now - self._deaths[0] <= DEATHS_S
            suspects = accelerated if often else {}
            if often:
                self._deaths.clear()
        else:
            self._swaps.failed(now)
            new = {name: one for name, one in used.items() if one.key not in self._proven}
            suspects = {name: one for name, one in new.items() if name in accelerated} or new
        for subject in self._subjects.all():
            setting = next((suspects[name] for name in subject.services if name in suspects), None)
            if setting is not None:
                self._break(subject, setting, "crash", f"the worker {how} while it used it")

    def reload(self) -> None:
        """Somebody may have edited the profiles."""
        self._subjects.reread()

    # --- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch heat and hardware, measure in quiet moments, change over. Until cancelled."""
        try:
            while True:
                await self._tick()
                await asyncio.sleep(self._outside.tick_s)
        finally:
            if self._work is not None:
                self._work.cancel()
                await asyncio.gather(self._work, return_exceptions=True)
                self._work = None

    async def _tick(self) -> None:
        runs, subjects = self._runs, self._subjects
        if runs is None:
            return
        known = subjects.inventory
        self._heat = await asyncio.to_thread(
            inventory.feel, self._outside.host, known.matched if known is not None else None
        )
        subjects.celsius = self._heat.celsius
        if known is None or time.monotonic() - subjects.looked_at >= self._outside.facts_s:
            await self._look_again(runs)
        now, worker = time.monotonic(), runs.worker
        self._busy = "the worker is starting" if runs.swapping else self._load.busy(worker, self._cpus())
        if not self._busy and (self._governor.hot or self._governor.level):
            self._busy = "the device is hot"
        if worker is not None and worker.alive and worker.ready.done():
            self._proven.update(_setting(one).key for one in worker.settings.values())
        self._govern(now)
        self._begin_work(now)
        self._adopt(now)
        self._sync(now)

    async def _look_again(self, runs: Runs) -> None:
        """If the hardware has changed, what is in use may have lost its accelerator, and what was lost may be back."""
        if await self._subjects.look(runs.standing.planned.values(), fresh=True):
            for subject in self._subjects.all():
                setting = self._in_use(subject, alone=True)
                report = subject.found.report
                if setting is not None and setting.accelerated and setting.candidate not in report.accepted:
                    why = next((one.reason for one in report.rejected if one.candidate == setting.candidate), "")
                    self._break(subject, setting, "missing", why or "it is not there any more")
            for entry in self._book.now():
                found = self._subjects.by_ref(entry.ref)
                if found is not None and entry.candidate in found.found.report.accepted:
                    self._book.soon(entry)
        if self._subjects.inventory is not None:
            self._governor.limits = self._subjects.inventory.limits
        self._tell_problems()

    def _govern(self, now: float) -> None:
        heat = self._heat
        deepest = max((len(self._steps(subject)) - 1 for subject in self._subjects.all()), default=0)
        late = slow_services(self._runs.worker if self._runs is not None else None, self._used_by)
        throttled = heat.throttled if heat is not None else []
        celsius = heat.celsius if heat is not None else None
        order = self._governor.observe(now, Reading(celsius=celsius, throttled=throttled, late=late), max(0, deepest))
        if order is not None:
            log.info("Models run %d steps below the chosen settings: %s.", order.level, order.reason)
        self._tell.heat(self._governor, heat, order.reason if order is not None else "")
        self._tell.slow(self._governor.late)
        for subject in self._subjects.all():
            if any(name in self._governor.late for name in subject.services):
                old = subject.tried_at is None or now - subject.tried_at > AGAIN_S
                subject.stale = subject.stale or old

    # --- measuring ----------------------------------------------------------------------------------------------------

    def _begin_work(self, now: float) -> None:
        """Start the next piece of background work, if there is any and the moment is right."""
        if self._work is not None and self._work.done():
            self._work = None
        if self._work is not None or self._busy or self._measurer.working:
            return
        lost = self._book.due(now)
        if lost is not None:
            self._work = asyncio.create_task(self._try_again(lost), name="hardware-retry")
        elif subject := self._next_pending():
            self._work = asyncio.create_task(self._in_background(subject), name="hardware-adapt")

    def _next_pending(self) -> Subject | None:
        if self._settings.adapt != "background":
            return None
        return next((one for one in self._subjects.all() if one.pending), None)

    async def _in_background(self, subject: Subject) -> None:
        try:
            await self._measurer.measure(subject, again=subject.stale, hurry=False)
        except Exception as error:
            log.exception("%s could not be measured.", subject.ref)
            self._tell.note_failed(f"{subject.ref} could not be measured: {error}.")

    async def _try_again(self, entry: Lost) -> None:
        """Prove a lost accelerator in a process of its own; the services go back to it only if that works."""
        subject = self._subjects.by_ref(entry.ref)
        if subject is None or subject.used is None:
            self._book.forget(entry)
            return
        try:
            result = await self._measurer.prove_again(subject, subject.used, entry.setting)
            kind, reason = result.kind, "" if result.ok else result.reason
        except Exception as error:
            log.exception("%s could not be tried again.", entry.candidate)
            kind, reason = "load", f"{type(error).__name__}: {error}"
        now = time.monotonic()
        if not reason:
            self._book.found(entry, now)
        else:
            self._book.lose(entry.ref, entry.setting, reason, now, entry.since)
            if entry.retry.failures >= GIVE_UP:
                self._subjects.remember(subject, entry.setting, kind, reason)
                self._book.forget(entry)
        self._tell_lost()

    async def adapt_now(self, service: str, again: bool, say: Callable[[AdaptProgress], None]) -> None:
        """Measure now, for the person who waits. Raises ApiError."""
        runs = self._runs
        if runs is None or self._subjects.inventory is None:
            raise ApiError(503, "the hardware has not been looked at yet; try again in a few seconds")
        await self._look_again(runs)
        chosen = [one for one in self._subjects.all() if not service or service in one.services]
        if not chosen:
            what = f"there is no service {service[:64]!r} that runs" if service else "no service runs"
            raise ApiError(404, f"{what}, so there is no model to measure")
        self._measurer.hurry()
        for subject in chosen:
            say(AdaptProgress(model=subject.ref, step="waits for its turn"))

            def step(text: str, ref: str = subject.ref) -> None:
                say(AdaptProgress(model=ref, step=text))

            try:
                if again or subject.choice is None:
                    await self._measurer.measure(subject, again=again, hurry=True, say=step)
                say(AdaptProgress(model=subject.ref, text=choice_sentence(subject)))
            except OSError as error:
                say(AdaptProgress(model=subject.ref, error=f"the choice cannot be stored: {error}"))
        self._adopt(time.monotonic(), by_hand=True)
        self._sync(time.monotonic())
        say(AdaptProgress(done=True))

    # --- changing over ------------------------------------------------------------------------------------------------

    def _adopt(self, now: float, by_hand: bool = False) -> None:
        """Put new choices into use: all at once, for a clear gain, not twice an hour unless somebody asked for it."""
        early = self._changed_at is not None and now - self._changed_at < CHANGE_S
        if not by_hand and (early or self._work is not None or self._next_pending() is not None):
            return
        changed = False
        for subject in self._subjects.all():
            choice = subject.choice
            if choice is None or subject.used == choice:
                continue
            if ladder.usable(choice, self._broken(subject, choice)) != choice.setting:
                continue
            before = ladder.usable(subject.used, self._broken(subject, subject.used))
            if ladder.is_worth(choice, before, safe_file(subject)):
                text = f"{subject.ref} for {choice.objective} runs as {choice.setting.text()} from now on."
                self._tell.note_chosen(text)
                changed = True
                subject.used = choice
            elif before == choice.setting:
                subject.used = choice
        if changed:
            self._changed_at = now

    def _sync(self, now: float) -> None:
        """Swap the worker if it does not run what is in use."""
        runs = self._runs
        if runs is None or runs.worker is None or not runs.at_rest or not self._swaps.due(now):
            return
        if self.settings(runs.standing.planned.values()) != runs.worker.settings:
            runs.swap()

    def _break(self, subject: Subject, setting: Setting, kind: str, reason: str) -> None:
        """A setting in use does not work. An accelerator is lost for a while, anything else is remembered as failed."""
        if setting.accelerated:
            self._book.lose(subject.ref, setting, reason, time.monotonic(), time.time())
            self._tell_lost()
        else:
            self._subjects.remember(subject, setting, kind, reason)
            self._tell.note_failed(f"{subject.ref} cannot run as {setting.text()}: {reason}.")
        self._sync(time.monotonic())

    def _tell_lost(self) -> None:
        self._tell.lost(self._book.now(), self._subjects.users)

    def _tell_problems(self) -> None:
        self._tell.problems(self._subjects.inventory.problems if self._subjects.inventory is not None else [])

    # --- small questions ---------------------------------------------------------------------------------------------

    def _cpus(self) -> int:
        return len(self._subjects.inventory.facts.cpu.allowed) if self._subjects.inventory is not None else 1

    def _broken(self, subject: Subject, choice: Choice | None) -> set[str]:
        return subject.failed | self._book.broken(subject.ref, choice)

    def _steps(self, subject: Subject) -> list[Setting]:
        return ladder.steps(subject.used, self._broken(subject, subject.used))

    def _in_use(self, subject: Subject, alone: bool) -> Setting | None:
        return ladder.pick(subject.used, self._broken(subject, subject.used), self._governor.level, alone)

    def _used_by(self, service: str) -> tuple[Choice | None, Setting | None]:
        subject = self._subjects.using(service)
        return (subject.used, self._in_use(subject, alone=True)) if subject is not None else (None, None)

    # --- showing -----------------------------------------------------------------------------------------------------

    def state(self) -> HardwareState:
        """For the page, status and metrics."""
        known = self._subjects.inventory
        if known is None:
            return HardwareState(mode=self._settings.adapt)
        subjects = self._subjects.all()
        alone = sum(len(subject.services) for subject in subjects) == 1
        return msgspec.structs.replace(
            device_state(known.facts, known.matched, known.problems, known.limits, self._heat),
            mode=self._settings.adapt,
            level=self._governor.level,
            busy=f"waits: {self._busy}" if self._busy and self._next_pending() is not None else "",
            lost=self._book.states(self._subjects.users),
            models=[
                subject_state(
                    subject,
                    self._in_use(subject, alone),
                    broken=self._broken(subject, subject.choice),
                    level=self._governor.level,
                    background=self._settings.adapt == "background",
                )
                for subject in subjects
            ],
        )

    def settling(self, ref: str) -> bool:
        """Whether it is still to be measured how this model (name@version) runs best."""
        background = self._settings.adapt == "background"
        return background and any(one.ref == ref and one.pending for one in self._subjects.all())

    def report(self) -> HardwareReport:
        """For `edged doctor`."""
        known = self._subjects.inventory
        if known is None:
            return HardwareReport(state=self.state())
        return HardwareReport(facts=known.facts, fingerprint=known.fingerprint, state=self.state())


def _setting(one: RunSetting) -> Setting:
    return msgspec.convert(one, Setting, from_attributes=True)
