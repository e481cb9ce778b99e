"""Learning on the status page: where it stands, by which numbers, and what an operator may say."""

from __future__ import annotations

from typing import Any

from edged.learning.bodies import LearningState
from edged.status.learning_page import FACTS, learning_card
from edged.status.page import render
from edged.status.state import StatusState
from edgekit.learning.records import Fact, Record
from edgekit.learning.tally import Tally

HOSTILE = "<script>alert(1)</script>\"'&"


def page(logged_in: bool = True, **changes: Any) -> str:
    state = LearningState(
        **{"service": "solder", "start": "automatic", "stage": "waiting", "sentence": "Nothing asks.", **changes}
    )
    shown = StatusState(
        version="1", name="d", device_id="D", state_dir="/", started_at=1.0, now=100.0, learning=[state]
    )
    return learning_card(shown, logged_in)


def test_a_device_that_learns_nothing_says_nothing() -> None:
    state = StatusState(version="1", name="d", device_id="D", state_dir="/", started_at=1.0, now=100.0)
    assert 'id="learning"' not in render(state, True)


def test_each_stage_offers_what_can_be_said_in_it_and_only_to_who_logged_in() -> None:
    words = {
        "waiting": {"start"},
        "working": {"stop"},
        "shadow": {"go", "stop"},
        "probation": {"go", "stop"},
    }
    for stage, allowed in words.items():
        html = page(stage=stage)
        assert {word for word in ("start", "go", "stop", "revert") if f"/api/learning/solder/{word}" in html} == allowed
        assert "/api/learning" not in page(logged_in=False, stage=stage)
    assert "/revert" in page(learned="small.solder@1-1")
    assert "/start" not in page(learned="small.solder@1-1", start="off")


def test_the_shadow_and_the_newest_decision_show_their_numbers() -> None:
    facts = [Fact(name="drop", value=0.5, passed=False, text=f"fact {number}") for number in range(FACTS + 3)]
    record = Record(at=40.0, event="refused", sentence="The candidate is refused: it is worse.", facts=facts)
    tally = Tally(items=1234, agreeing=1200, audits=55, lost=3, gained=2, sent=100, would_send=90)
    html = page(stage="shadow", shadow=tally, shadow_items=5000, shadow_audits=100, candidate="c@1", last=record)
    for expected in ("1\u202f234 of 5\u202f000 pictures", "3 lost and 2 gained", "it would send 90 instead of 100"):
        assert expected in html, expected
    assert "refused 60 s ago: The candidate is refused" in html
    assert f"fact {FACTS - 1}" in html and f"fact {FACTS}<" not in html and "and more: edged learning log" in html


def test_whatever_comes_from_outside_is_escaped() -> None:
    record = Record(at=40.0, event="kept", sentence=HOSTILE, facts=[Fact(name="x", value=0.0, text=HOSTILE)])
    html = page(service=HOSTILE, sentence=HOSTILE, base=HOSTILE, learned=HOSTILE, candidate=HOSTILE, step=HOSTILE,
                last=record)  # fmt: skip
    assert "<script" not in html and "&lt;script&gt;" in html
