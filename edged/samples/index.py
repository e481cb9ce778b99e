"""The rows of the sample store. Not locked: the store serialises what changes them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from edged.samples import worth
from edged.samples.reading import PINNED, RARITY, Reading
from edged.samples.records import (
    MAX_SIGHTINGS,
    LabelRecord,
    NewSample,
    SealedHeader,
    Sighting,
    VersionInfo,
    counting,
)
from edgekit.datasets.dataset import Picture

_CHEAPEST = (
    f"SELECT s.id, s.bytes, s.damaged, s.value + {RARITY} AS worth FROM samples s"  # noqa: S608 - our own constants
    f" WHERE s.service = ? AND NOT s.removing AND NOT {PINNED} ORDER BY s.damaged DESC, worth, s.stored_at LIMIT ?"
)
_MAX_TWINS = 2000
"""Rows that are compared for one near-duplicate: a scene that never changes has one band for all of them."""


class Room(NamedTuple):
    """So many samples, and so many bytes on the disk."""

    items: int
    bytes: int


class Held(NamedTuple):
    """What recovery must know of a row."""

    removing: bool
    damaged: bool
    service: str  # "" if the file's header has never been read
    kek: str


class Index(Reading):
    """What changes the rows, and what only their owner must know."""

    def header(self, id: str) -> SealedHeader:
        """What belongs into the file of a sample that exists."""
        row = self._database.one("SELECT facts, stored_at FROM samples WHERE id = ?", (id,))
        assert row is not None
        facts = msgspec.json.decode(row["facts"], type=NewSample)
        return SealedHeader(
            facts=facts, stored_at=row["stored_at"], sightings=tuple(self.sightings(id)), labels=tuple(self.labels(id))
        )

    def twin(self, facts: NewSample, id: str, stored_at: float) -> str:
        """The oldest earlier sample of the service that looks the same, "" if there is none."""
        if facts.difference_hash is None:
            return ""
        pieces = worth.bands(facts.difference_hash)
        either = " OR ".join(f"(service = ? AND band{number} = ?)" for number in range(4))
        rows = self._database.query(
            f"SELECT id, hash, near FROM samples WHERE ({either}) AND NOT removing"  # noqa: S608 - column names only
            " AND stored_at <= ? ORDER BY stored_at LIMIT ?",
            [*(value for piece in pieces for value in (facts.service, piece)), stored_at, _MAX_TWINS],
        )
        for row in rows:
            alike = worth.difference(int(row["hash"], 16), facts.difference_hash) <= worth.NEAR_BITS
            if alike and row["id"] != id and row["near"] != id:
                return str(row["near"] or row["id"])
        return ""

    def mark_twins(self, ids: Collection[str]) -> None:
        """Find the near-duplicates among samples whose rows were made in any order."""
        rows = self._database.query(
            "SELECT id, facts, stored_at FROM samples WHERE service != '' ORDER BY stored_at, id"
        )
        for row in rows:
            if row["id"] not in ids:
                continue
            facts = msgspec.json.decode(row["facts"], type=NewSample)
            near = self.twin(facts, row["id"], row["stored_at"])
            if not near:
                continue
            with self._database.transaction() as tx:
                tx.execute("UPDATE samples SET near = ? WHERE id = ?", (near, row["id"]))
                _describe(tx, row["id"], facts, near)

    def count_of_class(self, service: str, labels: Sequence[str]) -> int:
        """Samples of the rarest of these classes."""
        sql = "SELECT n FROM class_counts WHERE service = ? AND label = ?"
        return min((self._number(sql, (service, label)) for label in labels), default=0)

    def _number(self, sql: str, parameters: Sequence[Any]) -> int:
        row = self._database.one(sql, parameters)
        return int(row[0]) if row is not None else 0

    # --- writing -----------------------------------------------------------------------------------------------------

    def insert(
        self,
        id: str,
        sha256: str,
        header: SealedHeader,
        size: int,
        pixels: tuple[int, int],
        near: str,
        kek: str,
        counter: str = "",
    ) -> None:
        """A new row with its sightings and labels; `size`: bytes on the disk, `pixels`: width and height.

        Counted under `counter` unless that is "".
        """
        with self._database.transaction() as tx:
            # What a row of the same id knows (a file that was damaged comes again) is in `header` already.
            tx.execute("DELETE FROM samples WHERE id = ?", (id,))
            facts = header.facts
            tx.execute(
                "INSERT INTO samples VALUES (?, ?, ?, '', '', 0, ?, ?, ?, ?, NULL, NULL, NULL, NULL, NULL, ?, 0, 0, 0,"
                " NULL, 0, ?, 0, 0, 0)",
                (id, facts.service, sha256, header.stored_at, size, *pixels, near, kek),
            )
            tx.executemany("INSERT INTO labels (id, record) VALUES (?, ?)", [(id, _json(one)) for one in header.labels])
            for one in header.sightings:
                _see(tx, id, one)
            _describe(tx, id, facts, near)
            if counter:
                _count(tx, facts.service, counter)

    def insert_unread(self, id: str, size: int, now: float, kek: str) -> None:
        """A row for a file whose header does not open: of another key, or damaged if `kek` is "" or the present one."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM samples WHERE id = ?", (id,))
            tx.execute(
                "INSERT INTO samples VALUES (?, '', '', '{}', '', 0, ?, ?, 0, 0, NULL, NULL, NULL, NULL, NULL, '',"
                " 0, 0, 0, NULL, 0, ?, ?, 0, 0)",
                (id, now, size, kek, kek in ("", self.kek)),
            )

    def update(self, id: str, facts: NewSample, sighting: Sighting | None = None) -> None:
        """Other facts of a known sample; its file does not say so yet."""
        with self._database.transaction() as tx:
            if sighting is not None:
                _see(tx, id, sighting)
            near = tx.execute("SELECT near FROM samples WHERE id = ?", (id,)).fetchone()[0]
            _describe(tx, id, facts, near)
            tx.execute("UPDATE samples SET dirty = 1 WHERE id = ?", (id,))

    def add_label(self, id: str, record: LabelRecord) -> None:
        """One more label; the file does not say so yet."""
        with self._database.transaction() as tx:
            tx.execute("INSERT INTO labels (id, record) VALUES (?, ?)", (id, _json(record)))
            row = tx.execute("SELECT facts, near FROM samples WHERE id = ?", (id,)).fetchone()
            _describe(tx, id, msgspec.json.decode(row["facts"], type=NewSample), row["near"])
            tx.execute("UPDATE samples SET dirty = 1 WHERE id = ?", (id,))

    def clean(self, id: str, size: int, kek: str) -> None:
        """The file says now what the rows say."""
        sql = "UPDATE samples SET dirty = 0, damaged = 0, bytes = ?, kek = ? WHERE id = ?"
        self._database.execute(sql, (size, kek, id))

    def dirty(self, limit: int) -> list[str]:
        """Ids of samples whose files do not know yet what the rows know."""
        sql = "SELECT id FROM samples WHERE dirty AND NOT damaged AND NOT removing AND kek = ? LIMIT ?"
        return [row[0] for row in self._database.query(sql, (self.kek, limit))]

    def damaged(self, ids: Iterable[str], is_damaged: bool = True) -> None:
        """Their files do not open, or are there again to be tried."""
        sql = "UPDATE samples SET damaged = ? WHERE id = ?"
        self._database.executemany(sql, [(is_damaged, id) for id in ids])

    def sealed_by(self, id: str, kek: str) -> None:
        """The file names another key than the row did."""
        self._database.execute("UPDATE samples SET kek = ? WHERE id = ?", (kek, id))

    def mark_removing(self, ids: Sequence[str]) -> None:
        """From here on they are gone for everybody; files and rows follow."""
        self._database.executemany("UPDATE samples SET removing = 1 WHERE id = ?", [(id,) for id in ids])

    def delete(self, ids: Sequence[str], counter: str) -> None:
        """Rows with all their history; counted under `counter` ("": not)."""
        with self._database.transaction() as tx:
            for id in ids:
                row = tx.execute("SELECT service FROM samples WHERE id = ?", (id,)).fetchone()
                tx.execute("DELETE FROM samples WHERE id = ?", (id,))
                if counter and row is not None:
                    _count(tx, row[0], counter)

    def count(self, service: str, counter: str) -> None:
        """One more."""
        with self._database.transaction() as tx:
            _count(tx, service, counter)

    # --- room --------------------------------------------------------------------------------------------------------

    def usage(self, service: str) -> Room:
        """What the samples of a service take."""
        row = self._database.one("SELECT items, bytes FROM usage WHERE service = ?", (service,))
        return Room(row["items"], row["bytes"]) if row is not None else Room(0, 0)

    def cheapest(self, service: str, need: Room, spare: Room, most: float) -> list[str]:
        """Ids of samples worth at most `most` that make this room, [] if they cannot.

        What is damaged goes first, then the least valuable, the oldest of equals; never what a dataset version names.
        What another key sealed keeps its place, because that key may come back. `spare` is taken besides if it can be
        had, so that not every new sample has to look for room.
        """
        wish = Room(need.items + spare.items if need.items else 0, need.bytes + spare.bytes if need.bytes else 0)
        limit = max(200, need.items)
        while True:
            rows = self._database.query(_CHEAPEST, (service, limit))
            fit = [row for row in rows if row["damaged"] or row["worth"] <= most]
            room = Room(0, 0)
            for row in fit:
                if room.items >= wish.items and room.bytes >= wish.bytes:
                    break
                room = Room(room.items + 1, room.bytes + row["bytes"])
            if room.items >= need.items and room.bytes >= need.bytes:
                return [row["id"] for row in fit[: room.items]]
            if len(rows) < limit or len(fit) < len(rows):
                return []
            limit *= 8

    def expired(self, service: str, before: float) -> list[str]:
        """Ids of the service that were stored before and that no dataset version names."""
        sql = "SELECT id FROM samples s WHERE service = ? AND stored_at < ? AND NOT removing AND NOT "
        return [row[0] for row in self._database.query(sql + PINNED, (service, before))]

    def clock_was_set(self, now: float, first: float) -> None:
        """Ages of what was stored before the clock was right count from now."""
        self._database.execute("UPDATE samples SET stored_at = ? WHERE stored_at < ?", (now, first))

    def states(self) -> dict[str, Held]:
        """Every row, for recovery."""
        rows = self._database.query("SELECT id, removing, damaged, service, kek FROM samples")
        return {
            row["id"]: Held(bool(row["removing"]), bool(row["damaged"]), row["service"], row["kek"]) for row in rows
        }

    # --- dataset versions ---------------------------------------------------------------------------------------------

    def add_version(self, info: VersionInfo, pictures: Sequence[Picture]) -> None:
        """A version with all its pictures, or none."""
        with self._database.transaction() as tx:
            tx.execute("INSERT INTO versions VALUES (?, ?, ?)", (info.name, info.service, _json(info)))
            rows = ((info.name, picture.file, _json(picture)) for picture in pictures)
            tx.executemany("INSERT INTO version_pictures VALUES (?, ?, ?)", rows)

    def delete_version(self, name: str) -> None:
        """With its list of pictures; an unknown one is fine."""
        self._database.execute("DELETE FROM versions WHERE name = ?", (name,))


