"""A runtime that does what a script says: a device's speed curve, and every way in which a vendor's library can fail.

For tests only: it opens nothing unless EDGED_FAKE_RUNTIME=1 is in the environment. A model file is one JSON object, see
Script; its answer is gain * mean of the input + offset, one value a label.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgekit.runtimes.base import ModelError, SessionOptions, TensorInfo, check_feeds, check_model_file

ENABLE = "EDGED_FAKE_RUNTIME"


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Counts are runs since the session was opened; a failure happens at that run (1 is the first), None never."""

    shape: tuple[int, ...] = (1, 3, 16, 16)
    dtype: str = "float32"
    gain: tuple[float, ...] = (0.0, 1.0)
    offset: tuple[float, ...] = (0.0, 0.0)
    latency_ms: float = 1.0  # with one thread
    speedup: dict[int, float] = {}  # threads -> how many times as fast
    parallel: int = 1  # runs that the device really does at once
    load_s: float = 0.0
    load_error: str = ""
    placement: dict[str, int] = {}
    crash_at_load: bool = False
    print_at_load: str = ""  # to the standard output, as talkative libraries do
    crash_at: int | None = None
    hang_at: int | None = None
    wrong_at: int | None = None
    nan_at: int | None = None
    allocate_at: int | None = None  # without end
    exit_at: int | None = None
    throttle_after_s: float | None = None
    throttle_factor: float = 2.0


class FakeSession:
    """A Session that acts a Script out."""

    def __init__(self, path: Path, options: SessionOptions) -> None:
        if os.environ.get(ENABLE) != "1":
            raise ModelError(f'the runtime "fake" is for tests; it needs {ENABLE}=1 in the environment')
        check_model_file(path)
        try:
            self._script = script = msgspec.json.decode(path.read_bytes(), type=Script)
        except msgspec.DecodeError as error:
            raise ModelError(f"{path.name} is no script: {error}") from None
        if script.print_at_load:
            sys.stdout.write(script.print_at_load)
            sys.stdout.flush()
        if script.crash_at_load:
            _crash()
        time.sleep(script.load_s)
        if script.load_error:
            raise ModelError(f"{path.name} cannot be loaded: {script.load_error}")
        self.placement = script.placement if options.strict else {}
        speedup = max((gain for threads, gain in script.speedup.items() if threads <= options.threads), default=1.0)
        self._seconds = script.latency_ms / 1e3 / speedup
        self._device = threading.BoundedSemaphore(max(1, min(script.parallel, options.contexts)))
        self._opened = time.monotonic()
        self._runs = 0
        self._hoard: list[bytearray] = []
        self._closed = False

    @property
    def inputs(self) -> list[TensorInfo]:
        return [TensorInfo("input", self._script.shape, self._script.dtype)]

    @property
    def outputs(self) -> list[TensorInfo]:
        return [TensorInfo("output", (1, len(self._script.gain)), "float32")]

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run."""
        if self._closed:
            raise ModelError("the model was closed")
        check_feeds(self.inputs, feeds)
        script = self._script
        self._runs += 1
        if self._due(script.crash_at):
            _crash()
        if self._due(script.exit_at):
            os._exit(3)
        if self._due(script.hang_at):
            time.sleep(3600)
        while self._due(script.allocate_at):
            self._hoard.append(bytearray(64 << 20))
        with self._device:
            time.sleep(self._seconds * self._throttle())
        answer = np.asarray(script.gain, np.float32) * feeds["input"].mean() + np.asarray(script.offset, np.float32)
        if self._due(script.wrong_at):
            answer = answer[::-1] + 1
        if self._due(script.nan_at):
            answer = np.full_like(answer, np.nan)
        return [answer.reshape(1, -1).astype(np.float32)]

    def close(self) -> None:
        """See Session.close."""
        self._closed = True

    def _due(self, at: int | None) -> bool:
        return at is not None and self._runs >= at

    def _throttle(self) -> float:
        after = self._script.throttle_after_s
        return self._script.throttle_factor if after is not None and time.monotonic() - self._opened > after else 1.0


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
