"""Sedna's filters by name with a real cloud behind TLS, a real spool and a real memory."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from support.edged import Edged, wait_for

from edged.api import Done
from edged.client import ApiError
from edged.collab import spool_view
from edged.collab.collaborator import Collaborator
from edgekit.gates.filters import FilterParameters
from edgekit.messages import Decision, Link
from edgekit.services import HardSamples, Service
from tests.edged.collab_bench import CALIBRATION, EASY, HARD, PICTURE, Bench, Line, Local, service, until
from tests.edged.collab_cloud import FaultyCloud, make_link, running
from tests.support.models import make_package, picture
from tests.support.plant import Plant, definition


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with running(tmp_path / "cloud") as cloud:
        yield Bench(tmp_path / "device", cloud)


def filtered(name: str, parameters: FilterParameters | None = None, audit_share: float = 0.0) -> Service:
    hard = HardSamples(mode="filter", filter=name, parameters=parameters, answer_model="large", audit_share=audit_share)
    return service(hard_samples=hard)


async def one(collaborator: Collaborator, probabilities: tuple[float, ...]) -> Decision:
    best, other = sorted(probabilities, reverse=True)[:2]
    local = Local("ok", best, best - other, probabilities)
    return await collaborator.settle(local, PICTURE, "s1", 1_800_000_000.0, "", time.monotonic() + 5.0)


async def test_ibt_asks_about_unsure_answers_and_about_no_others(bench: Bench) -> None:
    async with bench.hub() as hub:
        wanted = filtered("IBT", FilterParameters(threshold_img=0.9, threshold_box=0.9))
        line = Line(await hub.add(wanted, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        easy = await line.one(EASY)
        assert (easy.decided, easy.sent, easy.certified) == ("edge", None, False)
        assert bench.cloud.requests == 0
        hard = await line.one(HARD, deadline_s=5.0)
        assert (hard.decided, hard.label, hard.sent) == ("cloud", "bad", "hard")
        assert [sample.reason for sample in bench.cloud.received] == ["hard"]
        status = line.collaborator.status()
        assert status.state == "filter" and status.bound is None
        sentence = line.collaborator.sentence()
        assert "50% of the last 2 samples" in sentence and 'promises no risk, mode "risk" would' in sentence


async def test_cross_entropy_looks_at_all_probabilities(bench: Bench) -> None:
    async with bench.hub() as hub:
        collaborator = await hub.add(filtered("CrossEntropy"), "small@1")
        await until(lambda: hub.breaker_state == "closed")
        assert (await one(collaborator, (0.97, 0.03, 0.0))).decided == "edge"
        assert (await one(collaborator, (0.4, 0.3, 0.3))).decided == "cloud"
        assert (await one(collaborator, (0.0, 0.0, 0.0))).decided == "cloud"


async def test_cloud_only_without_a_link_answers_here_and_delivers_later(bench: Bench) -> None:
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(filtered("CloudOnly"), "small@1"))
        for _ in range(3):
            decision = await line.one(1.0)
            assert (decision.decided, decision.spooled, decision.sent) == ("edge-degraded", True, "hard")
        hub.set_link(bench.link)
        await until(lambda: hub.spool_report().delivered == 3)
        await until(lambda: hub.breaker_state == "closed")
        assert (await line.one(1.0, deadline_s=5.0)).decided == "cloud"


async def test_edge_only_never_asks_and_may_name_no_model(bench: Bench) -> None:
    async with bench.hub() as hub:
        edge_only = service(hard_samples=HardSamples(mode="filter", filter="EdgeOnly", audit_share=1.0))
        line = Line(await hub.add(edge_only, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        for margin in (0.0, HARD, EASY):
            decision = await line.one(margin)
            assert (decision.decided, decision.sent) == ("edge", None)
        assert line.collaborator.sentence().startswith("EdgeOnly")
    assert bench.cloud.requests == 0 and spool_view.left(bench.state) == []


async def test_audits_are_answered_here_and_measure_over_restarts(bench: Bench) -> None:
    wanted = filtered("Threshold", FilterParameters(threshold=0.7), audit_share=0.6)
    async with bench.hub() as hub:
        line = Line(await hub.add(wanted, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        bench.cloud.label = "ok"
        for number in range(30):
            decision = await line.one(EASY)
            assert (decision.decided, decision.sent, decision.certified) == ("edge", "audit", False), number
        await until(lambda: len(bench.compared) == 30)
        before = line.collaborator.status()
        assert before.bound is not None and before.bound < 0.2
        assert "(30 audits)" in line.collaborator.sentence()
    async with bench.hub() as hub:
        line = Line(await hub.add(wanted, "small@1"), prefix="again")
        assert line.collaborator.status() == before
        await until(lambda: hub.breaker_state == "closed")
        bench.cloud.label = "bad"
        await line.one(EASY)
        await until(lambda: "(31 audits)" in line.collaborator.sentence())
        bound = line.collaborator.status().bound
        assert bound is not None and bound > before.bound
        bench.cloud.model = "large@2"
        await line.one(EASY)
        await until(lambda: line.collaborator.status().bound is None)


async def test_audits_that_wait_in_the_spool_count_after_the_restart(bench: Bench) -> None:
    wanted = filtered("Threshold", FilterParameters(threshold=0.7), audit_share=0.6)
    async with bench.hub(link=Link()) as hub:
        line = Line(await hub.add(wanted, "small@1"))
        for _ in range(5):
            assert (await line.one(EASY)).sent == "audit"
        await until(lambda: hub.spool_report().items == 5)
    async with bench.hub() as hub:
        collaborator = await hub.add(wanted, "small@1")
        await until(lambda: "(5 audits)" in collaborator.sentence())


async def test_another_mode_or_filter_begins_anew_without_a_complaint(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    threshold = filtered("Threshold", FilterParameters(threshold=0.7), audit_share=0.6)
    async with bench.hub() as hub:
        await bench.ready(hub)
    async with bench.hub() as hub:
        line = Line(await hub.add(threshold, "small@1"), prefix="filtered")
        assert line.collaborator.status().state == "filter" and line.collaborator.status().bound is None
        await until(lambda: hub.breaker_state == "closed")
        await line.one(EASY)
        await until(lambda: "(1 audits)" in line.collaborator.sentence())
    async with bench.hub() as hub:
        assert (await hub.add(filtered("IBT", audit_share=0.6), "small@1")).status().bound is None
    async with bench.hub() as hub:
        status = (await hub.add(service(), "small@1")).status()
        assert (status.state, status.missing) == ("calibrating", CALIBRATION)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_where_nothing_may_leave_a_filter_asks_nobody(bench: Bench) -> None:
    async with bench.hub() as hub:
        secret = msgspec.structs.replace(filtered("CloudOnly"), may_leave="nothing")
        line = Line(await hub.add(secret, "small@1"))
        await until(lambda: hub.breaker_state == "closed")
        decision = await line.one(HARD)
        assert (decision.decided, decision.sent) == ("edge", None)
        assert "Nothing may leave" in line.collaborator.sentence()
        edge_only = msgspec.structs.replace(filtered("EdgeOnly"), may_leave="nothing", name="alone")
        assert "EdgeOnly" in (await hub.add(edge_only, "small@1")).sentence()
    assert bench.cloud.requests == 0


async def test_a_worker_runs_a_service_with_a_filter(tmp_path: Path) -> None:
    """From the picture over HTTP to the cloud and back: the entropy is that of the model's own probabilities."""
    plant = Plant(tmp_path)
    plant.package()
    hard = {"mode": "filter", "filter": "CrossEntropy", "answer_model": "large", "audit_share": 0.0}
    async with running(tmp_path / "cloud") as cloud:
        try:
            await _worker_with_a_filter(plant, cloud, hard)
        finally:
            await plant.close()


