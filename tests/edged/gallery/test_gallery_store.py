"""Enrolled rows: sealed, bounded, forgotten for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edged.collab.sealing import Kek, SealError
from edged.gallery import records
from edged.gallery.records import MAX_PICTURES, Enrolled, GalleryError, check_name
from edged.gallery.store import GalleryStore
from edged.status.review import Classes, classes_of
from edgekit.heads import gallery as heads
from edgekit.services import parse_service
from tests.support.parts import make_anomaly, make_embedder

MODEL = "faces@1 abc"


def row(identity: str = "Anna", at: float = 1.0, values: int = 4) -> Enrolled:
    embedding = np.linspace(0.1, 1.0, values).astype("<f4")
    return Enrolled(identity=identity, model=MODEL, embedding=embedding.tobytes(), at=at, by="operator")


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    return GalleryStore(tmp_path / "gallery.db", Kek(b"k" * 32), "device-1")


def on_disk(folder: Path) -> bytes:
    return b"".join(one.read_bytes() for one in folder.iterdir())


def test_what_was_enrolled_reads_back_in_its_order_and_only_for_its_service(store: GalleryStore) -> None:
    first, second = store.add("door", row("Anna", 1.0)), store.add("door", row("Bert", 2.0))
    store.add("gate", row("Cora"))
    assert store.ids("door") == [first, second] and store.services() == ["door", "gate"]
    assert store.read("door", first) == row("Anna", 1.0)
    rows, closed = store.all("door")
    assert [one.identity for one in rows.values()] == ["Anna", "Bert"] and not closed
    with pytest.raises(KeyError):
        store.read("gate", first)


def test_nothing_readable_lies_on_the_disk(store: GalleryStore, tmp_path: Path) -> None:
    store.add("door", row("Annabella Mustermann"))
    data = on_disk(tmp_path)
    assert b"Annabella" not in data and row().embedding not in data and b"operator" not in data


def test_what_is_forgotten_is_gone_from_the_file_and_its_log(store: GalleryStore, tmp_path: Path) -> None:
    id = store.add("door", row("Anna"))
    sealed = bytes(store._database.one("SELECT sealed FROM enrolled")[0])  # type: ignore[index]
    store.add("door", row("Bert"))
    assert sealed in on_disk(tmp_path)
    assert store.remove("door", [id]) == 1
    assert sealed not in on_disk(tmp_path)
    assert store.clear("door") == 1 and not store.ids("door")


def test_another_key_or_device_opens_nothing(store: GalleryStore, tmp_path: Path) -> None:
    id = store.add("door", row())
    store.close()
    for kek, device in ((b"x" * 32, "device-1"), (b"k" * 32, "device-2")):
        other = GalleryStore(tmp_path / "gallery.db", Kek(kek), device)
        with pytest.raises(SealError):
            other.read("door", id)
        assert other.all("door") == ({}, [id])
        other.close()


def test_a_row_that_was_moved_to_another_service_does_not_open(store: GalleryStore) -> None:
    id = store.add("door", row())
    store._database.execute("UPDATE enrolled SET service = 'gate'")
    assert store.all("gate") == ({}, [id])


def test_an_identity_keeps_its_newest_pictures(store: GalleryStore) -> None:
    ids: list[str] = []
    for number in range(MAX_PICTURES + 3):
        ids = [*ids, store.add("door", row(at=float(number)), ids)]
        ids = ids[-MAX_PICTURES:]
    assert store.ids("door") == ids and len(ids) == MAX_PICTURES
    assert store.read("door", ids[0]).at == 3.0


def test_a_change_by_another_process_is_noticed_and_own_ones_are_none(store: GalleryStore, tmp_path: Path) -> None:
    before = store.version()
    store.add("door", row())
    assert store.version() == before
    other = GalleryStore(tmp_path / "gallery.db", Kek(b"k" * 32), "device-1")
    other.add("door", row("Bert"))
    assert store.version() != before and len(store.ids("door")) == 2
    other.close()


def test_a_damaged_file_is_moved_aside_and_said(store: GalleryStore, tmp_path: Path) -> None:
    store.add("door", row())
    store.close()
    (tmp_path / "gallery.db").write_bytes(b"this is no database, and it is long enough to be looked at" * 40)
    again = GalleryStore(tmp_path / "gallery.db", Kek(b"k" * 32), "device-1")
    assert again.quarantined is not None and again.quarantined.exists() and not again.ids("door")
    again.close()


@pytest.mark.parametrize("name", ["", "  ", "Anna ", "known", "unknown", "a\nb", "x" * 129])
def test_nobody_has_such_a_name(name: str) -> None:
    with pytest.raises(GalleryError):
        check_name(name)
    assert check_name("Jörg Müller / Schicht 2") == "Jörg Müller / Schicht 2"


def test_the_words_that_nobody_may_have_are_those_of_the_answers() -> None:
    """The supervisor has no numpy, so it has constants of its own."""
    from edgekit.vision import embedding

    assert set(records.RESERVED) == set(embedding.RESERVED) and records.UNKNOWN == embedding.UNKNOWN
    assert records.MAX_PICTURES == heads.MAX_PICTURES


def test_on_the_review_page_an_anomaly_is_a_class_and_somebody_may_be_unknown(tmp_path: Path) -> None:
    dark, quarters = make_anomaly(tmp_path / "dark").root, make_embedder(tmp_path / "quarters").root
    parts = parse_service('name = "parts"\nmodel = "dark"\ntask = "anomaly"\n', "test")
    door = parse_service('name = "door"\nmodel = "quarters"\ntask = "embedding"\n', "test")
    assert classes_of(parts, dark) == Classes(task="classification", labels=["normal", "anomaly"])
    assert classes_of(door, quarters) == Classes(task="classification", labels=["unknown"])
