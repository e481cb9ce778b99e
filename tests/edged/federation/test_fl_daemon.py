"""A whole device: `edged run` joins a cloudd, finds a job of its service, takes part, and learning gets the model."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from fl_hall import Hall, ended, start

from cloudd.cli.main import main as cloudd
from edged.api import JoinBody, JoinReply
from edged.federation.bodies import AuditReply, FederationState
from edged.status.state import ServiceState
from tests.support.cloud import Cloud
from tests.support.edged import Edged, wait_for

SERVICE = 'name = "solder"\nmodel = "small@1"\nmay_leave = "nothing"\n[samples]\nkeep = "all"\n[learning]\n'


async def test_a_device_learns_with_others_from_joining_to_the_trial(tmp_path: Path) -> None:
    hall = Hall(tmp_path, 3)
    state = hall.edges[0].state
    (state / "edged.toml").write_text(
        "[federation]\nenabled = true\nmin_cohort = 3\nmin_samples = 10\n"
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
        job = hall.begin(cloud, "whole", True, rounds=1)
        others = [start(one.order(cloud.url, job, hall.plants)) for one in hall.edges[1:]]
        for child in others:
            stack.callback(child.kill)

        def over() -> FederationState | None:
            found = edged.client.get("/federation", FederationState)
            return found if any(view.note.stage in ("done", "stopped", "failed") for view in found.jobs) else None

        found = await asyncio.to_thread(wait_for, over, 100.0, 0.3)
        (view,) = found.jobs
        assert view.note.stage == "done", view
        assert (view.note.version, view.note.contributed) == (1, 1)
        assert "small.solder@1-1" in view.note.text
        for child in others:
            assert (await asyncio.to_thread(ended, child))[0] == 0
        audit = edged.client.get("/federation/audit", AuditReply)
        assert (audit.count, audit.wrong) == (1, None)
        assert [one.note.job for one in edged.status().federation] == [job]
