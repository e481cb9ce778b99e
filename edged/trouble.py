"""What workers' failures lead to: how long to wait, which change is to blame, and what is refused from now on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from edged.desired import is_model
from edged.health import Health
from edged.plan import Choice
from edged.worker import RestartPolicy

STRIKES = 2
"""Deaths by a signal while a new definition loads before it is refused: one may have been the OOM killer's mistake."""


class Marks(Protocol):
    """What is needed of the store of wanted services (blocking)."""

    def mark_good(self, name: str, text: str, ref: str) -> None: ...
    def mark_refused(self, name: str, key: str, why: str) -> None: ...


class Trouble:
    """Learns from failures. Use it on the supervisor's event loop."""

    def __init__(self, desired: Marks, health: Health) -> None:
        self._desired, self._health = desired, health
        self.restarts = 0
        self.not_before = 0.0
        """Monotonic time of the next start."""
        self.one_by_one = False
        """One of several new definitions takes the worker down with it: try one at a time."""
        self._policy = RestartPolicy()
        self._strikes: Counter[str] = Counter()

    def forgive(self) -> None:
        """Somebody changed something and waits: try at once."""
        self._policy.forget()
        self._strikes.clear()
        self.not_before = 0.0

    async def blame(self, failure: str, status: int, suspects: Collection[Choice], serving: bool) -> None:
        """A candidate failed before it was ready. Find out which change it was, or treat it as a crash.

        Without a worker that serves, an exit status says nothing about the definitions: it is the worker's own trouble,
        such as a library that is not installed. A death by a signal, or one beside a healthy worker, counts.
        """
        if suspects and (status < 0 or serving):
            self._strikes.update(choice.key for choice in suspects)
            if min(self._strikes[choice.key] for choice in suspects) >= STRIKES:
                if len(suspects) == 1:
                    (choice,) = suspects
                    what = "this model" if is_model(choice.name) else "this service"
                    await self.refuse(choice, f"the worker {failure} while it loaded {what}")
                    self._policy.forget()
                else:
                    self.one_by_one = True
        self.crashed(f"A new worker {failure}.", serving)

    def crashed(self, text: str, serving: bool) -> None:
        """A worker ended that should not have. `serving`: another one goes on."""
        now = time.monotonic()
        self.not_before = now + self._policy.crashed(now)
        if not serving:
            self.restarts += 1
        if not self._policy.looping(now):
            self._health.note("warning", "worker.crashed", text)
        elif not serving:
            down = "The worker crashes again and again, so nothing is inspected; it is retried every 30 s."
            self._health.report("worker.down", "error", f"{down} {text}")
        else:
            stuck = "The changed services cannot be started; the present ones go on, and it is retried every 30 s."
            self._health.report("worker.successor", "warning", f"{stuck} {text}")

    def over(self) -> None:
        """A worker is ready."""
        self._health.clear("worker.down", "The worker is ready again.")
        self._health.clear("worker.successor", "The changed services run now.")
        self._health.clear("worker.memory", "There is memory enough again.")

    def tight(self, why: str) -> None:
        """What has run before is started against the estimate, which may be wrong."""
        text = f"There may be too little memory for what has run before: {why}."
        self._health.report("worker.memory", "warning", text)

    async def refuse(self, choice: Choice, why: str) -> None:
        """Do not try this combination again until somebody changes something."""
        await self._save(self._desired.mark_refused, choice.name, choice.key, why)
        if is_model(choice.name):
            self._health.note("error", "model.refused", f"The model {choice.ref} cannot be served: {why}")
        else:
            self._health.note("error", "service.refused", f"Service {choice.name} cannot run with {choice.ref}: {why}")

    async def good(self, choice: Choice) -> None:
        """It became ready: what to come back to."""
        await self._save(self._desired.mark_good, choice.name, choice.text, choice.ref)

    async def _save(self, write: Callable[..., None], *arguments: str) -> None:
        """A full disk must not stop a swap: what cannot be noted now is found out again after a restart."""
        try:
            await asyncio.to_thread(write, *arguments)
        except Exception as error:
            self._health.note("warning", "state.unwritable", f"The state of the services could not be saved: {error}.")
