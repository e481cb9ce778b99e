"""A handle to one worker process: start it, ask it one thing at a time, end it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import msgspec

import cloudd
from cloudd.answers.limits import KEEP_MODELS, MAX_THUMBNAIL
from cloudd.answers.looks import WHOLE, Look, check_fit
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.messages import AskModel, ModelAnswer
from edgekit.regions.header import RegionError

_END_S = 2.0
# What a worker that ended, or that a hostile picture took over, makes us see.
_NONSENSE = (
    ConnectionError,
    EOFError,
    EnvelopeError,
    msgspec.DecodeError,
    UnicodeDecodeError,
    RecursionError,
    RegionError,
)
# What a worker may inherit. Secrets in cloudd's environment (database and store credentials) are none of its business.
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "EDGED_CRASH_AT")


Key = tuple[str, str]
"""What a worker loads at a time: the directory of a package, and the cut of a tail package or ""."""


class WorkerDied(Exception):
    """The worker ended, hung or answered nonsense; it is gone now."""


class Worker:
    """One running worker process. Use `start`, not the constructor."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._frames = FrameReader(MAX_THUMBNAIL)
        self._tickets = itertools.count(1)
        # By directory, the one used last at the end, and by cut: name@version, and whether it has answered.
        self._loaded: OrderedDict[str, dict[str, tuple[str, bool]]] = OrderedDict()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """It is gone, or going: killed from outside, or by the kernel when memory ran out."""
        return self._process.returncode is not None or self._reader.at_eof()

    def holds(self, directory: str, cut: str = "") -> bool:
        """It has this model in memory, so a question takes no time to load it, and loading it is not what kills it."""
        return cut in self._loaded.get(directory, ())

    def has_answered(self, directory: str, cut: str = "") -> bool:
        """It has answered with this model since it loaded it; the first run can take longer than those that follow."""
        return self._loaded.get(directory, {}).get(cut, ("", False))[1]

    @property
    def held(self) -> Mapping[Key, str]:
        """The models it has, or had, in memory, and their name@version; the package used last at the end."""
        return {(directory, cut): model for directory, cuts in self._loaded.items() for cut, (model, _) in cuts.items()}

    @classmethod
    async def start(cls, empty: Path, memory: int, threads: int) -> Worker:
        """Start a worker in the empty directory `empty` and `memory` bytes of address space. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # the working directory is not a place to import from
                "-m",
                "cloudd.answers",
                f"--control-fd={theirs.fileno()}",
                f"--memory={memory}",
                f"--threads={threads}",
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                cwd=empty,
                env=_environment(os.environ),
            )
            ours.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, reader, writer)

    async def ask(
        self, model: str, directory: str, payload: bytes, timeout: float, look: Look = WHOLE
    ) -> tuple[ModelAnswer, bytes]:
        """The answer and the thumbnail; without payload the model is only loaded.

        After WorkerDied or a cancellation the worker is gone and must be replaced.
        """
        ticket = next(self._tickets)
        try:
            async with asyncio.timeout(timeout):
                ask = AskModel(
                    ticket=ticket,
                    model=model,
                    directory=directory,
                    pipeline=look.pipeline,
                    mosaic=look.mosaic,
                    clean=look.clean,
                    features=look.features,
                )
                self._writer.write(seal(ask, payload))
                await self._writer.drain()
                answer, thumbnail = await self._receive()
            if answer.ticket != ticket:
                raise WorkerDied("the answer worker mixed up its answers")
            check_fit(answer, look, payload)
        except TimeoutError:
            await self.end()
            raise WorkerDied(f"the answer worker did not answer within {timeout:.0f} seconds") from None
        except _NONSENSE as error:
            code = await self.end()
            raise WorkerDied(f"the answer worker ended ({_ending(code)})") from error
        except BaseException:
            await self.end()
            raise
        self._note(model, (directory, look.cut), answer)
        return answer, thumbnail

    async def end(self) -> int:
        """End the process; returns its exit status. There is nothing in it that could be lost."""
        self._writer.close()
        if self._reader.at_eof():  # it ends by itself: wait a moment, because its own status says more than our kill
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    return await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()

    def _note(self, model: str, key: Key, answer: ModelAnswer) -> None:
        """Follow what the worker holds, by its own rule."""
        directory, cut = key
        if answer.error and not self.holds(*key):  # not loaded, and something may have made room for it
            if directory not in self._loaded:
                self._loaded.clear()
            return
        answered = answer.verdict is not None or self.has_answered(*key)
        self._loaded.setdefault(directory, {})[cut] = model, answered
        self._loaded.move_to_end(directory)
        while len(self._loaded) > KEEP_MODELS:
            self._loaded.popitem(last=False)

    async def _receive(self) -> tuple[ModelAnswer, bytes]:
        while data := await self._reader.read(1 << 18):
            for header, payload in self._frames.feed(data):
                return msgspec.json.decode(header, type=ModelAnswer), payload
        raise EOFError


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    kept = {key: own[key] for key in _INHERITED if key in own}
    return kept | {
        "PYTHONPATH": str(Path(cloudd.__file__).parents[1]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "MALLOC_ARENA_MAX": "2",  # each further arena takes 64 MiB of the limited address space
    }


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"
