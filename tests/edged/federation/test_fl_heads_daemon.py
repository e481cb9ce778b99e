"""A whole device and a head: somebody agrees on the page, learning gets the model, the device takes its sums out."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from pathlib import Path

import pytest
from fl_hall import ended, start
from fl_head_hall import HeadHall

from cloudd.cli.main import main as cloudd
from edged.api import JoinBody, JoinReply
from edged.cli.main import main
from edged.federation.bodies import FederationState
from edged.federation.notes import JobView
from edged.status.state import ServiceState
from tests.support.cloud import Cloud
from tests.support.edged import Edged, wait_for

SERVICE = 'name = "solder"\nmodel = "small@1"\nmay_leave = "nothing"\n[samples]\nkeep = "all"\n[learning]\n'


def press(edged: Edged, path: str) -> bytes:
    """A button of the page."""
    host, _, port = edged.status().addresses.page.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    token = (edged.state / "page-token").read_text().strip()
    try:
        connection.request("POST", path, b"", {"Authorization": f"Bearer {token}"})
        return connection.getresponse().read()
    finally:
        connection.close()


async def stage(edged: Edged, job: str, *stages: str) -> JobView:
    """The job, once it is in one of these stages."""

    def look() -> JobView | None:
        jobs = edged.client.get("/federation", FederationState).jobs
        return next((one for one in jobs if one.note.job == job and (one.note.stage in stages or one.waits)), None)

    return await asyncio.to_thread(wait_for, look, 150.0, 0.3)


async def test_a_device_agrees_to_a_head_and_leaves_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hall = HeadHall(tmp_path, 3)
    state = hall.edges[0].state
    (state / "edged.toml").write_text(
        "[federation]\nenabled = true\nask = true\nmin_cohort = 3\nmin_samples = 10\n"
        f'[federation.plants]\nnorth = "{hall.plant.public}"\n'
    )
    with Cloud(tmp_path / "cloudd") as cloud, contextlib.ExitStack() as stack:
        assert cloudd(["models", "add", str(hall.package.root), "--state", str(cloud.state)]) == 0
        for one in hall.edges[1:]:
            assert (await one.device.enroll(cloud, cloud.invite())).status == 200
        edged = stack.enter_context(Edged(state))
        body = JoinBody(token=cloud.admin.post("/invites", {})["token"], url=cloud.url)
        await asyncio.to_thread(edged.client.post, "/join", JoinReply, body, 60.0)
        service = await asyncio.to_thread(edged.client.post, "/services?wait_s=90", ServiceState, SERVICE, 120.0)
        assert service.report.state == "ready", service

        async def others(job: str) -> None:
            children = [start(one.order(cloud.url, job, hall.plants)) for one in hall.edges[1:]]
            for child in children:
                stack.callback(child.kill)
            for child in children:
                assert (await asyncio.to_thread(ended, child, 200.0))[0] == 0

        first = hall.head(cloud, "void-1", new_labels=["void"])
        assert (await stage(edged, first, "never")).waits
        assert b"takes part in the job" in await asyncio.to_thread(press, edged, f"/api/federation/{first}/agree")
        await others(first)
        view = await stage(edged, first, "done", "stopped", "failed")
        assert view.note.stage == "done" and "small.solder@1-1" in view.note.text, view

        assert await asyncio.to_thread(main, ["--state", str(state), "fl", "leave", "solder", "--reason", "we go"]) == 0
        assert "this device takes its sums out" in capsys.readouterr().out
        second = hall.head(cloud, "void-2", continues="void-1")
        assert (await stage(edged, second, "never")).waits
        assert await asyncio.to_thread(main, ["--state", str(state), "fl", "agree", second[:8]]) == 0
        await others(second)
        view = await stage(edged, second, "done", "stopped", "failed")
        assert view.note.text == "nothing of this device is in the head any more", view
        assert await asyncio.to_thread(main, ["--state", str(state), "fl", "status"]) == 0
        assert "have nothing in the heads of solder: we go" in capsys.readouterr().out
        stayed = [one.in_totals(second) for one in hall.edges[1:]]
        assert (hall.edges[1].model(second) == sum(stayed)).all()
