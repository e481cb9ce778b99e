"""What was learned, in what a worker should run: exactly in the place of its base, and never in a service's way."""

from __future__ import annotations

from pathlib import Path

from edged.desired import Entry, combination_key
from edged.plan import Learned, make_plan, unproven

TEXT = 'name = "solder"\nmodel = "small"\n'
ROOT, KEPT, NEW = "small@1", "small.solder@1-1", "small.solder@1-2"
ALL = {ref: Path("/" + ref) for ref in (ROOT, KEPT, NEW)}


def entry(**changes: str) -> Entry:
    return Entry(**{"name": "solder", "text": TEXT, "origin": "local", **changes})  # type: ignore[arg-type]


def test_what_was_learned_runs_in_the_place_of_its_base_and_a_candidate_beside_it() -> None:
    plan = make_plan([entry()], ALL, learned={"solder": Learned(ROOT, KEPT, NEW)})
    (choice,) = plan.choices
    assert (choice.ref, choice.shadow) == (KEPT, NEW)
    assert plan.packages == {KEPT, NEW} and not plan.missing


def test_a_candidate_that_looks_on_is_a_reason_for_a_new_worker_but_no_suspect() -> None:
    before = make_plan([entry()], ALL)
    after = make_plan([entry()], ALL, learned={"solder": Learned(ROOT, "", NEW)})
    assert before.key != after.key
    good = entry(good_text=TEXT, good_ref=ROOT)
    running = {choice.name: choice for choice in before.choices}
    assert unproven(after, {"solder": good}, running) == []


def test_another_model_of_the_definition_decides_at_once() -> None:
    plan = make_plan([entry()], {**ALL, "small@2": Path("/2")}, learned={"solder": Learned(ROOT, KEPT, NEW)})
    assert [(choice.ref, choice.shadow) for choice in plan.choices] == [("small@2", "")]


def test_what_was_learned_and_is_gone_is_not_waited_for() -> None:
    plan = make_plan([entry()], {ROOT: Path("/1")}, learned={"solder": Learned(ROOT, KEPT, NEW)})
    assert [(choice.ref, choice.shadow) for choice in plan.choices] == [(ROOT, "")]
    assert not plan.missing and not plan.held


def test_what_was_learned_and_does_not_start_gives_way_to_its_base() -> None:
    refused = entry(refused_key=combination_key(TEXT, KEPT), refused_why="it says no")
    plan = make_plan([refused], ALL, learned={"solder": Learned(ROOT, KEPT, NEW)})
    assert [(choice.ref, choice.shadow) for choice in plan.choices] == [(ROOT, NEW)]


def test_no_service_takes_a_candidate_by_the_bare_name_of_its_base() -> None:
    plan = make_plan([entry(name="other", text=TEXT.replace("solder", "other"))], ALL)
    assert [choice.ref for choice in plan.choices] == [ROOT]
