"""A camera as a service's source: the worker's side. It starts the source process, watches it and starts it again.

The process may crash, hang or fall silent; each costs one sentence in the health list and a new process after a random
wait, which grows with every failure in a row. Frames are asked for one by one, so what arrives is the newest there was.

Only one worker holds a camera: a lock on a file of the service's own, inherited by the source process, so that it is
free only when both are gone. A successor starts its process at once, lets it wait until the old one is gone, and only
then opens the camera. Without pictures is a line for that long: the end of the old process, and opening the camera.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from edged.capture.feed import Feed, InspectFrame
from edged.capture.outputs import Notify
from edged.capture.wire import MAX_FRAME, Ended, Frame, FromSource, More, Opened, Start, Trouble
from edged.link.backoff import Backoff
from edged.worker import describe_exit
from edgekit.envelope import EnvelopeError, FrameReader, seal
from edgekit.messages import Decision
from edgekit.services import Source, place

log = logging.getLogger("edged.capture")

OPEN_S = 20.0
"""How long the process may take to open its source, its own start included."""
STEADY_S = 10.0
"""A source that delivered for so long is well again: its next failure is answered quickly."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
REFUSED_IN_A_ROW = 5
"""Unreadable pictures before people hear of them: a single torn frame is nothing unusual for USB."""
_LOCK_POLL_S = 0.02
_HAND_OVER_S = 20.0  # longer than an old worker takes to end
_READ = 262_144
_MAX_TEXT = 300

_decoder: msgspec.json.Decoder[FromSource] = msgspec.json.Decoder(FromSource)


def source_command(descriptor: int) -> list[str]:
    """The command line of the source process. -P keeps the working directory out of the module path."""
    return [sys.executable, "-P", "-m", "edged.capture.source", "--fd", str(descriptor)]


