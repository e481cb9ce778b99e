"""onnxruntime alone in a process of its own: what no server can be faster than.

`Floor` starts `python -m benchmarks.raw_floor NAME=FILE ...` and asks it, one JSON line down and one up, to run a model
for a while with some callers (threads), one thread in each run and no spinning, as edged and the peers run it. For a
JPEG each run decodes it with OpenCV, resizes it if it has another size, and scales it, as the servers do. With a rate
one caller runs at fixed times and latencies count from those.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.load_generator import nearest_rank
from benchmarks.serving_models import MODELS, SCALE, picture, tensor

REPOSITORY = Path(__file__).resolve().parents[1]


class Order(msgspec.Struct, frozen=True):
    """What to run: callers without pause, or one at `rate` runs a second."""

    model: str
    how: str  # tensor | jpeg
    callers: int
    seconds: float
    warm_s: float
    rate: float = 0.0


class Measured(msgspec.Struct, frozen=True):
    """What came out. Latencies in ms; CPU of the whole process, us a run."""

    runs: int
    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


class Floor:
    """The process; use it in a `with` block."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.raw_floor", *(f"{name}={path}" for name, path in files.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        )

    def __enter__(self) -> Floor:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def run(self, order: Order) -> Measured:
        """Raises RuntimeError if the process has ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(msgspec.json.encode(order) + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the process of the raw runtime ended with status {self._process.wait(10)}")
        return msgspec.json.decode(line, type=Measured)


def prepare(data: bytes, side: int, into: NDArray[np.float32]) -> None:
    """JPEG to float32 (1, 3, side, side), RGB in 0..1: the shortest way that OpenCV and numpy have.

    Into memory that is there already: a new 600 KB array costs more in page faults than the arithmetic.
    """
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels.shape[:2] != (side, side):
        pixels = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    for plane, target in zip(cv2.split(pixels), into[0], strict=True):
        np.multiply(plane, np.float32(SCALE), out=target)


def measure(order: Order, once: Callable[[], object]) -> Measured:
    """Run `once` as ordered; in the closed loop what ends after the warm-up counts, else what was due after it."""
    count_from = time.perf_counter() + order.warm_s
    end = count_from + order.seconds
    if order.rate:
        times, cpu = _at_rate(order.rate, once, count_from, end)
    else:
        times, cpu = _flat_out(order.callers, once, count_from, end)
    ordered = sorted(times)
    return Measured(
        runs=len(ordered),
        rps=len(ordered) / order.seconds,
        p50_ms=nearest_rank(ordered, 0.5) * 1e3,
        p99_ms=nearest_rank(ordered, 0.99) * 1e3,
        cpu_us=cpu / max(1, len(ordered)) * 1e6,
    )


def _flat_out(callers: int, once: Callable[[], object], count_from: float, end: float) -> tuple[array[float], float]:
    found: list[tuple[array[float], float]] = []

    def call() -> None:
        mine = array("d")
        cpu = math.nan
        while (began := time.perf_counter()) < end:
            once()
            done = time.perf_counter()
            if done >= count_from:
                if math.isnan(cpu):
                    cpu = time.thread_time()  # from the first end on: that run itself does not count
                else:
                    mine.append(done - began)
        found.append((mine, time.thread_time() - cpu))

    threads = [threading.Thread(target=call) for _ in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum((mine for mine, _ in found), array("d")), sum(cpu for _, cpu in found)


def _at_rate(rate: float, once: Callable[[], object], count_from: float, end: float) -> tuple[array[float], float]:
    times = array("d")
    cpu = 0.0
    due = time.perf_counter()
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.thread_time()
        once()
        if due >= count_from:
            times.append(time.perf_counter() - due)
            cpu += time.thread_time() - before
        due += 1 / rate
    return times, cpu


def main() -> None:
    import onnxruntime

    cv2.setNumThreads(1)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for argument in sys.argv[1:]:
        name, _, path = argument.partition("=")
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        runs[name, "tensor"], runs[name, "jpeg"] = _ways(session, MODELS[name].side)
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        print(json.dumps(msgspec.to_builtins(measure(order, runs[order.model, order.how]))), flush=True)


def _ways(session: Any, side: int) -> tuple[Callable[[], object], Callable[[], object]]:
    values, jpeg, own = tensor(side), picture(side), threading.local()

    def from_jpeg() -> object:
        if not hasattr(own, "values"):
            own.values = np.empty((1, 3, side, side), np.float32)
        prepare(jpeg, side, own.values)
        return session.run(None, {"input": own.values})

    return lambda: session.run(None, {"input": values}), from_jpeg


if __name__ == "__main__":
    main()
