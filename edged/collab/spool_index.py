"""The rows of the spool: one for each waiting sample, and totals that triggers keep right for every process."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from edged.collab.key_watch import Unreadable
from edged.store import Database
from edgekit.messages import HardSample, SpoolReport

WAITING, FINISHED, UNREADABLE = "waiting", "finished", "unreadable"

MIGRATIONS = [
    """
    CREATE TABLE samples (
        id TEXT PRIMARY KEY,
        service TEXT NOT NULL,
        answer_model TEXT NOT NULL,
        reason TEXT NOT NULL,
        value REAL NOT NULL,
        captured_at REAL NOT NULL,
        stored_at REAL NOT NULL,
        bytes INTEGER NOT NULL,
        state TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX samples_cheapest ON samples (value, stored_at);
    CREATE INDEX samples_next ON samples (state, value DESC, stored_at);
    CREATE INDEX samples_age ON samples (stored_at);
    CREATE TABLE totals (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO totals VALUES
        ('items', 0), ('bytes', 0), ('evicted', 0), ('delivered', 0), ('rejected', 0), ('expired', 0), ('purged', 0);
    CREATE TRIGGER samples_in AFTER INSERT ON samples BEGIN
        UPDATE totals SET n = n + CASE name WHEN 'items' THEN 1 ELSE NEW.bytes END WHERE name IN ('items', 'bytes');
    END;
    CREATE TRIGGER samples_out AFTER DELETE ON samples BEGIN
        UPDATE totals SET n = n - CASE name WHEN 'items' THEN 1 ELSE OLD.bytes END WHERE name IN ('items', 'bytes');
    END;
    """,
    # kek: id of the key that sealed the file, "" if unknown. held: the service's policy let nothing leave at last.
    "ALTER TABLE samples ADD COLUMN kek TEXT NOT NULL DEFAULT '';"
    "ALTER TABLE samples ADD COLUMN held INTEGER NOT NULL DEFAULT 0;",
    # features: what waits is no picture but what a head made of one.
    "ALTER TABLE samples ADD COLUMN features INTEGER NOT NULL DEFAULT 0;",
]

Held = Literal["none", "pictures", "all"]
"""What a service's policy keeps on the device."""

_HOLD = """
    UPDATE samples SET held = CASE ? WHEN 'all' THEN 1 WHEN 'pictures' THEN NOT features ELSE 0 END
    WHERE service = ? AND held != CASE ? WHEN 'all' THEN 1 WHEN 'pictures' THEN NOT features ELSE 0 END
"""

_CLOCK_WAS_UNSET = 1.7e9
"""Seconds since the epoch (November 2023). A row older than this program was stored before the clock had been set."""


class SpoolIndex:
    """Every statement the spool needs. Not locked: the spool serialises its calls."""

    def __init__(self, database: Database, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._totals: dict[str, int] = {}
        self._oldest: float | None = None
        self.attach(database)

    def attach(self, database: Database) -> None:
        """Use this (new, perhaps empty) database from now on."""
        self._database = database
        self.refresh()

    @property
    def bytes(self) -> int:
        """Disk bytes of all samples, in every process that has the spool open."""
        row = self._database.one("SELECT n FROM totals WHERE name = 'bytes'")
        return int(row[0]) if row else 0

    def report(self, quota: int) -> SpoolReport:
        """The totals of the last `refresh`; free of I/O."""
        totals = self._totals
        return SpoolReport(
            items=totals["items"],
            bytes=totals["bytes"],
            quota=quota,
            oldest_at=self._oldest,
            evicted=totals["evicted"],
            delivered=totals["delivered"],
        )

    def refresh(self) -> None:
        self._totals = {row["name"]: row["n"] for row in self._database.query("SELECT name, n FROM totals")}
        row = self._database.one("SELECT min(stored_at) FROM samples")
        self._oldest = row[0] if row else None

    def add(self, header: HardSample, size: int, value: float, kek: str) -> None:
        row = (header.sample_id, header.service, header.answer_model, header.reason, value, header.captured_at)
        self._insert((*row, self._wall(), size, WAITING, kek, header.features is not None))

    def add_unreadable(self, sample_id: str, size: int, kek: str) -> None:
        self._insert((sample_id, "", "", "", 0.0, 0.0, self._wall(), size, UNREADABLE, kek, False))

    def _insert(self, row: tuple[str | float, ...]) -> None:
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM samples WHERE id = ?", row[:1])  # not REPLACE, which would skip the trigger
            tx.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)", row)
        self.refresh()

    def count(self, counter: str, n: int) -> None:
        self._database.execute("UPDATE totals SET n = n + ? WHERE name = ?", (n, counter))
        self.refresh()

    def cheapest(self, need: int, value: float) -> list[str]:
        """Ids that free `need` bytes together, [] if they cannot.

        What does not open goes first, then what is worth at most `value`, the cheapest and oldest first.
        """
        limit = 64
        while True:
            unreadable = self._database.query(
                "SELECT id, bytes FROM samples WHERE state = ? ORDER BY value, stored_at LIMIT ?", (UNREADABLE, limit)
            )
            cheap = self._database.query(
                "SELECT id, bytes FROM samples WHERE value <= ? AND state != ? ORDER BY value, stored_at LIMIT ?",
                (value, UNREADABLE, limit),
            )
            rows, freed = [*unreadable, *cheap], 0
            for count, row in enumerate(rows, 1):
                freed += row["bytes"]
                if freed >= need:
                    return [row["id"] for row in rows[:count]]
            if max(len(unreadable), len(cheap)) < limit:
                return []
            limit *= 8

    def next(
        self,
        services: Collection[str],
        skip_models: Collection[str],
        skip_samples: Collection[str],
        wanted: Collection[str] | None,
    ) -> str | None:
        lists = (json.dumps(sorted(names)) for names in (services, wanted or (), skip_models, skip_samples))
        row = self._database.one(
            "SELECT id FROM samples WHERE state = ? AND NOT held AND service != ''"
            " AND (service IN (SELECT value FROM json_each(?))"
            " OR ? AND service NOT IN (SELECT value FROM json_each(?)))"
            " AND answer_model NOT IN (SELECT value FROM json_each(?)) AND id NOT IN (SELECT value FROM json_each(?))"
            " ORDER BY value DESC, stored_at LIMIT 1",
            (WAITING, next(lists), wanted is not None, *lists),
        )
        return row["id"] if row else None

    def finish(self, sample_id: str, counter: str) -> bool:
        """Mark as finished and count it; False if it was not waiting (another process was first)."""
        with self._database.transaction() as tx:
            update = "UPDATE samples SET state = ? WHERE id = ? AND state = ?"
            changed = tx.execute(update, (FINISHED, sample_id, WAITING)).rowcount == 1
            if changed:
                tx.execute("UPDATE totals SET n = n + 1 WHERE name = ?", (counter,))
        return changed

    def set_aside(self, sample_id: str, kek: str) -> None:
        self._database.execute("UPDATE samples SET state = ?, kek = ? WHERE id = ?", (UNREADABLE, kek, sample_id))

    def sort(self, kek: str) -> None:
        """Mark what another key than `kek` sealed as unreadable, and let everything else be tried (again)."""
        with self._database.transaction() as tx:
            tx.execute(
                "UPDATE samples SET state = ? WHERE state = ? AND kek NOT IN ('', ?)", (UNREADABLE, WAITING, kek)
            )
            tx.execute("UPDATE samples SET state = ? WHERE state = ? AND kek IN ('', ?)", (WAITING, UNREADABLE, kek))

    def unreadable(self, kek: str) -> Unreadable:
        """How many do not open while `kek` is the key."""
        row = self._database.one(
            "SELECT count(*), total(kek NOT IN ('', ?)) FROM samples WHERE state = ?", (kek, UNREADABLE)
        )
        return Unreadable(int(row[1]), int(row[0] - row[1])) if row else Unreadable(0, 0)

    def nameless(self, kek: str) -> list[str]:
        """Ids of the samples whose header has not been read, though `kek` may have sealed them."""
        rows = self._database.query("SELECT id FROM samples WHERE service = '' AND kek IN ('', ?)", (kek,))
        return [row["id"] for row in rows]

    def hold(self, service: str, held: Held) -> None:
        """What of the service's samples its policy keeps here, also when the service is gone."""
        self._database.execute(_HOLD, (held, service, held))

    def remove(self, ids: Sequence[str], counter: str | None) -> None:
        """Delete rows; those that were still there are counted under `counter`."""
        with self._database.transaction() as tx:
            deleted = tx.executemany("DELETE FROM samples WHERE id = ?", [(sample_id,) for sample_id in ids]).rowcount
            if counter is not None:
                tx.execute("UPDATE totals SET n = n + ? WHERE name = ?", (deleted, counter))
        self.refresh()

    def ids(self, service: str) -> list[str]:
        """All ids of one service, or of every service for ""."""
        return [
            row["id"] for row in self._database.query("SELECT id FROM samples WHERE ? IN ('', service)", (service,))
        ]

    def expired(self, service: str, days: float) -> list[str]:
        """Ids of the service stored more than `days` ago. Ages count from when the clock was first right."""
        sql = "SELECT id FROM samples WHERE service = ? AND stored_at < ?"
        return [row["id"] for row in self._database.query(sql, (service, self._oldest_allowed(days)))]

    def expired_others(self, wanted: Collection[str], days: float) -> list[str]:
        """As `expired`, for every service that is not in `wanted`."""
        sql = (
            "SELECT id FROM samples WHERE stored_at < ? AND service != ''"
            " AND service NOT IN (SELECT value FROM json_each(?))"
        )
        rows = self._database.query(sql, (self._oldest_allowed(days), json.dumps(sorted(wanted))))
        return [row["id"] for row in rows]

    def _oldest_allowed(self, days: float) -> float:
        now = self._wall()
        if now > _CLOCK_WAS_UNSET:
            self._database.execute("UPDATE samples SET stored_at = ? WHERE stored_at < ?", (now, _CLOCK_WAS_UNSET))
        return now - days * 86_400.0

    def states(self) -> dict[str, str]:
        """State of every row by id."""
        return {row["id"]: row["state"] for row in self._database.query("SELECT id, state FROM samples")}

    def close(self) -> None:
        self._database.close()
