"""The database wrapper: migrations, durability settings, quarantine, concurrency, a full disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edged.store import WAL_LIMIT, Database, StoreError, is_corrupt, is_disk_full, open_reader

SCHEMA = ["CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL); CREATE INDEX t_v ON t (v);"]


def test_a_new_database_has_the_durable_settings_and_private_mode(tmp_path: Path) -> None:
    with Database(tmp_path / "sub" / "a.db", SCHEMA) as db:
        assert db.query("PRAGMA journal_mode")[0][0] == "wal"
        assert db.query("PRAGMA synchronous")[0][0] == 2
        assert db.query("PRAGMA journal_size_limit")[0][0] == WAL_LIMIT
        assert db.path.stat().st_mode & 0o777 == 0o600
        assert db.quarantined is None


def test_migrations_run_once_and_in_order_and_keep_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Database(path, SCHEMA) as db:
        assert db.execute("INSERT INTO t (v) VALUES ('old; with a semicolon')") == 1
    second = [*SCHEMA, "ALTER TABLE t ADD COLUMN n INTEGER NOT NULL DEFAULT 7; UPDATE t SET v = 'a;b';"]
    for _ in range(2):
        with Database(path, second) as db:
            row = db.one("SELECT v, n FROM t")
            assert row is not None and (row["v"], row["n"]) == ("a;b", 7)
            assert db.query("PRAGMA user_version")[0][0] == 2


def test_a_failed_migration_leaves_the_old_version(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Database(path, SCHEMA).close()
    with pytest.raises(StoreError, match="nonsense"):
        Database(path, [*SCHEMA, "CREATE TABLE u (x); INSERT INTO nonsense VALUES (1);"])
    with Database(path, SCHEMA) as db:
        assert db.query("SELECT name FROM sqlite_master WHERE name = 'u'") == []


def test_a_newer_database_is_refused_with_a_sentence_and_not_moved(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    Database(path, [*SCHEMA, "CREATE TABLE u (x);"]).close()
    with pytest.raises(StoreError, match="newer version of edged"):
        Database(path, SCHEMA)
    assert path.exists() and not list(tmp_path.glob("*.bad-*"))


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_quarantined_and_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.db"
    with Database(path, SCHEMA) as db, db.transaction() as tx:
        tx.executemany("INSERT INTO t (v) VALUES (?)", [("x" * 500,) for _ in range(400)])
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:100] = b"\xff" * 100
    else:
        content[8192:40960] = b"\x55" * (40960 - 8192)
    path.write_bytes(content)
    with Database(path, SCHEMA, wall=lambda: 1234.0) as db:
        assert db.quarantined == tmp_path / "a.db.bad-1234"
        assert db.quarantined.read_bytes() == bytes(content)
        assert db.query("SELECT * FROM t") == []
        db.execute("INSERT INTO t (v) VALUES ('new')")


def test_a_transaction_is_all_or_none(tmp_path: Path) -> None:
    with Database(tmp_path / "a.db", SCHEMA) as db:
        with pytest.raises(RuntimeError), db.transaction() as tx:
            tx.execute("INSERT INTO t (v) VALUES ('a')")
            raise RuntimeError("stop")
        assert db.query("SELECT * FROM t") == []


def test_a_committed_row_survives_kill_9(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from edged.store import Database\n"
        f"db = Database(Path(sys.argv[1]), {SCHEMA!r})\n"
        "db.execute(\"INSERT INTO t (v) VALUES ('kept')\")\n"
        "tx = db.transaction(); c = tx.__enter__(); c.execute(\"INSERT INTO t (v) VALUES ('open')\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.db")]).returncode == -9
    with Database(tmp_path / "a.db", SCHEMA) as db:
        assert [row["v"] for row in db.query("SELECT v FROM t")] == ["kept"]


def test_many_threads_and_a_reader_in_between(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with Database(path, SCHEMA) as db:
        threads = [
            threading.Thread(target=lambda: [db.execute("INSERT INTO t (v) VALUES ('x')") for _ in range(20)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader = open_reader(path)
        assert reader.execute("SELECT count(*) FROM t").fetchone()[0] == 80
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM t")
        reader.close()


def test_a_reader_of_a_missing_file_fails_and_creates_nothing(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        open_reader(tmp_path / "none.db")
    assert list(tmp_path.iterdir()) == []


def test_error_classes(tmp_path: Path) -> None:
    with Database(tmp_path / "a.db", SCHEMA) as db:
        db.query("PRAGMA max_page_count=4")
        with pytest.raises(sqlite3.OperationalError) as caught, db.transaction() as tx:
            for _ in range(100):
                tx.execute("INSERT INTO t (v) VALUES (?)", ("x" * 3000,))
        assert is_disk_full(caught.value) and not is_corrupt(caught.value)
        assert db.query("SELECT count(*) FROM t")[0][0] == 0
    assert not is_disk_full(OSError()) and not is_corrupt(ValueError())


@pytest.mark.parametrize("second", [False, True])
def test_a_process_that_ends_takes_no_row_with_it(tmp_path: Path, second: bool) -> None:
    """Also where this process opens the same file a second time, which must not cost the first its locks."""
    path = tmp_path / "a.db"
    child = (
        f"from pathlib import Path; from edged.store import Database; Database(Path({str(path)!r}), {SCHEMA!r}).close()"
    )
    with Database(path, SCHEMA) as db:
        db.execute("INSERT INTO t (v) VALUES ('before')")
        if second:
            with Database(path, SCHEMA) as other:
                other.execute("INSERT INTO t (v) VALUES ('second')")
        subprocess.run([sys.executable, "-c", child], check=True)
        db.execute("INSERT INTO t (v) VALUES ('after')")
        reader = open_reader(path)
        found = [row[0] for row in reader.execute("SELECT v FROM t ORDER BY id")]
        reader.close()
    assert found == (["before", "second", "after"] if second else ["before", "after"])
