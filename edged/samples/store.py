"""The sample store: one directory of sealed pictures, with rows that say what they are.

A file holds picture, facts and labels, encrypted. Rows are quicker to search and can be rebuilt from the files. Order
of writing: file, then row; a label: row, then file, and a row remembers that its file is behind. Order of removal: row
marked, file, directory synced, row. Wherever the power fails, recovery completes what is left: nothing whose `add` or
`label` returned is lost, and nothing that was removed comes back.

Several processes may have the same store open (the worker keeps samples while the supervisor labels them): a lock on a
file lets one of them write at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from edged.collab.sealing import Kek, SealError
from edged.collab.spool_files import blocks, is_no_space
from edged.samples import versions, worth
from edged.samples.index import Index, Room, classes
from edged.samples.reading import Filter
from edged.samples.records import (
    LabelRecord,
    NewSample,
    Opinion,
    Sample,
    SampleDetail,
    SampleError,
    SampleStats,
    SealedHeader,
    Sighting,
    check_label,
    check_new,
    check_opinion,
    counting,
    merged,
    sample_id_of,
    says_the_same,
)
from edged.samples.trouble import Trouble
from edged.samples.vault import Vault
from edged.store import WAL_LIMIT, StoreError
from edgekit.datasets.dataset import MAX_PICTURE_BYTES
from edgekit.faults import crash_point
from edgekit.messages import Event
from edgekit.vision.sniff import sniff

BALLAST = 2 * WAL_LIMIT
"""Bytes that a full disk gets back, so that rows can be deleted."""
SPARE = 0.01
"""Share of a service's quota that is freed besides."""
RESEAL_AT_ONCE = 50
"""Files that one `maintain` brings up to date."""
_CLOCK_WAS_UNSET = 1.7e9
"""Seconds since the epoch (November 2023): what is older was stored before the clock had been set."""


class SamplesFull(RuntimeError):
    """The sample is not kept; the message says why. The line goes on without it."""


@dataclass(frozen=True)
class Limits:
    """How much of one service is kept, and how long."""

    bytes: int
    count: int
    days: float


class Added(NamedTuple):
    """What became of a picture."""

    id: str
    new: bool  # False: the same bytes were here already


