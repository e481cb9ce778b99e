"""The file work of a watched folder: finding complete files, reading them, putting them away. Everything here blocks.

Names come from outside and the folder may be writable for others, so every file is opened relative to the opened
folder, links are never followed, and a file is put away only if it is still the one that was read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import logging
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edged.capture.kept import Kept
from edgekit.atomic import write_file
from edgekit.services import Source

log = logging.getLogger("edged.capture")

MAX_PICTURE = 16 << 20
"""Bytes of one file; the same as over HTTP."""
MAX_NAMES = 10_000
"""Names looked at in one pass; a fuller folder is worked off in several."""
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as it was found; another size or time is another file."""

    name: str
    size: int
    modified_ns: int

    @property
    def text(self) -> str:
        """The name for people and records: printable, though names need not even be UTF-8."""
        decoded = os.fsencode(self.name).decode("utf-8", "replace")
        return "".join(character if character.isprintable() else "\ufffd" for character in decoded)


class OpenFolder:
    """An opened and locked folder. Only one process watches a folder at a time."""

    def __init__(self, source: Source, directory: int, ignored: Collection[Path], kept: Kept | None) -> None:
        self._source, self._directory, self._kept = source, directory, kept
        self._path = Path(source.path)
        self._ignored = frozenset(ignored)
        self._seen: dict[FoundFile, float] = {}

    @classmethod
    def open(
        cls,
        source: Source,
        service: str,
        ignored: Collection[Path],
        kept_database: Path,
        make_room: Callable[[], bool],
    ) -> OpenFolder | None:
        """Open and lock the folder; None while another process has the lock. Raises OSError and StoreError.

        `ignored`: files in the folder that are no pictures of the source. `kept_database` is opened only where
        `after = "keep"` needs it; `make_room` frees disk space for it (see Database).
        """
        directory = os.open(source.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(directory)
            return None
        except OSError as error:  # a share without locks: two workers overlap only while services change
            log.info("the folder %s cannot be locked: %s", source.path, error)
        try:
            kept = Kept(kept_database, service, make_room) if source.after == "keep" else None
        except BaseException:
            os.close(directory)
            raise
        return cls(source, directory, ignored, kept)

    def close(self) -> None:
        """Give up folder and lock."""
        os.close(self._directory)
        if self._kept is not None:
            self._kept.close()

    def scan(self, now: float, busy: Collection[str]) -> list[FoundFile]:
        """The complete files that wait, oldest first, without those named in `busy`; `now` is monotonic seconds.

        Raises OSError, also when the path stands for another folder by now.
        """
        ours, there = os.fstat(self._directory), self._path.stat()
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise OSError(errno.ESTALE, "it was replaced by another folder")
        seen: dict[FoundFile, float] = {}
        ready: list[FoundFile] = []
        names: set[str] = set()
        complete = True
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if len(names) >= MAX_NAMES:
                    complete = False
                    break
                names.add(entry.name)
                file = self._candidate(entry)
                if file is None or file.name in busy:
                    continue
                if self._kept is not None and self._kept.has(file.name, file.modified_ns, file.size):
                    continue
                since = seen[file] = self._seen.get(file, now)
                if (now - since) * 1000 >= self._source.settle_ms:
                    ready.append(file)
        self._seen = seen
        if complete and self._kept is not None:
            self._kept.forget_all_but(names)
        return sorted(ready, key=lambda file: (file.modified_ns, file.name))

    def waiting(self) -> set[str]:
        """Names of the files that the last scan found waiting, complete or not, without the busy ones."""
        return {file.name for file in self._seen}

    def _candidate(self, entry: os.DirEntry[str]) -> FoundFile | None:
        name = entry.name
        if name.startswith(".") or name.lower().endswith(_UNFINISHED):
            return None
        if not fnmatch.fnmatchcase(name, self._source.pattern) or self._path / name in self._ignored:
            return None
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # gone meanwhile
            return None
        return FoundFile(name, status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None

    def read(self, file: FoundFile) -> bytes | None:
        """At most MAX_PICTURE + 1 bytes of the file; None if it is gone or not as it was found. Raises OSError."""
        try:
            opened = os.open(
                file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._directory
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                return None
            raise
        with os.fdopen(opened, "rb") as handle:
            status = os.fstat(opened)
            if not stat.S_ISREG(status.st_mode) or not _same(status, file):
                return None
            return handle.read(MAX_PICTURE + 1)

    def finish(self, file: FoundFile, sample_id: str) -> None:
        """Move, delete or remember a file whose decision is durable. Raises OSError."""
        if self._kept is not None:
            self._kept.add(file.name, file.modified_ns, file.size)
        elif self._source.after == "move":
            self._move(file, "done", sample_id)
        elif self._unchanged(file):
            os.unlink(file.name, dir_fd=self._directory)
            os.fsync(self._directory)

    def refuse(self, file: FoundFile, sample_id: str, reason: str) -> None:
        """Put a file that is no usable picture aside, with the reason beside it. Raises OSError."""
        if self._kept is not None:
            self._kept.add(file.name, file.modified_ns, file.size)
        else:
            self._move(file, "refused", sample_id, reason)

    def _unchanged(self, file: FoundFile) -> bool:
        """Whether the name still stands for what was read; a camera may have put a new picture in its place."""
        try:
            status = os.stat(file.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return _same(status, file)

    def _move(self, file: FoundFile, folder: str, sample_id: str, reason: str = "") -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o755, dir_fd=self._directory)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(folder, flags, dir_fd=self._directory)
        try:
            name = _free_name(target, file.name, sample_id)
            note = Path(
                f"/proc/self/fd/{target}", f"{name}.txt"
            )  # of the opened folder, whatever its name leads to now
            if reason:  # first the reason: a crash in between only refuses the file once more
                write_file(note, f"{file.text}: {reason}\n".encode(), 0o644)
            if self._unchanged(file):
                os.rename(file.name, name, src_dir_fd=self._directory, dst_dir_fd=target)
                os.fsync(target)
                os.fsync(self._directory)
            elif reason:
                note.unlink()
        finally:
            os.close(target)


def _same(status: os.stat_result, file: FoundFile) -> bool:
    return (status.st_size, status.st_mtime_ns) == (file.size, file.modified_ns)


def _free_name(directory: int, name: str, sample_id: str) -> str:
    """`name`, or one with the sample id in it if that is taken (or too long to have a .txt beside it)."""
    if len(os.fsencode(name)) <= 200:
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return name
    path = PurePosixPath(name)
    return f"{path.stem[:40]}-{sample_id}{path.suffix[:10]}"
