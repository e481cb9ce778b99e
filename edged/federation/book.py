"""What a device has done and may still do in federated learning, in SQLite: durable when a method returns.

The child process writes it, the supervisor reads it and notes what people refuse. If the file is lost or damaged, the
device can no longer know what it has signed or sent, so it takes part in nothing until a person says so (`forgive`).
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.federation.notes import Event, JobNote, Level, Outcome
from edged.store import Database, StoreError
from edgekit.secagg.errors import Refusal
from edgekit.secagg.ledger import entry
from edgekit.secagg.roster import Floor

FOLDER = "federation"
"""Of the state directory."""
BOOK = "book.db"
AUDIT = "audit.jsonl"
MAX_EVENTS = 1000
_AGREED, _LEAVING = "agreed/", "leaving/"
_LASTING = ("judging", "done", "stopped", "refused", "failed")

_MIGRATIONS = [
    """
    CREATE TABLE ledger (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TRIGGER ledger_is_written_once BEFORE UPDATE ON ledger
        BEGIN SELECT raise(ABORT, 'an entry of the ledger never changes'); END;
    CREATE TABLE floors (owner TEXT NOT NULL, key TEXT NOT NULL, serial INTEGER NOT NULL, digest BLOB NOT NULL,
        PRIMARY KEY (owner, key)) WITHOUT ROWID;
    CREATE TABLE accounts (service TEXT PRIMARY KEY, data BLOB NOT NULL, epsilon REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE rounds (job TEXT NOT NULL, number INTEGER NOT NULL, outcome TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (job, number)) WITHOUT ROWID;
    CREATE TABLE seats (job TEXT PRIMARY KEY, number INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE jobs (job TEXT PRIMARY KEY, note BLOB NOT NULL, changed REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE refused (job TEXT PRIMARY KEY, reason TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, job TEXT NOT NULL,
        level TEXT NOT NULL, text TEXT NOT NULL);
    CREATE TABLE facts (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
    """,
]


class Book:
    """Methods block on the disk; they raise sqlite3.Error or OSError where it fails. It is a `secagg.ledger.Ledger`."""

    def __init__(self, state_dir: Path, wall: Callable[[], float] = time.time) -> None:
        """Open or make it. Raises StoreError."""
        self.folder = state_dir / FOLDER
        self._wall = wall
        path = self.folder / BOOK
        known = path.exists()
        self._joined: sqlite3.Connection | None = None
        self._database = Database(path, _MIGRATIONS, wall=wall)
        self._loose = threading.Lock()
        self._notes = _second(path)
        """For what may lack the last words after a power cut: a commit that waits for no disk."""
        if self._database.quarantined is not None:
            self._lose(f"it was damaged and is kept as {self._database.quarantined.name}")
        elif not known and (self.folder / AUDIT).exists():
            self._lose("it is missing, though this device has taken part before")

    # --- once and for all -------------------------------------------------------------------------------------------

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is settled and kept in this block is durable when it ends, all of it or nothing. Raises OSError.

        So a message that leaves after the block never contradicts the ledger, wherever the power fails.
        """
        try:
            with self._database.transaction() as connection:
                self._joined = connection
                try:
                    yield
                finally:
                    self._joined = None
        except sqlite3.Error as error:
            raise OSError(f"the book of federated learning cannot be written: {error}") from error

    def settle(self, key: bytes, value: bytes) -> bytes:
        """See edgekit.secagg.ledger.Ledger; in a `together` block the entry is durable at its end."""
        if self._joined is None:
            with self.together():
                return self.settle(key, value)
        self._joined.execute("INSERT INTO ledger VALUES (?, ?) ON CONFLICT DO NOTHING", (key, value))
        row = self._joined.execute("SELECT value FROM ledger WHERE key = ?", (key,)).fetchone()
        return bytes(row[0])

    def contributes(self, weights: bytes, session: bytes, number: int, repeats: int, *, settle: bool) -> None:
        """One of the `repeats` + 1 contributions of this device to the same shared weights, in whatever jobs.

        `settle` False: only ask. Raises Refusal("policy") where they are used up.
        """
        this = hashlib.sha256(session + number.to_bytes(4, "big")).digest()
        for turn in range(repeats + 1):
            key = entry(b"weights", weights, turn.to_bytes(4, "big"))
            found = self.settle(key, this) if settle else self._peek(key)
            if found in (this, None):
                return
        raise Refusal(
            "policy",
            "this device has contributed to a round of these very weights already, in this job or another: with one "
            "more, cloudd could subtract two sums (federation.repeats allows it)",
        )

    def _peek(self, key: bytes) -> bytes | None:
        row = self._database.one("SELECT value FROM ledger WHERE key = ?", (key,))
        return bytes(row[0]) if row is not None else None

    def keep_seat(self, job: str, number: int, data: bytes) -> None:
        """This device's seat in the round that it takes part in: sealed by the caller."""
        if self._joined is None:
            with self.together():
                return self.keep_seat(job, number, data)
        self._joined.execute("INSERT OR REPLACE INTO seats VALUES (?, ?, ?)", (job, number, data))
        return None

    def seat(self, job: str) -> tuple[int, bytes] | None:
        """Number of the round and sealed seat; None if this device sits in none."""
        row = self._database.one("SELECT number, data FROM seats WHERE job = ?", (job,))
        return (int(row[0]), bytes(row[1])) if row is not None else None

    def check(self) -> None:
        """Raises Refusal while the ledger is lost and nobody has said how to go on."""
        lost = self._fact("lost")
        if lost:
            raise Refusal(
                "once",
                f"the ledger of this device was lost ({lost}), so it cannot know what it has sent already: end the "
                "jobs that it was in at cloudd, then say edged fl forgive",
            )

    def forgive(self) -> bool:
        """A person says that the jobs of the time before are over. False if nothing was lost."""
        return bool(self._database.execute("DELETE FROM facts WHERE name = 'lost'"))

    def _lose(self, text: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO facts VALUES ('lost', ?)", (text,))

    def _fact(self, name: str) -> str:
        row = self._database.one("SELECT text FROM facts WHERE name = ?", (name,))
        return str(row[0]) if row is not None else ""

    # --- rosters and budgets ----------------------------------------------------------------------------------------

    def floors(self, plants: Mapping[str, str]) -> dict[str, Floor]:
        """Owner -> the newest roster seen under the key that the owner has now."""
        rows = self._database.query("SELECT owner, key, serial, digest FROM floors")
        return {
            row["owner"]: Floor(row["serial"], bytes(row["digest"]))
            for row in rows
            if plants.get(row["owner"]) == row["key"]
        }

    def keep_floors(self, plants: Mapping[str, str], floors: Mapping[str, Floor]) -> None:
        """Never go back behind these rosters."""
        self._database.executemany(
            "INSERT INTO floors VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET serial = excluded.serial,"
            " digest = excluded.digest WHERE excluded.serial > serial",
            [(owner, plants[owner], floor.serial, floor.digest) for owner, floor in floors.items() if owner in plants],
        )

    def account(self, service: str) -> bytes:
        """The privacy account of a service's samples as it was stored; empty before the first."""
        row = self._database.one("SELECT data FROM accounts WHERE service = ?", (service,))
        return bytes(row[0]) if row is not None else b""

    def keep_account(self, service: str, data: bytes, epsilon: float) -> None:
        """Store what was spent, before the contribution leaves. `epsilon`: what that is, for people."""
        self._database.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)", (service, data, epsilon))

    def spent(self) -> dict[str, float]:
        """Service -> epsilon spent on its samples."""
        return {row[0]: float(row[1]) for row in self._database.query("SELECT service, epsilon FROM accounts")}

    # --- rounds -----------------------------------------------------------------------------------------------------

    def end_round(self, job: str, number: int, outcome: Outcome) -> None:
        """This device has no part in this round any more; a seat in it is given up."""
        with self.together():
            connection = self._joined
            assert connection is not None, "in the block"
            sql = "INSERT INTO rounds VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
            connection.execute(sql, (job, number, outcome, self._wall()))
            connection.execute("DELETE FROM seats WHERE job = ? AND number = ?", (job, number))

    def round_ended(self, job: str, number: int) -> Outcome | None:
        """How a round ended for this device; None if it may still take part."""
        row = self._database.one("SELECT outcome FROM rounds WHERE job = ? AND number = ?", (job, number))
        return row[0] if row is not None else None

    # --- jobs -------------------------------------------------------------------------------------------------------

    def note(self, note: JobNote, told: tuple[Level, str] | None = None) -> None:
        """Where this device stands in a job now, and what to tell people of it."""
        with self._database.transaction() if note.stage in _LASTING else self._loosely() as connection:
            row = (note.job, msgspec.msgpack.encode(note), self._wall())
            connection.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)", row)
            if told is not None:
                self._tell(connection, note.job, *told)

    @contextmanager
    def _loosely(self) -> Iterator[sqlite3.Connection]:
        with self._loose:
            self._notes.execute("BEGIN IMMEDIATE")
            try:
                yield self._notes
                self._notes.execute("COMMIT")
            except BaseException:
                if self._notes.in_transaction:
                    self._notes.execute("ROLLBACK")
                raise

    def job(self, job: str) -> JobNote | None:
        """Where it stood last."""
        row = self._database.one("SELECT note FROM jobs WHERE job = ?", (job,))
        return msgspec.msgpack.decode(row[0], type=JobNote) if row is not None else None

    def jobs(self) -> list[JobNote]:
        """All jobs that this device has heard of, the newest change first, at most 100."""
        rows = self._database.query("SELECT note FROM jobs ORDER BY changed DESC LIMIT 100")
        return [msgspec.msgpack.decode(row[0], type=JobNote) for row in rows]

    def refuse(self, job: str, reason: str) -> None:
        """A person wants this device out of a job, for ever."""
        self._database.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", (job, reason, self._wall()))
        self.tell(job, "refused", f"refused here: {reason}")

    def refusal(self, job: str) -> str:
        """Why a person refused the job; "" if nobody did."""
        row = self._database.one("SELECT reason FROM refused WHERE job = ?", (job,))
        return str(row[0]) if row is not None else ""

    def agree(self, job: str) -> None:
        """Somebody lets this device take part in a job."""
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, '')", (_AGREED + job,))

    def agreed(self) -> set[str]:
        """The jobs that somebody has agreed to."""
        rows = self._database.query("SELECT name FROM facts WHERE name LIKE ?", (f"{_AGREED}%",))
        return {str(row["name"]).removeprefix(_AGREED) for row in rows}

    def leave(self, service: str, reason: str) -> None:
        """A person wants this device's sums out of all heads of a service, from the next round of one on."""
        sql = "INSERT OR REPLACE INTO facts VALUES (?, ?)"
        self._database.execute(sql, (_LEAVING + service, reason or "by an operator"))

    def stay(self, service: str) -> bool:
        """Not any more. False if nobody wanted it."""
        return bool(self._database.execute("DELETE FROM facts WHERE name = ?", (_LEAVING + service,)))

    def leaving(self, service: str) -> str:
        """Why its sums are to come out of the heads of a service; "" if they are not."""
        return self._fact(_LEAVING + service)

    def all_leaving(self) -> dict[str, str]:
        """Service -> why, of all of them."""
        rows = self._database.query("SELECT name, text FROM facts WHERE name LIKE ?", (f"{_LEAVING}%",))
        return {str(row["name"]).removeprefix(_LEAVING): str(row["text"]) for row in rows}

    def tell(self, job: str, level: Level, text: str) -> None:
        """Something for people; the last MAX_EVENTS are kept."""
        with self._database.transaction() as connection:
            self._tell(connection, job, level, text)

    def _tell(self, connection: sqlite3.Connection, job: str, level: Level, text: str) -> None:
        sql = "INSERT INTO events (at, job, level, text) VALUES (?, ?, ?, ?)"
        last = connection.execute(sql, (self._wall(), job, level, text[:1000])).lastrowid or 0
        connection.execute("DELETE FROM events WHERE seq <= ?", (last - MAX_EVENTS,))

    def events(self, limit: int = 50, job: str = "") -> list[Event]:
        """The newest first."""
        sql = "SELECT at, job, level, text FROM events WHERE (? = '' OR job = ?) ORDER BY seq DESC LIMIT ?"
        return [
            Event(at=row["at"], job=row["job"], level=row["level"], text=row["text"])
            for row in self._database.query(sql, (job, job, limit))
        ]

    def close(self) -> None:
        """Close the file."""
        self._notes.close()
        self._database.close()


def _second(path: Path) -> sqlite3.Connection:
    """One more connection of this process to an open database. Raises StoreError.

    A Database would open and close the file once more, and with that drop the locks of the first connection: POSIX
    forgets all that a process holds on a file when it closes any descriptor of it. Another process that ends would
    then take the log away, and what this one writes afterwards would be in a file without a name.
    """
    try:
        connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.Error as error:
        raise StoreError(f"cannot open the database {path}: {error}") from error
    return connection
