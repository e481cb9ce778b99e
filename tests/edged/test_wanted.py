"""What the supervisor's parts hear of a wanted service, and the definition that its worker gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.briefing import pinned
from edged.desired import Entry
from edged.plan import Choice, make_plan
from edged.standing import Standing
from edged.wanted import Wanted
from edgekit.services import Samples, parse_service

DEFINITION = 'name = "solder"\nmodel = "m"\ntask = "detection"\n[samples]\nrandom = 0.5\n'
UNREADABLE = 'name = "newer"\nunheard_of = 1\n'
SPLIT = """
name = "solder"
model = "small"
may_leave = "features"
[hard_samples]
answer_model = "large"
[split]
heads = "large-head"
"""


PACKAGES = {"m@1": Path("/m"), "m@2": Path("/m2")}
ENTRIES = {
    "solder": Entry(name="solder", text=DEFINITION, origin="local"),
    "newer": Entry(name="newer", text=UNREADABLE, origin="local"),
}


@pytest.fixture
def standing() -> Standing:
    """Of one service, and of another whose definition nobody can read."""
    found = Standing(lambda: None)
    found.look(ENTRIES, {}, make_plan(ENTRIES.values(), PACKAGES))
    return found


def test_a_service_says_what_it_is_for_and_what_it_keeps(standing: Standing) -> None:
    wanted = Wanted(standing, lambda: PACKAGES)
    assert wanted.task("solder") == "detection"
    assert wanted.samples("solder") == parse_service(DEFINITION, "here").samples != Samples()


@pytest.mark.parametrize("name", ["newer", "nobody"])
def test_of_one_that_cannot_be_read_or_is_gone_the_defaults_hold(standing: Standing, name: str) -> None:
    wanted = Wanted(standing, lambda: PACKAGES)
    assert wanted.service(name) is None and wanted.task(name) is None and wanted.subject(name) is None
    assert wanted.samples(name) == Samples()


def test_only_a_service_that_runs_can_learn_with_others(standing: Standing) -> None:
    wanted = Wanted(standing, lambda: PACKAGES)
    subject = wanted.subject("solder")
    assert subject is not None and subject == (DEFINITION, "m@2", Path("/m2"))
    assert Wanted(standing, dict).subject("solder") is None, "its package is not here"
    standing.look(ENTRIES, {}, make_plan((), PACKAGES))
    assert wanted.subject("solder") is None


def test_a_worker_is_told_exact_models_and_heads() -> None:
    with_head = parse_service(pinned(Choice("solder", SPLIT, "small@3", head="large-head@2")), "here")
    assert with_head.model == "small@3"
    assert with_head.split is not None and with_head.split.heads == "large-head@2"
    without = parse_service(pinned(Choice("solder", SPLIT, "small@3")), "here")
    assert without.split is not None and without.split.heads == "large-head"
