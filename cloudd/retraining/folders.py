"""What lies on the disk for each device: its jobs, and its files by their hashes. Blocks; one caller at a time a job.

    DEVICE/jobs/JOB/request.json    as the device sent it: the manifest of its pictures
    DEVICE/jobs/JOB/record.json     where the job stands
    DEVICE/jobs/JOB/work/           of its process: plans, checkpoints
    DEVICE/jobs/JOB/result/         the candidate's package, whole or absent
    DEVICE/files/SHA256             a file that is there whole; SHA256.part: its beginning

Nothing of one device is ever looked for under another's name. A file that a job needs and an earlier job of the same
device has brought is not asked for again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from cloudd.retraining.errors import RetrainingError
from cloudd.retraining.record import JobRecord
from edgekit import atomic
from edgekit.messages.retraining import ENDED, RetrainRequest

REQUEST, RECORD, WORK, RESULT = "request.json", "record.json", "work", "result"
MAX_DEVICE = 8 << 30
"""Bytes of all files of a device."""
FREE_RESERVE = 2 << 30
"""Bytes of the disk that are left alone: answers and models need them more."""
_DEVICE = re.compile(r"[A-Za-z0-9-]{1,128}")
_JOB = re.compile(r"[0-9a-f]{32}")
_PART = ".part"


class DeviceFolder:
    """All of one device. `device`: its canonical id."""

    def __init__(self, root: Path, device: str) -> None:
        if not _DEVICE.fullmatch(device):
            raise RetrainingError(400, "this is no device id")
        self.device, self.path = device, root / device
        self.files = self.path / "files"

    def job(self, job: str) -> Path:
        """Where a job lies. Raises RetrainingError for what is no name of one."""
        if not _JOB.fullmatch(job):
            raise RetrainingError(404, "this is no job")
        return self.path / "jobs" / job

    def jobs(self) -> Iterator[tuple[str, JobRecord]]:
        """Every job that has a record; half a job, of a power cut at its beginning, is none."""
        folder = self.path / "jobs"
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if _JOB.fullmatch(path.name) and (found := self.record(path.name)) is not None:
                yield path.name, found

    # --- jobs ---------------------------------------------------------------------------------------------------------

    def begin(self, job: str, body: bytes, record: JobRecord) -> None:
        """A new job. Raises OSError."""
        path = self.job(job)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.files.mkdir(mode=0o700, exist_ok=True)
        atomic.fsync_dir(path.parent)
        atomic.write_file(path / REQUEST, body)
        self.keep(job, record)

    def request(self, job: str) -> RetrainRequest:
        """What was asked for. Raises OSError, msgspec.MsgspecError."""
        return msgspec.json.decode((self.job(job) / REQUEST).read_bytes(), type=RetrainRequest)

    def record(self, job: str) -> JobRecord | None:
        """Where a job stands; None without one, or if it cannot be read."""
        try:
            return msgspec.json.decode((self.job(job) / RECORD).read_bytes(), type=JobRecord)
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, job: str, record: JobRecord) -> None:
        """Store where a job stands; it is durable on return. Raises OSError."""
        atomic.write_file(self.job(job) / RECORD, msgspec.json.encode(record))

    def clear(self, job: str, *names: str) -> None:
        """Remove folders of a job."""
        for name in names:
            shutil.rmtree(self.job(job) / name, ignore_errors=True)

    def drop(self, job: str) -> None:
        """Remove a job."""
        shutil.rmtree(self.job(job), ignore_errors=True)

    def strip(self, job: str) -> None:
        """Nothing of a job stays but its record; of its files those that another job names."""
        (self.job(job) / REQUEST).unlink(missing_ok=True)
        self.clear(job, WORK, RESULT)
        self.remove_unused()

    def remove(self) -> bool:
        """Remove everything of the device; whether all of it is gone."""
        shutil.rmtree(self.path, ignore_errors=True)
        return not self.path.exists()

    # --- files --------------------------------------------------------------------------------------------------------

    def lacking(self, request: RetrainRequest) -> dict[str, int]:
        """SHA-256 -> bytes of what is not there whole."""
        there = {path.name for path in self.files.iterdir()} if self.files.is_dir() else set()
        return {sha256: size for sha256, size in request.files.items() if sha256 not in there}

    def have(self, sha256: str) -> int:
        """Bytes that are there of a file which is not whole."""
        try:
            return (self.files / f"{sha256}{_PART}").stat().st_size
        except OSError:
            return 0

    def store(self, sha256: str, size: int, offset: int, part: bytes) -> int:
        """Add bytes to a file of `size`; returns how many are there then: `size` only if it is whole and right.

        What does not go on where the file ends changes nothing; one that comes out wrong begins anew. Raises OSError.
        """
        path = self.files / f"{sha256}{_PART}"
        have = self.have(sha256)
        if offset != have or have + len(part) > size:
            return have
        with path.open("ab") as file:
            file.write(part)
            file.flush()
            if have + len(part) < size:
                return have + len(part)
            os.fsync(file.fileno())
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            path.unlink()
            return 0
        path.rename(self.files / sha256)
        atomic.fsync_dir(self.files)
        return size

    def room(self, more: int) -> str:
        """Why so many further bytes have no room, "" if they have. A sentence."""
        used = sum(path.stat().st_size for path in self.files.iterdir()) if self.files.is_dir() else 0
        if used + more > MAX_DEVICE:
            return f"this device's pictures have {used} bytes here, {more} more are too many ({MAX_DEVICE} are allowed)"
        place = next(one for one in (self.path, *self.path.parents) if one.is_dir())
        if more + FREE_RESERVE > shutil.disk_usage(place).free:
            return f"cloudd's disk has no room for {more} bytes"
        return ""

    # --- forgetting ---------------------------------------------------------------------------------------------------

    def forget(self, before: float) -> None:
        """Remove jobs that ended before a time (or never did, and began before it), and what nobody needs any more."""
        for job, record in list(self.jobs()):
            if max(record.created_at, record.ended_at or 0.0) < before:
                self.drop(job)
            elif record.stage in ENDED:  # it was killed before it could remove that
                self.clear(job, WORK)
                if record.removed:
                    self.strip(job)
        folder = self.path / "jobs"
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            if self.record(path.name) is None:
                shutil.rmtree(path, ignore_errors=True)
            else:
                atomic.sweep(path)
        self.remove_unused()

    def remove_unused(self) -> None:
        """Remove files that no job names; a folder without any job goes whole."""
        named: set[str] = set()
        for job, _ in self.jobs():
            try:
                named |= self.request(job).files.keys()
            except (OSError, msgspec.MsgspecError):
                continue
        if not any(self.jobs()):
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for path in list(self.files.iterdir()) if self.files.is_dir() else []:
            if path.name.removesuffix(_PART) not in named:
                path.unlink(missing_ok=True)


def folders(root: Path) -> list[DeviceFolder]:
    """Of every device that has one."""
    return [DeviceFolder(root, path.name) for path in root.iterdir() if _DEVICE.fullmatch(path.name)]
