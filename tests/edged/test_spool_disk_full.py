"""The spool on a disk that is really full: a small tmpfs, filled by somebody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edged.collab.sealing import Kek
from edged.collab.spool import Spool, SpoolFull
from edgekit.messages import Event, HardSample, Verdict
from tests.support.disk import MIB, fill

PICTURE = os.urandom(100_000)


def open_spool(disk: Path, events: list[Event], reserve: int = 0) -> Spool:
    return Spool(
        disk / "spool", Kek(b"k" * 32), "D", quota=64 * MIB, reserve=reserve, on_event=events.append, ballast=4 * MIB
    )


def header(number: int, margin: float) -> HardSample:
    verdict = Verdict(label="ok", score=0.6, margin=margin, model="small@1")
    return HardSample(
        sample_id=f"s{number}", service="solder", answer_model="large", edge=verdict, reason="hard", captured_at=1.0
    )


def test_others_fill_the_disk_and_the_spool_survives_and_recovers_alone(small_disk: Path) -> None:
    events: list[Event] = []
    spool = open_spool(small_disk, events)
    for i in range(20):
        spool.put(header(i, margin=i / 20), PICTURE, 1 - i / 20)
    hog = fill(small_disk)
    assert os.statvfs(small_disk).f_bavail == 0

    with pytest.raises(SpoolFull):
        spool.put(header(100, margin=0.999), PICTURE, 0.001)  # worth less than everything inside
    spool.put(header(101, margin=0.01), PICTURE, 0.99)
    assert "s101" in spool.waiting("solder") and "s19" not in spool.waiting("solder"), "the least valuable went"
    fill(small_disk)

    delivered = 0
    while (sample_id := spool.next(["solder"])) is not None:
        assert spool.read(sample_id)[1] == PICTURE
        spool.done(sample_id)
        delivered += 1
    assert delivered >= 15 and spool.stats().items == 0 and spool.stats().delivered == delivered

    hog.unlink()
    spool.maintain()
    assert (small_disk / "spool" / "ballast").stat().st_size == 4 * MIB, "the ballast is back"
    spool.put(header(200, 0.5), PICTURE, 0.5)
    assert [f"{e.level}:{e.code}" for e in events] == ["warning:spool.full", "ok:spool.full"]
    spool.close()


def test_a_full_disk_at_start_does_not_stop_the_spool(small_disk: Path) -> None:
    spool = open_spool(small_disk, [])
    for i in range(5):
        spool.put(header(i, 0.5), PICTURE, 0.5)
    spool.close()
    hog = fill(small_disk)
    events: list[Event] = []
    spool = open_spool(small_disk, events)
    assert spool.stats().items == 5
    spool.done("s0")
    assert spool.waiting("solder") == {"s1", "s2", "s3", "s4"}
    hog.unlink()
    spool.maintain()
    spool.put(header(9, 0.5), PICTURE, 0.5)
    spool.close()


def test_the_reserve_stays_free_and_the_spool_yields_to_others(small_disk: Path) -> None:
    spool = open_spool(small_disk, [], reserve=2 * MIB)
    stored = 0
    for i in range(200):
        try:
            spool.put(header(i, margin=0.5), PICTURE, 0.5)
            stored += 1
        except SpoolFull:
            break
    status = os.statvfs(small_disk)
    assert stored == 200, "newer samples of equal value replace older ones"
    assert 2 * MIB - 64 * 1024 <= status.f_bavail * status.f_frsize <= 3 * MIB
    before = spool.stats().items
    fill(small_disk, leave=MIB)
    spool.put(header(999, margin=0.0), PICTURE, 1.0)
    assert spool.stats().items <= before - 10, "about 1 MiB of samples made room again"
    spool.close()


def test_filled_to_the_last_byte_by_the_spool_itself(small_disk: Path) -> None:
    """No quota, no reserve: statvfs and the file system disagree on the last blocks, ENOSPC comes in the middle."""
    spool = open_spool(small_disk, [])
    for i in range(300):
        spool.put(header(i, margin=0.5), PICTURE, 0.5)
    assert "s299" in spool.waiting("solder")
    for sample_id in spool.waiting("solder"):
        assert spool.read(sample_id)[1] == PICTURE
        spool.done(sample_id)
    assert spool.stats().bytes == 0
    assert not list((small_disk / "spool").glob("??/*")), "nothing half-written"
    spool.close()
