"""The tables of the sample store.

In a table WITHOUT ROWID the columns of the key come first, or quick_check of SQLite 3.40 takes the others for NULL.
"""

from __future__ import annotations

MIGRATIONS = [
    """
    CREATE TABLE samples (
        id TEXT PRIMARY KEY,
        service TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        facts TEXT NOT NULL,
        source TEXT NOT NULL,
        captured_at REAL NOT NULL,
        stored_at REAL NOT NULL,
        bytes INTEGER NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        hash TEXT,
        band0 INTEGER, band1 INTEGER, band2 INTEGER, band3 INTEGER,
        near TEXT NOT NULL,
        disputed INTEGER NOT NULL,
        doubt REAL NOT NULL,
        value REAL NOT NULL,
        label TEXT,
        authority INTEGER NOT NULL,
        kek TEXT NOT NULL,
        damaged INTEGER NOT NULL,
        removing INTEGER NOT NULL,
        dirty INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX samples_newest ON samples (service, captured_at);
    CREATE INDEX samples_age ON samples (stored_at);
    CREATE INDEX samples_dirty ON samples (dirty) WHERE dirty;
    CREATE INDEX samples_band0 ON samples (service, band0);
    CREATE INDEX samples_band1 ON samples (service, band1);
    CREATE INDEX samples_band2 ON samples (service, band2);
    CREATE INDEX samples_band3 ON samples (service, band3);

    CREATE TABLE classes (
        id TEXT NOT NULL REFERENCES samples ON DELETE CASCADE,
        label TEXT NOT NULL,
        service TEXT NOT NULL,
        PRIMARY KEY (id, label)
    ) WITHOUT ROWID;
    CREATE INDEX classes_label ON classes (service, label);
    CREATE TABLE class_counts (
        service TEXT NOT NULL,
        label TEXT NOT NULL,
        n INTEGER NOT NULL,
        PRIMARY KEY (service, label)
    ) WITHOUT ROWID;
    CREATE TRIGGER classes_in AFTER INSERT ON classes BEGIN
        INSERT OR IGNORE INTO class_counts VALUES (NEW.service, NEW.label, 0);
        UPDATE class_counts SET n = n + 1 WHERE service = NEW.service AND label = NEW.label;
    END;
    CREATE TRIGGER classes_out AFTER DELETE ON classes BEGIN
        UPDATE class_counts SET n = n - 1 WHERE service = OLD.service AND label = OLD.label;
    END;

    CREATE TABLE sightings (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL REFERENCES samples ON DELETE CASCADE,
        sample_id TEXT NOT NULL,
        record TEXT NOT NULL
    );
    CREATE INDEX sightings_of ON sightings (id);
    CREATE INDEX sightings_by ON sightings (sample_id);

    CREATE TABLE labels (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL REFERENCES samples ON DELETE CASCADE,
        record TEXT NOT NULL
    );
    CREATE INDEX labels_of ON labels (id);

    CREATE TABLE versions (
        name TEXT PRIMARY KEY,
        service TEXT NOT NULL,
        info TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE version_pictures (
        name TEXT NOT NULL REFERENCES versions ON DELETE CASCADE,
        id TEXT NOT NULL,
        picture TEXT NOT NULL,
        PRIMARY KEY (name, id)
    ) WITHOUT ROWID;
    CREATE INDEX version_pictures_id ON version_pictures (id);

    CREATE TABLE usage (
        service TEXT PRIMARY KEY,
        items INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TRIGGER samples_in AFTER INSERT ON samples BEGIN
        INSERT OR IGNORE INTO usage VALUES (NEW.service, 0, 0);
        UPDATE usage SET items = items + 1, bytes = bytes + NEW.bytes WHERE service = NEW.service;
    END;
    CREATE TRIGGER samples_out AFTER DELETE ON samples BEGIN
        UPDATE usage SET items = items - 1, bytes = bytes - OLD.bytes WHERE service = OLD.service;
    END;
    CREATE TRIGGER samples_resized AFTER UPDATE OF bytes ON samples BEGIN
        UPDATE usage SET bytes = bytes + NEW.bytes - OLD.bytes WHERE service = NEW.service;
    END;
    CREATE TABLE counters (
        service TEXT NOT NULL,
        name TEXT NOT NULL,
        n INTEGER NOT NULL,
        PRIMARY KEY (service, name)
    ) WITHOUT ROWID;
    """,
]