def classes(facts: NewSample, label: LabelRecord | None) -> list[str]:
    """By what a sample's rarity counts: as labelled, else as edge and cloud say."""
    if label is not None:
        return label.label.names
    return sorted({opinion.label for opinion in (facts.edge, facts.cloud) if opinion is not None and opinion.label})


def _describe(tx: sqlite3.Connection, id: str, facts: NewSample, near: str) -> None:
    """Everything in the row that follows from facts and labels."""
    rows = tx.execute("SELECT record FROM labels WHERE id = ? ORDER BY seq", (id,)).fetchall()
    label = counting([msgspec.json.decode(row[0], type=LabelRecord) for row in rows])
    authority = label.authority if label is not None else 0
    pieces = (None,) * 4 if facts.difference_hash is None else worth.bands(facts.difference_hash)
    tx.execute(
        "UPDATE samples SET facts = ?, source = ?, captured_at = ?, hash = ?, band0 = ?, band1 = ?, band2 = ?,"
        " band3 = ?, disputed = ?, doubt = ?, value = ?, label = ?, authority = ? WHERE id = ?",
        (
            _json(facts),
            facts.source,
            facts.captured_at,
            None if facts.difference_hash is None else f"{facts.difference_hash:x}",
            *pieces,
            facts.disputed,
            worth.doubt(facts, bool(near)),
            worth.value(facts, bool(near), authority),
            _json(label) if label is not None else None,
            authority,
            id,
        ),
    )
    tx.execute("DELETE FROM classes WHERE id = ?", (id,))
    names = classes(facts, label)
    tx.executemany("INSERT INTO classes VALUES (?, ?, ?)", [(id, name, facts.service) for name in names])


def _see(tx: sqlite3.Connection, id: str, sighting: Sighting) -> None:
    tx.execute(
        "INSERT INTO sightings (id, sample_id, record) VALUES (?, ?, ?)", (id, sighting.sample_id, _json(sighting))
    )
    tx.execute(
        "DELETE FROM sightings WHERE id = ? AND seq NOT IN (SELECT seq FROM sightings WHERE id = ? ORDER BY seq DESC"
        " LIMIT ?)",
        (id, id, MAX_SIGHTINGS),
    )


def _count(tx: sqlite3.Connection, service: str, counter: str) -> None:
    tx.execute(
        "INSERT INTO counters VALUES (?, ?, 1) ON CONFLICT (service, name) DO UPDATE SET n = n + 1", (service, counter)
    )


def _json(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()
