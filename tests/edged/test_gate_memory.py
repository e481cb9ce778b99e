"""What the gates have learned, and what left, over the years: older files go on, and neither grows for ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edged.collab import gate_memory, ledger, spool_view
from edged.collab.gate_memory import GateMemory, Observation
from edged.collab.ledger import Ledger
from edged.store import Database
from edgekit.messages import HardSample, Verdict


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


def observations(first: int, last: int) -> list[Observation]:
    return [
        Observation(sample_id=f"f#{i}", score=0.5, differs=False, reason="audit", answered_by="large@1")
        for i in range(first, last)
    ]


async def test_what_an_older_release_learned_is_still_known(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    old = Database(tmp_path / "gate.db", gate_memory._MIGRATIONS[:1])
    with old.transaction() as connection:
        connection.execute(
            "INSERT INTO observations (pair, sample_id, score, differs, reason, answered_by, at)"
            " VALUES ('p', 's1', 0.25, 1, 'hard', 'large@1', 0)"
        )
    old.close()
    memory = GateMemory(tmp_path / "gate.db", executor)
    (known,) = (await memory.recall("p")).later
    assert known == Observation(sample_id="s1", score=0.25, differs=True, reason="hard", answered_by="large@1", seq=1)
    await memory.close()


async def test_the_newest_answers_stay_and_all_that_no_state_contains(
    tmp_path: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate_memory, "KEEP", 10)
    memory = GateMemory(tmp_path / "gate.db", executor)
    await memory.add("p", observations(0, 100), 0)
    await memory.add("other", observations(0, 100), 0)
    await memory.save("p", b"{}", 50, "large@1")
    assert [one.seq for one in await memory.after("p", 0)] == list(range(51, 101))
    assert len((await memory.recall("p")).later) == 50, "they are newer than the state"
    await memory.save("p", b"{}", 100, "large@1")
    assert [one.seq for one in await memory.after("p", 0)] == list(range(91, 101))
    assert len(await memory.after("other", 0)) == 100
    await memory.close()


async def test_an_answer_about_many_regions_is_learned_whole_and_once(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    memory = GateMemory(tmp_path / "gate.db", executor)
    first = await memory.add("p", observations(0, 5), 0)
    assert [one.sample_id for one in first] == [f"f#{i}" for i in range(5)]
    again = await memory.add("p", observations(0, 8), first[-1].seq)
    assert [one.sample_id for one in again] == ["f#5", "f#6", "f#7"]
    await memory.close()


async def test_the_record_of_an_older_release_goes_on(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    path = tmp_path / "spool" / "left.db"
    path.parent.mkdir()
    old = Database(path, ledger._MIGRATIONS[:1])
    with old.transaction() as connection:
        connection.execute(
            "INSERT INTO left_device (at, sample_id, service, reason, late, bytes, sha256, authority)"
            " VALUES (1, 's1', 'solder', 'hard', 0, 5, 'x', 'y')"
        )
    old.close()
    assert [record.regions for record in spool_view.left(tmp_path)] == [0], "before the owner takes it over"
    book = Ledger(path, executor)
    edge = Verdict(label="ok", score=0.9, margin=0.8, model="small@1")
    header = HardSample(
        sample_id="s2", service="solder", answer_model="large", edge=edge, reason="hard", captured_at=0.0
    )
    await book.record(header, b"picture", "y")
    await book.close()
    assert [(record.sample_id, record.regions) for record in spool_view.left(tmp_path)] == [("s2", 0), ("s1", 0)]
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("UPDATE left_device SET regions = 7")
    connection.close()
