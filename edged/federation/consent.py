"""Jobs that somebody at this device has to agree to, where its table says `ask = true`: on the page or by command."""

from __future__ import annotations

from collections.abc import Collection

from edged.api import ApiError
from edged.federation.notes import JobNote

OVER = ("refused", "stopped", "done")
"""Stages in which there is nothing left to agree to."""


def named(job: str, known: Collection[str]) -> str:
    """The id of the one job that begins so. Raises ApiError."""
    found = sorted(one for one in known if one.startswith(job.lower()))
    if len(found) != 1:
        raise ApiError(404, f"{len(found)} jobs begin with {job[:32]!r}; see edged fl status")
    return found[0]


def check(note: JobNote, ask: bool) -> None:
    """Raises ApiError where nobody asks, or the device is out of the job."""
    if note.stage in OVER:
        raise ApiError(409, f"this device is out of the job {note.job[:12]}: {note.text or note.stage}")
    if not ask:
        raise ApiError(409, "this device asks nobody: [federation] ask is false in edged.toml, and its policy decides")


def waits(note: JobNote, ask: bool, agreed: Collection[str]) -> bool:
    """Whether a job waits for somebody's word."""
    return ask and note.stage not in OVER and note.job not in agreed
