"""Adaptation that stays out of the way: every order to a bench child waits for a quiet moment, at low priority."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from edged.hardware.probing import Bench, OpenBench
from edged.hardware.settings import ProbeResult, Setting
from edged.hardware.wire import Done, Job, Probe, Run, Window

NICE = 10
"""Children give way to the worker; they still get a whole CPU when nobody wants it."""
LOOK_S = 1.0


class Pace:
    """Holds adaptation up while `busy` gives a reason, and counts the time that took. `say` hears every step."""

    def __init__(self, busy: Callable[[], str], say: Callable[[str], None], look_s: float = LOOK_S) -> None:
        self._busy, self._say, self._look_s = busy, say, look_s
        self._waited = 0.0
        self.hurry = False
        """Somebody waits for the result: go on whatever else is going on."""

    def clock(self) -> float:
        """Monotonic seconds without the time spent waiting, so that a busy hour does not use up the budget."""
        return time.monotonic() - self._waited

    async def quiet(self) -> None:
        """Return when there is nothing to wait for."""
        begun = time.monotonic()
        while not self.hurry and (reason := self._busy()):
            self._say(f"waits: {reason}")
            await asyncio.sleep(self._look_s)
            now = time.monotonic()
            self._waited += now - begun
            begun = now

    def opener(self, opener: OpenBench) -> OpenBench:
        """`opener` with this pace and the low priority."""

        async def open_politely(job: Job) -> Bench:
            return _PoliteBench(await opener(msgspec.structs.replace(job, nice=NICE)), self)

        return open_politely

    def step(self, text: str) -> None:
        """Tell what is done next."""
        self._say(text)


class _PoliteBench:
    """A Bench that asks its Pace before each order."""

    def __init__(self, bench: Bench, pace: Pace) -> None:
        self._bench, self._pace = bench, pace

    async def probe(self, order: Probe, timeout_s: float) -> ProbeResult:
        await self._pace.quiet()
        self._pace.step(f"tries {order.setting.text()}")
        return await self._bench.probe(order, timeout_s)

    async def open(self, setting: Setting, warm_s: float) -> Done:
        await self._pace.quiet()
        self._pace.step(f"warms up {setting.text()}")
        return await self._bench.open(setting, warm_s)

    async def run(self, order: Run) -> Window:
        await self._pace.quiet()
        self._pace.step(f"measures {order.setting.text()}")
        return await self._bench.run(order)

    async def close(self, setting: Setting) -> None:
        await self._bench.close(setting)

    async def end(self) -> None:
        await self._bench.end()
