"""The files of the sample store, their key and their rows: who may write, what opens, what a crash left behind."""

from __future__ import annotations

import fcntl
import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edged.collab.sealing import Kek, SealError, WrongKey
from edged.collab.spool_files import Ballast, SampleFiles, blocks
from edged.samples.index import Index
from edged.samples.records import SampleError, SealedHeader, check_new, sample_id_of
from edged.samples.schema import MIGRATIONS
from edged.samples.trouble import Trouble
from edged.store import Database, is_corrupt, is_disk_full
from edgekit.atomic import fsync_dir
from edgekit.envelope import EnvelopeError, seal, unseal
from edgekit.faults import crash_point
from edgekit.vision.sniff import ImageError, sniff


class Vault:
    """Whoever writes does so inside of `writing`. Methods block on the disk."""

    def __init__(
        self,
        root: Path,
        kek: Kek,
        device_id: str,
        trouble: Trouble,
        wall: Callable[[], float],
        ballast: int,
        settle: Callable[[Vault], None],
    ) -> None:
        """Open and recover. `settle` completes what else lies here, once the samples are in order.

        Raises StoreError or OSError if the directory cannot be used.
        """
        self.kek, self.trouble = kek, trouble
        self.device_id, self.wall = device_id, wall
        self._settle = settle
        self._lock = threading.RLock()
        self._depth = 0
        self.files = SampleFiles(root / "files")
        self.ballast = Ballast(root / "ballast", ballast)
        self.root, self._path = root, root / "index.db"
        self._guard = os.open(root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._attach()
            with self.writing():
                self.recover()
        except BaseException:
            os.close(self._guard)
            raise

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer of all threads and processes. May be entered again by the same thread."""
        with self._lock:
            if not self._depth:
                fcntl.flock(self._guard, fcntl.LOCK_EX)
            self._depth += 1
            try:
                if self._depth == 1 and self._moved():
                    self._replace()
                yield
            except sqlite3.DatabaseError as error:
                if self._depth == 1 and is_corrupt(error):
                    self._replace()  # what was asked has failed; the next thing works
                raise
            finally:
                self._depth -= 1
                if not self._depth:
                    fcntl.flock(self._guard, fcntl.LOCK_UN)

    def _moved(self) -> bool:
        """Whether another process has found the index damaged and put a new one in its place."""
        try:
            return os.stat(self._path).st_ino != self._inode  # noqa: PTH116 - Path.stat is slower, this is each time
        except FileNotFoundError:
            return True

    def _attach(self) -> None:
        self._database = Database(self._path, MIGRATIONS, wall=self.wall, make_room=self.ballast.release)
        self._inode = self._path.stat().st_ino
        self.index = Index(self._database, self.kek.id)

    def _replace(self) -> None:
        """Open the index again: another process has replaced it, or it is damaged."""
        self._database.close()
        self._attach()
        self.recover()

    def _retry(self, work: Callable[[], None]) -> None:
        """Once more with the ballast's room if the disk is full."""
        try:
            work()
        except sqlite3.OperationalError as error:
            if not (is_disk_full(error) and self.ballast.release()):
                raise
            work()

    def recover(self) -> None:
        """Complete what a crash interrupted; make the rows anew if the index was damaged."""
        aside = self._database.quarantined
        rows = self.index.states()
        present = set(self.files.scan(sweep=True))
        self.remove([id for id, held in rows.items() if held.removing], "removed")
        kept = {id for id, held in rows.items() if not held.removing}
        self.index.damaged([id for id in kept - present if not rows[id].damaged])
        self.index.damaged([id for id in kept & present if rows[id].damaged], False)  # they are tried again
        here = self.kek.id
        again = {id for id in kept & present if not rows[id].service and rows[id].kek in ("", here)}
        taken = (present - rows.keys()) | again
        for id in taken:
            self._take(id)
        if taken:
            self.index.mark_twins(taken)
        self._settle(self)
        if aside is not None:
            self._database.quarantined = None
            self.trouble.rebuilt(aside)

    def _take(self, id: str) -> None:
        """Make the rows of a file that has none."""
        size = blocks(self.files.path(id).stat().st_size)
        try:
            header, picture = self.open(id)
            info = sniff(picture)
        except (SealError, OSError, ImageError) as error:
            kek = error.key_id if isinstance(error, WrongKey) else ""
            self.index.insert_unread(id, size, self.wall(), kek)
            return
        sha256 = hashlib.sha256(picture).hexdigest()
        self.index.insert(id, sha256, header, size, (info.width, info.height), "", self.kek.id)

    def seal(self, id: str, header: SealedHeader, picture: bytes) -> bytes:
        """The content of a sample's file."""
        return self.kek.seal(seal(header, picture), self.device_id, id)

    def tell(self) -> None:
        """Say how many samples do not open, if that has changed."""
        totals = self.index.totals("")
        self.trouble.unreadable(int(totals["other_key"]), int(totals["damaged"]))

    def open(self, id: str) -> tuple[SealedHeader, bytes]:
        """Read a sample's file. Raises SealError or OSError."""
        plain = self.kek.unseal(self.files.read(id), self.device_id, id)
        try:
            head, picture = unseal(plain)
            header = msgspec.json.decode(head, type=SealedHeader)
            check_new(header.facts)
        except (EnvelopeError, msgspec.MsgspecError, SampleError) as error:
            raise SealError(f"sample {id} has an unknown header ({error})") from error
        if sample_id_of(header.facts.service, hashlib.sha256(picture).hexdigest()) != id:
            raise SealError(f"sample {id} holds another picture than its name says")
        return header, picture

    def closed(self, id: str, error: Exception) -> None:
        """Remember that a file does not open, and say so."""
        with self.writing():
            if isinstance(error, WrongKey):
                self.index.sealed_by(id, error.key_id)
            else:
                self.index.damaged([id])
            self.tell()

    def reseal(self, id: str) -> None:
        """Write into the file what the rows know. If that fails the row stays marked, and `maintain` tries again."""
        try:
            _, picture = self.open(id)
        except (SealError, OSError) as error:
            self.closed(id, error)
            return
        sealed = self.seal(id, self.index.header(id), picture)
        try:
            self.files.write(id, sealed)
        except OSError as error:
            self.trouble.full(f"the disk refuses them ({error.strerror})")
            return
        crash_point("samples.resealed")
        self.index.clean(id, blocks(len(sealed)), self.kek.id)

    def remove(self, ids: list[str], counter: str) -> None:
        """Files with their keys, then rows; counted under `counter`."""
        if not ids:
            return
        self._retry(lambda: self.index.mark_removing(ids))
        crash_point("samples.marked")
        for id in ids:
            self.files.remove(id)
        for directory in {self.files.path(id).parent for id in ids}:
            if directory.is_dir():
                fsync_dir(directory)  # before the row goes, or a power cut could bring the file back for good
        crash_point("samples.unlinked")
        self._retry(lambda: self.index.delete(ids, counter))

    def use_key(self, kek: Kek) -> None:
        """Go on with this key-encryption key; what it sealed opens again."""
        with self.writing():
            if kek.id != self.kek.id:
                self.kek = kek
                self.index.kek = kek.id
                self.recover()
                self.tell()

    def close(self) -> None:
        """Close the index; whatever returned is on the disk."""
        with self._lock:
            self._database.close()
            os.close(self._guard)
