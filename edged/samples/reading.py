"""What the rows of the sample store say: one sample, a search, the queue for labelling, numbers, dataset versions."""

from __future__ import annotations

import sqlite3

import msgspec

from edged.samples import worth
from edged.samples.records import LabelRecord, NewSample, Sample, SampleStats, Sighting, VersionInfo
from edged.store import Database
from edgekit.datasets.dataset import Picture

RARITY = (
    "coalesce((SELECT max(min(1.0, 1.0 * :rare / n.n)) FROM classes k JOIN class_counts n ON n.service = k.service"
    " AND n.label = k.label WHERE k.id = s.id), 0.0)"
).replace(":rare", str(worth.RARE))
"""Of a sample `s`: that of its rarest class."""
PINNED = "EXISTS (SELECT 1 FROM version_pictures v WHERE v.id = s.id)"
"""Whether a dataset version names the sample `s`."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which samples are meant; everything that is set must hold. Times are of capture, seconds since the epoch."""

    service: str = ""
    since: float | None = None
    until: float | None = None
    source: str = ""
    label: str = ""  # the class, as labelled or as the edge or the cloud says
    tag: str = ""
    labelled: bool | None = None


class Reading:
    """`kek` is the id of the present key: what another one sealed cannot be read."""

    def __init__(self, database: Database, kek: str) -> None:
        self._database, self.kek = database, kek

    def get(self, id: str) -> Sample | None:
        """One sample; None if there is none (any more)."""
        row = self._database.one("SELECT * FROM samples WHERE id = ? AND NOT removing", (id,))
        return self._sample(row) if row is not None else None

    def matching(self, prefix: str) -> list[str]:
        """Up to two ids that begin so."""
        sql = "SELECT id FROM samples WHERE id >= ? AND id < ? AND NOT removing ORDER BY id LIMIT 2"
        return [row[0] for row in self._database.query(sql, (prefix, prefix + "g"))]

    def labels(self, id: str) -> list[LabelRecord]:
        """All labels ever given, oldest first."""
        rows = self._database.query("SELECT record FROM labels WHERE id = ? ORDER BY seq", (id,))
        return [msgspec.json.decode(row[0], type=LabelRecord) for row in rows]

    def sightings(self, id: str) -> list[Sighting]:
        """When these bytes came, oldest first."""
        rows = self._database.query("SELECT record FROM sightings WHERE id = ? ORDER BY seq", (id,))
        return [msgspec.json.decode(row[0], type=Sighting) for row in rows]

    def of_decision(self, service: str, sample_id: str) -> str | None:
        """The sample that was kept of a decision."""
        sql = (
            "SELECT s.id FROM sightings g JOIN samples s ON s.id = g.id"
            " WHERE g.sample_id = ? AND s.service = ? AND NOT s.removing LIMIT 1"
        )
        row = self._database.one(sql, (sample_id, service))
        return row[0] if row is not None else None

    def pinned(self, id: str) -> list[str]:
        """Names of the dataset versions that a sample is in."""
        sql = "SELECT name FROM version_pictures WHERE id = ? ORDER BY name"
        return [row[0] for row in self._database.query(sql, (id,))]

    def services(self) -> list[str]:
        """Every service with samples, sorted."""
        return [row[0] for row in self._database.query("SELECT service FROM usage WHERE items ORDER BY service")]

    def select(self, which: Filter, limit: int) -> list[Sample]:
        """The newest first."""
        rows = self._database.query(
            "SELECT * FROM samples s WHERE NOT removing AND (? = '' OR service = ?)"
            " AND (? IS NULL OR captured_at >= ?) AND (? IS NULL OR captured_at < ?) AND (? = '' OR source = ?)"
            " AND (? = '' OR EXISTS (SELECT 1 FROM classes k WHERE k.id = s.id AND k.label = ?))"
            " AND (? = '' OR EXISTS (SELECT 1 FROM json_each(facts, '$.tags') WHERE value = ?))"
            " AND (? IS NULL OR (authority > 0) = ?) ORDER BY captured_at DESC, id LIMIT ?",
            [
                *(value for one in (which.service, which.since, which.until) for value in (one, one)),
                *(value for one in (which.source, which.label, which.tag, which.labelled) for value in (one, one)),
                limit,
            ],
        )
        return [self._sample(row) for row in rows]

    def queue(self, service: str, limit: int) -> list[Sample]:
        """Hard, disputed and doubtful samples that no operator has labelled and that open, the most useful first."""
        sql = (
            "SELECT s.* FROM samples s WHERE s.service = ? AND NOT s.removing AND NOT s.damaged AND s.kek = ?"
            " AND (s.source IN ('asked', 'disputed', 'doubtful', 'operator') OR s.disputed) AND NOT EXISTS"
            " (SELECT 1 FROM labels l WHERE l.id = s.id AND json_extract(l.record, '$.kind') = 'operator')"
            " ORDER BY s.doubt + "
        )
        rows = self._database.query(f"{sql}{RARITY} DESC, s.captured_at DESC LIMIT ?", (service, self.kek, limit))
        return [self._sample(row) for row in rows]

    def stats(self, service: str) -> SampleStats:
        """The samples of one service in numbers, or of all for ""."""
        row = self.totals(service)
        by_source = (
            "SELECT source, count(*) FROM samples WHERE (? = '' OR service = ?) AND NOT removing AND service != ''"
            " GROUP BY 1"
        )
        by_author = (
            "SELECT json_extract(label, '$.kind'), count(*) FROM samples WHERE (? = '' OR service = ?)"
            " AND authority > 0 AND NOT removing GROUP BY 1"
        )
        by_class = (
            "SELECT k.label, count(*) AS n FROM classes k JOIN samples s ON s.id = k.id"
            " WHERE (? = '' OR s.service = ?) AND s.authority > 0 AND NOT s.removing GROUP BY 1 ORDER BY n DESC, 1"
        )
        return SampleStats(
            service=service,
            items=row["items"],
            bytes=int(row["bytes"]),
            sources=self._numbers(by_source, service),
            labelled=self._numbers(by_author, service),
            labels=self._numbers(by_class, service),
            unusable=int(row["unusable"]),
            near=int(row["near"]),
            damaged=int(row["damaged"]),
            other_key=int(row["other_key"]),
            oldest_at=row["oldest_at"],
            counters=self._numbers(
                "SELECT name, sum(n) FROM counters WHERE (? = '' OR service = ?) GROUP BY 1", service
            ),
        )

    def _numbers(self, sql: str, service: str) -> dict[str, int]:
        return {str(row[0]): int(row[1]) for row in self._database.query(sql, (service, service))}

    def totals(self, service: str) -> sqlite3.Row:
        """items, bytes, unusable, near, damaged, other_key, oldest_at."""
        row = self._database.one(
            "SELECT count(*) AS items, total(bytes) AS bytes, total(near != '') AS near, total(damaged) AS damaged,"
            " total(NOT damaged AND kek != ?) AS other_key,"
            " min(CASE WHEN service != '' THEN captured_at END) AS oldest_at,"
            " total(authority > 0 AND coalesce(json_extract(label, '$.label.unusable'), 0)) AS unusable"
            " FROM samples WHERE NOT removing AND (? = '' OR service = ?)",
            (self.kek, service, service),
        )
        assert row is not None
        return row

    def _sample(self, row: sqlite3.Row) -> Sample:
        if not row["service"]:  # a file whose header was never read
            facts = NewSample(service="", source="import", captured_at=0.0)
        else:
            facts = msgspec.json.decode(row["facts"], type=NewSample)
        return Sample(
            id=row["id"],
            service=facts.service,
            sha256=row["sha256"],
            source=facts.source,
            captured_at=facts.captured_at,
            stored_at=row["stored_at"],
            bytes=row["bytes"],
            width=row["width"],
            height=row["height"],
            serial=facts.serial,
            group=facts.group or facts.serial,
            part=facts.part,
            edge=facts.edge,
            cloud=facts.cloud,
            tags=facts.tags,
            near=row["near"],
            label=msgspec.json.decode(row["label"], type=LabelRecord) if row["label"] else None,
            state="damaged" if row["damaged"] else "kept" if row["kek"] == self.kek else "other-key",
        )

    def versions(self) -> list[VersionInfo]:
        """The newest first."""
        rows = self._database.query("SELECT info FROM versions")
        found = [msgspec.json.decode(row[0], type=VersionInfo) for row in rows]
        return sorted(found, key=lambda info: (-info.made_at, info.name))

    def version_pictures(self, name: str, after: int = 0, limit: int = -1) -> tuple[list[Picture], list[Picture]]:
        """Of a version those that open and those that do not, in the order of their ids; `limit` of them after `after`.

        -1 is all.
        """
        rows = self._database.query(
            "SELECT v.picture, s.id IS NOT NULL AND NOT s.removing AND NOT s.damaged AND s.kek = ? AS opens"
            " FROM version_pictures v LEFT JOIN samples s ON s.id = v.id WHERE v.name = ?"
            " ORDER BY v.id LIMIT ? OFFSET ?",
            (self.kek, name, limit, after),
        )
        both: tuple[list[Picture], list[Picture]] = ([], [])
        for row in rows:
            both[0 if row["opens"] else 1].append(msgspec.json.decode(row["picture"], type=Picture))
        return both

    def ids(self, service: str) -> list[str]:
        """All samples of a service."""
        rows = self._database.query("SELECT id FROM samples WHERE service = ? AND NOT removing", (service,))
        return [row[0] for row in rows]

    def unreadable(self) -> list[str]:
        """What is damaged, or sealed with another key."""
        sql = "SELECT id FROM samples WHERE (damaged OR kek != ?) AND NOT removing"
        return [row[0] for row in self._database.query(sql, (self.kek,))]
