"""Real processes on loopback: an upper cloudd, two sites with a cloudd, a leader and devices each, mutual TLS.

Real pictures and real training. Devices, both leaders (one of them a whole daemon) and a site's cloudd are killed on
the way.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from fl_hall import LOCAL, Edge, ended, start

from cloudd.cli.main import main as cloudd
from edged.api import JoinBody, JoinReply
from edged.cli.main import main as edged
from edged.federation.bodies import FederationState
from edged.federation.order import FederationOrder
from edged.federation.upward import Upward
from edgekit.packages import Package
from tests.support.cloud import Cloud, FakeDevice
from tests.support.edged import Edged, wait_for
from tests.support.federation import Plant, definition, small_package

ROUNDS = 2


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return small_package(tmp_path_factory.mktemp("model") / "small")


class Leader:
    """A device of a site that has joined the upper cloudd as well. It has no pictures."""

    def __init__(self, root: Path, edge: Edge) -> None:
        self.state, self.edge = root, edge
        self.device = FakeDevice(root / "identity", "leader")

    async def join(self, site: Cloud, upper: Cloud) -> None:
        assert (await self.device.enroll(site, site.invite())).status == 200
        self.upward = Upward(self.state, upper.url)
        assert await self.upward.against() != ""
        done = await self.upward.joined(str(upper.admin.post("/invites", {})["token"]))
        assert self.device.id in done.text and await self.upward.against() == ""
        assert not await self.upward.renewed()
        before = await self.upward.identity()
        later = Upward(self.state, upper.url, wall=lambda: time.time() + 25 * 86_400)
        assert await later.renewed() and not await later.renewed(), "once, and not again for an hour"
        after = await later.identity()
        assert before is not None and after is not None and after.directory != before.directory

    async def order(self, site: Cloud, job: str, plants: dict[str, str]) -> FederationOrder:
        identity = self.device.store.current()
        assert identity is not None
        return await self.upward.leading(
            FederationOrder(
                state_dir=str(self.state),
                device_id=self.device.id,
                identity=str(identity.directory),
                url=site.url,
                job=job,
                service="",
                base="",
                policy=self.edge.policy(plants),
            )
        )

    def run(self, upper: Cloud, plants: dict[str, str]) -> Edged:
        """All of it: a daemon that has nothing to do but to lead."""
        listed = "".join(f'{owner} = "{key}"\n' for owner, key in plants.items())
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "edged.toml").write_text(
            # As the other devices: a kill may make a round void after this one has masked (docs/federated.md).
            f"[federation]\nenabled = true\nmin_cohort = 3\nrepeats = 60\n"
            f'upper = "{upper.url}"\n[federation.plants]\n{listed}'
        )
        return Edged(self.state)


def stage(daemon: Edged) -> str:
    """Of the only job of a leader."""
    return "".join(view.note.stage for view in daemon.client.get("/federation", FederationState).jobs)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def revived(cloud: Cloud, *flags: str) -> Cloud:
    """The same cloudd again, once it has killed itself."""
    assert cloud.process.wait(90) == -signal.SIGKILL
    return Cloud(cloud.state, *flags)


def begin(cloud: Cloud, root: Path, package: Package, plant: Plant, text: str) -> str:
    """As people do; the id of the job."""
    root.mkdir(exist_ok=True)
    plant.roster(root / "x")
    (root / "job.toml").write_text(text)
    state = ["--state", str(cloud.state)]
    assert cloudd(["models", "add", str(package.root), *state]) == 0
    assert cloudd(["fl", "start", str(root / "job.toml"), *state]) == 0
    (job,) = cloud.admin.get("/federation/jobs")
    return str(job["id"])


async def test_two_sites_and_a_lone_device_learn_one_model_whoever_is_killed(tmp_path: Path, package: Package) -> None:
    async with AsyncExitStack() as stack:
        upper, south = (stack.enter_context(Cloud(tmp_path / name)) for name in ("upper", "south"))
        fixed = "--listen", f"127.0.0.1:{free_port()}"
        sites = [stack.enter_context(Cloud(tmp_path / "north", *fixed, crash_at="federation.site.collected")), south]
        edges = [Edge(tmp_path / "edges", place, package) for place in range(7)]
        below, lone = (edges[:3], edges[3:6]), edges[6]
        leaders = [Leader(tmp_path / f"leader-{i}", edges[0]) for i in range(2)]
        group = Plant(0, "group")
        plants = {group.owner: group.public}
        await leaders[0].join(sites[0], upper)
        daemon = stack.enter_context(leaders[1].run(upper, plants))
        body = JoinBody(token=south.admin.post("/invites", {})["token"], url=south.url)
        await asyncio.to_thread(daemon.client.post, "/join", JoinReply, body, 60.0)
        token = str(upper.admin.post("/invites", {})["token"])
        assert await asyncio.to_thread(edged, ["fl", "join", token, "--state", str(daemon.state)]) == 0
        for cloud, members in zip(sites, below, strict=True):
            for one in members:
                assert (await one.device.enroll(cloud, cloud.invite())).status == 200
        assert (await lone.device.enroll(upper, upper.invite())).status == 200

        group.devices = [*(one.device.store.key for one in leaders), lone.device.store.key]
        text = definition(group, least=3, rounds=ROUNDS, tries=60, name="group", evaluate_every=ROUNDS)
        head, plan = text.split("[plan", 1)
        above = begin(upper, tmp_path / "job", package, group, f"{head}{LOCAL}[plan{plan}")
        file = tmp_path / "job" / "group.job"
        assert cloudd(["fl", "export", "group", str(file), "--state", str(upper.state)]) == 0

        orders = [lone.order(upper.url, above, plants)]
        jobs = []
        for place, (cloud, leader, members) in enumerate(zip(sites, leaders, below, strict=True)):
            plant = Plant(0, f"plant-{place}")
            plant.devices = [one.device.store.key for one in members]
            text = definition(plant, "-", tries=60, name=f"site-{place}", upper=str(file), leader=leader.device.id)
            text = "".join(f"{line}\n" for line in text.splitlines() if line != "-" and not line.startswith("rounds"))
            jobs.append(begin(cloud, tmp_path / f"site-{place}", package, plant, text))
            orders += [one.order(cloud.url, jobs[-1], {plant.owner: plant.public}) for one in members]
        orders.append(await leaders[0].order(sites[0], jobs[0], plants))
        kills = ["", "fl.step:2", "", "fl.vote", "", "", "", "fl.uploaded"]
        children: list[subprocess.Popen[bytes]] = []
        for order, kill in zip(orders, kills, strict=True):
            children.append(start(order, kill))
            stack.callback(children[-1].kill)
        reviving = asyncio.create_task(asyncio.to_thread(revived, sites[0], *fixed))
        await asyncio.to_thread(wait_for, lambda: stage(daemon) == "round", 60.0, 0.1)
        daemon.kill()
        daemon = stack.enter_context(Edged(daemon.state))
        for place, kill in enumerate(kills):
            if kill:
                assert (await asyncio.to_thread(ended, children[place]))[0] == -signal.SIGKILL, kill
                children[place] = start(orders[place])
                stack.callback(children[place].kill)
        for child in children:
            status, _, log = await asyncio.to_thread(ended, child)
            assert status == 0, log
        sites[0] = stack.enter_context(await reviving)
        await asyncio.to_thread(wait_for, lambda: stage(daemon) == "done", 60.0, 0.3)

        model = lone.model(above)
        notes = [lone.note(above)]
        for job, members in zip(jobs, below, strict=True):
            for one in members:
                np.testing.assert_array_equal(one.model(job), model)
                notes.append(one.note(job))
        assert {(one.stage, one.version, one.contributed) for one in notes} == {("judging", ROUNDS, ROUNDS)}
        done = upper.admin.get(f"/federation/jobs/{above}")
        outcomes = [one["outcome"] for one in done["rounds"]]
        assert [one for one in outcomes if one != "void"] == ["summed"] * 3, "void where a killed one came back late"
        (figures,) = [one["figures"] for one in done["rounds"] if one["figures"]]
        assert figures["devices"] == 3 and figures["samples"] >= 7
        for place, cloud in enumerate(sites):
            told = cloud.admin.get(f"/federation/jobs/{jobs[place]}")
            assert told["job"]["upper"] == above and told["job"]["version"] == ROUNDS
            outcomes = [one["outcome"] for one in told["rounds"]]
            assert [one for one in outcomes if one != "void"] == ["summed"] * 3
