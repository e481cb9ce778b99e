"""Orders in, answers out: proving and measuring settings of one package."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import msgspec

from edged.hardware.bench import timing
from edged.hardware.bench.answers import disagreement, load_answers, save_answers
from edged.hardware.bench.subject import Subject
from edged.hardware.settings import Precision, ProbeResult, Setting
from edged.hardware.wire import (
    Answer,
    AnyOrder,
    CloseSetting,
    Done,
    Failed,
    Job,
    OpenSetting,
    Probe,
    Probed,
    Run,
    Window,
)
from edgekit.packages import open_package
from edgekit.runtimes import ModelError, placement, version

LIMITS: dict[Precision, float] = {"fp32": 0.01, "fp16": 0.03, "int8": 0.06}
"""Largest difference to the CPU's answer for the same file, as a share of the answer's range over its values."""
OTHER_FILE: dict[Precision, float] = {"fp32": 0.02, "fp16": 0.05, "int8": 0.25}
"""The same where the CPU cannot run the file itself, so that the reference comes from another precision."""
_RUNS = 3
_Kind = Literal["load", "wrong", "placement", "memory"]


class Server:
    """Holds the sessions that are open. Raises what open_package raises."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._package = open_package(Path(job.package), verify=False)
        self._subjects: dict[str, Subject] = {}
        self._decoder = msgspec.json.Decoder(AnyOrder)

    def answer(self, line: bytes) -> Answer:
        """Carry out one order."""
        try:
            order = self._decoder.decode(line)
            match order:
                case Probe():
                    return Probed(result=self._probe(order))
                case OpenSetting():
                    return self._open(order)
                case Run():
                    return self._run(order)
                case CloseSetting():
                    subject = self._subjects.pop(order.setting.key, None)
                    if subject is not None:
                        subject.close()
                    return Done()
        except MemoryError:
            return Failed(kind="memory", reason=self._memory_text())
        except Exception as error:  # ModelError, or a library's own: told to the parent, which decides
            return Failed(kind="load", reason=f"{error}"[:1000])
        raise AssertionError("every order is matched above")

    def _subject(self, setting: Setting, *, strict: bool) -> Subject:
        return Subject(self._package, setting, self._job.cache, self._job.samples, strict=strict)

    def _open(self, order: OpenSetting) -> Done:
        begun = time.perf_counter()
        subject = self._subjects.get(order.setting.key)
        if subject is None:
            subject = self._subjects[order.setting.key] = self._subject(order.setting, strict=False)
        feeds = subject.feeds
        steady = timing.warm_up(lambda number: subject.run(feeds[number % len(feeds)]), order.warm_s)
        return Done(seconds=time.perf_counter() - begun, steady=steady)

    def _run(self, order: Run) -> Window:
        subject = self._subjects[order.setting.key]
        feeds = subject.feeds
        others = timing.Others()
        times, wall, cpu = timing.window(
            lambda number: subject.run(feeds[number % len(feeds)]), order.seconds, order.callers, order.pause_s
        )
        return Window(
            n=len(times),
            p50_ms=timing.quantile(times, 0.5) * 1e3,
            p95_ms=timing.quantile(times, 0.95) * 1e3,
            wall_s=wall,
            cpu_s=cpu,
            rss_mb=timing.rss_mb(),
            others=others.share(),
        )

    def _probe(self, order: Probe) -> ProbeResult:
        setting = order.setting
        begun = time.perf_counter()
        runtime = version(setting.runtime, setting.provider)
        try:
            subject = self._subject(setting, strict=True)
        except MemoryError:
            return ProbeResult(ok=False, kind="memory", reason=self._memory_text(), runtime_version=runtime)
        except ModelError as error:
            kind: _Kind = "placement" if _fell_back(str(error)) else "load"
            return ProbeResult(ok=False, kind=kind, reason=str(error), runtime_version=runtime)
        loaded = time.perf_counter() - begun
        try:
            found = self._prove(order, subject)
        except MemoryError:
            found = ProbeResult(ok=False, kind="memory", reason=self._memory_text())
        except ModelError as error:
            found = ProbeResult(ok=False, kind="wrong", reason=str(error))
        finally:
            subject.close()
        return msgspec.structs.replace(
            found, load_s=loaded, runtime_version=runtime, placement=placement(subject.session)
        )

    def _prove(self, order: Probe, subject: Subject) -> ProbeResult:
        """Raises ModelError if the setting's answers are not what they should be."""
        fault = _misplaced(order.setting, placement(subject.session))
        if fault:
            return ProbeResult(ok=False, kind="placement", reason=fault)
        for _ in range(_RUNS - 1):  # some libraries answer rightly once
            subject.run(subject.feeds[0])
        answers = subject.answers()
        proved = subject.vision.prove() if subject.vision is not None else 0
        shown, difference = proved > 0, None
        if order.reference:
            reference = load_answers(Path(order.reference))
            limits = LIMITS if order.same_file else OTHER_FILE
            detection = self._package.manifest.detection
            difference = disagreement(answers, reference, detection.score_floor if detection is not None else 0.0)
            shown = shown or reference.tells
            if difference > limits[order.setting.precision]:
                raise ModelError(
                    f"its answers differ from the CPU's by {difference:.0%} of their range; "
                    f"{limits[order.setting.precision]:.0%} are allowed for {order.setting.precision}"
                )
        if order.setting.accelerated and not shown:
            why = "on the CPU nothing is found in made-up pictures" if order.reference else "no variant for the CPU"
            raise ModelError(f"nothing shows that its answers are right: the package has no samples and {why}")
        if order.write:
            save_answers(Path(order.write), answers)
        return ProbeResult(ok=True, agreement=difference, samples=proved)

    def _memory_text(self) -> str:
        return f"it wants more than the {self._job.memory_bytes >> 20} MiB of memory that it may have"


def _misplaced(setting: Setting, counts: dict[str, int]) -> str:
    """A sentence if the provider that was asked for runs nothing, or leaves operators to the CPU."""
    if setting.provider == "cpu" or not counts:
        return ""
    on_cpu = sum(count for name, count in counts.items() if name.startswith(("CPU", "cpu")))
    if on_cpu:
        return f"{on_cpu} of {sum(counts.values())} operators would run on the CPU instead of on {setting.provider}"
    return ""


def _fell_back(text: str) -> bool:
    return "fallback to CPU" in text or "fell back to the CPU" in text
