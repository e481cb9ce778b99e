"""A job's process as the daemon sees it: bounded, confined to the job's folder, without a network, of least priority.

It loads a network that a device made, so it is trusted with nothing: no secrets in its environment, and where the
kernel has Landlock no right to write elsewhere or to connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

import cloudd
from cloudd.confine import confined
from cloudd.retraining.folders import WORK
from cloudd.retraining.order import MAX_LINE, Ended, Event, Progress, WorkOrder

STOP_S = 15.0
"""For the process to save what it has."""
MEMORY = 24 << 30
"""Bytes of address space; a runtime reserves much more than it uses."""
_MAX_WRITTEN = 8 << 30
"""Bytes of one file."""
_INHERITED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "EDGED_CRASH_AT")

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Working:
    """One run of the process."""

    def __init__(self, process: asyncio.subprocess.Process, say: Callable[[Progress], None]) -> None:
        self._process, self._say = process, say
        self._ended = asyncio.create_task(self._follow(), name=f"retraining {process.pid}")

    @classmethod
    async def start(cls, order: WorkOrder, say: Callable[[Progress], None]) -> Working:
        """Start it and give it its order. Raises OSError."""
        folder = Path(order.folder)
        work = folder / WORK
        work.mkdir(mode=0o700, exist_ok=True)
        with confined(folder) as confine:

            def bound() -> None:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_WRITTEN, _MAX_WRITTEN))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                confine()

            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "cloudd.retraining",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                cwd=work,
                env=_environment(os.environ, work),
                limit=MAX_LINE,
                preexec_fn=bound,
            )
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order))
        with contextlib.suppress(ConnectionError):  # how it ended says more
            process.stdin.write_eof()
        return cls(process, say)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    async def ended(self) -> Ended | str:
        """Its last word; how it died without one. Cancelling this does not end the process."""
        return await asyncio.shield(self._ended)

    async def stop(self) -> Ended | str:
        """Let it save and end; kill it after STOP_S."""
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait([self._ended], timeout=STOP_S)
        if not done:
            self._signal(signal.SIGKILL)
        return await self._ended

    async def _follow(self) -> Ended | str:
        assert self._process.stdout is not None
        last: Ended | None = None
        problem = ""
        try:
            while line := await self._process.stdout.readline():
                event = _decoder.decode(line)
                if isinstance(event, Progress):
                    self._say(event)
                else:
                    last = event
        except (msgspec.DecodeError, ValueError) as error:
            last, problem = None, f"it said something that is no event ({error})"
            self._signal(signal.SIGKILL)
        status = await self._process.wait()
        how = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        return last or problem or how

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)


def _environment(own: Mapping[str, str], work: Path) -> dict[str, str]:
    kept = {key: own[key] for key in _INHERITED if key in own}
    return kept | {
        "PYTHONPATH": str(Path(cloudd.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "HOME": str(work),
        "TMPDIR": str(work),
    }
