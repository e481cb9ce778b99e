"""Keeps one worker running what the plan says: starts, watches, swaps, restarts. It never gives up.

A changed plan means a successor: it starts beside the present worker, has to become ready with every changed service,
and only then the present one drains. A successor that fails is ended, the service that spoiled it is marked as refused,
and its last good definition goes on. A crash without a change is answered by a restart with growing delays.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import psutil

from edged.desired import Entry
from edged.health import Health, WorkerItems
from edged.plan import Choice, Plan, make_plan, proven, unproven
from edged.tally import Tally
from edged.worker import RestartPolicy, Worker, describe_exit, worker_command
from edgekit.faults import crash_point
from edgekit.messages import Configure, Event, Ready, RunSetting, ServiceReport, SettingFailed, ToWorker

log = logging.getLogger("edged.runner")

READY_TIMEOUT_S = 180.0
"""Longest load, warm-up and proof of all models; a Cortex-A53 with an accelerator's compiler needs most of a minute."""
SILENCE_S = 20.0
"""A ready worker reports every second. After this much silence it is taken for hung and replaced."""
LOOK_S = 5.0
"""How often a resting supervisor looks for that silence."""
DRAIN_S = 15.0
"""In-flight inspections have deadlines far below this; systemd's TimeoutStopSec=30 leaves room for the kill."""
OVERLAP = 1.3
"""Two workers at once need the memory of both: below 1.3 times the present one's size the old one ends first."""
RETRY_FAILED_S = 600.0
"""A service whose model failed to load (an accelerator that fell off its bus) is tried again this often."""
STRIKES = 2
"""Deaths by a signal while a new definition loads before it is refused: one may have been the OOM killer's mistake."""


class Desired(Protocol):
    """What the runner needs of the store of wanted services (all blocking)."""

    def entries(self) -> list[Entry]: ...
    def mark_good(self, name: str, text: str, ref: str) -> None: ...
    def mark_refused(self, name: str, key: str, why: str) -> None: ...


