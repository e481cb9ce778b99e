"""Timing a model that is loaded: warm-up until the speed has settled, then windows of runs."""

from __future__ import annotations

import gc
import itertools
import math
import resource
import threading
import time
from collections.abc import Callable, Sequence

import psutil

STEADY = 0.05
"""Largest relative difference of the medians of successive windows that counts as settled."""
_WARM_WINDOWS = 3
_MIN_RUNS = 3
_MAX_RUNS = 200_000


def warm_up(run: Callable[[int], object], limit_s: float, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Run until the medians of the last three windows differ by less than STEADY. False if `limit_s` was over first.

    `run` gets the number of the run. Windows grow with the model's speed: at least five runs and 50 ms.
    """
    end = clock() + limit_s
    medians: list[float] = []
    number = itertools.count()
    while True:
        times: list[float] = []
        begun = clock()
        while len(times) < 5 or clock() - begun < 0.05:
            started = clock()
            run(next(number))
            times.append(clock() - started)
            if clock() > end:
                return False
        medians.append(quantile(sorted(times), 0.5))
        last = medians[-_WARM_WINDOWS:]
        if len(last) == _WARM_WINDOWS and max(last) - min(last) < STEADY * min(last):
            return True


def window(
    run: Callable[[int], object],
    seconds: float,
    callers: int = 1,
    pause_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], float, float]:
    """(sorted seconds of every run, wall seconds, CPU seconds of this process).

    At least three runs a caller. Callers are threads, as in the worker. An exception of a run is raised again.
    """
    times: list[list[float]] = [[] for _ in range(callers)]
    errors: list[BaseException] = []
    barrier = threading.Barrier(callers + 1)

    def call(mine: list[float], first: int) -> None:
        barrier.wait()
        end = clock() + seconds
        number = first
        try:
            while not errors and len(mine) < _MAX_RUNS and (len(mine) < _MIN_RUNS or clock() < end):
                started = clock()
                run(number)
                mine.append(clock() - started)
                number += 1
                if pause_s:
                    time.sleep(pause_s)
        except BaseException as error:
            errors.append(error)

    gc.collect()
    gc.disable()
    try:
        threads = [threading.Thread(target=call, args=(mine, at), daemon=True) for at, mine in enumerate(times)]
        for thread in threads:
            thread.start()
        cpu, started = _cpu(), clock()
        barrier.wait()
        for thread in threads:
            thread.join()
        wall = clock() - started
        used = _cpu() - cpu
    finally:
        gc.enable()
    if errors:
        raise errors[0]
    return sorted(itertools.chain.from_iterable(times)), wall, used


class Others:
    """How much of the machine everybody else took. Ticks of 10 ms are counted: short spans give a rough figure."""

    def __init__(self) -> None:
        self._last = self._now()

    def share(self) -> float:
        """0 (nobody) to 1 (all CPUs) since the last call; 0 where the kernel does not tell."""
        (busy, total, own), (busy_before, total_before, own_before) = self._now(), self._last
        self._last = (busy, total, own)
        if total <= total_before:
            return 0.0
        others = (busy - busy_before) - (own - own_before)
        return min(1.0, max(0.0, others / (total - total_before)))

    def _now(self) -> tuple[float, float, float]:
        """CPU seconds since the start: all busy ones, all, and our own."""
        try:
            times = psutil.cpu_times()
        except (OSError, RuntimeError, ValueError):
            return 0.0, 0.0, 0.0
        idle = times.idle + getattr(times, "iowait", 0.0)
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)  # those are in user
        return total - idle, total, _cpu()


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie: nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def rss_mb() -> float:
    """Resident memory of this process and its children, MiB."""
    return sum(_ask(process, lambda one: one.memory_info().rss) for process in _family()) / (1 << 20)


def _cpu() -> float:
    """CPU seconds so far of this process and its children, in which a runtime may live."""
    own = resource.getrusage(resource.RUSAGE_SELF)  # in microseconds; psutil's are ticks of 10 ms
    children = sum(_ask(process, lambda one: sum(one.cpu_times()[:2])) for process in _family()[1:])
    return own.ru_utime + own.ru_stime + children


def _family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _ask(process: psutil.Process, question: Callable[[psutil.Process], float]) -> float:
    try:
        return question(process)
    except psutil.Error:  # it ended meanwhile
        return 0.0
