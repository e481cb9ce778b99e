"""Models that are served without a service: by hand (`edged models serve`), or asked for over the inference address."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable

from edged.api import ApiError, Done
from edged.desired import MAX_SERVED, DesiredStore, combination_key, model_entry
from edged.models import ModelStore
from edged.runner import Runner
from edged.status.state import ServedState
from edged.worker import Worker
from edgekit.messages import ModelDone, ModelWanted
from edgekit.packages import PackageError, find, split_ref

log = logging.getLogger("edged.served")

WAIT_S = 120.0
"""Longest wait for a model to be loaded, for a client of the inference address."""


class ServedModels:
    """What is wanted and where it stands. Use it on the supervisor's event loop."""

    def __init__(self, desired: DesiredStore, models: ModelStore, runner: Runner, changing: asyncio.Lock) -> None:
        """`changing` is held while the wishes change."""
        self._desired, self._models, self._runner, self._changing = desired, models, runner, changing
        self._standing = runner.standing
        self._answering: set[asyncio.Task[None]] = set()

    def states(self) -> list[ServedState]:
        """Every wanted model, by name."""
        found: list[ServedState] = []
        packages = self._models.installed()
        for name, entry in sorted(self._standing.model_entries.items()):
            report, choice = self._standing.model_report(name), self._standing.running(name)
            newest = combination_key(entry.text, find(entry.text, packages) or "")
            found.append(
                ServedState(
                    wanted=entry.text,
                    model=report.model,
                    state=report.state,
                    detail=report.detail,
                    refused=entry.refused_why if entry.refused_key == newest else "",
                    last_good=choice is not None and choice.last_good,
                )
            )
        return found

    async def serve(self, ref: str, wait_s: float) -> ServedState:
        """Serve a model (NAME is the newest installed version) and wait until it is. Raises ApiError.

        One that cannot be loaded is not wanted any longer: nothing is left behind by a failed try.
        """
        full = self._installed(ref)
        name = model_entry(ref)
        known = name in self._standing.model_entries
        if not known and len(self._standing.model_entries) >= MAX_SERVED:
            raise ApiError(409, f"{MAX_SERVED} models are served without a service already; unserve one first")
        await self._change(lambda: self._desired.serve(ref))
        settled = await self._runner.settled(wait_s)
        state = next((state for state in self.states() if state.wanted == ref), None)
        if state is None:
            raise ApiError(409, f"somebody else has just ended the serving of {ref}")
        why = state.refused or (state.detail if state.state == "failed" else "")
        if why:
            if not known:
                await self._change(lambda: self._desired.unserve(ref))
            raise ApiError(422, f"{full} is not served: {why}")
        if not settled:
            raise ApiError(504, f"{full} is still being loaded after {wait_s:.0f} s; see: edged status")
        return state

    async def unserve(self, ref: str, wait_s: float = 30.0) -> Done:
        """Serve a model no longer; NAME means each of its versions. Raises ApiError."""
        version = self._split(ref)[1]
        served = [state.wanted for state in self.states()]
        names = [
            state.wanted
            for state in self.states()
            if ref in (state.wanted, state.model) or (version is None and state.wanted.startswith(f"{ref}@"))
        ]
        if not names:
            raise ApiError(404, f"{ref} is not served without a service (served: {', '.join(served) or 'none'})")

        def forget() -> None:
            for name in names:
                self._desired.unserve(name)

        await self._change(forget)
        await self._runner.settled(wait_s)
        text = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} no longer served."
        users = self._users(ref)
        if users:
            text = f"{text} The model goes on in the service {', '.join(users)}."
        return Done(text=text)

    def serving(self, full: str) -> list[str]:
        """The wishes that run name@version."""
        return [state.wanted for state in self.states() if state.model == full]

    def wanted(self, message: ModelWanted, worker: Worker) -> None:
        """A client of `worker` wants a model loaded or unloaded: do it, then answer, even if it drains."""
        task = asyncio.create_task(self._answer(message, worker))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def stop(self) -> None:
        """Leave what is under way."""
        for task in self._answering:
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    async def _answer(self, message: ModelWanted, worker: Worker) -> None:
        error = ""
        try:
            if message.wanted:
                await self.serve(message.ref, WAIT_S)
            elif self._users(message.ref) and not self._matches(message.ref):
                raise ApiError(409, f"{message.ref} is run by the service {', '.join(self._users(message.ref))}")
            else:
                await self.unserve(message.ref)
        except ApiError as problem:
            error = str(problem)
        except Exception as problem:
            log.exception("A request for the model %s failed.", message.ref)
            error = f"edged has an internal error; its log has the details ({type(problem).__name__})"
        worker.send(ModelDone(ticket=message.ticket, error=error))

    def _matches(self, ref: str) -> bool:
        return any(ref in (state.wanted, state.model, state.wanted.partition("@")[0]) for state in self.states())

    def _users(self, ref: str) -> list[str]:
        """The services that run this model."""
        name, version = self._split(ref)
        found: list[str] = []
        for service in sorted(self._standing.entries):
            choice = self._standing.running(service)
            if choice is not None and (choice.ref == ref or (version is None and split_ref(choice.ref)[0] == name)):
                found.append(service)
        return found

    def _installed(self, ref: str) -> str:
        """name@version. Raises ApiError."""
        self._split(ref)
        full = find(ref, self._models.installed())
        if full is None:
            known = ", ".join(self._models.installed()) or "none"
            raise ApiError(404, f"the model {ref} is not installed (installed: {known})")
        return full

    @staticmethod
    def _split(ref: str) -> tuple[str, str | None]:
        try:
            return split_ref(ref)
        except PackageError as error:
            raise ApiError(400, str(error)) from None

    async def _change(self, change: Callable[[], None]) -> None:
        try:
            async with self._changing:
                await asyncio.to_thread(change)
        except (OSError, sqlite3.Error) as error:
            raise ApiError(507, f"the change could not be saved: {error}") from None
        self._runner.changed(by_hand=True)
