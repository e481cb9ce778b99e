"""The `[learning]` table: an empty one is enough, and what contradicts itself is refused with the key."""

from __future__ import annotations

import pytest

from edgekit.services import Learning, ServiceError, dump_service, parse_service

TOP = 'name = "solder"\nmodel = "small"\n'


def test_a_service_without_the_table_does_not_learn_and_an_empty_one_is_enough() -> None:
    assert parse_service(TOP, "test").learning is None
    assert parse_service(f"{TOP}[learning]", "test").learning == Learning()


def test_a_definition_that_learns_is_the_same_after_it_was_written_and_read() -> None:
    service = parse_service(
        f'{TOP}[learning]\nrungs = ["head"]\nmax_celsius = 70\n[learning.shadow]\nitems = 7\n'
        "[learning.triggers]\ndrift = false\n",
        "test",
    )
    assert parse_service(dump_service(service), "test") == service


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("rungs = []", "learning.rungs"),
        ('rungs = ["federated"]', "recalibrate"),
        ('rungs = ["head", "head"]', "twice"),
        ('start = "sometimes"', "operator"),
        ("hours = 25", "at most 24"),
        ("max_celsius = nan", "learning.max_celsius"),
        ("[learning.triggers]\nofload = 2", "offload"),
        ("[learning.triggers]\noffload = 1.1", "at least 1.25"),
        ("[learning.triggers]\nnew_class = 4", "at least 5"),
        ("[learning.judging]\nnew_recall = 0.4", "new_recall_floor"),
        ("[learning.probation]\nfailures = 0", "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_key_and_what_belongs_there(table: str, words: str) -> None:
    with pytest.raises(ServiceError, match="learning") as caught:
        parse_service(f"{TOP}[learning]\n{table}", "test")
    assert words in str(caught.value)
