"""`edged status` for people: one line for each service that learns, one for each federated job."""

from __future__ import annotations

import msgspec
import pytest
from test_status_server import example_state

from edged.cli.status import show
from edged.federation.notes import JobNote, JobView
from edged.learning.bodies import LearningState, Stock

changed = msgspec.structs.replace
ONE = LearningState(
    service="solder", start="automatic", stage="waiting", sentence="Nothing asks for learning.", wanted=1700,
    stock=Stock(kept=900, labelled=420, known=412),
)  # fmt: skip
NOTE = JobNote(
    job="ab" * 32, service="solder", model="small@1", secure=True, private=False, rounds=20, version=5, contributed=4,
    stage="round", text="round 6",
)  # fmt: skip


def lines(capsys: pytest.CaptureFixture[str], **changes: object) -> list[str]:
    show(changed(example_state(), **changes))
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("learning", "federated"))]


def test_a_device_that_learns_nothing_has_no_line_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys) == []


def test_a_service_that_waits_says_how_many_labels_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    need = "412 of about 1700 labelled pictures that a judgement needs."
    assert lines(capsys, learning=[ONE]) == [f"learning   solder: waiting. Nothing asks for learning. {need}"]
    enough = changed(ONE, stock=Stock(kept=1900, labelled=1800, known=1800))
    assert lines(capsys, learning=[enough]) == ["learning   solder: waiting. Nothing asks for learning."]


def test_a_candidate_on_trial_is_named_with_its_stage(capsys: pytest.CaptureFixture[str]) -> None:
    shadow = changed(
        ONE, stage="shadow", candidate="small.solder@1-2", learned="small.solder@1-1", sentence="It\x1b[1m."
    )
    expected = "learning   solder: shadow, candidate small.solder@1-2, learned small.solder@1-1. It?[1m."
    assert lines(capsys, learning=[shadow]) == [expected]


def test_a_federated_job_has_a_line_even_if_its_service_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    view = JobView(note=NOTE, running=True)
    start = "federated  abababababab of solder: "
    sums = "5 of 20 sums, 4 with this device's update"
    assert lines(capsys, federation=[view], services=[]) == [f"{start}works, {sums}: round 6"]
    idle = JobView(note=changed(NOTE, stage="waiting"), why="the service does not run")
    assert lines(capsys, federation=[idle]) == [f"{start}waiting, {sums}: the service does not run"]
