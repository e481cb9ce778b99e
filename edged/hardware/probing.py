"""The near end of a bench child: what a vendor's library does to that process, and never to this one.

A child that crashes, hangs, wants more memory than it may have or talks nonsense is an answer like any other. Imports
no numpy and no runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from edged.hardware.settings import ProbeResult, Setting
from edged.hardware.wire import (
    MAX_LINE,
    Answer,
    AnyAnswer,
    CloseSetting,
    Done,
    Failed,
    Hello,
    Job,
    OpenSetting,
    Order,
    Probe,
    Probed,
    Run,
    Window,
)

START_TIMEOUT_S = 30.0
"""Seconds until a child has imported numpy and read the package, on the slowest boards."""
_SLACK_S = 10.0
"""Seconds that an order may take beyond what it asks for."""
_KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "EDGED_FAKE_RUNTIME")
_INSTALLATION = str(Path(__file__).resolve().parents[2])

A = TypeVar("A", bound=Answer)


class BenchFailed(Exception):
    """The child could not do what was asked; `kind` as in ProbeResult."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class Bench(Protocol):
    """Something that can prove and measure settings of one package."""

    async def probe(self, order: Probe, timeout_s: float) -> ProbeResult:
        """Never raises for what a library does: that is the result."""
        ...

    async def open(self, setting: Setting, warm_s: float) -> Done:
        """Load and warm up. Raises BenchFailed."""
        ...

    async def run(self, order: Run) -> Window:
        """Measure an opened setting. Raises BenchFailed."""
        ...

    async def close(self, setting: Setting) -> None:
        """Unload; nothing if it is not open. Raises BenchFailed."""
        ...

    async def end(self) -> None:
        """End the child; never raises."""
        ...


OpenBench = Callable[[Job], Awaitable[Bench]]
"""How adaptation gets a Bench; each has a child of its own."""


async def open_bench(job: Job) -> Bench:
    """A Bench on a real child. The child starts with the first order, and anew after each end."""
    return ProcessBench(job)


class ProcessBench:
    """See Bench. One order at a time."""

    def __init__(self, job: Job, start_timeout_s: float = START_TIMEOUT_S) -> None:
        self._job = job
        self._start_timeout_s = start_timeout_s
        self._child: asyncio.subprocess.Process | None = None
        self._opened: set[str] = set()
        self._decoder: msgspec.json.Decoder[AnyAnswer] = msgspec.json.Decoder(AnyAnswer)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    async def probe(self, order: Probe, timeout_s: float) -> ProbeResult:
        """See Bench.probe."""
        try:
            return (await self._ask(order, timeout_s, Probed)).result
        except BenchFailed as error:
            return msgspec.convert({"ok": False, "kind": error.kind, "reason": error.reason}, ProbeResult)

    async def open(self, setting: Setting, warm_s: float, load_s: float = 120.0) -> Done:
        """See Bench.open."""
        done = await self._ask(OpenSetting(setting=setting, warm_s=warm_s), load_s + warm_s, Done)
        self._opened.add(setting.key)
        return done

    async def run(self, order: Run) -> Window:
        """See Bench.run."""
        if order.setting.key not in self._opened:  # the child ended since, and lost it
            raise BenchFailed("crash", "the process that held the model ended")
        return await self._ask(order, 10 * order.seconds + _SLACK_S, Window)

    async def close(self, setting: Setting) -> None:
        """See Bench.close."""
        if setting.key in self._opened:
            await self._ask(CloseSetting(setting=setting), _SLACK_S, Done)
            self._opened.discard(setting.key)

    async def end(self) -> None:
        """See Bench.end."""
        child, self._child = self._child, None
        self._opened.clear()
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()

    async def _ask(self, order: Order, timeout_s: float, wanted: type[A]) -> A:
        if self._child is None or self._child.returncode is not None:
            await self._start()
        answer = await self._exchange(order, timeout_s)
        if isinstance(answer, Failed):
            raise BenchFailed(answer.kind, answer.reason)
        if not isinstance(answer, wanted):
            await self.end()
            raise BenchFailed("garbage", "the process of the runtime gave an answer to another question")
        return answer

    async def _start(self) -> None:
        await self.end()
        environment = {name: os.environ[name] for name in _KEEP if name in os.environ}
        environment.update(ORT_DISABLE_TELEMETRY="1", PYTHONPATH=_INSTALLATION)
        try:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "edged.hardware.bench",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                cwd="/",
                limit=MAX_LINE,
                start_new_session=True,  # so that whatever a library starts ends with it
            )
        except OSError as error:
            raise BenchFailed("missing", f"the bench process cannot be started: {error.strerror}") from error
        answer = await self._exchange(self._job, self._start_timeout_s)
        if isinstance(answer, Failed):
            await self.end()
            raise BenchFailed(answer.kind, answer.reason)
        if not isinstance(answer, Hello):
            await self.end()
            raise BenchFailed("garbage", "the bench process does not greet as it should")

    async def _exchange(self, order: msgspec.Struct, timeout_s: float) -> Answer:
        """One line down, one line up; ends the child and raises BenchFailed if that goes wrong in any way."""
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                child.stdin.write(msgspec.json.encode(order) + b"\n")
                await child.stdin.drain()
                line = await child.stdout.readline()
        except TimeoutError:
            await self.end()
            raise BenchFailed("hang", f"it did not answer within {timeout_s:.0f} s and was ended") from None
        except (OSError, ValueError):  # ValueError: a line beyond the limit
            line = b"" if child.stdout.at_eof() else b"?"
        except asyncio.CancelledError:
            await self.end()
            raise
        if not line:
            raise await self._ended(child)
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError:
            await self.end()
            raise BenchFailed("garbage", "its process gave an answer that is none, and was ended") from None

    async def _ended(self, child: asyncio.subprocess.Process) -> BenchFailed:
        """Why the child is gone: it closed its pipe, so it ends or has ended."""
        try:
            async with asyncio.timeout(_SLACK_S):
                status = await child.wait()
        except TimeoutError:
            status = 0
        await self.end()
        if status < 0:
            name = signal.Signals(-status).name
            if -status == signal.SIGKILL:
                return BenchFailed("memory", f"its process was ended by {name}, which is what a lack of memory does")
            return BenchFailed("crash", f"its process was ended by {name}")
        return BenchFailed("crash", f"its process ended by itself with the status {status}")