class CameraSource:
    """Feeds one service from one camera or recording. `run` until `stop`."""

    def __init__(
        self,
        service: str,
        source: Source,
        inspect: InspectFrame,
        notify: Notify,
        locks: Path,
        backoff: Backoff | None = None,
        command: Callable[[int], list[str]] = source_command,
    ) -> None:
        """`locks`: a directory for lock files, made if missing."""
        self._service, self._source, self._notify = service, source, notify
        self._place = place(source)
        self._lock_file = locks / f"{service}.lock"
        self._lock: int | None = None
        self._locked = False
        self._backoff = backoff or Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        self._command = command
        self._feed = Feed(f"camera:{service}", inspect, self._decided, self._refused)
        self._skipped = 0
        self._stopping = asyncio.Event()
        self._trouble = False
        self._refused_in_a_row = 0

    def stop(self) -> None:
        """Take no new frame; `run` ends the process and returns when the frames under way are decided."""
        self._stopping.set()

    async def run(self) -> None:
        """Read the source until stopped, or to the end of a recording."""
        try:
            while not self._stopping.is_set():
                try:
                    problem = await self._session()
                except OSError as error:
                    problem = f"its process cannot be started: {error.strerror or error}"
                except Exception:
                    log.exception("%s failed on its camera", self._service)
                    problem = "an internal error occurred; the log has the details"
                if problem is None or self._stopping.is_set():
                    break
                self._unhealthy(problem)
                await self._pause(self._backoff.next_s())
        finally:
            self._unlock()
        await self._feed.settled()

    async def _session(self) -> str | None:
        """One life of a source process. Returns why it ended, or None if nothing more is wanted of it."""
        if self._lock is None:
            self._lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command(theirs.fileno()),
                    pass_fds=(theirs.fileno(), self._lock),
                    stdin=asyncio.subprocess.DEVNULL,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        try:
            if not await self._unless_stopped(self._acquire()):
                return None
            return await self._unless_stopped(self._read(process, reader, writer))
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            writer.close()

    async def _unless_stopped(self, work: Coroutine[Any, Any, str | None]) -> str | None:
        """What `work` returns, or None as soon as we are to stop."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            for one in (task, stop):
                one.cancel()
            await asyncio.wait({task, stop})

    async def _acquire(self) -> str:
        """Wait for the lock."""
        waited = 0.0
        while not self._locked:
            assert self._lock is not None
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waited <= _HAND_OVER_S < waited + _LOCK_POLL_S:
                    self._unhealthy("another process has held it for too long")
                waited += _LOCK_POLL_S
                await asyncio.sleep(_LOCK_POLL_S)
                continue
            except OSError as error:  # a file system without locks: two workers overlap only while services change
                log.info("%s cannot be locked: %s", self._lock_file, error)
            self._locked = True
        return "locked"

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock, self._locked = None, False

    async def _read(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str | None:
        """Take frames until the process fails or ends. Returns why, None after a recording's end."""
        loop = asyncio.get_running_loop()
        frames = FrameReader(MAX_FRAME)
        writer.write(seal(Start(source=self._source)) + seal(More()))
        since, delivering, patience = loop.time(), False, OPEN_S
        deadline: float | None = since + patience
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    data = await reader.read(_READ)
            except TimeoutError:
                return f"it has sent no picture for {patience:.3g} s" if delivering else "it does not answer"
            except ConnectionError:
                data = b""
            if not data:
                return await self._death(process)
            try:
                for header, payload in frames.feed(data):
                    message = _decoder.decode(header)
                    if isinstance(message, Trouble):
                        return _plain(message.text)
                    if isinstance(message, Ended):
                        self._finished()
                        return None
                    if isinstance(message, Opened):
                        log.info("%s reads %s: %s", self._service, self._place, _plain(message.text))
                    else:
                        await self._take(message, payload)
                        writer.write(seal(More()))
                        if loop.time() - since > STEADY_S:
                            self._backoff.reset()
                    delivering, patience = True, self._silence_s()
                    deadline = loop.time() + patience if patience else None
            except (EnvelopeError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return "its process sent nonsense"

    async def _take(self, frame: Frame, picture: bytes) -> None:
        now = time.time()
        captured_at = frame.captured_at if now - 60 < frame.captured_at < now + 1 else now
        self._skipped += max(0, frame.skipped)
        self._healthy()
        self._feed.offer(picture, captured_at, _plain(frame.serial)[:200])
        await self._feed.room()

    def _silence_s(self) -> float:
        """How long no picture may come; 0.0 for any time. A recording may be as slow as it is."""
        source = self._source
        if source.kind == "replay" or not source.silent_s:
            return 0.0
        return source.silent_s + (1 / source.fps if source.fps else 0.0)

    async def _death(self, process: asyncio.subprocess.Process) -> str:
        """The process closed its end; it is given a moment to end by itself, so that its status can be told."""
        try:
            status = await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            return "its process hung up"
        return f"its process ended with {describe_exit(status)}"

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    # --- what people hear -------------------------------------------------------------------------------------------

    def _unhealthy(self, problem: str) -> None:
        log.warning("%s gets no pictures from %s: %s", self._service, self._place, problem)
        if not self._trouble:
            self._trouble = True
            self._notify(
                "warning",
                f"camera:{self._service}",
                f"{self._service} gets no pictures from {self._place}: {problem}; it is tried again",
            )

    def _healthy(self) -> None:
        if self._trouble:
            self._trouble = False
            self._notify("ok", f"camera:{self._service}", f"{self._service} gets pictures from {self._place} again")

    def _finished(self) -> None:
        frames = self._feed.counts.frames
        self._notify(
            "ok",
            f"camera:{self._service}",
            f"{self._service} has played {self._place} to its end: {frames} pictures, {self._skipped} skipped",
            passing=True,
        )

    def _decided(self, decision: Decision) -> None:
        if self._refused_in_a_row >= REFUSED_IN_A_ROW:
            self._notify("ok", f"picture-refused:{self._service}", f"{self._service} reads pictures again")
        self._refused_in_a_row = 0

    def _refused(self, text: str) -> None:
        self._refused_in_a_row += 1
        if self._refused_in_a_row == REFUSED_IN_A_ROW:
            self._notify(
                "warning",
                f"picture-refused:{self._service}",
                f"{self._service} cannot read the pictures that {self._place} sends: {text}",
            )


def _plain(text: str) -> str:
    """Text of the source process as it may be shown: one printable line."""
    return "".join(character if character.isprintable() else " " for character in text)[:_MAX_TEXT]
