"""A real daemon from labels to a head that decides: job, shadow on live pictures, probation; kept, and rolled back."""

from __future__ import annotations

import http.client
import os
import signal
import time
from pathlib import Path

import msgspec
import pytest
from support.edged import Edged, wait_for
from support.models import make_package, picture

from edged.api import Done
from edged.cli.main import main
from edged.learning.bodies import LearningState, OrderBody
from edged.samples.bodies import AddHeader, AddReply
from edged.samples.records import Label, LabelRecord, NewSample
from edgekit.envelope import seal
from edgekit.learning.records import Record
from edgekit.messages import Decision

SERVICE = """name = "solder"
model = "brightness"
deadline_ms = 5000
[learning]
rungs = ["head"]
cpu_share = 1.0
[learning.judging]
items = 20
drop = 0.5
class_drop = 0.5
slower = 10.0
larger = 10.0
[learning.shadow]
items = 10
agreement = 0.5
[learning.probation]
items = 10
hours = {hours}
failures = 1
"""
CANDIDATE = "brightness.solder@1-1"


def labelled(edged: Edged, count: int, label: str, brightness: float) -> None:
    for seed in range(count):
        new = NewSample(service="solder", source="import", captured_at=time.time())
        record = LabelRecord(label=Label(label=label), kind="operator", author="anna", at=time.time())
        body = seal(AddHeader(new=new, label=record), picture(brightness, seed=seed))
        edged.client.post("/samples", AddReply, body)


def learning(edged: Edged) -> LearningState:
    return edged.client.get("/learning/solder", LearningState)


def inspect(edged: Edged, brightness: float) -> Decision:
    host, _, port = edged.status().addresses.inference.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request("POST", "/v1/services/solder/inspect", picture(brightness), {"Content-Type": "image/png"})
        return msgspec.json.decode(connection.getresponse().read(), type=Decision)
    finally:
        connection.close()


def until(edged: Edged, stage: str, timeout_s: float = 60.0) -> LearningState:
    """Keep pictures coming until the service is in this stage."""

    def there() -> LearningState | None:
        inspect(edged, 0.2)
        state = learning(edged)
        return state if state.stage == stage else None

    try:
        return wait_for(there, timeout_s, 0.1)
    except AssertionError:
        raise AssertionError(f"{learning(edged)}\n{events(edged)}\n{edged.log[-3000:]}") from None


def events(edged: Edged) -> list[str]:
    return [one.event for one in reversed(edged.client.get("/learning/solder/log?limit=100", list[Record]))]


def at_work(edged: Edged, directory: Path, hours: float) -> None:
    """Labels of a class that the model does not have."""
    edged.add_model(make_package(directory / "package", batch=True).root)
    edged.add_service(SERVICE.format(hours=hours))
    assert inspect(edged, 0.5).label in ("dark", "bright")
    labelled(edged, 60, "dark", 0.2)
    labelled(edged, 60, "bright", 0.8)
    labelled(edged, 60, "grey", 0.5)
    edged.client.post("/learning/solder/start", Done, OrderBody(by="anna"))


def post(edged: Edged, path: str) -> bytes:
    """To the page, as an operator's script."""
    host, _, port = edged.status().addresses.page.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    token = (edged.state / "page-token").read_text().strip()
    try:
        connection.request("POST", path, b"", {"Authorization": f"Bearer {token}"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_labels_become_a_head_that_looks_on_decides_and_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Edged(tmp_path / "state") as edged:
        at_work(edged, tmp_path, hours=0.001)
        shadow = until(edged, "shadow")
        assert shadow.candidate == CANDIDATE and shadow.last is not None and shadow.last.facts
        assert inspect(edged, 0.5).model == "brightness@1", "nobody acts on a candidate"
        until(edged, "probation")
        wait_for(lambda: inspect(edged, 0.5).model == CANDIDATE)
        assert inspect(edged, 0.5).label == "grey"
        kept = until(edged, "waiting")
        assert kept.learned == CANDIDATE
        assert events(edged) == ["started", "accepted", "promoted", "kept", "kept"]
        edged.kill()
    with Edged(tmp_path / "state") as edged:
        edged.wait_ready("solder")
        assert inspect(edged, 0.5).label == "grey", "what was learned is not forgotten"
        assert main(["--state", str(tmp_path / "state"), "learning", "show", "solder"]) == 0
        assert main(["--state", str(tmp_path / "state"), "learning", "log", "solder"]) == 0
        shown = capsys.readouterr().out
        assert f"decides:     {CANDIDATE}" in shown and "The model is kept: it decided" in shown
        assert post(edged, "/api/learning/solder/go").startswith(b'{"error":"solder has no candidate on trial')
        assert CANDIDATE.encode() in post(edged, "/api/learning/solder/revert")
        wait_for(lambda: inspect(edged, 0.5).model == "brightness@1")
        assert edged.stop() == 0


def test_a_model_whose_worker_dies_on_probation_is_rolled_back(tmp_path: Path) -> None:
    with Edged(tmp_path / "state") as edged:
        at_work(edged, tmp_path, hours=1.0)
        until(edged, "probation")
        wait_for(lambda: inspect(edged, 0.5).model == CANDIDATE)
        worker = edged.status().worker.pid
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        until(edged, "waiting")
        wait_for(lambda: inspect(edged, 0.5).model == "brightness@1")
        assert "rolled-back" in events(edged)
        wait_for(lambda: CANDIDATE not in {f"{one.name}@{one.version}" for one in edged.status().models})
