"""Measuring models in bench children, one at a time, and proving again what was lost."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from edged.hardware.adapt import Surroundings, adapt
from edged.hardware.settings import Choice, ProbeResult, Setting
from edged.hardware.wire import Job, Probe
from edged.polite import Pace
from edged.subjects import Subject, Subjects
from edgekit.packages import Package

log = logging.getLogger("edged.hardware")

PROBE_S = 120.0
"""An accelerator that was lost may compile its model anew."""


class Measurer:
    """One measurement at a time. `busy` says why a background one has to wait, "" if it need not."""

    def __init__(self, subjects: Subjects, busy: Callable[[], str]) -> None:
        self._subjects, self._busy = subjects, busy
        self._turn = asyncio.Lock()
        self._pace: Pace | None = None

    @property
    def working(self) -> bool:
        return self._turn.locked()

    def hurry(self) -> None:
        """Somebody waits: the measurement under way stops being polite."""
        if self._pace is not None:
            self._pace.hurry = True

    async def measure(
        self, subject: Subject, *, again: bool, hurry: bool, say: Callable[[str], None] = lambda step: None
    ) -> None:
        """Adapt one model and put the outcome into its subject. Raises OSError if the choice cannot be stored."""

        def tell(step: str) -> None:
            subject.step = step
            say(step)

        async with self._turn:
            self._pace = Pace(self._busy, tell)
            self._pace.hurry = hurry
            tell("is about to be measured")
            key, need = subject.found.key, subject.need
            try:
                report = await adapt(
                    subject.found.package,
                    self._subjects.surroundings(self._pace),
                    need.objective,
                    rate=need.rate,
                    deadline_ms=need.deadline_ms,
                    budget_s=self._subjects.outside.budget_s,
                    again=again,
                )
            finally:
                self._pace, subject.step = None, ""
                subject.tried_at, subject.stale = time.monotonic(), False
            if subject.found.key != key:  # the hardware changed meanwhile: this is an answer to an old question
                subject.tried_at = None
                return
            subject.found = subject.found._replace(report=report)
            choice = report.choice
            if choice is not None and not report.stored:
                # The short looks too: the setting in use before may not have come into the final.
                finals = {one.setting_key for one in choice.measurements}
                looks = [one for one in report.measurements if one.setting_key not in finals]
                choice = msgspec.structs.replace(choice, measurements=[*choice.measurements, *looks])
            self._subjects.took(subject, choice)

    async def prove_again(self, subject: Subject, choice: Choice, setting: Setting) -> ProbeResult:
        """Start a setting that was lost in a process of its own and compare its answers with the CPU's."""
        async with self._turn:
            return await prove(subject.found.package, self._subjects.surroundings(), choice, setting)


async def prove(package: Package, around: Surroundings, choice: Choice, setting: Setting) -> ProbeResult:
    """The probe of one setting alone. The reference comes from the choice's setting on the CPU, if it has one."""
    floor = next((one for one in choice.alternatives if not one.accelerated), None)
    with tempfile.TemporaryDirectory(prefix="edged-proof-") as directory:
        reference = ""
        job = Job(package=str(package.root), memory_bytes=around.memory_bytes, cache=around.cache)
        bench = await around.open_bench(job)
        try:
            if floor is not None:
                path = Path(directory) / "reference.npz"
                made = await bench.probe(Probe(setting=floor, write=str(path)), PROBE_S)
                reference = str(path) if made.ok else ""
            same = floor is not None and floor.variant == setting.variant
            return await bench.probe(Probe(setting=setting, reference=reference, same_file=same), PROBE_S)
        finally:
            await bench.end()
