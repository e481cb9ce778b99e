"""Outputs that are files on this machine: JSONL and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from edged.capture.outputs import table
from edged.capture.outputs.base import Notify
from edged.capture.outputs.lines import TAIL_BYTES, LineFile, rotated, tail_lines
from edgekit.messages import Decision, OutputReport
from edgekit.outputs import Output as Definition


class FileOutput:
    """One results file; several services may share it."""

    def __init__(self, definition: Definition, notify: Notify) -> None:
        self._path, self._keep, self._kind = Path(definition.path), definition.keep, definition.kind
        self._lines = LineFile(
            self._path,
            notify,
            head=table.HEAD if definition.kind == "csv" else b"",
            max_bytes=int(definition.max_mb * (1 << 20)),
            keep=definition.keep,
        )

    @property
    def key(self) -> str:
        return str(self._path)

    def files(self) -> Sequence[Path]:
        """The file and what rotation makes of it."""
        return [self._path, *rotated(self._path, self._keep)]

    def write(self, decision: Decision, line: bytes) -> None:
        """Queue one line; a thread writes it at once and syncs it within a second."""
        self._lines.write(self._content(decision, line))

    async def write_durably(self, decision: Decision, line: bytes) -> None:
        """Return once the line is synced. Raises OutputError."""
        await self._lines.write_durably(self._content(decision, line))

    def written(self, service: str) -> Mapping[str, Decision | None]:
        """What the last megabyte says, over a rotation if there was one lately. Raises OSError."""
        lines = tail_lines(self._path)
        if sum(map(len, lines)) < TAIL_BYTES // 2:
            lines = tail_lines(rotated(self._path, 1)[0]) + lines
        if self._kind == "csv":
            return {sample: None for line in lines if (sample := table.sample_of(line, service))}
        return {found.sample_id: found for line in lines if (found := _decision(line)) and found.service == service}

    def report(self) -> OutputReport:
        """How the file gets on."""
        problem, since = self._lines.trouble()
        return OutputReport(
            name=self.key,
            kind=self._kind,
            delivered=self._lines.delivered,
            waiting=self._lines.waiting(),
            dropped=self._lines.dropped,
            failing_since=since,
            problem=problem,
        )

    async def close(self) -> None:
        """Write and sync what is queued (one last try) and end the thread."""
        await self._lines.close()

    def _content(self, decision: Decision, line: bytes) -> bytes:
        return table.row(decision) if self._kind == "csv" else line


def jsonl_output(path: Path, notify: Notify) -> FileOutput:
    """The output that a watched folder without any gets."""
    return FileOutput(Definition(path=str(path)), notify)


def _decision(line: bytes) -> Decision | None:
    try:
        return msgspec.json.decode(line, type=Decision)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # others may write there as well
        return None
