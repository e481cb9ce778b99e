"""The spool: hard samples wait on disk for the link, encrypted, bounded, and durable before `put` returns.

Files hold everything (the header is inside the encrypted file), SQLite rows are an index that can be rebuilt from them.
Order of writing: file, then row. Order of removal: row marked as finished, file, row. So wherever the power fails,
recovery completes what is left without losing a sample or delivering one that was answered.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import msgspec

from edged.collab.key_watch import KeyWatch
from edged.collab.sealing import Kek, SealError, WrongKey
from edged.collab.spool_files import Ballast, SampleFiles, blocks, is_no_space
from edged.collab.spool_index import MIGRATIONS, UNREADABLE, WAITING, Held, SpoolIndex
from edged.store import Database, StoreError, is_corrupt, is_disk_full
from edgekit.envelope import EnvelopeError, seal, unseal
from edgekit.faults import crash_point
from edgekit.messages import Event, HardSample, Level, SendReason, SpoolReport

T = TypeVar("T")


class SpoolFull(RuntimeError):
    """The sample cannot be stored; the message says why. Local answers go on without it."""


def sample_value(reason: SendReason, margin: float) -> float:
    """What a sample found without a row is worth. The least valuable is evicted first, the most valuable sent first.

    The gate says it for fresh samples (`GateDecision.value`) and this repeats its scale: a hard sample is worth its
    hardness 1 - margin (0..1), an audit 1 because it stands for some 33 trusted samples, and a sample that may be part
    of a calibration block 2, because every one that is missing makes the certificate wait.
    """
    if reason == "hard":
        return min(1.0, max(0.0, 1.0 - margin))
    return 1.0 if reason == "audit" else 2.0


class Spool:
    """One directory of waiting samples. Methods block on the disk and may be called from several threads.

    A worker and its successor may have the same spool open at once; recovery waits until only one has.
    """

    def __init__(
        self,
        root: Path,
        kek: Kek,
        device_id: str,
        *,
        quota: int,
        reserve: int,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], None] = lambda event: None,
        on_lost: Callable[[list[str]], None] = lambda ids: None,
        ballast: int | None = None,
    ) -> None:
        """Open and recover. `quota`: bytes of samples at most; `reserve`: bytes of the disk that stay free for others.

        `on_lost` hears the ids of samples that were removed without an answer (evicted, rejected, expired, purged).
        Both callbacks may come from any thread. Raises StoreError or OSError if the directory cannot be used.
        """
        self._kek = kek
        self._device_id = device_id
        self._quota = quota
        self._reserve = reserve
        self._wall = wall
        self._on_event = on_event
        self._on_lost = on_lost
        self._lock = threading.RLock()
        self._writing: dict[object, int] = {}  # bytes that each put under way will take
        self._troubled = False
        self._recovered = False
        self._keys = KeyWatch(self._say)
        self._closed = False  # the index broke, and could not be opened again yet
        self._files = SampleFiles(root)
        self._ballast = Ballast(root / "ballast") if ballast is None else Ballast(root / "ballast", ballast)
        self._database_path = root / "index.db"
        self._guard = os.open(root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._index = SpoolIndex(self._open_database(), wall)
            self._run(lambda: self._index.sort(kek.id))
            self.maintain()
        except BaseException:
            os.close(self._guard)
            raise

    # --- storing -----------------------------------------------------------------------------------------------------

    def put(self, header: HardSample, picture: bytes, value: float) -> None:
        """Store one sample (a known id is replaced); durable when it returns.

        Raises SpoolFull if it cannot be stored now, ValueError for an impossible sample id.
        """
        self._files.path(header.sample_id)
        kek = self._kek
        sealed = kek.seal(seal(header, picture), self._device_id, header.sample_id)
        size = blocks(len(sealed))
        ticket = object()
        try:
            with self._lock:
                self._make_room(size, value)
                self._writing[ticket] = size
            self._store(header, sealed, value, ticket, kek.id)
        except (sqlite3.Error, StoreError) as error:
            self._files.remove(header.sample_id)
            self._trouble(f"the index cannot be written ({error})")
            raise SpoolFull(f"the spool's index cannot be written ({error})") from error
        except OSError as error:
            self._trouble(f"the disk refuses them ({error.strerror})")
            raise SpoolFull(f"the disk refuses the sample ({error.strerror})") from error
        finally:
            with self._lock:
                self._writing.pop(ticket, None)

    def _store(self, header: HardSample, sealed: bytes, value: float, ticket: object, kek: str) -> None:
        size = self._writing[ticket]
        try:
            self._files.write(header.sample_id, sealed)
        except OSError as error:
            if not is_no_space(error):
                raise
            with self._lock:  # the disk is fuller than statvfs said: less valuable samples and the ballast must go
                self._ballast.release()
                self._evict(size, value)
            self._files.write(header.sample_id, sealed)
        crash_point("spool.written")
        with self._lock:
            self._run(lambda: self._index.add(header, size, value, kek))
            del self._writing[ticket]  # from here on the index counts it
        crash_point("spool.indexed")

    def _make_room(self, size: int, value: float) -> None:
        size += sum(self._writing.values())
        over_quota = self._run(lambda: self._index.bytes) + size - self._quota
        reserve = self._reserve + (0 if self._ballast.present else self._ballast.size)  # its room is not for samples
        below_reserve = reserve + size - self._files.free()
        need = max(over_quota, below_reserve)
        if need <= 0:
            return
        why = (
            f"the quota of {self._quota} bytes is used up"
            if over_quota >= below_reserve
            else f"the disk has {self._files.free()} bytes left and {reserve} are reserved"
        )
        self._trouble(why)
        if not self._evict(need, value):
            self._run(lambda: self._index.count("evicted", 1))
            raise SpoolFull(f"the spool takes no more: {why}, and nothing in it is worth less than this sample")

    def _evict(self, need: int, value: float) -> bool:
        """Remove the least valuable samples (oldest first) up to `value` to free `need` bytes, or none at all."""
        victims = self._index.cheapest(need, value)
        if not victims:
            return False
        for sample_id in victims:
            self._files.remove(sample_id)
        self._run(lambda: self._index.remove(victims, "evicted"))
        self._on_lost(victims)
        return True

    # --- delivering --------------------------------------------------------------------------------------------------

    def next(
        self,
        services: Collection[str],
        skip_models: Collection[str] = (),
        skip_samples: Collection[str] = (),
        wanted: Collection[str] | None = None,
    ) -> str | None:
        """Id of the most valuable waiting sample of `services` (the oldest of equals), None if there is none.

        `wanted`: every service there is; then the samples of all others count too, unless they are held.
        """
        with self._lock:
            return self._run(lambda: self._index.next(services, skip_models, skip_samples, wanted))

    def read(self, sample_id: str) -> tuple[HardSample, bytes]:
        """Header and picture. Raises SealError if the file does not open, OSError if it is gone."""
        plain = self._kek.unseal(self._files.read(sample_id), self._device_id, sample_id)
        try:
            head, picture = unseal(plain)
            return msgspec.json.decode(head, type=HardSample), picture
        except (EnvelopeError, msgspec.MsgspecError) as error:
            raise SealError(f"sample {sample_id} has an unknown header ({error})") from error

    def done(self, sample_id: str) -> None:
        """The answer has been stored: count the delivery once and remove the sample."""
        self._finish(sample_id, "delivered")

    def drop(self, sample_id: str) -> None:
        """cloudd will never accept this sample: remove it and count it as rejected."""
        self._finish(sample_id, "rejected")
        self._on_lost([sample_id])

    def _finish(self, sample_id: str, counter: str) -> None:
        with self._lock:
            try:
                finished = self._run(lambda: self._index.finish(sample_id, counter))
            except sqlite3.OperationalError:
                self._files.remove(sample_id)  # the disk is full beyond the ballast's help: make room first, then count
                finished = self._run(lambda: self._index.finish(sample_id, counter))
            if not finished:
                return
            crash_point("spool.delivered")
            self._files.remove(sample_id)
            crash_point("spool.removed")
            self._run(lambda: self._index.remove([sample_id], None))

    def set_aside(self, sample_id: str, error: Exception | None = None) -> None:
        """The file does not open: offer it no more, evict it first, but keep it in case the key comes back."""
        kek = error.key_id if isinstance(error, WrongKey) else ""
        with self._lock:
            if not self._files.exists(sample_id):
                self._run(lambda: self._index.remove([sample_id], None))
                return
            self._run(lambda: self._index.set_aside(sample_id, kek))
            if not self._keys.said:  # else `maintain` counts them
                self._count_unreadable()

    def hold(self, service: str, held: Held) -> None:
        """What of the service's samples its policy keeps here, also when the service is gone."""
        with self._lock:
            self._run(lambda: self._index.hold(service, held))

    def purge(self, service: str = "") -> int:
        """Remove every sample of one service, or of all; the number removed."""
        with self._lock:
            return self._remove(self._run(lambda: self._index.ids(service)), "purged")

    def expire(self, service: str, days: float) -> int:
        """Remove the service's samples that have waited longer than its retention allows; the number removed."""
        with self._lock:
            return self._remove(self._run(lambda: self._index.expired(service, days)), "expired")

    def expire_others(self, wanted: Collection[str], days: float) -> int:
        """As `expire`, for every service that is not in `wanted`: it was removed, and its own number with it."""
        with self._lock:
            return self._remove(self._run(lambda: self._index.expired_others(wanted, days)), "expired")

    def _remove(self, ids: list[str], counter: str) -> int:
        for sample_id in ids:
            self._files.remove(sample_id)
        if ids:
            self._run(lambda: self._index.remove(ids, counter))
            self._on_lost(ids)
            self._count_unreadable()
        return len(ids)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def waiting(self, service: str) -> set[str]:
        """Ids of the samples of one service that still wait for an answer."""
        with self._lock:
            return set(self._run(lambda: self._index.ids(service)))

    def stats(self) -> SpoolReport:
        """The latest totals; never touches the disk."""
        return self._index.report(self._quota)

    def release_ballast(self) -> bool:
        """Give a full disk some room for a database of this device; False if it has been given already."""
        with self._lock:
            released = self._ballast.release()
        if released:
            self._trouble("the disk is full")
        return released

    def use_key(self, kek: Kek) -> None:
        """Go on with this key-encryption key. What it opens can be delivered, whatever was marked before."""
        with self._lock:
            if kek.id != self._kek.id:
                self._kek, self._recovered = kek, False
                self._run(lambda: self._index.sort(kek.id))

    def maintain(self) -> None:
        """Call about once a minute: recover if that had to wait, re-make the ballast, notice that trouble is over."""
        with self._lock:
            if not self._recovered and not self._writing and self._alone():
                try:
                    self._recover(sweep=True)
                    self._recovered = True
                finally:
                    fcntl.flock(self._guard, fcntl.LOCK_SH)
            self._run(self._index.refresh)
            self._count_unreadable()
            roomy = self._files.free() >= self._reserve + self._ballast.size
            if roomy and not self._ballast.present:
                self._ballast.make()
            if self._troubled and roomy and self._index.bytes <= 0.9 * self._quota:
                self._troubled = False
                self._say("ok", "spool.full", "There is room for hard samples again.")

    def close(self) -> None:
        """Close the index. Nothing is pending: every `put` that returned is on the disk."""
        with self._lock:
            self._index.close()
            os.close(self._guard)

    def _alone(self) -> bool:
        try:
            fcntl.flock(self._guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._guard, fcntl.LOCK_SH)
            return False
        return True

    def _recover(self, sweep: bool) -> None:
        """Complete what a crash interrupted: a file without a row gets one, a row without a file goes.

        `sweep`: remove temporary files too, which is right only while nobody writes.
        """
        rows = self._run(self._index.states)
        present = set(self._files.scan(sweep))
        finished = [sample_id for sample_id, state in rows.items() if state not in (WAITING, UNREADABLE)]
        for sample_id in finished:
            self._files.remove(sample_id)
        missing = [sample_id for sample_id in rows if sample_id not in present]
        if finished or missing:
            self._run(lambda: self._index.remove([*finished, *missing], None))
        kek = self._kek.id
        nameless = present.intersection(self._run(lambda: self._index.nameless(kek)))
        for sample_id in (present - rows.keys()) | nameless:
            size = blocks(self._files.path(sample_id).stat().st_size)
            try:
                header, _ = self.read(sample_id)
            except SealError as error:
                sealed_by = error.key_id if isinstance(error, WrongKey) else ""
                self._run(lambda i=sample_id, s=size, k=sealed_by: self._index.add_unreadable(i, s, k))  # type: ignore[misc]
                continue
            value = sample_value(header.reason, header.edge.margin)
            self._run(lambda h=header, s=size, v=value: self._index.add(h, s, v, kek))  # type: ignore[misc]

    def _count_unreadable(self) -> None:
        self._keys.tell(self._run(lambda: self._index.unreadable(self._kek.id)))

    def _open_database(self) -> Database:
        database = Database(self._database_path, MIGRATIONS, wall=self._wall, make_room=self._ballast.release)
        if database.quarantined is not None:
            self._say(
                "warning",
                "spool.index-rebuilt",
                f"The spool's index was damaged and is rebuilt from the samples; see {database.quarantined}.",
                passing=True,
            )
        return database

    def _run(self, action: Callable[[], T]) -> T:
        """Run an index operation; run it again with the ballast's room on a full disk, or on a rebuilt index."""
        with self._lock:
            if self._closed:
                self._reopen()
            try:
                return action()
            except sqlite3.DatabaseError as error:
                if is_corrupt(error):
                    self._reopen()
                elif not (is_disk_full(error) and self._ballast.release()):
                    raise
            return action()

    def _reopen(self) -> None:
        """Replace a damaged index. Raises StoreError if that cannot be done now; then the next operation tries again.

        The old one is closed first: SQLite removes the log of what it closes by name, which must not be the new one's.
        """
        self._closed, self._recovered = True, False
        self._index.close()
        self._index.attach(self._open_database())
        self._closed = False
        self._recover(sweep=False)

    def _trouble(self, why: str) -> None:
        if not self._troubled:
            self._troubled = True
            self._say(
                "warning",
                "spool.full",
                f"Hard samples are dropped, the least valuable first: {why}. Free the disk or raise the spool's quota.",
            )

    def _say(self, level: Level, code: str, text: str, *, passing: bool = False) -> None:
        self._on_event(Event(level=level, code=code, text=text, at=self._wall(), passing=passing))
