"""A recording in place of a camera: a video file, or a folder of pictures, with the timing it was made with.

Pictures of a folder come in the order of their modification times, that much apart (`cp -p` keeps them); with `fps`
they come evenly instead, whatever `speed` says. Frames that come while nobody has time for them are skipped, as they
are from a camera.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from edged.capture.cameras.base import Picture, SourceError, reason
from edged.capture.cameras.video import Video
from edged.capture.pace import FASTEST
from edged.capture.wire import MAX_FRAME
from edgekit.services import Source

MAX_PAUSE_S = 10.0
"""Longer pauses between two pictures, nights for example, are cut to this."""
MAX_FILES = 100_000
_ENDINGS = (".jpg", ".jpeg", ".png")


def read(source: Source, wanted: Callable[[], bool], opened: Callable[[str], None]) -> Iterator[Picture]:
    """Frames of the recording, once or again and again; ends at its end. See Reader."""
    try:
        folder = stat.S_ISDIR(Path(source.path).stat().st_mode)
    except OSError as error:
        raise SourceError(f"it cannot be read: {reason(error)}") from None
    schedule = _Schedule(source.speed)
    for turn in count():
        told = opened if turn == 0 else _nothing
        frames = _folder(source, schedule, wanted, told) if folder else _video(source, schedule, wanted, told)
        began = time.monotonic()
        yield from frames
        if not source.repeat:
            return
        time.sleep(max(0.0, began + 1 / FASTEST - time.monotonic()))  # a turn without pauses must not take a whole core


class _Schedule:
    """When the next frame is due, counted from the first one, so that delays do not add up."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._due: float | None = None

    def wait(self, pause_s: float) -> None:
        """Sleep until `pause_s` seconds of the recording after the frame before."""
        now = time.monotonic()
        if self._due is None:
            self._due = now
        self._due += min(max(pause_s, 0.0), MAX_PAUSE_S) / self._speed
        time.sleep(max(0.0, self._due - now))


def _nothing(_: str) -> None:
    """The recording was announced before."""


def _video(
    source: Source, schedule: _Schedule, wanted: Callable[[], bool], opened: Callable[[str], None]
) -> Iterator[Picture]:
    video = Video(source.path, "protocol_whitelist;file")
    try:
        width, height = video.size
        opened(f"{video.codec or 'video'} {width}x{height} from a file")
        before: float | None = None
        while video.grab():
            position = video.position_s
            schedule.wait(0.0 if before is None else position - before)
            before = position
            if wanted() and (data := video.take()) is not None:
                yield Picture(data, time.time())
        if before is None:
            raise SourceError("it holds no picture that can be read")
    finally:
        video.close()


def _folder(
    source: Source, schedule: _Schedule, wanted: Callable[[], bool], opened: Callable[[str], None]
) -> Iterator[Picture]:
    files = _files(source)
    if not files:
        raise SourceError("it holds no picture that can be read")
    opened(f"{len(files)} pictures from a folder")
    before: float | None = None
    for modified, path in files:
        pause = source.speed / source.fps if source.fps else modified - before if before is not None else 0.0
        schedule.wait(pause)
        before = modified
        if not wanted():
            continue
        try:
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                data = file.read(MAX_FRAME + 1)
        except OSError:  # gone meanwhile
            continue
        serial = "".join(character if character.isprintable() else "\ufffd" for character in path.stem)[:200]
        yield Picture(data, time.time(), serial)


def _files(source: Source) -> list[tuple[float, Path]]:
    """Modification time and path of the pictures, oldest first."""
    found: list[tuple[float, Path]] = []
    try:
        with os.scandir(source.path) as entries:
            for entry in entries:
                if not entry.name.lower().endswith(_ENDINGS) or entry.name.startswith("."):
                    continue
                if fnmatch.fnmatchcase(entry.name, source.pattern) and entry.is_file(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_mtime, Path(entry.path)))
                if len(found) > MAX_FILES:
                    raise SourceError(f"the folder holds more than {MAX_FILES} pictures")
    except OSError as error:
        raise SourceError(f"it cannot be read: {reason(error)}") from None
    return sorted(found, key=lambda item: (item[0], item[1].name))
