"""What a service that keeps its files remembers of them, also on a disk that is really full."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edged.capture.kept import Kept
from edged.collab.spool_files import Ballast
from edged.store import is_disk_full
from tests.support.disk import MIB, fill

NAMES = [f"a-long-name-of-a-picture-{number:05}.jpg" for number in range(2000)]


def test_a_file_is_known_by_name_time_and_size_and_by_service(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.db", "s", lambda: False)
    kept.add("a\udcff.jpg", 5, 6)
    kept.add("b.jpg", 5, 6)
    kept.close()
    again = Kept(tmp_path / "kept.db", "s", lambda: False)
    assert again.has("a\udcff.jpg", 5, 6)
    assert not again.has("a\udcff.jpg", 5, 7) and not again.has("a\udcff.jpg", 4, 6)
    again.forget_all_but({"b.jpg"})
    again.close()
    last, other = (Kept(tmp_path / "kept.db", service, lambda: False) for service in ("s", "other"))
    assert last.has("b.jpg", 5, 6) and not last.has("a\udcff.jpg", 5, 6)
    assert not other.has("b.jpg", 5, 6)
    last.close()
    other.close()


def test_on_a_full_disk_the_ballast_gives_room_to_remember_and_to_forget(small_disk: Path) -> None:
    ballast = Ballast(small_disk / "ballast", 4 * MIB)
    assert ballast.make()
    kept = Kept(small_disk / "kept.db", "s", ballast.release)
    hog = fill(small_disk)
    for number, name in enumerate(NAMES):
        kept.add(name, number, 1)
    assert not ballast.present, "the disk was not full"

    kept.close()  # its log, which is large by now, goes with it
    hog.unlink()
    assert ballast.make()
    kept = Kept(small_disk / "kept.db", "s", ballast.release)
    fill(small_disk)
    kept.forget_all_but(NAMES[:1])
    assert not ballast.present, "the disk was not full"
    kept.close()
    again = Kept(small_disk / "kept.db", "s", ballast.release)
    assert again.has(NAMES[0], 0, 1) and not again.has(NAMES[1], 1, 1)
    again.close()


def test_without_ballast_a_full_disk_is_an_error_and_nothing_is_remembered(small_disk: Path) -> None:
    kept = Kept(small_disk / "kept.db", "s", lambda: False)
    fill(small_disk)
    with pytest.raises(sqlite3.OperationalError) as caught:
        for number, name in enumerate(NAMES):
            kept.add(name, number, 1)
    assert is_disk_full(caught.value)
    assert not kept.has(NAMES[-1], len(NAMES) - 1, 1)
    kept.close()
