"""The services this device should run: durable in `edged.db` and as files that people can read and edit.

A change (from `edged services`, or a desired state from cloudd) is one transaction that also notes which files have to
be written; then the files are written; then the note is removed. After a power cut between these steps the note is
carried out at the next start, so table and files agree again. Without a note the files win: somebody edited them.

What was defined on this device belongs to it: cloudd's desired state neither overwrites nor removes it. A local change
that replaces something of cloudd's, or removes something that may have been in its way, clears the revision that is
followed, so that cloudd's wish is looked at again.

Beside the newest definition of each service the last good one is kept, and which combination of definition and model
failed, so that a restart comes up with what worked. Models that are served without a service have entries of the same
kind: a name that no service can have, and the wanted reference in the place of the definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from edged.paths import check_paths
from edged.store import Database
from edgekit import atomic
from edgekit.faults import crash_point
from edgekit.services import MAX_SERVICE, Service, ServiceError, parse_service

MIGRATIONS = [
    """
    CREATE TABLE services (
        name TEXT PRIMARY KEY,
        text TEXT NOT NULL,
        origin TEXT NOT NULL,
        good_text TEXT NOT NULL DEFAULT '',
        good_ref TEXT NOT NULL DEFAULT '',
        refused_key TEXT NOT NULL DEFAULT '',
        refused_why TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE pending_files (name TEXT PRIMARY KEY, text TEXT);
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
    """
    CREATE TABLE served_models (
        name TEXT PRIMARY KEY,
        text TEXT NOT NULL,
        origin TEXT NOT NULL DEFAULT 'local',
        good_text TEXT NOT NULL DEFAULT '',
        good_ref TEXT NOT NULL DEFAULT '',
        refused_key TEXT NOT NULL DEFAULT '',
        refused_why TEXT NOT NULL DEFAULT ''
    );
    """,
]
MAX_SERVICES = 64
"""Services on one device; their definitions must fit into one frame to the worker together."""
MAX_SERVED = 64
"""Models served without a service. Memory is the tighter limit, but a list needs an end."""

_FOLLOW = "INSERT OR REPLACE INTO facts VALUES ('revision', ?)"

Origin = Literal["local", "cloud"]

_MODEL = "model:"

# Each once for services and once for models without one.
_MARK_GOOD = (
    "UPDATE services SET good_text = ?, good_ref = ? WHERE name = ? AND (good_text != ? OR good_ref != ?)",
    "UPDATE served_models SET good_text = ?, good_ref = ? WHERE name = ? AND (good_text != ? OR good_ref != ?)",
)
_MARK_REFUSED = (
    "UPDATE services SET refused_key = ?, refused_why = ? WHERE name = ?",
    "UPDATE served_models SET refused_key = ?, refused_why = ? WHERE name = ?",
)
_FORGIVE = (
    "UPDATE services SET refused_key = '', refused_why = '' WHERE refused_key != '' AND (? OR good_text = '')",
    "UPDATE served_models SET refused_key = '', refused_why = '' WHERE refused_key != '' AND (? OR good_text = '')",
)


def model_entry(wanted: str) -> str:
    """The name of the entry for a model that is served without a service. No service can have it."""
    return _MODEL + wanted


def is_model(name: str) -> bool:
    """Whether an entry's name is that of a model without a service."""
    return name.startswith(_MODEL)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One wanted service, or model without one, and what is known about running it."""

    name: str
    text: str  # the newest definition; of a model the wanted reference, NAME or NAME@VERSION
    origin: Origin
    good_text: str = ""  # the newest definition that became ready
    good_ref: str = ""  # and the package it ran with, name@version
    refused_key: str = ""  # combination_key of what did not become ready
    refused_why: str = ""


class Change(NamedTuple):
    """What one change does. `put` maps names to definition texts."""

    put: Mapping[str, str] = {}
    remove: Iterable[str] = ()
    origin: Origin = "local"
    revision: str | None = None  # of a desired state from cloudd; "" if it is followed only in part


def combination_key(text: str, ref: str) -> str:
    """Names one definition run with one package."""
    return hashlib.sha256(f"{ref}\0{text}".encode()).hexdigest()[:32]


def check_desired(
    texts: Iterable[str], origin: str, allowed: Sequence[Path], hosts: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Parse what cloudd wants: (name -> text of the good ones, sentences about the bad ones).

    `allowed` are the directories that cloudd's definitions may name, `hosts` the receivers of decisions.
    """
    good: dict[str, str] = {}
    problems: list[str] = []
    for text in texts:
        try:
            service = parse_service(text, origin)
            check_paths(service, allowed, origin, hosts)
            if len(good) >= MAX_SERVICES:
                raise ServiceError(f"more than {MAX_SERVICES} services were asked for; {service.name} is left out")
            good[service.name] = text
        except ServiceError as error:
            problems.append(str(error))
    return good, problems


