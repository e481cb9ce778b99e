"""The near end of a runtime that lives in another process: a Session whose crash is an error and not an end.

See edgekit.runtimes.remote for the frames. One process holds one model; runs take turns in it. With more contexts than
one there are as many processes, each with its own copy of the model.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

import edgekit
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.runtimes.base import ModelError, SessionOptions, TensorInfo, check_feeds, check_model_file
from edgekit.runtimes.remote import MAX_TENSORS_BYTES, Failed, Open, Opened, Reply, Results, Run, pack, unpack

OPEN_TIMEOUT_S = 600.0
"""Seconds. Some vendors compile the model when it is opened, which takes minutes the first time."""
RUN_TIMEOUT_S = 30.0
"""Seconds. A run that takes longer hangs."""
_ROOT = str(Path(edgekit.__file__).resolve().parent.parent)
_KEEP = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR", "EDGED_FAKE_RUNTIME")


class RemoteSession:
    """A Session in `options.interpreter`. A process that crashes or hangs is replaced at the next run."""

    def __init__(self, path: Path, runtime: str, options: SessionOptions, files: frozenset[str]) -> None:
        check_model_file(path)
        self._interpreter = options.interpreter
        self._order = Open(
            path=str(path.resolve()),
            runtime=runtime,
            files=sorted(files),
            threads=options.threads,
            spinning=options.spinning,
            arena=options.arena,
            provider=options.provider,
            provider_options=dict(options.provider_options),
            contexts=1,
            strict=options.strict,
            cache=options.cache,
            declared=options.declared,
        )
        self._closed = threading.Event()
        self._free: queue.LifoQueue[_Process | None] = queue.LifoQueue()
        first = self._start()
        self._inputs, self._outputs = first.opened.inputs, first.opened.outputs
        self.placement = first.opened.placement
        self._processes = [first]
        self._free.put(first)
        try:
            for _ in range(options.contexts - 1):
                self._processes.append(self._start())
                self._free.put(self._processes[-1])
        except ModelError:
            self.close()
            raise

    @property
    def inputs(self) -> list[TensorInfo]:
        return self._inputs

    @property
    def outputs(self) -> list[TensorInfo]:
        return self._outputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See Session.run. ModelError also when the process ended or hangs; the next run starts a new one."""
        check_feeds(self._inputs, feeds)
        names = list(feeds)
        heads, data = pack(names, [feeds[name] for name in names])
        process = self._free.get()
        try:
            if self._closed.is_set():
                raise ModelError("the model was closed")
            if process is None or process.ended:
                process = self._start()
                self._processes = [one for one in self._processes if not one.ended] + [process]
            reply, payload = process.ask(seal(Run(arrays=heads), data), RUN_TIMEOUT_S)
        finally:
            self._free.put(process)
        if not isinstance(reply, Results):
            raise ModelError("the runtime's process answered a run with something else")
        return unpack(reply.arrays, payload)

    def close(self) -> None:
        """See Session.close."""
        self._closed.set()
        for process in self._processes:
            process.end()

    def _start(self) -> _Process:
        return _Process(self._interpreter, self._order)


class _Process:
    """One child with one model. Not safe for two threads."""

    def __init__(self, interpreter: str, order: Open) -> None:
        environment = {name: os.environ[name] for name in _KEEP if name in os.environ}
        environment.update(PYTHONPATH=_ROOT, PYTHONSAFEPATH="1", ORT_DISABLE_TELEMETRY="1")
        try:
            self._child = subprocess.Popen(
                [interpreter, "-m", "edgekit.runtimes.remote"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise ModelError(f"the interpreter {interpreter} cannot be started: {error.strerror}") from error
        self._reader = FrameReader(MAX_TENSORS_BYTES)
        self._decoder = msgspec.json.Decoder(Reply)
        os.set_blocking(self._pipe(self._child.stdin), False)
        try:
            reply, _ = self.ask(seal(order), OPEN_TIMEOUT_S)
            if not isinstance(reply, Opened):
                raise ModelError("the runtime's process answered the opening with something else")
        except BaseException:
            self.end()
            raise
        self.opened = reply

    @property
    def ended(self) -> bool:
        return self._child.poll() is not None

    def ask(self, frame: bytes, timeout_s: float) -> tuple[Opened | Results, bytes]:
        """Send a frame and wait for the answer. Ends the child and raises ModelError if none comes in time."""
        try:
            reply, payload = self._exchange(frame, time.monotonic() + timeout_s)
        except TimeoutError:
            self.end()
            raise ModelError(f"the runtime did not answer within {timeout_s:.0f} s; its process was ended") from None
        except (EnvelopeError, msgspec.DecodeError, OSError, EOFError) as error:
            raise ModelError(self._obituary(error)) from None
        if isinstance(reply, Failed):
            raise ModelError(reply.reason[:1000])
        return reply, payload

    def end(self) -> None:
        """Kill the child, with whatever it started, and take its exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _exchange(self, frame: bytes, deadline: float) -> tuple[Reply, bytes]:
        into, out = self._pipe(self._child.stdin), self._pipe(self._child.stdout)
        left = memoryview(frame)
        while True:
            readable, writable, _ = select.select(
                [out], [into] if left else [], [], max(0, deadline - time.monotonic())
            )
            if not readable and not writable:
                raise TimeoutError
            if writable:
                left = left[os.write(into, left) :]
            if readable:
                data = os.read(out, 1 << 20)
                if not data:
                    raise EOFError
                for header, payload in self._reader.feed(data):
                    return self._decoder.decode(header), payload

    def _obituary(self, error: Exception) -> str:
        self.end()
        status = self._child.returncode
        if status < 0 and status != -signal.SIGKILL:
            return f"the runtime's process was ended by {signal.Signals(-status).name}"
        if isinstance(error, EnvelopeError | msgspec.DecodeError):
            return "the runtime's process sent something that is no answer; it was ended"
        return f"the runtime's process ended with the status {status}"

    def _pipe(self, pipe: Any) -> int:
        descriptor: int = pipe.fileno()
        return descriptor
