"""A file of lines, appended by a thread, so that a slow or full disk never delays an answer. Rotated by size."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections import deque
from pathlib import Path

from edged.capture.outputs.base import Notify, OutputError
from edgekit.atomic import fsync_dir

SYNC_S = 1.0
"""Lines reach the disk at most this much later; at once where somebody waits for it."""
RETRY_S = 1.0
MAX_PENDING_BYTES = 32 << 20
"""What may wait in memory for a disk that is full or gone; then the oldest line nobody waits for is given up."""
TAIL_BYTES = 1 << 20

MAX_BATCH_BYTES = 1 << 20

Line = tuple[bytes, asyncio.Future[None] | None]


class LineFile:
    """Appends lines to one file. `write` never blocks; `write_durably` waits until the line is on the disk.

    Several processes may append to the same file (an old worker finishes while the new one serves): every batch is
    written under a file lock. A line torn by a crash is cut off before the next one is written. A file that was renamed
    or removed by log rotation is opened anew.
    """

    def __init__(self, path: Path, notify: Notify, *, head: bytes = b"", max_bytes: int = 0, keep: int = 5) -> None:
        """`head`: first line of every new file; a file that begins otherwise is rotated away.

        A file that would grow beyond `max_bytes` (0: any size) becomes PATH.1, that one PATH.2, and so on to `keep`.
        """
        self.path = path
        self.delivered = 0  # lines on the disk
        self.dropped = 0
        self._head, self._max_bytes, self._keep = head, max_bytes, keep
        self._notify = notify
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._pending: deque[Line] = deque()
        self._pending_bytes = 0
        self._untold = 0  # of the dropped ones
        self._closing = False
        self._file: int | None = None
        self._trouble = ""
        self._trouble_since: float | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"output {path.name}", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queue one line (without its newline)."""
        self._queue(line, None)

    async def write_durably(self, line: bytes) -> None:
        """Queue one line and wait until it survives a power cut. Raises OutputError if that cannot be had."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._queue(line, future)
        await future

    async def close(self) -> None:
        """Write and sync what is queued (one last try each) and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._ended.wait()

    def _queue(self, line: bytes, future: asyncio.Future[None] | None) -> None:
        with self._wake:
            if self._closing:
                if future is not None:
                    future.set_exception(OutputError(f"{self.path} is closed"))
                return
            self._pending.append((line + b"\n", future))
            self._pending_bytes += len(line) + 1
            if self._pending_bytes > MAX_PENDING_BYTES:
                self._give_up_oldest()
            self._wake.notify()

    def _give_up_oldest(self) -> None:
        for index, (line, future) in enumerate(self._pending):
            if future is None:
                del self._pending[index]
                self._pending_bytes -= len(line)
                self.dropped += 1
                self._untold += 1
                return

    def _run(self) -> None:
        self._work()
        if self._file is not None:
            os.close(self._file)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._ended.set)

    def _work(self) -> None:
        unsynced = False
        sync_at = 0.0
        waiters: list[asyncio.Future[None]] = []
        while True:
            with self._wake:
                if not self._pending and not self._closing:
                    self._wake.wait(max(0.0, sync_at - time.monotonic()) if unsynced else None)
                batch, size = self._take_batch()
                last = self._closing and not self._pending
            if batch and not self._append(batch):
                with self._wake:
                    self._pending.extendleft(reversed(batch))
                    self._pending_bytes += size
                    if not self._closing:
                        self._wake.wait_for(lambda: self._closing, RETRY_S)
                        continue
                self._give_up_all()
                return
            if batch and not unsynced:
                unsynced, sync_at = True, time.monotonic() + SYNC_S
            waiters += [future for _, future in batch if future is not None]
            if unsynced and (last or waiters or time.monotonic() >= sync_at):
                fault = self._sync()
                for future in waiters:
                    self._settle(future, fault)
                waiters.clear()
                unsynced = False
            if last:
                return

    def _take_batch(self) -> tuple[list[Line], int]:
        """The oldest lines, up to MAX_BATCH_BYTES of them, and their size. Called with the lock held."""
        batch: list[Line] = []
        size = 0
        while self._pending and (not batch or size + len(self._pending[0][0]) <= MAX_BATCH_BYTES):
            batch.append(self._pending.popleft())
            size += len(batch[-1][0])
        self._pending_bytes -= size
        return batch, size

    def _give_up_all(self) -> None:
        """The output closes and its disk takes nothing: say how many decisions are lost."""
        for _, future in self._pending:
            if future is not None:
                self._settle(future, OutputError(f"{self.path} could not be written before the worker ended"))
        lost = sum(future is None for _, future in self._pending)
        self.dropped += lost
        if lost + self._untold:
            self._lost(lost + self._untold, "could not be written")

    def _settle(self, future: asyncio.Future[None], error: Exception | None) -> None:
        def settle() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle)

    def _append(self, batch: list[Line]) -> bool:
        """Append these lines or none of them; False if the disk did not take them."""
        data = b"".join(line for line, _ in batch)
        try:
            while not self._append_or_rotate(data):
                pass
        except OSError as error:
            self._report(error)
            return False
        self.delivered += len(batch)
        self._recovered()
        return True

    def _append_or_rotate(self, data: bytes) -> bool:
        """Append to the file, or put it away because it is full; False then. Raises OSError."""
        file = self._open()
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            if not self._is_ours(file):  # rotated by another worker while we waited for the lock
                return False
            _cut_torn_line(file)  # of this process after a failed write, or of another one that was killed
            size = os.fstat(file).st_size
            if size and (0 < self._max_bytes < size + len(data) or not self._has_head(file)):
                os.fsync(file)  # lines that nobody has synced yet leave with it
                self._rotate()
                return False
            _write_all(file, data if size else self._head + data)
            return True
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)

    def _has_head(self, file: int) -> bool:
        return os.pread(file, len(self._head), 0) == self._head

    def _rotate(self) -> None:
        """PATH becomes PATH.1 and so on; the lock on PATH keeps other workers from doing the same meanwhile."""
        names = [self.path, *rotated(self.path, self._keep)]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            with contextlib.suppress(FileNotFoundError):
                newer.rename(older)
        fsync_dir(self.path.parent)

    def _sync(self) -> OutputError | None:
        """Sync the file. After a failed sync nobody can know what is on the disk, so waiters are told to try again."""
        try:
            if self._file is not None:
                os.fsync(self._file)
        except OSError as error:
            self._report(error)
            return OutputError(f"{self.path} could not be synced: {error.strerror}")
        return None

    def _open(self) -> int:
        if self._file is not None:
            if self._is_ours(self._file):
                return self._file
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            if os.fstat(file).st_size == 0:  # the daemon's umask is for its own files; results are for the group
                os.fchmod(file, 0o640)
            fsync_dir(self.path.parent)
        except OSError:
            os.close(file)
            raise
        self._file = file
        return file

    def _is_ours(self, file: int) -> bool:
        """Whether the path still stands for this open file."""
        ours = os.fstat(file)
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def waiting(self) -> int:
        """Lines that are not in the file yet."""
        with self._wake:
            return len(self._pending)

    def trouble(self) -> tuple[str, float | None]:
        """Why the file cannot be written now, and since when (wall clock); empty if it can."""
        return self._trouble, self._trouble_since

    def _report(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        if self._trouble_since is None:
            self._trouble_since = time.time()
        if reason != self._trouble:
            self._trouble = reason
            self._notify(
                "error",
                f"output-stuck:{self.path}",
                f"decisions cannot be written to {self.path} ({reason}); they wait in memory and inspection goes on",
            )

    def _recovered(self) -> None:
        if not self._trouble:
            return
        self._trouble, self._trouble_since = "", None
        with self._wake:
            dropped, self._untold = self._untold, 0
        self._notify("ok", f"output-stuck:{self.path}", f"{self.path} is written again")
        if dropped:
            self._lost(dropped, "were given up while they waited to be written")

    def _lost(self, count: int, why: str) -> None:
        """What is lost stays lost, so this is an event and no item that could ever be over."""
        text = f"{count} decisions {why} to {self.path} and are missing there"
        self._notify("error", f"output-lost:{self.path}", text, passing=True)


def _write_all(file: int, data: bytes) -> None:
    """Append all of `data` or nothing. Raises OSError."""
    end = os.fstat(file).st_size
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(file, view) :]
    except OSError:
        os.ftruncate(file, end)
        raise


def _cut_torn_line(file: int) -> None:
    """Truncate the file behind its last newline; nothing behind it was ever durable."""
    position = end = os.fstat(file).st_size
    if end == 0 or os.pread(file, 1, end - 1) == b"\n":
        return
    while position > 0:
        start = max(0, position - 65_536)
        newline = os.pread(file, position - start, start).rfind(b"\n")
        if newline >= 0:
            position = start + newline + 1
            break
        position = start
    os.ftruncate(file, position)


def rotated(path: Path, keep: int) -> list[Path]:
    """The names of the files that are kept beside `path`, the newest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, keep + 1)]


def tail_lines(path: Path, limit: int = TAIL_BYTES) -> list[bytes]:
    """The whole lines among the last `limit` bytes of a file, oldest first; none if there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    try:
        end = os.fstat(file).st_size
        start = max(0, end - limit)
        data = os.pread(file, end - start, start)
    finally:
        os.close(file)
    lines = data.split(b"\n")
    return lines[1 if start else 0 : -1]
