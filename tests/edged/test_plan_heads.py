"""Head packages in what a worker should run: fetched when missing, pinned when there, never in a service's way."""

from __future__ import annotations

from pathlib import Path

from edged.desired import Entry, model_entry
from edged.plan import Choice, make_plan

TEXT = """
name = "solder"
model = "small"
may_leave = "features"
[hard_samples]
answer_model = "large"
[split]
heads = "large-head"
"""
MODEL = {"small@1": Path("/small")}
HEADS = {"large-head@1": Path("/h1"), "large-head@2": Path("/h2")}


def entry(text: str = TEXT, name: str = "solder") -> Entry:
    return Entry(name=name, text=text, origin="local")


def test_a_service_whose_head_is_missing_runs_and_the_head_is_fetched() -> None:
    plan = make_plan([entry()], MODEL)
    assert plan.choices == (Choice("solder", TEXT, "small@1"),)
    assert plan.missing == {"large-head"} and plan.packages == {"small@1"}


def test_a_head_that_has_come_is_a_reason_for_a_new_worker() -> None:
    before, after = make_plan([entry()], MODEL), make_plan([entry()], {**MODEL, **HEADS})
    assert after.choices[0].head == "large-head@2" and after.missing == frozenset()
    assert after.packages == {"small@1", "large-head@2"}
    assert before.key != after.key


def test_without_its_model_a_service_waits_whatever_heads_there_are() -> None:
    plan = make_plan([entry()], HEADS)
    assert plan.choices == () and plan.missing == {"small"} and "solder" in plan.held


def test_a_service_or_model_without_a_split_has_no_head() -> None:
    plain = TEXT.partition("[split]")[0].replace("features", "raw")
    plan = make_plan([entry(plain), entry("small", model_entry("small"))], {**MODEL, **HEADS})
    assert {choice.head for choice in plan.choices} == {""}
