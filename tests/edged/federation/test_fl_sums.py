"""What a device has in the totals of heads: found again by later jobs, or refused where it cannot be known."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edged.federation import sums
from edged.federation.book import Book
from edged.federation.descent import LINEAGE, descends
from edged.federation.files import JobFolder
from edged.federation.notes import JobNote
from edged.federation.shared import Shared
from edgekit import tensors
from edgekit.federated.head_jobs import HEAD_FILE, TOTALS, TOTALS_FILE
from edgekit.federated.strategy import State
from edgekit.messages.federation import FederatedJob, LocalTraining
from edgekit.secagg.errors import Refusal

FIRST, SECOND, THIRD = "1" * 32, "2" * 32, "3" * 32
D = 3


def opened(
    root: Path,
    job: str,
    continues: tuple[str, ...] = (),
    totals: np.ndarray | None = None,
    labels: tuple[str, ...] = ("a", "b"),
    package: str = "0" * 64,
) -> tuple[Shared, JobFolder]:
    """A job of a head as it came to the device."""
    folder = JobFolder(root / "jobs", job, lambda data, name: data, lambda data, name: data)
    head = {"scale": np.ones(D, np.float32), "weight": np.ones((2, D), np.float32), "bias": np.ones(2, np.float32)}
    (folder.files / HEAD_FILE).write_bytes(tensors.save(head))
    if totals is not None:
        (folder.files / TOTALS_FILE).write_bytes(tensors.save({TOTALS: totals}))
    plan = {"strategy": {"strategy": "additive-head", "continues": continues}}
    told = FederatedJob(
        id=job,
        service="solder",
        model="m@1",
        package=package,
        labels=labels,
        plan=msgspec.json.encode(plan).decode(),
        local=LocalTraining(),
        rounds=1,
    )
    return Shared(told, folder), folder


def numbers(seed: int = 1) -> np.ndarray:
    """As many whole numbers as a head of two labels and three features has."""
    return np.random.default_rng(seed).integers(0, 99, 2 + 2 * D + D * (D + 1) // 2)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "state")


def had(root: Path, job: str, mine: np.ndarray, whole: np.ndarray, continues: tuple[str, ...] = ()) -> None:
    """This device took part in a job."""
    shared, folder = opened(root, job, continues, whole if continues else None)
    shared.state = State(whole, {}, 1)
    sums.keep(shared, folder, mine)


def test_a_later_job_finds_what_this_device_has_in_its_totals(tmp_path: Path, book: Book) -> None:
    had(tmp_path, FIRST, numbers(), numbers(2))
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(2))
    assert not sums.open_head(shared, folder, book)
    np.testing.assert_array_equal(shared.memory, numbers())
    assert shared.had_in == FIRST


def test_who_sat_out_one_job_goes_on_from_the_one_before(tmp_path: Path, book: Book) -> None:
    had(tmp_path, FIRST, numbers(), numbers(2))
    shared, folder = opened(tmp_path, THIRD, (SECOND, FIRST), numbers(7))
    sums.open_head(shared, folder, book)
    np.testing.assert_array_equal(shared.memory, numbers())


def test_a_device_that_is_new_begins_with_nothing(tmp_path: Path, book: Book) -> None:
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(2))
    sums.open_head(shared, folder, book)
    assert shared.memory is None


def test_other_totals_than_those_that_the_job_before_ended_with_are_refused(tmp_path: Path, book: Book) -> None:
    had(tmp_path, FIRST, numbers(), numbers(2))
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(3))
    with pytest.raises(Refusal, match="does not begin with the totals"):
        sums.open_head(shared, folder, book)


def test_who_sat_in_a_round_and_does_not_know_how_it_ended_is_refused(tmp_path: Path, book: Book) -> None:
    note = JobNote(job=FIRST, service="solder", model="m@1", secure=True, private=False, rounds=1)
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(2))
    book.note(note)
    sums.open_head(shared, folder, book)
    book.note(msgspec.structs.replace(note, round=0))
    with pytest.raises(Refusal, match="begun anew"):
        sums.open_head(shared, folder, book)


def test_a_damaged_record_is_refused_and_never_taken_for_nothing(tmp_path: Path, book: Book) -> None:
    had(tmp_path, FIRST, numbers(), numbers(2))
    next((tmp_path / "sums" / FIRST).glob("*.sealed")).write_bytes(b"x")
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(2))
    with pytest.raises(Refusal, match="damaged"):
        sums.open_head(shared, folder, book)


def test_records_of_earlier_totals_go_when_they_are_a_part_of_newer_ones(tmp_path: Path, book: Book) -> None:
    had(tmp_path, FIRST, numbers(), numbers(2))
    had(tmp_path, SECOND, numbers(4), numbers(5), (FIRST,))
    assert not (tmp_path / "sums" / FIRST).exists()
    shared, folder = opened(tmp_path, THIRD, (SECOND, FIRST), numbers(5))
    sums.open_head(shared, folder, book)
    np.testing.assert_array_equal(shared.memory, numbers(4))


def test_who_is_to_leave_takes_out_what_it_has_and_puts_nothing_in(tmp_path: Path, book: Book) -> None:
    book.leave("solder", "we go")
    fresh, folder = opened(tmp_path, FIRST)
    with pytest.raises(Refusal, match="have nothing in the heads of solder"):
        sums.open_head(fresh, folder, book)
    assert sums.open_head(fresh, folder, book, masked=True), "it stays to learn whether what it sent is in"
    had(tmp_path, FIRST, numbers(), numbers(2))
    shared, folder = opened(tmp_path, SECOND, (FIRST,), numbers(2))
    assert sums.open_head(shared, folder, book)
    assert book.all_leaving() == {"solder": "we go"}
    assert book.stay("solder") and not book.stay("solder") and not book.leaving("solder")


def test_heads_of_one_base_count_as_the_same_weights_whatever_cloudd_makes_of_it(tmp_path: Path, book: Book) -> None:
    one, _ = opened(tmp_path, FIRST)
    other, _ = opened(tmp_path, SECOND, labels=("a", "b", "c"))
    assert one.weights_digest("learn") == other.weights_digest("learn")
    assert one.digest() != other.digest()
    anew, _ = opened(tmp_path, THIRD, package="1" * 64)
    assert anew.weights_digest("learn") != one.weights_digest("learn")
    had(tmp_path, FIRST, numbers(), numbers(2))
    later, folder = opened(tmp_path, "4" * 32, (FIRST,), numbers(2))
    sums.open_head(later, folder, book)
    assert later.weights_digest("learn") != one.weights_digest("learn"), "what goes in now is a difference"


def test_totals_and_continuing_go_together(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="if, and only if, it continues"):
        opened(tmp_path, FIRST, (SECOND,))
    with pytest.raises(Refusal, match="if, and only if, it continues"):
        opened(tmp_path, SECOND, (), numbers())


def test_a_package_that_a_head_was_merged_into_descends_from_the_base(tmp_path: Path) -> None:
    from cloudd.federation import lineage

    assert lineage.LINEAGE == LINEAGE
    (tmp_path / LINEAGE).parent.mkdir()
    (tmp_path / LINEAGE).write_text('{"source": {"model": "m@1", "digest": "ab", "file": "x"}, "job": {}}')
    assert descends(tmp_path, "m@1") and descends(tmp_path, "m@1", "ab")
    assert not descends(tmp_path, "m@1", "cd") and not descends(tmp_path, "m@2")
    (tmp_path / LINEAGE).write_text("[]")
    assert not descends(tmp_path, "m@1")
