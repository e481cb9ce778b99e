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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from edged import comparison
from edged.desired import Entry
from edged.health import Health, WorkerItems
from edged.memory import Memory
from edged.parting import DRAIN_S, Parting
from edged.plan import Choice, Learned, Plan, failures, has_better, make_plan, newcomers, unproven
from edged.spawn import Spawned, spawn, worker_command
from edged.standing import Standing
from edged.trouble import Marks, Trouble
from edged.worker import Told, Worker, describe_exit
from edgekit.faults import crash_point
from edgekit.messages import Configure, ModelWanted, Ready, RunSetting, SettingFailed, ToWorker

log = logging.getLogger("edged.runner")

READY_TIMEOUT_S = 180.0
"""Longest load, warm-up and proof of all models; a Cortex-A53 with an accelerator's compiler needs most of a minute."""
SILENCE_S = 20.0
"""A ready worker reports every second. After this much silence it is taken for hung and replaced."""
LOOK_S = 5.0
"""How often a resting supervisor looks for that silence."""
RETRY_FAILED_S = 600.0
"""A service whose model failed to load (an accelerator that fell off its bus) is tried again this often."""


class Desired(Marks, Protocol):
    """What the runner needs of the store of wanted services (all blocking)."""

    def entries(self) -> list[Entry]: ...
    def models(self) -> list[Entry]: ...


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
        on_model_wanted: Callable[[ModelWanted, Worker], None] = lambda message, worker: None,
        memory: Memory | None = None,
        first: Spawned | None = None,
        learned: Callable[[], Mapping[str, Learned]] = dict,
    ) -> None:
        """`http` is the listening inference socket, `directory` an empty one to run in, `packages` tells the installed.

        `on_plan` is called after every look at the wishes: what stands may have changed. `prepare` is waited for before
        a worker is configured; it bounds its own time and raises nothing. `on_death` hears of every worker that failed:
        the settings it had, whether it had been ready, and how it ended. `on_model_wanted` hears of what a worker's
        clients want, and has to answer that worker. `first` is a worker that was spawned ahead; the others are started
        with `command`. `learned` tells what services have learned, by their names.
        """
        self._http, self._directory, self._command, self._first = http, directory, command, first
        self._desired, self._packages, self._configure = desired, packages, configure
        self._health, self._on_plan = health, on_plan
        self._items = WorkerItems(health)
        self._learned = learned
        self._prepare, self._on_setting_failed, self._on_death = prepare, on_setting_failed, on_death
        self._on_model_wanted = on_model_wanted
        self._memory = memory or Memory()
        self.worker: Worker | None = None
        self.swapping = False
        self.standing = Standing(lambda: self.worker)
        """What is wanted, planned and running."""
        self._candidate: Worker | None = None
        self._parting = Parting(self._ended, lambda: self.worker)
        self._trouble = Trouble(desired, health)
        self._retry_failed = False
        self._swap = False
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()

    # --- what others ask and tell -----------------------------------------------------------------------------------

    def changed(self, *, by_hand: bool = False) -> None:
        """Wanted services or installed packages are not what they were. `by_hand`: somebody waits, so try at once."""
        if by_hand:
            self._trouble.forgive()
            self._retry_failed = True
        self._settled.clear()
        self._changed.set()

    @property
    def at_rest(self) -> bool:
        """The present worker is ready and runs what is planned."""
        ready = self.worker is not None and self.worker.alive and self.worker.ready.done()
        return ready and not self.swapping and self.standing.as_planned

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

    @property
    def restarts(self) -> int:
        """Starts after a worker had ended that should not have."""
        return self._trouble.restarts

    def state(self) -> Literal["ready", "starting", "waiting"]:
        """What the worker does; waiting is for the next restart."""
        if self.worker is not None and self.worker.alive:
            return "ready" if self.worker.ready.done() else "starting"
        return "waiting" if time.monotonic() < self._trouble.not_before else "starting"

    async def settled(self, timeout_s: float) -> bool:
        """Wait until everything that can run does. False after `timeout_s`."""
        try:
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Drain the worker. Cancel the task of `run` first."""
        if self._first is not None:
            self._first.discard()
        if self.worker is not None and self.worker.alive:
            await self.worker.drain(DRAIN_S)
            self.worker.handed.close()
        await self._parting.finish()
        self._parting.park(None)

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the worker right until cancelled."""
        while True:
            self._changed.clear()
            plan, entries = await self._plan()
            if self.worker is not None and not self.worker.alive:
                self._bury(self.worker)
            right = self.worker is not None and self.standing.runs(plan) and not self._swap
            if right and not (self._retry_failed and self.standing.failed):
                await self._rest(plan)
                continue
            if (delay := self._trouble.not_before - time.monotonic()) > 0:
                await self._change_or(delay, *([self.worker.exited] if self.worker is not None else []))
                continue
            await self._replace(plan, entries)

    async def _plan(self) -> tuple[Plan, dict[str, Entry]]:
        services = {entry.name: entry for entry in await asyncio.to_thread(self._desired.entries)}
        models = {entry.name: entry for entry in await asyncio.to_thread(self._desired.models)}
        entries = {**services, **models}
        packages, one_by_one = self._packages(), self._trouble.one_by_one
        plan = make_plan(entries.values(), packages, self.standing.accepted, one_by_one, self._learned())
        self.standing.look(services, models, plan)
        self._on_plan()
        return plan, entries

    async def _rest(self, plan: Plan) -> None:
        """Nothing to do: wait for a change, the worker's end, its silence, or the time to retry what failed."""
        worker = self.worker
        assert worker is not None
        self._retry_failed = False
        self.standing.accept(plan)
        if self._trouble.one_by_one:
            self._trouble.one_by_one = False  # every suspect had its turn; look at the whole again
            return
        self._settled.set()
        retry_at = time.monotonic() + RETRY_FAILED_S if self.standing.failed else float("inf")
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
        await self._parting.finish()  # never three workers at once
        packages = self._packages()
        verdict = await self._memory.verdict(plan.choices, packages, self.worker)
        if verdict.way is None:
            new = newcomers(plan, entries, self.standing.accepted)
            if new:
                largest = max(new, key=lambda choice: self._memory.of(choice.ref, packages))
                await self._trouble.refuse(largest, verdict.sentence)
                return
            self._trouble.tight(verdict.sentence)
        if self.worker is not None and verdict.way != "beside":
            log.info("There is not memory enough for two workers: the present one ends before its successor starts.")
            leaving, self.worker = self.worker, None
            await self._parting.retire(leaving)
        if self._prepare is not None:
            await self._prepare(plan.services)
        self.swapping = self.worker is not None
        try:
            running = self.standing.accepted
            configure = comparison.with_comparisons(self._configure(plan), plan, running, self._packages())
            inherits = self.worker.handed if self.worker is not None else self._parting.parked
            candidate = await Worker.start(configure, self._spawn(inherits), self._take_event)
        except OSError as error:
            self._trouble.crashed(f"The worker could not be started: {error}.", self.worker is not None)
            self.swapping = False
            return
        self._candidate = candidate
        self.standing.started(candidate)
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
                suspects = unproven(plan, entries, self.standing.accepted)
                await self._trouble.blame(outcome, candidate.exited.result(), suspects, self.worker is not None)
        finally:
            self.swapping, self._candidate = False, None
            if candidate is not self.worker:
                candidate.kill()  # a no-op unless this task is being cancelled
                candidate.handed.close()
                self._ended(candidate)

    def _spawn(self, inherits: socket.socket | None) -> Spawned:
        """A process to configure. Raises OSError."""
        first, self._first = self._first, None
        if first is not None:
            if first.process.poll() is None:
                return first
            first.discard()
        return spawn(self._http, self._directory, self._command, inherits)

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
        self._memory.learn(ready)
        failed = failures(plan, ready)
        beside = candidate is not self.worker
        spoiled = [
            choice
            for choice in plan.choices
            if choice.name in failed and has_better(choice, entries[choice.name], self._packages(), beside)
        ]
        if spoiled:
            for choice in spoiled:
                await self._trouble.refuse(choice, failed[choice.name])
            if candidate is self.worker:
                self.worker = None
            await candidate.drain(DRAIN_S)
            return
        crash_point("supervisor.worker-ready")
        old, self.worker = self.worker, candidate
        if old is candidate:
            self._parting.park(None)  # it has inherited that; the end of the one before is parked when that has ended
        self.standing.accept(plan, ready.comparisons)
        comparison.tell(ready.comparisons, self._health)
        if old is not None and old is not candidate:
            await self._parting.begin(old)  # who has waited for the plan connects to nothing else any more
        for choice in plan.choices:
            if choice.name not in failed:
                await self._trouble.good(choice)
        crash_point("supervisor.swapped")
        self._trouble.over()
        count = len(plan.choices) - len(failed)
        log.info("Worker %d is ready with %d %s.", candidate.pid, count, "service" if count == 1 else "services")

    def _ended(self, worker: Worker) -> None:
        self._items.ended(worker.pid)
        self.standing.ended(worker)

    def _bury(self, worker: Worker) -> None:
        self.worker = None
        self._ended(worker)
        worker.handed.close()
        how = describe_exit(worker.exited.result())
        self._on_death(worker.settings, worker.ready.done(), how)
        self._trouble.crashed(f"The worker {worker.pid} ended with {how}; it is restarted.", False)

    def _take_event(self, worker: Worker, event: Told) -> None:
        if isinstance(event, SettingFailed):
            self._on_setting_failed(event)
            return
        if isinstance(event, ModelWanted):
            self._on_model_wanted(event, worker)
            return
        if not worker.alive:  # its last words are read after its end: nobody is left to take them back
            event = msgspec.structs.replace(event, passing=True)
        self._items.take(worker.pid, event)

    async def _change_or(self, timeout_s: float, *futures: asyncio.Future[Any]) -> None:
        """Wait for a change, one of the futures, or the time."""
        change: asyncio.Future[Any] = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait([change, *futures], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
