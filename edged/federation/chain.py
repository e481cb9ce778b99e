"""The device's signed record of every round that it took part in: one JSON line each, only ever appended to.

Each record names the digest of the one before, so that none can be taken out of the middle or changed unnoticed; only
the end can be cut off, and cloudd, the other devices and the ledger know of the rounds that would be missing then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgekit.atomic import fsync_dir
from edgekit.faults import crash_point
from edgekit.secagg import audit
from edgekit.secagg.audit import Record

MAX_LINE = 4 << 20
"""Bytes of one record. A round with a hundred refusals has 50 KiB."""


class ChainError(ValueError):
    """The file cannot be read as a chain of records; the message says where."""


class Chain:
    """One writer at a time: the child process, which holds a lock."""

    def __init__(self, path: Path) -> None:
        """Open the file, made (0600) if there is none; a record that a power cut left half-written is cut off.

        Raises OSError, or ChainError if the last record cannot be read.
        """
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not path.exists()
        self._file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if new:
                fsync_dir(path.parent)
            last = self._settle()
            self.head = audit.record_digest(last) if last is not None else ""
            """What the next record's `previous` is."""
            self.newest = last
        except BaseException:
            os.close(self._file)
            raise

    def append(self, record: Record) -> None:
        """Add a signed record whose `previous` is `head`; durable when it returns. Raises OSError, ChainError."""
        if record.previous != self.head:
            raise ChainError("the record does not follow the last one")
        data = msgspec.json.encode(record) + b"\n"
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, data[: len(data) // 2])
            crash_point("federation.audit.torn")
            written += os.write(self._file, data[len(data) // 2 :])
            if written != len(data):
                raise OSError(28, "no space left for the audit record")
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        self.head, self.newest = audit.record_digest(record), record

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _settle(self) -> Record | None:
        """The last whole record; what follows it goes."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, MAX_LINE, max(0, size - MAX_LINE))
        whole = tail.rfind(b"\n") + 1
        if len(tail) - whole:
            if not whole and size > MAX_LINE:
                raise ChainError(f"{self.path.name} ends in more than {MAX_LINE} bytes that are no record")
            os.ftruncate(self._file, size - (len(tail) - whole))
            os.fsync(self._file)
        lines = tail[:whole].splitlines()
        return _decode(lines[-1], self.path, "the last record") if lines else None


def read(path: Path) -> Iterator[Record]:
    """All records, oldest first; none if there is no file. Raises ChainError for one that is none, OSError."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
        except FileNotFoundError:
            return
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE:
                    raise ChainError(f"record {number} of {path.name} is longer than {MAX_LINE} bytes")
                return  # being written, or left by a power cut: the next writer cuts it off
            yield _decode(line, path, f"record {number}")


def first_wrong(path: Path, public: bytes) -> int | None:
    """The number (from 1) of the first record that is not signed by the device or does not follow; None: all right.

    `public`: the device's compressed public key. Raises ChainError, OSError.
    """
    previous = ""
    for number, record in enumerate(read(path), 1):
        if record.previous != previous or audit.verify_records([record], public) is not None:
            return number
        previous = audit.record_digest(record)
    return None


def _decode(line: bytes, path: Path, what: str) -> Record:
    try:
        return msgspec.json.decode(line, type=Record)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ChainError(f"{what} of {path.name} cannot be read: {error}") from None