async def _worker_with_a_filter(plant: Plant, cloud: FaultyCloud, hard: dict[str, object]) -> None:
    link = make_link(plant.state, cloud.url, cloud.authority)
    worker = await plant.start(definition("solder", hard_samples=hard, deadline_ms=5000), link=link)
    for brightness, decided in ((0.98, "edge"), (2 / 3, "cloud"), (0.02, "edge")):
        status, decision, _ = await plant.post("/v1/services/solder/inspect", picture(brightness))
        assert (status, decision["decided"]) == (200, decided), decision
        assert not decision.get("certified")
    assert len(cloud.received) == 1
    report = await worker.until(lambda: (r := worker.service("solder")) and r.cloud == 1 and r.edge == 2 and r)
    assert report.gate.startswith("CrossEntropy (threshold_cross_entropy 0.5): 33% of the last 3 samples")


def test_the_daemon_shows_a_filter_everywhere_it_shows_a_policy(tmp_path: Path) -> None:
    def text(name: str, policy: str) -> str:
        return f'name = "{name}"\nmodel = "brightness"\ndeadline_ms = 5000\n[hard_samples]\nmode = "filter"\n{policy}\n'

    make_package(tmp_path / "package")
    with Edged(tmp_path / "state") as edged:
        edged.add_model(tmp_path / "package")
        edged.add_service(text("helmets", 'filter = "IBT"\nanswer_model = "large"'))
        edged.add_service(text("alone", 'filter = "EdgeOnly"'))
        shown = {service.name: service.hard_samples for service in edged.status().services}
        assert shown == {"helmets": "filter", "alone": "off"}
        sentence = "IBT (threshold_img 0.5, threshold_box 0.5): no sample has come yet. It promises no risk"
        wait_for(lambda: (service := edged.service("helmets")) and service.report.gate.startswith(sentence))
        command = [sys.executable, "-m", "edged", "--state", str(edged.state)]
        for verb in (("status",), ("services", "list")):
            done = subprocess.run([*command, *verb], capture_output=True, text=True, timeout=60, check=True)
            assert sentence in done.stdout and "EdgeOnly: every sample is answered here" in done.stdout
        doctor = subprocess.run([*command, "doctor"], capture_output=True, text=True, timeout=60)
        assert "but helmets would ask one about hard samples" in doctor.stdout
        with urllib.request.urlopen(f"http://{edged.status().addresses.page}/", timeout=10) as page:
            assert sentence in page.read().decode()
        done = edged.client.post("/services/helmets/recalibrate", Done)
        assert done.text == "The service helmets forgets what its audits said; its filter stays as it is."
        with pytest.raises(ApiError, match="asks nobody"):
            edged.client.post("/services/alone/recalibrate", Done)
