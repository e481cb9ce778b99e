"""Both daemons: an operator asks for the rung `cloud`, and a candidate that cloudd taught looks on at the line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.daemons import Cloud, Edge
from edged.api import Done
from edged.learning.bodies import LearningState, OrderBody, StartBody
from edged.samples.bodies import AddHeader, AddReply
from edged.samples.records import Label, LabelRecord, NewSample
from edgekit.envelope import seal
from edgekit.learning.records import Record
from tests.support.edged import wait_for
from tests.support.models import make_package, picture

SERVICE = """name = "solder"
model = "brightness"
deadline_ms = 5000
[learning]
rungs = ["cloud"]
cpu_share = 1.0
[learning.judging]
items = 10
drop = 0.5
class_drop = 0.5
slower = 10.0
larger = 10.0
"""
LABELS = {"dark": 0.1, "bright": 0.9}
COUNT = 50


@pytest.fixture
def daemons(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Cloud, Edge]]:
    cloud = Cloud(tmp_path / "cloud", flags=["--retraining-hours", request.param])
    edge = Edge(tmp_path / "edge", "line-1")
    try:
        cloud.start()
        edge.start()
        edge.join(cloud)
        yield cloud, edge
    finally:
        edge.stop()
        cloud.stop()


def labelled(edge: Edge) -> None:
    for label, brightness in LABELS.items():
        for seed in range(COUNT):
            new = NewSample(service="solder", source="import", captured_at=time.time())
            record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=time.time())
            edge.client.post(
                "/samples", AddReply, seal(AddHeader(new=new, label=record), picture(brightness, seed=seed))
            )


def state(edge: Edge) -> LearningState:
    return edge.client.get("/learning/solder", LearningState)


def asked(edge: Edge, place: Path) -> None:
    """A service with labels, which an operator wants cloudd to retrain."""
    edge.add_model(make_package(place / "package", batch=True).root)
    edge.add_service(SERVICE)
    labelled(edge)
    edge.client.post("/learning/solder/start", Done, StartBody(by="anna", rung="cloud"))


def log(edge: Edge) -> list[Record]:
    """What was decided, the oldest first; nothing while there is only the beginning."""
    found = list(reversed(edge.client.get("/learning/solder/log?limit=10", list[Record])))
    return found if len(found) > 1 else []


@pytest.mark.parametrize("daemons", ["0.003"], indirect=True)
def test_a_candidate_of_cloudd_goes_the_ordinary_road(daemons: tuple[Cloud, Edge], tmp_path: Path) -> None:
    cloud, edge = daemons
    asked(edge, tmp_path)
    try:
        started, accepted, *_ = wait_for(lambda: log(edge), 100.0, 0.5)
    except AssertionError:
        raise AssertionError(f"{state(edge)}\n{edge.log}\n{cloud.log}") from None
    assert (started.event, started.rung) == ("started", "cloud")
    assert accepted.event == "accepted", accepted
    looks_on = state(edge)
    assert (looks_on.stage, looks_on.candidate) == ("shadow", "brightness.solder@1-1")
    assert edge.inspect("solder", picture(0.1)).model == "brightness@1"
    (folder,) = (tmp_path / "cloud").rglob("retraining/*")
    sent = len(list((folder / "files").iterdir())) - 2
    assert 0 < sent < 2 * COUNT - 10, "those that judge never left"
    assert cloud.client.get("/models") == [], "nothing is registered for others"
    edge.client.post("/learning/solder/stop", Done, OrderBody(by="anna"))
    assert state(edge).stage == "waiting"


@pytest.mark.parametrize("daemons", ["1"], indirect=True)
def test_a_definition_that_forbids_it_ends_the_job_and_takes_the_pictures_back(
    daemons: tuple[Cloud, Edge], tmp_path: Path
) -> None:
    cloud, edge = daemons
    asked(edge, tmp_path)
    place = next(iter((tmp_path / "cloud").rglob("retraining")))
    wait_for(lambda: ": cloudd " in state(edge).sentence, 60.0, 0.2)
    (folder,) = place.iterdir()
    assert list((folder / "files").iterdir())
    edge.add_service('may_leave = "nothing"\n' + SERVICE)
    _, refused, *_ = wait_for(lambda: log(edge), 60.0, 0.5)
    assert refused.event == "refused" and "no picture may leave" in refused.sentence
    assert not folder.exists()
    assert cloud.client.get("/devices")[0]["online"], "and cloudd goes on"
