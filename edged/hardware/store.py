"""What was chosen on this hardware, and what failed on it: one JSON file in the state directory.

An entry is valid for exactly the circumstances it was made in (StoreKey): the same hardware, kernel, runtimes,
profiles, model and power mode. Anything else is another entry, so that going back to an old model costs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import msgspec

from edged.hardware.settings import Choice, Failure, Objective
from edgekit import atomic

MAX_BYTES = 16 << 20
MAX_ENTRIES = 200
_MAX_FAILURES = 64


class StoreKey(msgspec.Struct, frozen=True, kw_only=True):
    """The circumstances. Equal ones have the same `digest`."""

    fingerprint: str  # of the facts; no serial number in it
    kernel: str
    runtimes: dict[str, str]  # runtime/provider -> version
    profiles: list[str]  # id@version
    model: str  # digest of the package
    power_mode: str = ""
    cpus: int = 0  # usable ones: a container may get fewer tomorrow
    interpreters: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice is for."""

    objective: Objective
    rate: float | None = None
    deadline_ms: float | None = None

    @property
    def key(self) -> str:
        return msgspec.json.encode(self, order="deterministic").decode()


class _Entry(msgspec.Struct, kw_only=True):
    key: StoreKey
    choices: dict[str, Choice] = {}  # by Need.key
    failures: list[Failure] = []
    used: float = 0.0  # Unix time


class _File(msgspec.Struct, kw_only=True):
    schema: int = 1
    entries: dict[str, _Entry] = {}


class ChoiceStore:
    """Blocking, small and quick; one process writes. A file that cannot be read is set aside, and adaptation begins
    anew: the store saves time, it holds nothing that could not be measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = self._read()

    def find(self, key: StoreKey, need: Need) -> Choice | None:
        """The choice made in exactly these circumstances for exactly this need."""
        entry = self._file.entries.get(key.digest)
        return entry.choices.get(need.key) if entry is not None else None

    def last(self, model: str, need: Need) -> Choice | None:
        """The newest choice for this model and need in any circumstances: a guess to begin with, no more."""
        found = [
            e.choices[need.key] for e in self._file.entries.values() if e.key.model == model and need.key in e.choices
        ]
        return max(found, key=lambda choice: choice.at, default=None)

    def put(self, key: StoreKey, need: Need, choice: Choice) -> None:
        """Remember a choice. Raises OSError if it cannot be written."""
        entry = self._entry(key, choice.at)
        entry.choices[need.key] = choice
        self._write()

    def failures(self, key: StoreKey) -> list[Failure]:
        """Settings that must not be tried in these circumstances."""
        entry = self._file.entries.get(key.digest)
        return list(entry.failures) if entry is not None else []

    def add_failure(self, key: StoreKey, failure: Failure) -> None:
        """Remember a failure, also of a setting that was chosen before. Raises OSError if it cannot be written."""
        entry = self._entry(key, failure.at)
        kept = [one for one in entry.failures if one.setting != failure.setting]
        entry.failures = [*kept, failure][-_MAX_FAILURES:]
        entry.choices = {need: c for need, c in entry.choices.items() if c.setting != failure.setting}
        self._write()

    def forget_failures(self, key: StoreKey) -> None:
        """Give everything another chance in these circumstances. Raises OSError if it cannot be written."""
        entry = self._file.entries.get(key.digest)
        if entry is not None and entry.failures:
            entry.failures = []
            self._write()

    def forget(self, model: str) -> None:
        """Drop all that is known about one model (by the digest of its package). Raises OSError."""
        self._file.entries = {d: entry for d, entry in self._file.entries.items() if entry.key.model != model}
        self._write()

    def _entry(self, key: StoreKey, at: float) -> _Entry:
        entry = self._file.entries.setdefault(key.digest, _Entry(key=key))
        entry.used = max(entry.used, at)
        return entry

    def _read(self) -> _File:
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return _File()
        except OSError:
            return self._set_aside()
        try:
            found = msgspec.json.decode(data, type=_File) if len(data) <= MAX_BYTES else None
        except (msgspec.DecodeError, RecursionError):
            found = None
        if found is None or found.schema != 1:
            return self._set_aside()
        return found

    def _set_aside(self) -> _File:
        with contextlib.suppress(OSError):
            self._path.replace(self._path.with_name(self._path.name + ".bad"))
        return _File()

    def _write(self) -> None:
        entries = self._file.entries
        for digest in sorted(entries, key=lambda digest: entries[digest].used)[: max(0, len(entries) - MAX_ENTRIES)]:
            del entries[digest]
        atomic.write_file(self._path, msgspec.json.encode(self._file))