class DesiredStore:
    """Table and files of the wanted services. Blocking; use it from one thread at a time."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self) -> list[str]:
        """Finish an interrupted change, then take over what people did to the files.

        Returns a sentence for each file that cannot be used; the service it used to hold, if any, goes on unchanged.
        """
        self._write_pending()
        return self.read_files()

    def read_files(self) -> list[str]:
        """Take over edited, added and removed files. Returns sentences about those that cannot be used."""
        found, problems = self._parse_files()
        known = {entry.name: entry for entry in self.entries()}
        changed = [name for name, text in found.items() if name not in known or known[name].text != text]
        removed = [name for name in known.keys() - found.keys() if not self._path(name).exists()]
        with self._database.transaction() as connection:
            for name in changed:
                _upsert(connection.execute, name, found[name], "local")
            for name in removed:
                connection.execute("DELETE FROM services WHERE name = ?", (name,))
            if _touches_cloud(known, changed, removed):
                connection.execute(_FOLLOW, ("",))
        return problems

    def entries(self) -> list[Entry]:
        """All wanted services by name."""
        rows = self._database.query("SELECT * FROM services ORDER BY name")
        return [msgspec.convert(dict(row), Entry) for row in rows]

    def models(self) -> list[Entry]:
        """All models that are to be served without a service, by name."""
        rows = self._database.query("SELECT * FROM served_models ORDER BY name")
        return [msgspec.convert(dict(row), Entry) for row in rows]

    def serve(self, wanted: str) -> None:
        """Serve this model (NAME or NAME@VERSION) without a service. A refusal is forgotten: it is tried again."""
        self._database.execute(
            "INSERT INTO served_models (name, text) VALUES (?, ?) "
            "ON CONFLICT (name) DO UPDATE SET refused_key = '', refused_why = ''",
            (model_entry(wanted), wanted),
        )

    def unserve(self, wanted: str) -> None:
        """Serve it no longer, as far as no service runs it."""
        self._database.execute("DELETE FROM served_models WHERE name = ?", (model_entry(wanted),))

    def revision(self) -> str:
        """Revision of the desired state from cloudd that is followed, "" for none."""
        row = self._database.one("SELECT value FROM facts WHERE name = 'revision'")
        return str(row["value"]) if row else ""

    def apply(self, change: Change) -> None:
        """Make `change` durable, then write its files. Raises sqlite3.Error or OSError; then nothing is half-done."""
        removed = [name for name in change.remove if name not in change.put]
        known = {entry.name: entry for entry in self.entries()}
        revision = change.revision
        if revision is None and change.origin == "local" and _touches_cloud(known, change.put, removed):
            revision = ""
        with self._database.transaction() as connection:
            for name, text in change.put.items():
                _upsert(connection.execute, name, text, change.origin)
                connection.execute("INSERT OR REPLACE INTO pending_files VALUES (?, ?)", (name, text))
            for name in removed:
                connection.execute("DELETE FROM services WHERE name = ?", (name,))
                connection.execute("INSERT OR REPLACE INTO pending_files VALUES (?, NULL)", (name,))
            if revision is not None:
                connection.execute(_FOLLOW, (revision,))
        crash_point("supervisor.desired-written")
        self._write_pending()
        crash_point("supervisor.files-written")

    def mark_good(self, name: str, text: str, ref: str) -> None:
        """This definition became ready with this package."""
        self._database.execute(_MARK_GOOD[is_model(name)], (text, ref, name, text, ref))

    def mark_refused(self, name: str, key: str, why: str) -> None:
        """This combination did not become ready; it is not tried again until somebody changes something."""
        self._database.execute(_MARK_REFUSED[is_model(name)], (key, why, name))

    def forgive(self, *, hopeless_only: bool = False) -> None:
        """Let what was refused be tried again; `hopeless_only`: where there is no last good definition to lose."""
        for statement in _FORGIVE:
            self._database.execute(statement, (not hopeless_only,))

    def _write_pending(self) -> None:
        rows = self._database.query("SELECT name, text FROM pending_files")
        for row in rows:
            path = self._path(row["name"])
            if row["text"] is None:
                path.unlink(missing_ok=True)
                atomic.fsync_dir(self._directory)
            else:
                atomic.write_file(path, row["text"].encode())
        if rows:
            self._database.execute("DELETE FROM pending_files")

    def _parse_files(self) -> tuple[dict[str, str], list[str]]:
        found: dict[str, str] = {}
        problems: list[str] = []
        for path in sorted(self._directory.glob("*.toml")):
            if path.name.startswith("."):
                continue
            try:
                text = _read_definition(path)
                service = parse_service(text, path.name)
                if service.name != path.stem:
                    raise ServiceError(f"{path.name} defines the service {service.name}; rename it {service.name}.toml")
                if len(found) >= MAX_SERVICES:
                    raise ServiceError(f"{path.name} is left out: {MAX_SERVICES} services are allowed")
                found[service.name] = text
            except ServiceError as error:
                problems.append(str(error))
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{path.name} cannot be read: {error}")
        return found, problems

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.toml"


@lru_cache(maxsize=2 * MAX_SERVICES)
def parse(entry_text: str) -> Service:
    """A definition out of the table; it was checked on its way in. Raises ServiceError after a downgrade of edged.

    It is asked for many times a second, by everything that looks at services.
    """
    return parse_service(entry_text, "stored definition")


def _touches_cloud(known: Mapping[str, Entry], put: Iterable[str], removed: Iterable[str]) -> bool:
    """A local change replaces what cloudd set, or removes what it could not replace."""
    origins = {name: entry.origin for name, entry in known.items()}
    replaced = any(origins.get(name) == "cloud" for name in put)
    return replaced or any(origins.get(name) == "local" for name in removed)


def _read_definition(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(MAX_SERVICE + 1).decode("utf-8")


def _upsert(execute: Callable[[str, tuple[str, str, str]], object], name: str, text: str, origin: Origin) -> None:
    """A new definition is worth a new try, so it clears the refusal; the last good one stays."""
    execute(
        "INSERT INTO services (name, text, origin) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET "
        "text = excluded.text, origin = excluded.origin, refused_key = '', refused_why = ''",
        (name, text, origin),
    )