class SampleStore:
    """Methods block on the disk and may be called from several threads."""

    def __init__(
        self,
        root: Path,
        kek: Kek,
        device_id: str,
        *,
        limits: Callable[[str], Limits],
        reserve: int,
        wall: Callable[[], float] = time.time,
        on_event: Callable[[Event], None] = lambda event: None,
        ballast: int = BALLAST,
        find_key: Callable[[], Kek | None] = lambda: None,
    ) -> None:
        """Open and recover. `limits` of a service; `reserve`: bytes of the disk that stay free for others.

        `find_key` is asked by `maintain` whether another key-encryption key has been put in place. `on_event` may be
        called from any thread. Raises StoreError or OSError if the directory cannot be used.
        """
        self._limits, self._reserve, self._wall = limits, reserve, wall
        self._find_key = find_key
        self._vault = Vault(root, kek, device_id, Trouble(on_event, wall), wall, ballast, versions.settle)
        self.versions = versions.DatasetVersions(self._vault)
        try:
            self.maintain()
        except BaseException:
            self._vault.close()
            raise

    @property
    def index(self) -> Index:
        """The rows, for reading; use it at once, for a damaged index is replaced."""
        return self._vault.index

    # --- keeping -----------------------------------------------------------------------------------------------------

    def add(self, new: NewSample, picture: bytes, label: LabelRecord | None = None) -> Added:
        """Keep one encoded picture, with a label if it has one; durable when it returns.

        The same bytes in the same service are one sample that was seen once more: what is new about it is added. Raises
        SampleError or ImageError for what cannot be kept, SamplesFull if there is no room.
        """
        check_new(new)
        if len(picture) > MAX_PICTURE_BYTES:
            raise SampleError(f"the picture has more than {MAX_PICTURE_BYTES} bytes")
        info = sniff(picture)
        sha256 = hashlib.sha256(picture).hexdigest()
        if label is not None:
            check_label(label, sha256, info.width, info.height)
        id = sample_id_of(new.service, sha256)
        sighting = Sighting(
            at=new.captured_at,
            source=new.source,
            sample_id=new.sample_id,
            serial=new.serial,
            model=new.edge.model if new.edge is not None else "",
        )
        try:
            with self._vault.writing():
                known = self.index.get(id)
                if known is not None and known.state == "kept":
                    self._repeat(id, new, sighting, label)
                    return Added(id, False)
                header = SealedHeader(facts=new, stored_at=self._wall(), sightings=(sighting,))
                if known is not None and known.service:  # its file does not open, and here are the same bytes again
                    old = self.index.header(id)
                    header = replace(old, facts=merged(old.facts, new), sightings=(*old.sightings, sighting))
                if label is not None:
                    header = replace(header, labels=(*header.labels, label))
                self._keep(id, sha256, header, picture, (info.width, info.height))
        except (sqlite3.Error, StoreError) as error:
            self._vault.trouble.full(f"the index cannot be written ({error})")
            raise SamplesFull(f"the index of samples cannot be written ({error})") from error
        except OSError as error:
            self._vault.trouble.full(f"the disk refuses them ({error.strerror})")
            raise SamplesFull(f"the disk refuses the sample ({error.strerror})") from error
        return Added(id, True)

    def _keep(self, id: str, sha256: str, header: SealedHeader, picture: bytes, size: tuple[int, int]) -> None:
        facts = header.facts
        near = self.index.twin(facts, id, header.stored_at)
        sealed = self._vault.seal(id, header, picture)
        needed = blocks(len(sealed))
        label = counting(header.labels)
        names = classes(facts, label)
        worthy = worth.value(facts, bool(near), label.authority if label is not None else 0)
        if names:
            worthy += worth.rarity(self.index.count_of_class(facts.service, names))
        self._make_room(facts.service, needed, worthy)
        try:
            self._vault.files.write(id, sealed)
        except OSError as error:
            if not is_no_space(error) or not self._evict(facts.service, Room(1, needed), worthy):
                raise
            self._vault.files.write(id, sealed)
        crash_point("samples.written")
        try:
            self.index.insert(id, sha256, header, needed, size, near, self._vault.kek.id, "kept")
        except sqlite3.Error:
            self._vault.files.remove(id)
            raise
        crash_point("samples.indexed")

    def _repeat(self, id: str, new: NewSample, sighting: Sighting, label: LabelRecord | None) -> None:
        self.index.update(id, merged(self.index.header(id).facts, new), sighting)
        if label is not None and not any(says_the_same(label, one) for one in self.index.labels(id)):
            self.index.add_label(id, label)
            self._vault.reseal(id)
        self.index.count(new.service, "repeated")

    def answered(self, service: str, sample_id: str, cloud: Opinion) -> bool:
        """The cloud's answer to a decision came late; False if no picture of it was kept. Raises sqlite3.Error."""
        check_opinion(cloud)
        with self._vault.writing():
            id = self.index.of_decision(service, sample_id)
            if id is None:
                return False
            facts = replace(self.index.header(id).facts, cloud=cloud)
            if facts.disputed:
                facts = replace(facts, source="disputed")
            self.index.update(id, facts)
            return True

    def _make_room(self, service: str, size: int, worthy: float) -> None:
        limits, used = self._limits(service), self.index.usage(service)
        reserve = self._reserve + (0 if self._vault.ballast.present else self._vault.ballast.size)
        short = reserve + size - self._vault.files.free()
        need = Room(max(0, used.items + 1 - limits.count), max(0, used.bytes + size - limits.bytes, short))
        if not any(need) or self._evict(service, need, worthy):
            return
        self.index.count(service, "refused")
        why = (
            f"the disk has {self._vault.files.free()} bytes left and {reserve} are reserved"
            if short > 0
            else f"{service} has used up its quota of {limits.bytes >> 20} MiB and {limits.count} pictures"
        )
        self._vault.trouble.full(why)
        raise SamplesFull(f"the sample is not kept: {why}, and nothing of {service} is worth less than it")

    def _evict(self, service: str, need: Room, worthy: float) -> bool:
        limits = self._limits(service)
        spare = Room(int(limits.count * SPARE), int(limits.bytes * SPARE))
        victims = self.index.cheapest(service, need, spare, worthy)
        self._vault.remove(victims, "evicted")
        return bool(victims)

    # --- labels ------------------------------------------------------------------------------------------------------

    def label(self, id: str, record: LabelRecord) -> Sample:
        """Add a label; durable when it returns. Raises KeyError for an unknown id, SampleError, sqlite3.Error."""
        with self._vault.writing():
            sample = self._readable(id)
            check_label(record, sample.sha256, sample.width, sample.height)
            self.index.add_label(id, record)
            crash_point("samples.labelled")
            self._vault.reseal(id)
            return self._known(id)

    def tag(self, id: str, add: Iterable[str] = (), remove: Iterable[str] = ()) -> Sample:
        """Change the tags of a sample. Raises KeyError, SampleError, sqlite3.Error."""
        with self._vault.writing():
            self._readable(id)
            facts = self.index.header(id).facts
            facts = replace(facts, tags=tuple(sorted({*facts.tags, *add} - set(remove))))
            check_new(facts)
            self.index.update(id, facts)
            return self._known(id)

    # --- looking -----------------------------------------------------------------------------------------------------

    def queue(self, service: str, limit: int) -> list[Sample]:
        """Hard and disputed samples that no operator has labelled, the most useful to label first.

        Edge and cloud differ, the edge's answer was close, the class is rare, no earlier sample looks the same.
        """
        return self.index.queue(service, limit)

    def select(self, which: Filter, limit: int) -> list[Sample]:
        """The newest first."""
        return self.index.select(which, limit)

    def stats(self, service: str = "") -> SampleStats:
        """The samples of one service in numbers, or of all."""
        return self.index.stats(service)

    def sample(self, id: str) -> SampleDetail:
        """Everything about one sample; `id` may be the beginning of an id. Raises KeyError."""
        sample = self._known(self.find(id))
        return SampleDetail(
            sample=sample,
            labels=self.index.labels(sample.id),
            sightings=self.index.sightings(sample.id),
            versions=self.index.pinned(sample.id),
        )

    def find(self, prefix: str) -> str:
        """The id that begins so. Raises KeyError with a sentence if there is none, or more than one."""
        plain = prefix.isascii() and prefix.isalnum()
        found = self.index.matching(prefix.lower()) if plain else []
        if len(found) != 1:
            many = "more than one sample begins" if found else "no sample begins"
            raise KeyError(f"{many} with {prefix[:64]!r}; see edged samples list")
        return found[0]

    def picture(self, id: str) -> bytes:
        """The encoded picture. Raises KeyError, or SealError if it does not open; then it is reported and left out."""
        self._known(id)
        try:
            return self._vault.open(id)[1]
        except (SealError, OSError) as error:
            self._vault.closed(id, error)
            if isinstance(error, OSError):
                raise SealError(f"sample {id[:12]} cannot be read ({error.strerror})") from error
            raise

    def _readable(self, id: str) -> Sample:
        sample = self._known(id)
        if sample.state != "kept":
            raise SampleError(f"sample {id[:12]} cannot be read ({sample.state}), so nothing can be said about it")
        return sample

    def _known(self, id: str) -> Sample:
        sample = self.index.get(id)
        if sample is None:
            raise KeyError(f"there is no sample {id[:64]!r}; see edged samples list")
        return sample

    # --- removing ----------------------------------------------------------------------------------------------------

    def remove(self, ids: Iterable[str]) -> int:
        """Remove for ever: the files with their keys, the rows, all labels. The number removed.

        Raises SampleError if a dataset version names one of them: delete that version first.
        """
        with self._vault.writing():
            known = [id for id in ids if self.index.get(id) is not None]
            for id in known:
                if versions := self.index.pinned(id):
                    raise SampleError(
                        f"sample {id[:12]} is in the dataset version {versions[0]}, which never changes; "
                        f"edged datasets delete {versions[0]} first"
                    )
            self._vault.remove(known, "removed")
            self._vault.tell()
            return len(known)

    def remove_service(self, service: str) -> int:
        """Remove every sample of a service. Raises SampleError as `remove` does."""
        with self._vault.writing():
            return self.remove(self.index.ids(service))

    def remove_unreadable(self) -> int:
        """Remove what is damaged, or sealed with another key. Raises SampleError as `remove` does."""
        with self._vault.writing():
            return self.remove(self.index.unreadable())

    def expire(self, service: str) -> int:
        """Remove what is older than the service's retention and in no dataset version; the number removed."""
        with self._vault.writing():
            now = self._wall()
            if now > _CLOCK_WAS_UNSET:
                self.index.clock_was_set(now, _CLOCK_WAS_UNSET)
            ids = self.index.expired(service, now - self._limits(service).days * 86_400.0)
            self._vault.remove(ids, "expired")
            return len(ids)

    # --- upkeep ------------------------------------------------------------------------------------------------------

    def use_key(self, kek: Kek) -> None:
        """Go on with this key-encryption key; what it sealed opens again."""
        self._vault.use_key(kek)

    def maintain(self) -> None:
        """Call about once a minute: expire, bring files up to date, re-make the ballast, see if trouble is over."""
        with contextlib.suppress(SealError, OSError):  # an unusable key shows at the next start
            kek = self._find_key()
            if kek is not None:
                self.use_key(kek)
        with self._vault.writing():
            for service in self.index.services():
                if service:
                    self.expire(service)
            for id in self.index.dirty(RESEAL_AT_ONCE):
                self._vault.reseal(id)
            roomy = self._vault.files.free() >= self._reserve + self._vault.ballast.size
            if roomy and not self._vault.ballast.present:
                self._vault.ballast.make()
            if roomy:
                self._vault.trouble.over()
            self._vault.tell()

    def close(self) -> None:
        """Close the index; every `add` and `label` that returned is on the disk."""
        self._vault.close()
