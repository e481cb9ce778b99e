"""The durable queue: order, bounds, what is known, damaged files, two owners."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.capture.outputs import queue as queue_module
from edged.capture.outputs.queue import Queue
from tests.support.receivers import decision


def open_queue(directory: Path, rows: int = 1000, size: int = 1_000_000) -> Queue:
    return Queue(directory / "queues" / "solder.db", rows, size, lambda: False)


def batch(*numbers: int) -> list[tuple[str, bytes]]:
    return [(one.sample_id, msgspec.json.encode(one)) for one in map(decision, numbers)]


def waiting(queue: Queue) -> list[str]:
    return [message.sample_id.removeprefix("SAMPLE").lstrip("0") for message in queue.head(10_000)]


def test_the_order_is_kept_and_a_known_decision_is_not_queued_again(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    assert queue.put(batch(3, 1, 2)).waiting == 3
    assert queue.put(batch(1, 4)).waiting == 4
    assert waiting(queue) == ["3", "1", "2", "4"]
    first, second, *_ = queue.head(4)
    assert queue.delivered(second.number) == 2
    assert queue.put(batch(3)).waiting == 2, "what was delivered lately is known as well"
    assert queue.delivered(first.number) == 2, "the mark never goes back"
    queue.close()
    assert waiting(open_queue(tmp_path)) == ["2", "4"]


def test_rows_are_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, rows=5)
    assert queue.put(batch(*range(1, 5))).dropped == 0
    stored = queue.put(batch(*range(5, 9)))
    assert (stored.dropped, stored.waiting) == (3, 5)
    assert waiting(queue) == ["4", "5", "6", "7", "8"]


def test_bytes_are_bounded_also_for_one_decision_that_is_too_large(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, size=2000)
    assert queue.put([(str(n), bytes(600)) for n in range(1, 6)]).dropped == 2
    stored = queue.put([("large", bytes(5000))])
    assert (stored.dropped, stored.waiting) == (4, 0)
    assert queue.put(batch(9)).waiting == 1


def test_dropping_what_is_under_way_counts_nothing_twice(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, rows=3)
    queue.put(batch(1, 2, 3))
    under_way = queue.head(2)
    assert queue.put(batch(4, 5)).dropped == 2
    assert queue.delivered(under_way[-1].number) == 3
    assert waiting(queue) == ["3", "4", "5"]


@given(st.lists(st.tuples(st.sampled_from(["put", "deliver"]), st.integers(1, 7)), max_size=30))
def test_the_counts_are_those_of_the_rows(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    queue = open_queue(tmp_path_factory.mktemp("queue"), rows=10, size=3000)
    model: list[str] = []
    next_number = 1
    for what, count in steps:
        if what == "put":
            names = [str(next_number + n) for n in range(count)]
            next_number += count
            stored = queue.put([(name, bytes(290)) for name in names])
            model += names
            assert stored.dropped == max(0, len(model) - 10)
            model = model[-10:]
        elif model:
            queue.delivered(queue.head(count)[-1].number)
            model = model[count:]
        assert [message.sample_id for message in queue.head(100)] == model
        assert queue.waiting() == len(model)
    queue.close()


def test_what_was_delivered_is_forgotten_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "HISTORY", 10)
    queue = open_queue(tmp_path)
    queue.put(batch(*range(1, 31)))
    queue.delivered(queue.head(30)[-1].number)
    known = queue.known("solder")
    assert sorted(known) == [f"SAMPLE{number:06}" for number in range(21, 31)]
    assert known["SAMPLE000030"] == decision(30)
    assert queue.known("another") == {}


def test_a_refused_decision_is_put_aside_with_its_reason(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.put(batch(1, 2))
    assert queue.refused(queue.head(1)[0], "it answered 422", 1_800_000_000.0) == 1
    assert waiting(queue) == ["2"]
    queue.close()
    import sqlite3

    with sqlite3.connect(tmp_path / "queues" / "solder.db") as connection:
        row = connection.execute("SELECT sample_id, reason, content FROM refused").fetchone()
    assert (row[0], row[1]) == ("SAMPLE000001", "it answered 422")
    assert msgspec.json.decode(row[2])["serial"] == "board-1"


def test_a_damaged_file_is_moved_away_and_the_other_owner_notices(tmp_path: Path) -> None:
    first = open_queue(tmp_path)
    first.put(batch(1))
    first.close()
    path = tmp_path / "queues" / "solder.db"
    path.write_bytes(b"no database" * 1000)
    first.put(batch(2))
    assert first.quarantined is not None and first.quarantined.exists()
    second = open_queue(tmp_path)
    second.put(batch(3))
    path.rename(path.with_name("moved"))  # as another worker does with a file that it finds damaged
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).rename(path.with_name("moved" + suffix))
    first.put(batch(4))
    assert waiting(second) == ["4"]
    first.close()
    second.close()


def test_two_owners_share_one_order(tmp_path: Path) -> None:
    old, new = open_queue(tmp_path), open_queue(tmp_path)
    for number in range(1, 21):
        (old if number % 2 else new).put(batch(number))
    assert waiting(new) == [str(number) for number in range(1, 21)] == waiting(old)
    old.delivered(old.head(10)[-1].number)
    old.close()
    assert waiting(new) == [str(number) for number in range(11, 21)]
    new.close()