class Runner:
    """Owns the worker processes. `run` is its task; call everything else from the same event loop."""

    def __init__(
        self,
        http: socket.socket,
        directory: Path,
        desired: Desired,
        packages: Callable[[], dict[str, Path]],
        configure: Callable[[Plan], Configure],
        health: Health,
        on_plan: Callable[[], None] = lambda: None,
        command: Callable[[int, int], Sequence[str]] = worker_command,
        on_setting_failed: Callable[[SettingFailed], None] = lambda message: None,
        prepare: Callable[[Sequence[Choice]], Awaitable[None]] | None = None,
        on_death: Callable[[Mapping[str, RunSetting], bool, str], None] = lambda settings, ready, how: None,
    ) -> None:
        """`http` is the listening inference socket, `directory` an empty one to run in, `packages` tells the installed.

        `on_plan` is called after every look at the wishes: `entries` and `missing` may have changed. `prepare` is
        waited for before a worker is configured; it bounds its own time and raises nothing. `on_death` hears of every
        worker that failed: the settings it had, whether it had been ready, and how it ended.
        """
        self._http, self._directory, self._command = http, directory, command
        self._desired, self._packages, self._configure = desired, packages, configure
        self._health, self._on_plan = health, on_plan
        self._items = WorkerItems(health)
        self._prepare, self._on_setting_failed, self._on_death = prepare, on_setting_failed, on_death
        self.worker: Worker | None = None
        self.restarts = 0
        self.swapping = False
        self.missing: frozenset[str] = frozenset()
        """Model references that wanted services need and that are not installed."""
        self.entries: dict[str, Entry] = {}
        self._candidate: Worker | None = None
        self._leaving: asyncio.Task[None] | None = None  # drains the predecessor
        self._tally = Tally()
        self._accepted: dict[str, Choice] = {}  # what the present worker became ready with
        self._planned: dict[str, Choice] = {}  # what it should run by now
        self._held: dict[str, ServiceReport] = {}
        self._policy = RestartPolicy()
        self._not_before = 0.0
        self._strikes: Counter[str] = Counter()
        self._one_by_one = False
        self._retry_failed = False
        self._swap = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()

    # --- what others ask and tell -----------------------------------------------------------------------------------

    def changed(self, *, by_hand: bool = False) -> None:
        """Wanted services or installed packages are not what they were. `by_hand`: somebody waits, so try at once."""
        if by_hand:
            self._policy.forget()
            self._strikes.clear()
            self._not_before = 0.0
            self._retry_failed = True
        self._settled.clear()
        self._changed.set()

    @property
    def planned(self) -> Mapping[str, Choice]:
        """What the worker should run by now, by service."""
        return self._planned

    @property
    def at_rest(self) -> bool:
        """The present worker is ready and runs what is planned."""
        ready = self.worker is not None and self.worker.alive and self.worker.ready.done()
        return ready and not self.swapping and self._accepted == self._planned

    def swap(self) -> None:
        """Let a successor with the same services take over: how their models run has changed."""
        self._swap = True
        self._settled.clear()
        self._changed.set()

    def send(self, message: ToWorker) -> bool:
        """Pass a message to the present worker and to one that is loading; False if there is none."""
        workers = [worker for worker in {self.worker, self._candidate} if worker is not None and worker.alive]
        for worker in workers:
            worker.send(message)
        return bool(workers)

    def reports(self) -> list[ServiceReport]:
        """The newest report of every wanted service, by name."""
        live = {report.name: self._tally.total(report) for report in self._live_reports()}
        for choice in self._planned.values():
            loading = ServiceReport(name=choice.name, model=choice.ref, state="loading", detail="its model is loading")
            live.setdefault(choice.name, loading)
        return [report for _, report in sorted({**self._held, **live}.items())]

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent to cloudd by all workers since the supervisor started."""
        report = self.worker.report if self.worker is not None else None
        return self._tally.uplink_bytes + (report.uplink_bytes if report is not None else 0)

    def running(self, name: str) -> Choice | None:
        """What runs (or starts) as this service now."""
        return self._accepted.get(name) or self._planned.get(name)

    def state(self) -> Literal["ready", "starting", "waiting"]:
        """What the worker does; waiting is for the next restart."""
        if self.worker is not None and self.worker.alive:
            return "ready" if self.worker.ready.done() else "starting"
        return "waiting" if time.monotonic() < self._not_before else "starting"

    @property
    def held(self) -> list[str]:
        """Names of the wanted services that no worker runs now."""
        return sorted(self._held)

    async def settled(self, timeout_s: float) -> bool:
        """Wait until everything that can run does. False after `timeout_s`."""
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Drain the worker. Cancel the task of `run` first."""
        if self.worker is not None and self.worker.alive:
            await self.worker.drain(DRAIN_S)
        await self._see_out()

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the worker right until cancelled."""
        while True:
            self._changed.clear()
            plan, entries = await self._plan()
            if self.worker is not None and not self.worker.alive:
                self._bury(self.worker)
            right = self.worker is not None and plan.key == _key(self._accepted) and not self._swap
            if right and not (self._retry_failed and self._failed()):
                await self._rest(plan)
                continue
            if (delay := self._not_before - time.monotonic()) > 0:
                await self._change_or(delay, *([self.worker.exited] if self.worker is not None else []))
                continue
            await self._replace(plan, entries)

    async def _plan(self) -> tuple[Plan, dict[str, Entry]]:
        entries = {entry.name: entry for entry in await asyncio.to_thread(self._desired.entries)}
        plan = make_plan(entries.values(), self._packages(), self._accepted, self._one_by_one)
        self.entries, self.missing, self._held = entries, plan.missing, plan.held
        self._planned = {choice.name: choice for choice in plan.choices}
        self._tally.forget(entries)
        self._on_plan()
        return plan, entries

    async def _rest(self, plan: Plan) -> None:
        """Nothing to do: wait for a change, the worker's end, its silence, or the time to retry what failed."""
        worker = self.worker
        assert worker is not None
        self._retry_failed = False
        self._accepted = {choice.name: choice for choice in plan.choices}
        if self._one_by_one:
            self._one_by_one = False  # every suspect had its turn; look at the whole again
            return
        self._settled.set()
        retry_at = time.monotonic() + RETRY_FAILED_S if self._failed() else float("inf")
        while worker.alive and not self._changed.is_set():
            await self._change_or(LOOK_S, worker.exited)
            if worker.alive and time.monotonic() - worker.last_seen > SILENCE_S:
                text = f"The worker has been silent for {SILENCE_S:.0f} s; it is replaced."
                self._health.note("error", "worker.silent", text)
                worker.kill()
                await worker.exited
            if time.monotonic() > retry_at:
                self._retry_failed = True
                return

    async def _replace(self, plan: Plan, entries: dict[str, Entry]) -> None:
        """Start a worker for `plan`; make it the present one if it is good, else learn from its failure."""
        self._retry_failed = self._swap = False
        await self._see_out()  # never three workers at once
        if self.worker is not None and not _fits_beside(self.worker):
            log.info("There is not memory enough for two workers: the present one ends before its successor starts.")
            leaving, self.worker = self.worker, None
            await self._retire(leaving)
        if self._prepare is not None:
            await self._prepare(plan.choices)
        self.swapping = self.worker is not None
        try:
            configure = self._configure(plan)
            candidate = await Worker.start(configure, self._http, self._directory, self._take_event, self._command)
        except OSError as error:
            self._crashed(f"The worker could not be started: {error}.")
            self.swapping = False
            return
        self._candidate = candidate
        if self.worker is None:
            self.worker = candidate
        try:
            outcome = await self._until_ready(candidate, plan)
            if candidate is self.worker and not isinstance(outcome, Ready):
                self.worker = None
            if isinstance(outcome, Ready):
                await self._judge(candidate, plan, outcome, entries)
            elif outcome:
                self._on_death(candidate.settings, False, outcome)
                await self._blame(outcome, candidate.exited.result(), unproven(plan, entries, self._accepted))
        finally:
            self.swapping, self._candidate = False, None
            if candidate is not self.worker:
                candidate.kill()  # a no-op unless this task is being cancelled
                self._items.ended(candidate.pid)

    async def _until_ready(self, candidate: Worker, plan: Plan) -> Ready | str:
        """The candidate's Ready, how it failed, or "" if a newer plan made it pointless. Without Ready it is ended."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        failure = f"was not ready within {READY_TIMEOUT_S:.0f} s"
        while time.monotonic() < deadline:
            await self._change_or(deadline - time.monotonic(), candidate.ready, candidate.exited)
            if candidate.ready.done():
                return candidate.ready.result()
            if not candidate.alive:
                return f"ended with {describe_exit(candidate.exited.result())}"
            if self._changed.is_set():
                self._changed.clear()
                newer, _ = await self._plan()
                if newer.key != plan.key or self._swap:
                    self._changed.set()
                    failure = ""
                    break
        candidate.kill()
        await candidate.exited
        return failure

    async def _judge(self, candidate: Worker, plan: Plan, ready: Ready, entries: dict[str, Entry]) -> None:
        """Accept a ready candidate, unless a changed service failed in it that has something better to fall back on."""
        failed = {report.name: report.detail for report in ready.services if report.state == "failed"}
        spoiled = [c for c in plan.choices if c.name in failed and self._has_better(c, entries[c.name])]
        if spoiled:
            for choice in spoiled:
                await self._refuse(choice, failed[choice.name])
            if candidate is self.worker:
                self.worker = None
            await candidate.drain(DRAIN_S)
            return
        crash_point("supervisor.worker-ready")
        old, self.worker = self.worker, candidate
        self._accepted = {choice.name: choice for choice in plan.choices}
        for choice in plan.choices:
            if choice.name not in failed:
                await self._save(self._desired.mark_good, choice.name, choice.text, choice.ref)
        crash_point("supervisor.swapped")
        self._health.clear("worker.down", "The worker is ready again.")
        self._health.clear("worker.successor", "The changed services run now.")
        if old is not None and old is not candidate:
            self._leaving = asyncio.create_task(self._retire(old))
        count = len(plan.choices) - len(failed)
        log.info("Worker %d is ready with %d %s.", candidate.pid, count, "service" if count == 1 else "services")

    async def _retire(self, worker: Worker) -> None:
        """See a worker out and keep what it counted to the last."""
        await worker.drain(DRAIN_S)
        self._ended(worker)

    def _ended(self, worker: Worker) -> None:
        self._items.ended(worker.pid)
        if worker.report is not None:
            self._tally.retire(worker.report.services, worker.report.uplink_bytes)

    async def _see_out(self) -> None:
        """Wait until the predecessor has ended."""
        if self._leaving is not None:
            await self._leaving
            self._leaving = None

    def _has_better(self, choice: Choice, entry: Entry) -> bool:
        """The failed choice is new, and there is a last good one that can run."""
        usable = bool(entry.good_text) and entry.good_ref in self._packages()
        return usable and not choice.last_good and not proven(choice, entry)

    async def _blame(self, failure: str, status: int, suspects: list[Choice]) -> None:
        """A candidate failed before it was ready. Find out which change it was, or treat it as a crash.

        Without a worker that serves, an exit status says nothing about the definitions: it is the worker's own trouble,
        such as a library that is not installed. A death by a signal, or one beside a healthy worker, counts.
        """
        if suspects and (status < 0 or self.worker is not None):
            self._strikes.update(choice.key for choice in suspects)
            if min(self._strikes[choice.key] for choice in suspects) >= STRIKES:
                if len(suspects) == 1:
                    await self._refuse(suspects[0], f"the worker {failure} while it loaded this service")
                    self._policy.forget()
                else:
                    self._one_by_one = True
        self._crashed(f"A new worker {failure}.")

    def _bury(self, worker: Worker) -> None:
        self.worker = None
        self._ended(worker)
        self._on_death(worker.settings, worker.ready.done(), describe_exit(worker.exited.result()))
        self._crashed(f"The worker {worker.pid} ended with {describe_exit(worker.exited.result())}; it is restarted.")

    def _crashed(self, text: str) -> None:
        now = time.monotonic()
        self._not_before = now + self._policy.crashed(now)
        if self.worker is None:
            self.restarts += 1
        if not self._policy.looping(now):
            self._health.note("warning", "worker.crashed", text)
        elif self.worker is None:
            down = "The worker crashes again and again, so nothing is inspected; it is retried every 30 s."
            self._health.report("worker.down", "error", f"{down} {text}")
        else:
            stuck = "The changed services cannot be started; the present ones go on, and it is retried every 30 s."
            self._health.report("worker.successor", "warning", f"{stuck} {text}")

    async def _refuse(self, choice: Choice, why: str) -> None:
        await self._save(self._desired.mark_refused, choice.name, choice.key, why)
        self._health.note("error", "service.refused", f"Service {choice.name} cannot run with {choice.ref}: {why}")

    async def _save(self, write: Callable[..., None], *arguments: str) -> None:
        """A full disk must not stop a swap: what cannot be noted now is found out again after a restart."""
        try:
            await asyncio.to_thread(write, *arguments)
        except Exception as error:
            self._health.note("warning", "state.unwritable", f"The state of the services could not be saved: {error}.")

    def _take_event(self, worker: Worker, event: Event | SettingFailed) -> None:
        if isinstance(event, SettingFailed):
            self._on_setting_failed(event)
            return
        if not worker.alive:  # its last words are read after its end: nobody is left to take them back
            event = msgspec.structs.replace(event, passing=True)
        self._items.take(worker.pid, event)

    def _live_reports(self) -> list[ServiceReport]:
        worker = self.worker
        if worker is None or not worker.alive or not worker.ready.done():
            return []
        return (worker.report or worker.ready.result()).services

    def _failed(self) -> bool:
        return any(report.state == "failed" for report in self._live_reports())

    async def _change_or(self, timeout_s: float, *futures: asyncio.Future[Any]) -> None:
        """Wait for a change, one of the futures, or the time."""
        change: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([change, *futures], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()


def _key(choices: dict[str, Choice]) -> frozenset[tuple[str, str]]:
    return frozenset((choice.name, choice.key) for choice in choices.values())


def _fits_beside(worker: Worker) -> bool:
    size = worker.report.rss if worker.report is not None else 0
    return bool(psutil.virtual_memory().available >= OVERLAP * size)
