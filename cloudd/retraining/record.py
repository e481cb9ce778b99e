"""What is durable about a job beside its request: one small file that is whole or absent."""

from __future__ import annotations

import msgspec

from edgekit.messages import FileEntry
from edgekit.messages.retraining import Stage


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Times are seconds since the epoch."""

    service: str
    stage: Stage = "receiving"
    text: str = ""  # a clause: why it ended so
    created_at: float
    ended_at: float | None = None
    breaks: int = 0  # of its process
    pictures: int = 0  # that it names
    bytes: int = 0  # of everything that it names
    removed: bool = False  # closed: an operator did not want its pictures to stay
    digest: str = ""  # done: of the candidate's package
    files: tuple[FileEntry, ...] = ()  # done: of that package
